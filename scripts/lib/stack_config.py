"""A stack's configuration: Pulumi.yaml's defaults, overlaid by the stack's file, overlaid by --set."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from scripts.lib.errors import BadInputError


@dataclass(frozen=True, kw_only=True)
class StackConfig:
    """`values` by full key (`elastic-vllm:model`), as plain YAML values; `secrets`: keys whose values came from files.

    Pulumi does not treat a value in plain text as a secret either, even if the project marks its key as one.
    """

    project: str
    stack: str
    values: dict[str, Any]
    secrets: frozenset[str]

    def get(self, key: str) -> Any:
        """Return the value of one of the project's own keys, or None if it is unset."""
        return self.values.get(f"{self.project}:{key}")

    def for_pulumi(self) -> dict[str, str]:
        """Return the configuration as the engine passes it to a program: strings unchanged, everything else as JSON."""
        return {k: v if isinstance(v, str) else json.dumps(v) for k, v in self.values.items()}


def read_config(directory: Path, stack: str, sets: list[str], set_files: list[str]) -> StackConfig:
    """Read the stack's configuration; `sets` are `key=value`, `set_files` `key=PATH`.

    Raises BadInputError for a missing stack, unreadable YAML and a value that only the Pulumi CLI can decrypt.
    """
    project_file = directory / "Pulumi.yaml"
    project_settings = _read_yaml(project_file)
    project = str(project_settings["name"])
    values: dict[str, Any] = {}
    secrets: set[str] = set()
    for key, entry in (project_settings.get("config") or {}).items():
        declared = entry if isinstance(entry, dict) else {"value": entry}
        value = declared.get("value", declared.get("default"))
        if value is not None:
            values[_full(project, key)] = value

    stack_settings = _read_stack(directory, project_settings, stack)
    for key, value in (stack_settings.get("config") or {}).items():
        values[_full(project, key)] = value

    for key, text in (_split(each, "--set") for each in sets):
        values[_full(project, key)] = _typed(text)
    for key, path in (_split(each, "--set-file") for each in set_files):
        values[_full(project, key)] = _content(key, path)
        secrets.add(_full(project, key))

    encrypted = [key for key, value in values.items() if isinstance(value, dict) and "secure" in value]
    if encrypted:
        key = encrypted[0].removeprefix(f"{project}:")
        raise BadInputError(
            f"{', '.join(encrypted)}: encrypted in the file of stack {stack}, which only the Pulumi CLI can decrypt",
            f"give the value from a file: --set-file {key}=PATH",
        )
    return StackConfig(project=project, stack=stack, values=values, secrets=frozenset(secrets))


def _read_stack(directory: Path, project_settings: dict[str, Any], stack: str) -> dict[str, Any]:
    stacks = directory / str(project_settings.get("stackConfigDir") or ".")
    path = stacks / f"Pulumi.{stack}.yaml"
    if not path.exists():
        there_are = sorted(p.name.removeprefix("Pulumi.").removesuffix(".yaml") for p in stacks.glob("Pulumi.*.yaml"))
        raise BadInputError(
            f"there is no stack {stack}: {path} does not exist", f"use one of: {', '.join(there_are) or 'none yet'}"
        )
    return _read_yaml(path)


def _read_yaml(path: Path) -> dict[str, Any]:
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise BadInputError(f"{path} does not exist", "run this in the repository") from None
    except yaml.YAMLError as error:
        raise BadInputError(f"{path} is not valid YAML: {error}", "correct it") from error
    return content if isinstance(content, dict) else {}


def _full(project: str, key: str) -> str:
    return key if ":" in key else f"{project}:{key}"


def _split(text: str, option: str) -> tuple[str, str]:
    key, separator, value = text.partition("=")
    if not separator or not key:
        form = f"{option} KEY={'PATH' if option == '--set-file' else 'VALUE'}"
        raise BadInputError(f"{option} {text}: there is no value", f"write {form}")
    return key.strip(), value


def _typed(text: str) -> Any:
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError:
        return text
    # Pulumi knows no null and no dates: what YAML makes of "" and 2026-01-01 stays the text that was given.
    return value if isinstance(value, bool | int | float | list | dict) else text


def _content(key: str, path: str) -> str:
    try:
        return Path(path).expanduser().read_text(encoding="utf-8").strip()
    except OSError as error:
        raise BadInputError(f"--set-file {key}={path}: {error.strerror or error}", "give a readable file") from error

"""A stack's settings for scripts that run beside Pulumi: its file over Pulumi.yaml's defaults, checked as a whole."""

from collections.abc import Iterable, Mapping

import pulumi
import yaml

from components.settings.problems import ENCRYPTED, SECRETS
from components.settings.stack import PROJECT_DIRECTORY, Settings, SettingsError, parse_settings
from scripts.lib.errors import BadInputError
from scripts.lib.stack_config import read_config


def load(stack: str, overrides: Mapping[str, str]) -> Settings:
    """Return the checked settings of `stack`, with `overrides` (setting -> text) over its file's.

    Raises BadInputError for wrong settings and for a missing stack.
    """
    encrypted = _encrypted(stack)
    given = [f"{key}={value}" for key, value in {**dict.fromkeys(encrypted, ENCRYPTED), **overrides}.items()]
    config = read_config(PROJECT_DIRECTORY, stack, given, [])
    prefix = f"{config.project}:"
    values = {key.removeprefix(prefix): text for key, text in config.for_pulumi().items() if key.startswith(prefix)}
    secrets = {name: pulumi.Output.secret(values[name]) for name in SECRETS}
    try:
        return parse_settings(values, stack, secrets, plain=set(SECRETS) - {*map(_name, encrypted), *overrides})
    except SettingsError as error:
        raise BadInputError(str(error), f"correct what is wrong in stacks/Pulumi.{stack}.yaml") from error


def overrides(given: Iterable[str]) -> dict[str, str]:
    """Parse the values of `--set KEY=VALUE`, which may be repeated."""
    pairs = [text.partition("=") for text in given]
    wrong = [key for key, separator, _ in pairs if not separator or not key]
    if wrong:
        raise BadInputError(f"--set {wrong[0]}: there is no value", "write --set KEY=VALUE")
    return {key.strip(): value for key, _, value in pairs}


def _name(key: str) -> str:
    return key.rpartition(":")[2]


def _encrypted(stack: str) -> list[str]:
    """Return the keys of the stack's file whose values are `secure: ...`, or none if the file cannot be read."""
    try:
        content = yaml.safe_load((PROJECT_DIRECTORY / "stacks" / f"Pulumi.{stack}.yaml").read_text(encoding="utf-8"))
    except (OSError, yaml.YAMLError):  # read_config says what is wrong
        return []
    config = content.get("config") if isinstance(content, dict) else None
    return [key for key, value in (config or {}).items() if isinstance(value, dict) and "secure" in value]

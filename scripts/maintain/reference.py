"""`make docs`: write the references in docs/reference that follow from the program.

A unit test compares each of them with the program, so none can be stale.
"""

import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import typer
import yaml

ROOT = Path(__file__).resolve().parents[2]
REFERENCE = ROOT / "docs" / "reference"
HEADER = ("| setting | type | default | description |", "| --- | --- | --- | --- |")
app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None)


def settings() -> str:
    """Every setting in Pulumi.yaml, grouped by the section comments there."""
    project = (ROOT / "Pulumi.yaml").read_text()
    about = described()
    lines = [
        "# Settings",
        "",
        "Set a setting with `pulumi config set KEY VALUE`, or write it as `elastic-vllm:KEY` under `config` in",
        "`stacks/Pulumi.STACK.yaml`. All settings are checked together before anything is created. What happens to an",
        "endpoint that is up when you change one: [What a change does](changes.md).",
        "",
        "Generated from `Pulumi.yaml` by `make docs`.",
    ]
    for line in project.partition("\nconfig:\n")[2].splitlines():
        if section := re.fullmatch(r"  # --- (.+)", line):
            lines += ["", f"## {section[1]}", "", *HEADER]
        elif key := re.match(r"  (\w+):", line):
            lines.append(_setting(key[1], about[key[1]]))
    return "\n".join(lines) + "\n"


def described() -> Mapping[str, Mapping[str, Any]]:
    """Every setting, as Pulumi.yaml describes it."""
    found: Mapping[str, Mapping[str, Any]] = yaml.safe_load((ROOT / "Pulumi.yaml").read_text())["config"]
    return found


def _setting(name: str, about: Mapping[str, Any]) -> str:
    kind = f"list of {about['items']['type']}s" if about["type"] == "array" else about["type"]
    kind += ", secret" if about.get("secret") else ""
    return f"| `{name}` | {kind} | {_code(about.get('default'))} | {_cell(about['description'])} |"


def _code(default: Any) -> str:
    if default in (None, "", [], {}):
        return ""
    return f"`{str(default).lower() if isinstance(default, bool) else default}`"


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


DOCUMENTS: Mapping[str, Callable[[], str]] = {"settings.md": settings}


@app.command()
def main() -> None:
    """Write the generated references."""
    for name, made in DOCUMENTS.items():
        (REFERENCE / name).write_text(made())


if __name__ == "__main__":
    app()

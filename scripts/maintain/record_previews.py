"""Record what the real engine plans for each change of tests/golden/changes.yaml, into tests/golden/previews.yaml.

For maintainers, after a change of the program or of a provider's version. It needs the Pulumi CLI with its plugins
(docs/getting-started/server.md). It brings up the stacks `local` and `prod`, in a copy of the project with separate
state; `prod` with a stand-in for Google's API, as in a rehearsal. It skips rows for servers with GPUs, and rows that
start with something that does not exist: another network, a bastion, a reservation.
"""

import json
import subprocess
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import typer
import yaml
from rich.console import Console

from components.errors import UserError
from scripts.lab import pulumi_engine, simulated_vm
from scripts.lab.in_place_of_google import is_for_google, rehearsed, serving_hub
from scripts.lab.pulumi_engine import IncompleteError
from scripts.lib.stack_config import read_config

ROOT = Path(__file__).resolve().parents[2]
GOLDEN = ROOT / "tests" / "golden"
STACKS = ("local", "prod")
POSSIBLE = ("keys", "parked")
"""Settings that a row may start with."""
HEADER = """\
# What the real engine planned for the changes of changes.yaml on a stack that was up (maintain/record_previews.py).
# {versions}
"""
KINDS = {
    "create": "created",
    "update": "updated",
    "delete": "deleted",
    "replace": "replaced",
    "create-replacement": "replaced",
    "delete-replaced": "replaced",
}
app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None)
console = Console(highlight=False)


@app.command()
def main() -> None:
    """Bring the stacks up with the real engine, preview every change, and take them down again."""
    try:
        installation = pulumi_engine.find("gcp")
    except IncompleteError as error:
        console.print(
            f"error: the real Pulumi can't be used here: missing is {error}\n  fix: docs/getting-started/server.md"
        )
        raise typer.Exit(1) from error
    table = [row for row in yaml.safe_load((GOLDEN / "changes.yaml").read_text()) if set(row["from"]) <= {*POSSIBLE}]
    recorded = []
    for stack in STACKS:
        subprocess.run([str(ROOT / "scripts" / "rehearse"), "setup", "--stack", stack], check=True)
        rows = [row for row in table if row["base"] == stack]
        with tempfile.TemporaryDirectory(prefix="elastic-vllm-previews-") as scratch:
            recorded += _record(Project(pulumi_engine.Stack(installation, ROOT, stack, Path(scratch))), rows)
    versions = f"engine {installation.version}; SDKs: see requirements.txt"
    text = yaml.safe_dump(recorded, sort_keys=False, default_flow_style=None, width=120)
    (GOLDEN / "previews.yaml").write_text(HEADER.format(versions=versions) + text)
    console.print(f"recorded {len(recorded)} previews")


def _record(project: "Project", rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    recorded = []
    stack = project.stack
    with stack.google(simulated=is_for_google(project.base)), serving_hub(project.base):
        try:
            while rows:
                # Rows with the same start are previewed together: each start is brought up once.
                start = rows[0]["from"]
                project.configure(start)
                console.print(f"{stack.name}: up with {start or 'the stack as it is'}")
                stack.ask("up", "--yes", "--skip-preview", "--stack", stack.name)
                previews = [_preview(project, row) for row in rows if row["from"] == start]
                recorded += [preview for preview in previews if preview]
                rows = [row for row in rows if row["from"] != start]
        finally:
            project.configure({})
            stack.ask("destroy", "--yes", "--skip-preview", "--stack", stack.name)
            simulated_vm.disk_file(f"elastic-vllm-{stack.name}-weights").unlink(missing_ok=True)
    return recorded


def _preview(project: "Project", row: dict[str, Any]) -> dict[str, Any] | None:
    """Return the plan, or None, after printing Pulumi's message, if it has no plan."""
    stack = project.stack
    console.print(f"{stack.name}: preview with {row['to']}")
    project.configure(row["from"] | row["to"])
    try:
        steps = json.loads(stack.ask("preview", "--json", "--stack", stack.name))["steps"]
    except UserError as error:
        console.print(error.cause)
        return None
    found: dict[str, set[str]] = {kind: set() for kind in ("created", "replaced", "updated", "deleted")}
    for step in steps:
        *_, kind, name = step["urn"].split("::")
        if step["op"] in KINDS and not kind.split("$")[-1].startswith(("elastic-vllm:", "pulumi:pulumi:")):
            found[KINDS[step["op"]]].add(name)
    return {
        "setting": row["setting"],
        "base": stack.name,
        "from": row["from"],
        "to": row["to"],
        **{kind: sorted(names - (found["replaced"] if kind != "replaced" else set())) for kind, names in found.items()},
    }


class Project:
    """One stack under the real engine, with changing settings."""

    def __init__(self, stack: pulumi_engine.Stack) -> None:
        """Read the stack's rehearsed settings, and make the other key that a row may name."""
        self.stack = stack
        self.another_key = stack.directory.parent / "another"
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", self.another_key], check=True)
        config = read_config(ROOT, stack.name, [], [])
        self.base = rehearsed(config, set()) if is_for_google(config) else config

    def configure(self, settings: dict[str, Any]) -> None:
        """Configure the stack as in a rehearsal, with these settings over it."""
        given = {
            f"{self.base.project}:{key}": str(self.another_key) if value == "ANOTHER KEY" else value
            for key, value in settings.items()
        }
        self.stack.configure(replace(self.base, values={**self.base.values, **given}))


if __name__ == "__main__":
    app()

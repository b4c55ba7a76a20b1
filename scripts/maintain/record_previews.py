"""Record what the real engine plans for each change of tests/golden/changes.yaml, into tests/golden/previews.yaml.

For maintainers, after a change of the program or of a provider's version. It needs the Pulumi CLI with its plugins
(docs/getting-started/server.md). It brings the stacks `local` and `prod` up meanwhile, in a copy of the project with
separate state; `prod` in a stand-in for Google's API, as it is rehearsed. Left out are rows for servers with GPUs, and
those that begin with something that does not exist: another network, a bastion, a reservation.
"""

import json
import os
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import Any

import typer
import yaml
from rich.console import Console

from scripts.lab import compute_api, simulated_vm
from scripts.lab.in_place_of_google import is_for_google, rehearsed, serving_hub
from scripts.lib.stack_config import read_config

ROOT = Path(__file__).resolve().parents[2]
GOLDEN = ROOT / "tests" / "golden"
STACKS = ("local", "prod")
POSSIBLE = ("keys", "parked")
"""What a row may begin with."""
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
    if not shutil.which("pulumi"):
        console.print("record_previews: no pulumi on PATH\n  fix: install what docs/getting-started/server.md requires")
        raise typer.Exit(1)
    table = [row for row in yaml.safe_load((GOLDEN / "changes.yaml").read_text()) if set(row["from"]) <= {*POSSIBLE}]
    recorded = []
    for stack in STACKS:
        subprocess.run([str(ROOT / "scripts" / "rehearse"), "setup", "--stack", stack], check=True)
        rows = [row for row in table if row["base"] == stack]
        with tempfile.TemporaryDirectory(prefix="elastic-vllm-previews-") as scratch:
            recorded += _record(Project(stack, Path(scratch)), rows)
    versions = f"engine {_version()}; SDKs: see requirements.txt"
    text = yaml.safe_dump(recorded, sort_keys=False, default_flow_style=None, width=120)
    (GOLDEN / "previews.yaml").write_text(HEADER.format(versions=versions) + text)
    console.print(f"recorded {len(recorded)} previews")


def _version() -> str:
    return subprocess.run(["pulumi", "version"], capture_output=True, text=True, check=True).stdout.strip()


def _record(project: "Project", rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    recorded = []
    with compute_api.running(project.stack) as compute, serving_hub(project.base):
        project.environment["GOOGLE_COMPUTE_CUSTOM_ENDPOINT"] = compute.endpoint
        project.pulumi("stack", "init", project.stack)
        try:
            while rows:
                # Rows that start alike are previewed together: each start is brought up once.
                start = rows[0]["from"]
                project.configure(start)
                console.print(f"{project.stack}: up with {start or 'the stack as it is'}")
                project.pulumi("up", "--yes", "--skip-preview")
                previews = [_preview(project, row) for row in rows if row["from"] == start]
                recorded += [preview for preview in previews if preview]
                rows = [row for row in rows if row["from"] != start]
        finally:
            project.configure({})
            project.pulumi("destroy", "--yes", "--skip-preview")
            simulated_vm.disk_file(f"elastic-vllm-{project.stack}-weights").unlink(missing_ok=True)
    return recorded


def _preview(project: "Project", row: dict[str, Any]) -> dict[str, Any] | None:
    """What is planned; None, with what Pulumi said, where it plans nothing."""
    console.print(f"{project.stack}: preview with {row['to']}")
    project.configure(row["from"] | row["to"])
    try:
        steps = json.loads(project.pulumi("preview", "--json"))["steps"]
    except typer.Exit:
        return None
    found: dict[str, set[str]] = {kind: set() for kind in ("created", "replaced", "updated", "deleted")}
    for step in steps:
        *_, kind, name = step["urn"].split("::")
        if step["op"] in KINDS and not kind.split("$")[-1].startswith(("elastic-vllm:", "pulumi:pulumi:")):
            found[KINDS[step["op"]]].add(name)
    return {
        "setting": row["setting"],
        "base": project.stack,
        "from": row["from"],
        "to": row["to"],
        **{kind: sorted(names - (found["replaced"] if kind != "replaced" else set())) for kind, names in found.items()},
    }


class Project:
    """A copy of the project with one stack, and a state of its own."""

    def __init__(self, stack: str, scratch: Path) -> None:
        """Make it in `scratch`."""
        self.stack = stack
        self.directory = scratch / "project"
        self.directory.mkdir()
        (scratch / "state").mkdir()
        for name in ("components", "stacks"):
            shutil.copytree(ROOT / name, self.directory / name)
        for name in ("Pulumi.yaml", "__main__.py"):
            shutil.copy(ROOT / name, self.directory / name)
        (self.directory / ".venv").symlink_to(ROOT / ".venv")
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", self.directory / "another"], check=True)
        config = read_config(ROOT, stack, [], [])
        self.base = rehearsed(config, set()) if is_for_google(config) else config
        self.environment = {
            **os.environ,
            "PULUMI_BACKEND_URL": f"file://{scratch / 'state'}",
            "PULUMI_CONFIG_PASSPHRASE": "previews",
            "PULUMI_SKIP_UPDATE_CHECK": "true",
            # Nothing of Google's own is asked: the provider is content with any token, and a proxy that refuses is
            # asked once, where a name that can't be resolved would be tried for minutes.
            "GOOGLE_OAUTH_ACCESS_TOKEN": "none",
            "PULUMI_GCP_SKIP_REGION_VALIDATION": "true",
            "HTTPS_PROXY": "http://127.0.0.1:1",
            "NO_PROXY": "127.0.0.1,localhost",
        }

    def configure(self, settings: dict[str, Any]) -> None:
        """The stack's file as it is rehearsed, with these settings over it."""
        file = self.directory / "stacks" / f"Pulumi.{self.stack}.yaml"
        salt = yaml.safe_load(file.read_text()).get("encryptionsalt")
        given = {
            f"elastic-vllm:{key}": str(self.directory / "another") if value == "ANOTHER KEY" else value
            for key, value in settings.items()
        }
        document = {"config": {**self.base.values, **given}}
        file.write_text(yaml.safe_dump(document | ({"encryptionsalt": salt} if salt else {})))

    def pulumi(self, *arguments: str) -> str:
        """What a command of the CLI prints. Ends the program with what it said if it fails."""
        command = ["pulumi", *arguments, "--non-interactive"]
        command += ["--stack", self.stack] if arguments[0] != "stack" else []
        done = subprocess.run(
            command, cwd=self.directory, env=self.environment, capture_output=True, text=True, check=False
        )
        if done.returncode:
            console.print(f"{' '.join(command)}:\n{done.stdout[-3000:]}{done.stderr[-3000:]}")
            raise typer.Exit(1)
        return done.stdout


if __name__ == "__main__":
    app()

"""Record what the real engine plans for each change of tests/golden/changes.yaml, into tests/golden/previews.yaml.

For maintainers, after a change of the program or of a provider's version: it needs the Pulumi CLI with the plugins
that README names, and brings the stack `local` up for the while, in a copy of the project with a state of its own.
Rows for servers with GPUs are left out: they need one.
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

ROOT = Path(__file__).resolve().parent.parent
GOLDEN = ROOT / "tests" / "golden"
STACK = "local"
HEADER = """\
# What the real engine planned for the changes of changes.yaml on a stack that was up (scripts/record_previews.py).
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
app = typer.Typer(add_completion=False)
console = Console(highlight=False)


@app.command()
def main() -> None:
    """Bring the stack local up with the real engine, preview every change, and take it down again."""
    if not shutil.which("pulumi"):
        console.print("record_previews: no pulumi on PATH\n  fix: install the Pulumi CLI and the plugins of README.md")
        raise typer.Exit(1)
    subprocess.run([str(ROOT / "scripts" / "rehearse"), "setup", "--stack", STACK], check=True)
    rows = [row for row in yaml.safe_load((GOLDEN / "changes.yaml").read_text()) if row["base"] == STACK]
    with tempfile.TemporaryDirectory(prefix="elastic-vllm-previews-") as scratch:
        project = _copy_project(Path(scratch))
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(project / "another")], check=True)
        _pulumi(project, "stack", "init", STACK)
        try:
            recorded = []
            while rows:
                # Rows that start alike are previewed together: each start is brought up once.
                start = rows[0]["from"]
                _configure(project, start)
                console.print(f"up with {start or 'the stack as it is'}")
                _pulumi(project, "up", "--yes", "--skip-preview")
                recorded += [_preview(project, row) for row in rows if row["from"] == start]
                rows = [row for row in rows if row["from"] != start]
        finally:
            _pulumi(project, "destroy", "--yes", "--skip-preview")
    versions = f"engine {_pulumi(ROOT, 'version').strip()}; SDKs: see requirements.txt"
    text = yaml.safe_dump(recorded, sort_keys=False, default_flow_style=None, width=120)
    (GOLDEN / "previews.yaml").write_text(HEADER.format(versions=versions) + text)
    console.print(f"recorded {len(recorded)} previews")


def _copy_project(scratch: Path) -> Path:
    project = scratch / "project"
    project.mkdir()
    (scratch / "state").mkdir()
    for name in ("components", "stacks"):
        shutil.copytree(ROOT / name, project / name)
    for name in ("Pulumi.yaml", "__main__.py"):
        shutil.copy(ROOT / name, project / name)
    (project / ".venv").symlink_to(ROOT / ".venv")
    return project


def _configure(project: Path, settings: dict[str, Any]) -> None:
    """The stack's file as it is in the repository, with these settings over it."""
    document = yaml.safe_load((ROOT / "stacks" / f"Pulumi.{STACK}.yaml").read_text())
    file = project / "stacks" / f"Pulumi.{STACK}.yaml"
    salt = yaml.safe_load(file.read_text()).get("encryptionsalt")
    document |= {"encryptionsalt": salt} if salt else {}
    document["config"] |= {
        f"elastic-vllm:{key}": str(project / "another") if value == "ANOTHER KEY" else value
        for key, value in settings.items()
    }
    file.write_text(yaml.safe_dump(document))


def _preview(project: Path, row: dict[str, Any]) -> dict[str, Any]:
    console.print(f"preview with {row['to']}")
    _configure(project, row["from"] | row["to"])
    steps = json.loads(_pulumi(project, "preview", "--json"))["steps"]
    found: dict[str, set[str]] = {kind: set() for kind in ("created", "replaced", "updated", "deleted")}
    for step in steps:
        *_, kind, name = step["urn"].split("::")
        if step["op"] in KINDS and not kind.split("$")[-1].startswith(("elastic-vllm:", "pulumi:pulumi:")):
            found[KINDS[step["op"]]].add(name)
    _configure(project, row["from"])
    return {"setting": row["setting"], "to": row["to"], **{kind: sorted(names) for kind, names in found.items()}}


def _pulumi(project: Path, *arguments: str) -> str:
    environment = {
        **os.environ,
        "PULUMI_BACKEND_URL": f"file://{project.parent / 'state'}",
        "PULUMI_CONFIG_PASSPHRASE": "previews",
        "PULUMI_SKIP_UPDATE_CHECK": "true",
    }
    command = ["pulumi", *arguments, *(["--non-interactive"] if arguments[0] != "version" else [])]
    command += ["--stack", STACK] if arguments[0] in {"up", "preview", "destroy"} else []
    done = subprocess.run(command, cwd=project, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        console.print(f"{' '.join(command)}:\n{done.stdout[-3000:]}{done.stderr[-3000:]}")
        raise typer.Exit(1)
    return done.stdout


if __name__ == "__main__":
    app()

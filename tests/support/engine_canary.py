"""The canaries under the real engine: preview, up, diff and debug log show none, and its state only encrypted ones.

From -v=9 on, the engine itself logs everything that it passes to providers, secrets in clear text, for any program
(docs/guides/state-and-secrets.md): of that log, all other lines are searched, and the whole log at -v=8.

It needs `pulumi` with its plugins on PATH, so no test can run it: `make prove` does where it is installed.
"""

import re
import subprocess
import sys
import tempfile
from pathlib import Path

import yaml

from components.settings.problems import SECRETS
from scripts.maintain.record_previews import Project
from tests.integration.conftest import rehearse
from tests.integration.test_canary import new_canaries, stage
from tests.support.canaries import forms

STACK = "local"
LOGGED = ("up", "--yes", "--skip-preview", "--logtostderr", "--logflow", "--debug")
PASSED_TO_A_PROVIDER = re.compile(rb'"msg":"(Unm|M)arshaling property for RPC\[')


def main() -> int:
    """Run the search; the exit status is 1 if a canary shows."""
    done = rehearse("setup")
    if done.returncode:
        raise SystemExit(done.stderr)
    try:
        return _search()
    finally:
        rehearse("down")


def _search() -> int:
    """Run the search on a machine that is set up."""
    canaries = new_canaries()
    with tempfile.TemporaryDirectory(prefix="elastic-vllm-engine-") as scratch:
        project = Project(STACK, Path(scratch))
        weights = Path(scratch) / "weights"
        weights.mkdir()
        with stage(canaries, weights) as stand_ins:
            file = project.directory / "stacks" / f"Pulumi.{STACK}.yaml"
            settings = {f"elastic-vllm:{key}": value for key, value in stand_ins.settings.items()}
            file.write_text(yaml.safe_dump({"config": settings}))
            project.pulumi("stack", "init", STACK)
            for name in SECRETS:
                command = ["pulumi", "config", "set", "--secret", name, "--stack", STACK, "--non-interactive"]
                subprocess.run(
                    command, cwd=project.directory, env=project.environment, input=canaries[name], text=True, check=True
                )
            texts = {}
            try:
                for title, arguments in {
                    "preview": ["preview", "--diff"],
                    "up": ["up", "--yes", "--skip-preview", "--diff"],
                    "log of an up": [*LOGGED, "-v=8"],
                    "fuller log of an up": [*LOGGED, "-v=9"],
                    "preview of a change": ["preview", "--diff", "--config", "elastic-vllm:servedModelName=another"],
                    "preview as JSON": ["preview", "--json"],
                    "outputs": ["stack", "output", "--json"],
                    "exported state": ["stack", "export"],
                }.items():
                    print(f"engine: {title}", flush=True)
                    texts[title] = _output_of(project, arguments)
                lines = texts["fuller log of an up"].splitlines(keepends=True)
                texts["fuller log of an up"] = b"".join(line for line in lines if not PASSED_TO_A_PROVIDER.search(line))
                for path in (Path(scratch) / "state").rglob("*"):
                    if path.is_file():
                        texts[f"state: {path.name}"] = path.read_bytes()
                texts["stack file"] = file.read_bytes()
            finally:
                project.pulumi("destroy", "--yes", "--skip-preview")
    found = {
        (title, name)
        for title, text in texts.items()
        for name in SECRETS
        if any(form in text for form in forms(canaries[name]))
    }
    for title, name in sorted(found):
        print(f"engine: {name} shows in {title}")
    return 1 if found else 0


def _output_of(project: Project, arguments: list[str]) -> bytes:
    command = ["pulumi", *arguments, "--stack", STACK, "--non-interactive"]
    done = subprocess.run(command, cwd=project.directory, env=project.environment, capture_output=True, check=False)
    if done.returncode:
        output = f"{done.stdout.decode()}\n{done.stderr.decode()}"  # its secrets are canaries
        raise SystemExit(f"{' '.join(command)} failed ({done.returncode}):\n{output}")
    return done.stdout + done.stderr


if __name__ == "__main__":
    sys.exit(main())

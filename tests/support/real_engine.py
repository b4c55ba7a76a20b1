"""The program under the real Pulumi: a rehearsal on it, and canaries in every secret setting.

From -v=9 on, the engine itself logs everything that it passes to providers, secrets in clear text, for any program
(docs/guides/state-and-secrets.md): of that log, all other lines are searched, and the whole log at -v=8.

It needs the real Pulumi with its plugins, so no test can run it: `make prove` does where it is installed.
"""

import json
import re
import subprocess
import sys
import tempfile
from pathlib import Path

import yaml

from components.settings.problems import SECRETS
from scripts.lab import pulumi_engine
from scripts.lab.pulumi_engine import IncompleteError, Installation
from scripts.lib.stack_config import read_config
from tests.integration.conftest import ROOT, rehearse
from tests.integration.test_canary import new_canaries, stage
from tests.support import local_sshd
from tests.support.canaries import forms
from tests.support.made_stacks import stack_file

STACK = "engine"
ON_PULUMI = ("--engine", "pulumi")
LOGGED = ("up", "--yes", "--skip-preview", "--logtostderr", "--logflow", "--debug")
PASSED_TO_A_PROVIDER = re.compile(rb'"msg":"(Unm|M)arshaling property for RPC\[')


def main() -> int:
    """Run both; the exit status is 1 if a canary shows."""
    try:
        installation = pulumi_engine.find(gcp=False)
    except IncompleteError as error:
        raise SystemExit(f"the real Pulumi can't be used here: missing is {error}") from error
    config = yaml.safe_load((ROOT / "stacks" / "Pulumi.local.yaml").read_text())["config"]
    settings = {key.removeprefix("elastic-vllm:"): value for key, value in config.items()}
    with stack_file(STACK, settings | {"httpsPort": local_sshd.free_port()}):
        _rehearse(installation)
        return _search(installation)


def _rehearse(installation: Installation) -> None:
    """Bring a stack up on the real engine with the command that people use, verify it and take it down."""
    before = _checkout()
    done = _run("up", "--verify", *ON_PULUMI)
    assert done.startswith(f"engine: Pulumi {installation.version} ({installation.program})\n"), done
    assert re.search(r"^all \d+ checks passed", done, re.M)
    again = _run("up", *ON_PULUMI)
    assert again.startswith("engine: Pulumi "), again
    assert re.search(r"Resources:\n +\d+ unchanged\n", again), again
    refused = rehearse("up", "--engine", "embedded", stack=STACK)
    assert refused.returncode == 2, refused
    assert "one stack has one engine" in refused.stderr
    verified = subprocess.run(
        [str(ROOT / "scripts" / "elastic-vllm"), "verify", "--rehearsal", "--stack", STACK],
        capture_output=True,
        text=True,
        check=False,
    )
    assert verified.returncode == 0, verified
    _run("down")
    assert rehearse("outputs", stack=STACK).returncode != 0
    assert _checkout() == before


def _run(*arguments: str) -> str:
    print(f"engine: rehearse {' '.join(arguments)}", flush=True)
    done = rehearse(*arguments, stack=STACK)
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
    return done.stdout


def _checkout() -> str:
    """Return the differences from the commit, including stack files."""
    command = ["git", "-C", str(ROOT), "status", "--porcelain"]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def _search(installation: Installation) -> int:
    """Look for canaries in all that the engine prints, logs and keeps."""
    done = rehearse("setup", stack=STACK)
    assert done.returncode == 0, done.stderr
    canaries = new_canaries()
    with tempfile.TemporaryDirectory(prefix="elastic-vllm-engine-") as scratch:
        weights = Path(scratch) / "weights"
        weights.mkdir()
        with stage(canaries, weights) as stand_ins:
            stack = pulumi_engine.Stack(installation, ROOT, STACK, Path(scratch))
            given = [f"{name}={Path(scratch) / name}" for name in SECRETS]
            for name in SECRETS:
                (Path(scratch) / name).write_text(canaries[name])
            values = {
                name: value if isinstance(value, str) else json.dumps(value)
                for name, value in stand_ins.settings.items()
            }
            stack.configure(read_config(ROOT, STACK, [f"{name}={text}" for name, text in values.items()], given))
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
                    texts[title] = _output_of(stack, installation, arguments)
                lines = texts["fuller log of an up"].splitlines(keepends=True)
                texts["fuller log of an up"] = b"".join(line for line in lines if not PASSED_TO_A_PROVIDER.search(line))
                for path in (Path(scratch) / "state").rglob("*"):
                    if path.is_file():
                        texts[f"state: {path.name}"] = path.read_bytes()
                texts["stack file"] = stack.file.read_bytes()
            finally:
                stack.ask("destroy", "--yes", "--skip-preview", "--stack", STACK)
    found = {
        (title, name)
        for title, text in texts.items()
        for name in SECRETS
        if any(form in text for form in forms(canaries[name]))
    }
    for title, name in sorted(found):
        print(f"engine: {name} shows in {title}")
    return 1 if found else 0


def _output_of(stack: pulumi_engine.Stack, installation: Installation, arguments: list[str]) -> bytes:
    command = [str(installation.program), *arguments, "--stack", STACK, "--non-interactive"]
    done = subprocess.run(command, cwd=stack.directory, env=stack.environment, capture_output=True, check=False)
    if done.returncode:
        output = f"{done.stdout.decode()}\n{done.stderr.decode()}"  # its secrets are canaries
        raise SystemExit(f"pulumi {' '.join(arguments)} failed ({done.returncode}):\n{output}")
    return done.stdout + done.stderr


if __name__ == "__main__":
    sys.exit(main())

"""The program under the real Pulumi: a rehearsal on it, and canaries in every secret setting.

From -v=9 on, the engine itself logs everything that it passes to providers, secrets in clear text, for any program
(docs/guides/state-and-secrets.md): of that log, all other lines are searched, and the whole log at -v=8.

"""

import json
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from components.settings.problems import SECRETS
from scripts.lab import pulumi_engine
from scripts.lab.pulumi_engine import Installation
from scripts.lib.stack_config import read_config
from tests.integration.conftest import ROOT, rehearse
from tests.integration.test_canary import new_canaries, stage
from tests.support import local_sshd
from tests.support.canaries import forms
from tests.support.made_stacks import stack_file

STACK = "engine"
ON_PULUMI = ("--engine", "pulumi")
LOGGED = ("up", "--yes", "--skip-preview", "--logtostderr", "--logflow", "--debug")
SHOWN = {
    "preview": ["preview", "--diff"],
    "up": ["up", "--yes", "--skip-preview", "--diff"],
    "log of an up": [*LOGGED, "-v=8"],
    "fuller log of an up": [*LOGGED, "-v=9"],
    "preview of a change": ["preview", "--diff", "--config", "elastic-vllm:servedModelName=another"],
    "preview as JSON": ["preview", "--json"],
    "outputs": ["stack", "output", "--json"],
    "exported state": ["stack", "export"],
}
"""Text that is searched -> the command that prints it."""
PASSED_TO_A_PROVIDER = re.compile(rb'"msg":"(Unm|M)arshaling property for RPC\[')


pytestmark = pytest.mark.slow


@pytest.fixture(autouse=True)
def stack() -> Iterator[None]:
    """The stack's file."""
    config = yaml.safe_load((ROOT / "stacks" / "Pulumi.local.yaml").read_text())["config"]
    settings = {key.removeprefix("elastic-vllm:"): value for key, value in config.items()}
    with stack_file(STACK, settings | {"httpsPort": local_sshd.free_port()}):
        yield


def test_a_stack_is_brought_up_verified_and_taken_down(installation: Installation) -> None:
    """With the command that people use."""
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
    done = rehearse(*arguments, stack=STACK)
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
    return done.stdout


def _checkout() -> str:
    """Return the differences from the commit, including stack files."""
    command = ["git", "-C", str(ROOT), "status", "--porcelain"]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def test_no_canary_shows_in_what_the_engine_prints_logs_and_keeps(installation: Installation, tmp_path: Path) -> None:
    done = rehearse("setup", stack=STACK)
    assert done.returncode == 0, done.stderr
    canaries = new_canaries()
    weights = tmp_path / "weights"
    weights.mkdir()
    with stage(canaries, weights) as stand_ins:
        stack = pulumi_engine.Stack(installation, ROOT, STACK, tmp_path)
        for name in SECRETS:
            (tmp_path / name).write_text(canaries[name])
        values = {
            name: value if isinstance(value, str) else json.dumps(value) for name, value in stand_ins.settings.items()
        }
        given = [f"{name}={tmp_path / name}" for name in SECRETS]
        stack.configure(read_config(ROOT, STACK, [f"{name}={text}" for name, text in values.items()], given))
        try:
            texts = {title: _output_of(stack, installation, arguments) for title, arguments in SHOWN.items()}
            lines = texts["fuller log of an up"].splitlines(keepends=True)
            texts["fuller log of an up"] = b"".join(line for line in lines if not PASSED_TO_A_PROVIDER.search(line))
            state = [path for path in (tmp_path / "state").rglob("*") if path.is_file()]
            texts |= {f"state: {path.name}": path.read_bytes() for path in state}
            texts["stack file"] = stack.file.read_bytes()
        finally:
            stack.ask("destroy", "--yes", "--skip-preview", "--stack", STACK)
    assert {
        (title, name)
        for title, text in texts.items()
        for name in SECRETS
        if any(form in text for form in forms(canaries[name]))
    } == set()


def _output_of(stack: pulumi_engine.Stack, installation: Installation, arguments: list[str]) -> bytes:
    command = [str(installation.program), *arguments, "--stack", STACK, "--non-interactive"]
    done = subprocess.run(command, cwd=stack.directory, env=stack.environment, capture_output=True, check=False)
    # Its secrets are canaries.
    assert done.returncode == 0, f"{' '.join(arguments)}:\n{done.stdout.decode()}\n{done.stderr.decode()}"
    return done.stdout + done.stderr

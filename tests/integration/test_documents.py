"""The documented commands, typed one after the other as a new user would."""

import shlex
import subprocess
from collections.abc import Iterator

import pytest

from scripts.lab import simulated_vm
from tests.integration.conftest import rehearse
from tests.support import documents

pytestmark = pytest.mark.slow  # the other tests run the same commands one by one


def typed(command: str, stack: str) -> None:
    """Run a command from the repository's directory; it must succeed."""
    words = shlex.split(documents.on_stack(command, stack))
    # The stack is a rehearsed one here, which needs this one more option.
    words += ["--rehearsal"] if words[0] == "scripts/elastic-vllm" else []
    done = subprocess.run(words, cwd=documents.ROOT, capture_output=True, text=True, timeout=900, check=False)
    assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"


@pytest.fixture
def as_before(machine: None) -> Iterator[None]:
    """Leave these stacks up or down as they were before."""
    stacks = {stack: rehearse("outputs", stack=stack).returncode == 0 for stack in ("local", "prod")}
    disk = simulated_vm.disk_file("elastic-vllm-prod-weights")
    had_disk = disk.exists()
    file = documents.ROOT / "stacks" / "Pulumi.prod.yaml"
    settings = file.read_bytes()
    yield
    file.write_bytes(settings)
    for stack, was_up in stacks.items():
        rehearse("up" if was_up else "down", stack=stack)
    if not had_disk:
        disk.unlink(missing_ok=True)


def test_the_commands_for_this_machine_run_as_written(as_before: None) -> None:
    for command in documents.ON_LOCAL:
        typed(command, "local")


def test_the_commands_for_a_stack_run_as_written_on_the_rehearsed_prod(as_before: None) -> None:
    for command in documents.ON_PROD:
        typed(command, "prod")

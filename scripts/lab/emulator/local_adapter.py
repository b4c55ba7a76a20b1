"""Adapter for command:local:Command on this machine, through a shell like the real provider."""

import secrets
import subprocess
from typing import Any

from scripts.lab import RehearsalError
from scripts.lab.emulator.command_adapter import TAIL_LINES
from scripts.lab.emulator.resource import Adapter, Resource


def _run(resource: Resource) -> dict[str, Any]:
    """Run the command and return its output. Raises RehearsalError with the output's last lines."""
    # The command ends with this process, whatever ends that.
    shell = ["setpriv", "--pdeathsig", "KILL", "/bin/sh", "-c", f"exec {resource.inputs['create']}"]
    pipe = subprocess.PIPE
    with subprocess.Popen(shell, stdin=pipe, stdout=pipe, stderr=subprocess.STDOUT, text=True) as process:
        assert process.stdin  # noqa: S101 - asked for
        assert process.stdout  # noqa: S101 - asked for
        process.stdin.write(str(resource.inputs.get("stdin", "")))
        process.stdin.close()
        lines = []
        for line in process.stdout:
            lines.append(line.rstrip())
            resource.say(line)
    if process.returncode:
        tail = "\n".join(lines[-TAIL_LINES:])
        raise RehearsalError(f"a command on this machine ended with exit code {process.returncode}:\n{tail}")
    return {"stdout": "\n".join(lines), "stderr": ""}


def _create(resource: Resource) -> tuple[str, dict[str, Any]]:
    return f"{resource.name}{secrets.token_hex(4)}", _run(resource)


# As the real provider: only triggers replace, anything else runs `create` again.
COMMAND = Adapter(
    inputs=frozenset({"create", "stdin", "triggers", "addPreviousOutputInEnv"}),
    create=_create,
    update=_run,
    replaces=lambda changed: "triggers" in changed,
)

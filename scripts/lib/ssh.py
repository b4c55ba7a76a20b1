"""Scripts that run on a stack's server, over SSH."""

import subprocess
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from components.errors import UserError
from components.machine.host import CLOSING_WORD, RUN_SCRIPT, standard_input
from components.machine.ssh import held


class SshError(Exception):
    """The script did not run to its end; the text is the last output of ssh or the script."""


def run_script(server: Mapping[str, Any], script: str, *, passphrase: str, seconds: int, as_root: bool = True) -> str:
    """Run a script on the server that a stack's outputs describe (components/machine/ssh.py); return what it printed.

    `passphrase` is the private key's, empty where it has none. Raises SshError, and UserError for a private key that
    can't be used.
    """
    login = str(server["user"]) if as_root else "root"
    command = [*ssh_command(server), RUN_SCRIPT]
    with ExitStack() as stack:
        if passphrase:
            key = Path(server["privateKey"]).read_text(encoding="utf-8")
            stack.enter_context(held(server["agentSocket"], key, passphrase))
        try:
            done = subprocess.run(
                command,
                input=standard_input(script, login=login),
                capture_output=True,
                text=True,
                timeout=seconds,
                check=False,
                errors="replace",
            )
        except subprocess.TimeoutExpired as error:
            raise SshError(f"no answer within {seconds} s") from error
        except OSError as error:
            raise UserError(f"ssh can't be started: {error.strerror}", "install the OpenSSH client") from error
    if done.returncode:
        raise SshError(" ".join(done.stderr.split()) or f"ssh ended with exit code {done.returncode}")
    printed, closing_word, _ = done.stdout.rpartition(f"{CLOSING_WORD}\n")
    if not closing_word:
        shown = " ".join(done.stdout.split())[-200:] or "nothing"
        raise SshError(f"the server did not run what it was sent; it answered: {shown}")
    return printed


def ssh_command(server: Mapping[str, Any]) -> list[str]:
    """The `ssh` command for the server, up to what is to run there."""
    return ["ssh", "-T", *server["options"], "-p", str(int(server["port"])), "--", server["host"]]

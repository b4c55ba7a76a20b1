"""Options of the `ssh` client, and the agent that holds a private key which has a passphrase."""

import atexit
import json
import os
import pwd
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pulumi
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.serialization.ssh import SSHPrivateKeyTypes

from components.errors import UserError
from components.render import FILES

STANDARD_SSH_PORT = 22
START_SECONDS, END_SECONDS = 10, 2


@dataclass(frozen=True, kw_only=True)
class SshKey:
    """The key by which servers know the SSH user."""

    path: Path | None
    """The private key's file. With `agent`, the public key's file; None stands for every key in the agent."""
    agent: bool = False
    """True if the user's own agent, at SSH_AUTH_SOCK, holds the private key."""
    passphrase: str = field(default="", repr=False)
    """Passphrase of the private key; empty without one."""
    socket: str = ""
    """Socket of the agent in which `held` keeps a key with a passphrase."""

    def options(self) -> list[str]:
        """Options that make `ssh` offer this key and no other."""
        if self.passphrase:
            return ["-o", "IdentityFile=none", "-o", f"IdentityAgent={self.socket}"]
        agent = ["-o", f"IdentityAgent={'SSH_AUTH_SOCK' if self.agent else 'none'}"]
        if self.path is None:
            return ["-o", "IdentityFile=none", *agent]
        return ["-i", str(self.path), "-o", "IdentitiesOnly=yes", *agent]


def options(key: SshKey, user: str, address: str, port: int, host_key: str) -> list[str]:
    """Options for one server: this key only, the server's host key only, and nothing from anybody's configuration."""
    # As ssh looks it up in a file of known hosts.
    known = address if port == STANDARD_SSH_PORT else f"[{address}]:{port}"
    settings = {
        "BatchMode": "yes",
        "ConnectTimeout": "10",
        "ServerAliveInterval": "15",
        "StrictHostKeyChecking": "yes",
        "UserKnownHostsFile": "/dev/null",
        "GlobalKnownHostsFile": "/dev/null",
        # A host key without a file to keep (OpenSSH 8.5).
        "KnownHostsCommand": f"/bin/sh -c \"echo '{known}' {host_key}\"",
    }
    flags = [flag for name, value in settings.items() for flag in ("-o", f"{name}={value}")]
    return ["-F", "none", "-l", user, *key.options(), *flags]


def patient_connection() -> list[str]:
    """Options by which `ssh` tries again where a server drops new connections."""
    program = (FILES / "ssh" / "connect.py").read_text(encoding="utf-8").split('"""')[2].strip()
    # One line that any shell passes on to Python as it is; ssh takes % for its own.
    code = f"exec({json.dumps(program)})".replace("%", "%%")
    return ["-o", "ProxyUseFdpass=yes", "-o", f"ProxyCommand=python3 -c '{code}' %h %p"]


def server(key: SshKey, user: str, address: str, port: int, flags: list[str]) -> dict[str, object]:
    """Return the `ssh` access to a server for later commands (scripts/lib/ssh.py), which contains no secret."""
    to_hold = {"privateKey": str(key.path), "agentSocket": key.socket} if key.passphrase else {}
    return {"user": user, "host": address, "port": port, "options": flags, **to_hold}


@contextmanager
def held(socket_path: str, private_key: str, passphrase: str) -> Iterator[None]:
    """Hold a private key in a separate agent until the block, or this process, ends.

    The key without its passphrase is in memory only. `socket_path` may begin with `~`. Raises UserError.
    """
    path = expanded(socket_path)
    clear = without_passphrase(private_key, passphrase)
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    _wait_for_others(path)
    # The agent ends once the shell's input does, however this process ends.
    command = ["ssh-agent", "-a", str(path), "/bin/sh", "-c", 'cat >/dev/null; kill "$SSH_AGENT_PID"']
    try:
        agent = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    except OSError as error:
        raise UserError(f"ssh-agent can't be started: {error.strerror}", "install the OpenSSH client") from error
    try:
        limit = time.monotonic() + START_SECONDS
        while not _answers(path):
            if agent.poll() is not None or time.monotonic() > limit:
                agent.kill()
                words = agent.communicate()[1].decode(errors="replace").strip() or "it does not answer"
                raise UserError(f"ssh-agent can't be started at {path}: {words}", "is this directory yours")
            time.sleep(0.02)
        added = subprocess.run(
            ["ssh-add", "-q", "-"],
            input=clear,
            env={**os.environ, "SSH_AUTH_SOCK": str(path)},
            capture_output=True,
            check=False,
        )
        if added.returncode:
            words = added.stderr.decode(errors="replace").strip()
            raise UserError(f"ssh-agent does not take the private key: {words}", "make one: ssh-keygen -t ed25519")
        yield
    finally:
        agent.communicate()
        limit = time.monotonic() + END_SECONDS
        while path.exists() and time.monotonic() < limit:
            time.sleep(0.02)


_until_exit = ExitStack()
_held: set[str] = set()
atexit.register(_until_exit.close)


def hold_until_exit(key: SshKey) -> None:
    """Hold a key that has a passphrase until this process ends. Raises RunError."""
    if not key.passphrase or not key.path or key.socket in _held:
        return
    try:
        _until_exit.enter_context(held(key.socket, key.path.read_text(encoding="utf-8"), key.passphrase))
    except UserError as error:
        raise pulumi.RunError(f"{error.cause}\n  fix: {error.fix}") from error
    _held.add(key.socket)


def release() -> None:
    """End the agents of `hold_until_exit` now, before another process runs the program, which would wait for them."""
    _until_exit.close()
    _held.clear()


def expanded(socket_path: str) -> Path:
    """The path as `ssh` expands it, which takes the home directory from the list of users, not from HOME."""
    return Path(socket_path.replace("~", pwd.getpwuid(os.getuid()).pw_dir, 1))


def load_private_key(private_key: str, passphrase: str) -> SSHPrivateKeyTypes:
    """Parse a private key. Raises ValueError, TypeError or UnsupportedAlgorithm."""
    content, password = private_key.encode(), passphrase.encode() or None
    if "BEGIN OPENSSH PRIVATE KEY" in private_key:
        return serialization.load_ssh_private_key(content, password)
    return serialization.load_pem_private_key(content, password)  # type: ignore[return-value]


def without_passphrase(private_key: str, passphrase: str) -> bytes:
    """The private key in OpenSSH's own format, in clear."""
    return load_private_key(private_key, passphrase).private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.OpenSSH, serialization.NoEncryption()
    )


def _wait_for_others(path: Path) -> None:
    """Wait until no other process holds a key at this path, and remove what one that was killed has left there."""
    announced = False
    while _answers(path):
        if not announced:
            print(f"waiting for another run that uses {path}", file=sys.stderr, flush=True)
        announced = True
        time.sleep(0.5)
    path.unlink(missing_ok=True)


def _answers(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX) as trial:
        try:
            trial.connect(str(path))
        except OSError:
            return False
    return True

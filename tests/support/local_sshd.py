"""A server to reach over SSH: this machine, behind an sshd and with users that tests create."""

import os
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from scripts.lab import machine

UID = 54000 + os.getpid() % 1000  # of the users that tests create: nothing else uses it, not even in containers
CONFIG = """\
Port {port}
ListenAddress 127.0.0.1
ListenAddress ::1
HostKey {directory}/host
AuthorizedKeysFile {directory}/authorized_keys
PidFile none
StrictModes no
PermitRootLogin prohibit-password
PasswordAuthentication no
KbdInteractiveAuthentication no
UsePAM {pam}
UseDNS no
"""
UNLIMITED = "MaxStartups 100\nMaxSessions 100\n"
QUIET = f"SetEnv {machine.NO_BASHRC}\n"


@dataclass(frozen=True)
class Server:
    """Address and keys of the server, for a stack's settings."""

    port: int
    directory: Path

    @property
    def private_key(self) -> Path:
        return self.directory / "id"

    @property
    def host_key(self) -> Path:
        return self.directory / "host.pub"

    def new_key(self, name: str) -> Path:
        """Create another key pair and return the private key's file."""
        path = self.directory / name
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", path], check=True)
        return path


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])


@contextmanager
def running(options: str = UNLIMITED + QUIET) -> Iterator[Server]:
    """Run the server until the block ends; `options` are further lines of its sshd_config."""
    # Not pytest's directory, which no other user may enter: sshd reads authorized_keys as the user who logs in.
    directory = Path(tempfile.mkdtemp(prefix="elastic-vllm-sshd-"))
    directory.chmod(0o755)
    server = Server(free_port(), directory)
    try:
        for name in ("host", "id"):
            server.new_key(name)
        shutil.copy(directory / "id.pub", directory / "authorized_keys")
        config = directory / "sshd_config"
        own = CONFIG.format(port=server.port, directory=directory, pam=machine._pam())
        config.write_text(own + options)
        Path("/run/sshd").mkdir(mode=0o755, exist_ok=True)
        with (directory / "log").open("wb") as log:
            process = subprocess.Popen(["/usr/sbin/sshd", "-D", "-e", "-f", config], stderr=log)
        try:
            _wait_for(server, process)
            yield server
        finally:
            process.terminate()
            process.wait(10)
    finally:
        shutil.rmtree(directory)


def _wait_for(server: Server, process: subprocess.Popen[bytes]) -> None:
    limit = time.monotonic() + 60
    while time.monotonic() < limit and process.poll() is None:
        try:
            socket.create_connection(("127.0.0.1", server.port), timeout=1).close()
        except OSError:
            time.sleep(0.02)
        else:
            return
    raise AssertionError(f"sshd does not start: {(server.directory / 'log').read_text()}")


@contextmanager
def user(
    name: str, *, sudo: bool | str, groups: tuple[str, ...] = (), login_shell: str = "/bin/bash", home: str = "/"
) -> Iterator[str]:
    """Create a Linux user who may log in until the block ends; `sudo` may be further lines of sudoers."""
    rights = Path(f"/etc/sudoers.d/elastic-vllm-{UID}")  # sudo reads no file with a dot in its name
    if f"\n{name}:" in Path("/etc/passwd").read_text():  # left by a run that was killed
        _remove(name)
    # '*' is no password and, unlike '!', no locked account, which sshd would refuse.
    command = [
        "useradd",
        "--badname",
        "--no-create-home",
        "--home-dir",
        home,
        "--shell",
        login_shell,
        "--password",
        "*",
    ]
    subprocess.run([*command, "--uid", str(UID), "--groups", ",".join(groups), name], check=True)
    try:
        if sudo:
            rights.write_text(f"#{UID} ALL=(ALL) NOPASSWD: ALL\n" if sudo is True else sudo)
            rights.chmod(0o440)
        yield name
    finally:
        rights.unlink(missing_ok=True)
        _remove(name)


def _remove(name: str) -> None:
    """Remove the user once its last process is gone: sshd's process ends a moment after the connection."""
    limit = time.monotonic() + 60
    while (done := subprocess.run(["userdel", name], capture_output=True, text=True, check=False)).returncode:
        assert time.monotonic() < limit, done.stderr
        time.sleep(0.1)

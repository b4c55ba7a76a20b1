"""Docker or Podman on another host, through the real OpenSSH client with the provider's own options."""

import json
import shutil
import socket
import subprocess
import tempfile
import threading
import time
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import docker
import requests

from scripts.lab.emulator.command_adapter import host_key_changed, key_refused, unreachable
from scripts.lab.emulator.resource import NothingDoneError
from scripts.lab.emulator.state import ROOT

CONNECT_SECONDS = 20
API_SECONDS = 120  # the longest that Docker may take to answer one call
SOCKET = "/var/run/docker.sock"

_lock = threading.Lock()
_tunnels: dict[str, "Tunnel"] = {}


class Tunnel:
    """A running ssh that makes a remote Docker socket available here, and the client that uses it."""

    def __init__(self, host: str, ssh_opts: list[str]) -> None:
        """`host`: ssh://user@host:port, with a path for another socket than Docker's.

        Raises NothingDoneError with cause and fix.
        """
        url = urlsplit(host)
        if url.scheme != "ssh" or not url.hostname:
            raise NothingDoneError(f"the rehearsal reaches Docker as ssh://user@host:port only, not as {host!r}")
        self.where = f"{url.username or 'root'}@{url.hostname}:{url.port or 22}"
        self.remote = url.path if url.path.strip("/") else SOCKET
        self.directory = Path(tempfile.mkdtemp(prefix="docker-", dir=ROOT if ROOT.is_dir() else None))
        local, self.log = self.directory / "docker.sock", self.directory / "ssh.log"
        target = ["-p", str(url.port or 22), "-l", url.username or "root", url.hostname]
        own = ["-T", "-o", "BatchMode=yes", "-o", "ConnectTimeout=15", "-o", "ServerAliveInterval=15"]
        forward = ["-o", "ExitOnForwardFailure=yes", "-o", "ControlPath=none", "-L", f"{local}:{self.remote}"]
        with self.log.open("wb") as log:
            # `cat` ends when its input does: ssh never outlives this process, not even after SIGKILL.
            self.process = subprocess.Popen(
                ["ssh", *ssh_opts, *own, *forward, *target, "cat"],
                stdin=subprocess.PIPE,
                stdout=subprocess.DEVNULL,
                stderr=log,
                start_new_session=True,  # Ctrl-C is for this process: it ends the tunnel when it is done
            )
        try:
            self.client = self._connect(local)
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """End ssh and remove its socket."""
        if self.process.stdin:
            self.process.stdin.close()
        # Not terminate: ssh can miss a SIGTERM that arrives just before it waits for something else.
        self.process.kill()
        self.process.wait()
        shutil.rmtree(self.directory, ignore_errors=True)

    def _connect(self, local: Path) -> docker.DockerClient:
        end = time.monotonic() + CONNECT_SECONDS
        while not _listens(local):
            if self.process.poll() is not None or time.monotonic() > end:
                raise NothingDoneError(self._why())
            time.sleep(0.02)
        try:
            client = docker.DockerClient(base_url=f"unix://{local}", timeout=API_SECONDS)
            client.ping()
        except (docker.errors.DockerException, requests.RequestException) as error:
            raise NothingDoneError(
                f"{self.where} lets this user in, but not at {self.remote}: is Docker or Podman running there, and may "
                "the user use it (root, or a member of the group docker)?"
            ) from error
        return client

    def _why(self) -> str:
        said = self.log.read_text(errors="replace")
        lines = [line for line in said.splitlines() if line.strip()] or [f"no answer in {CONNECT_SECONDS} s"]
        if "Host key verification failed" in said or "HOST IDENTIFICATION HAS CHANGED" in said:
            return host_key_changed(self.where, "the key in sshHostKey", "another")
        if "Permission denied" in said:
            return key_refused(self.where)
        return unreachable(self.where, lines[-1].removeprefix("ssh: "))


def _listens(path: Path) -> bool:
    """Whether a socket takes connections: ssh's is there a moment earlier."""
    with socket.socket(socket.AF_UNIX) as trial:
        try:
            trial.connect(str(path))
        except (FileNotFoundError, ConnectionRefusedError):
            return False
    return True


def client(provider: dict[str, Any]) -> docker.DockerClient:
    """The Docker that an explicit provider's inputs point to; its inputs arrive as JSON texts."""
    if "host" not in provider:
        raise NothingDoneError("a docker resource needs an explicit provider with a host: ssh://user@host:port")
    ssh_opts = provider.get("sshOpts", [])
    key = json.dumps([provider["host"], ssh_opts])
    with _lock:
        if key in _tunnels and _tunnels[key].process.poll() is not None:
            _tunnels.pop(key).close()
        if key not in _tunnels:
            parsed = json.loads(ssh_opts) if isinstance(ssh_opts, str) else ssh_opts
            _tunnels[key] = Tunnel(provider["host"], parsed)
        return _tunnels[key].client


def close_all() -> None:
    """End all tunnels."""
    with _lock:
        for each in _tunnels.values():
            each.close()
        _tunnels.clear()

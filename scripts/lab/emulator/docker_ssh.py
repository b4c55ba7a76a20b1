"""Docker or Podman on another host, as pulumi-docker reaches it: one `ssh` for each connection of Docker's client."""

import json
import shutil
import socket
import subprocess
import tempfile
import threading
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import docker
import requests

from components.machine.ssh import held
from scripts.lab.emulator.command_adapter import host_key_changed, key_refused, unreachable
from scripts.lab.emulator.resource import NothingDoneError
from scripts.lab.emulator.state import ROOT, Record

API_SECONDS = 120  # the longest that Docker may take to answer one call

_lock = threading.Lock()
_relays: dict[str, "Relay"] = {}


class Relay:
    """A socket here that stands for a remote Docker's, and the client that uses it."""

    def __init__(self, host: str, ssh_opts: list[str]) -> None:
        """`host`: ssh://host:port, with a path for another socket than Docker's.

        Raises NothingDoneError with cause and fix.
        """
        url = urlsplit(host)
        if url.scheme != "ssh" or not url.hostname:
            raise NothingDoneError(f"the rehearsal reaches Docker as ssh://host:port only, not as {host!r}")
        self.where = f"{url.hostname}:{url.port or 22}"
        # As github.com/docker/cli/cli/connhelper puts it together.
        own_socket = f" --host=unix://{url.path}" if url.path.strip("/") else ""
        user = ["-l", url.username] if url.username else []
        self.command = [*["ssh", *user, "-p", str(url.port or 22), *ssh_opts, "-T", "--", url.hostname]]
        self.command.append(f"docker{own_socket} system dial-stdio")
        self.directory = Path(tempfile.mkdtemp(prefix="docker-", dir=ROOT if ROOT.is_dir() else None))
        path, self.log = self.directory / "docker.sock", self.directory / "ssh.log"
        self.processes: list[subprocess.Popen[bytes]] = []
        self.listener = socket.socket(socket.AF_UNIX)
        self.listener.bind(str(path))
        self.listener.listen()
        threading.Thread(target=self._relay, daemon=True).start()
        try:
            self.client = docker.DockerClient(base_url=f"unix://{path}", timeout=API_SECONDS)
            self.client.ping()
        except (docker.errors.DockerException, requests.RequestException) as error:
            message = self._why()
            self.close()
            raise NothingDoneError(message) from error
        except BaseException:
            self.close()
            raise

    def _relay(self) -> None:
        """Give each connection an `ssh`, which ends when its input does: never later than this process."""
        while True:
            try:
                connection, _ = self.listener.accept()
            except OSError:  # closed
                return
            with connection, self.log.open("ab") as log:
                self.processes.append(
                    subprocess.Popen(
                        self.command,
                        stdin=connection.fileno(),
                        stdout=connection.fileno(),
                        stderr=log,
                        start_new_session=True,  # Ctrl-C is for this process: it closes the connection when it is done
                    )
                )

    def close(self) -> None:
        """End every ssh and remove the socket."""
        self.listener.close()
        for process in self.processes:
            # Not terminate: ssh can miss a SIGTERM that arrives just before it waits for something else.
            process.kill()
            process.wait()
        shutil.rmtree(self.directory, ignore_errors=True)

    def _why(self) -> str:
        log = self.log.read_text(errors="replace")
        lines = [line for line in log.splitlines() if line.strip()] or ["closed by the host"]
        if "Host key verification failed" in log or "HOST IDENTIFICATION HAS CHANGED" in log:
            return host_key_changed(self.where, "the key in sshHostKey", "another")
        if "Permission denied" in log:
            return key_refused(self.where)
        if "dial-stdio" in log or "docker" in log.lower():
            return (
                f"{self.where} lets this user in, but not to Docker ({lines[-1]}): is Docker or Podman running there, "
                "and may the user use it (root, or a member of the group docker)?"
            )
        return unreachable(self.where, lines[-1].removeprefix("ssh: "))


def client(provider: dict[str, Any]) -> docker.DockerClient:
    """The Docker that an explicit provider's inputs point to; its inputs arrive as JSON texts."""
    if "host" not in provider:
        raise NothingDoneError("a docker resource needs an explicit provider with a host: ssh://host:port")
    ssh_opts = provider.get("sshOpts", [])
    key = json.dumps([provider["host"], ssh_opts])
    with _lock:
        if key not in _relays:
            parsed = json.loads(ssh_opts) if isinstance(ssh_opts, str) else ssh_opts
            _relays[key] = Relay(provider["host"], parsed)
        return _relays[key].client


@contextmanager
def key_held(resources: Iterable[Record]) -> Iterator[None]:
    """Hold a private key that has a passphrase until the block ends, as the program does while it runs."""
    inputs = [resource.inputs for resource in resources]
    connections = [each["connection"] for each in inputs if "privateKeyPassword" in each.get("connection", {})]
    options = [option for each in inputs for option in json.loads(each.get("sshOpts", "[]"))]
    sockets = [option.partition("=")[2] for option in options if option.startswith("IdentityAgent=~")]
    with ExitStack() as stack:
        if connections and sockets:
            key = connections[0]
            stack.enter_context(held(sockets[0], key["privateKey"], key["privateKeyPassword"]))
        yield


def close_all() -> None:
    """End every connection."""
    with _lock:
        for each in _relays.values():
            each.close()
        _relays.clear()

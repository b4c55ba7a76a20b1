"""Nginx as in a stack (image, user, confinement, the program's own configuration), in front of a recorder."""

import socket as unix_socket
import ssl
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import docker
from docker.models.containers import Container

from components import render
from components.serving.nginx_config import (
    CONFIG_DIRECTORY,
    CONTAINER_PORT,
    METRICS_DIRECTORY,
    START_SCRIPT,
    keys_conf,
    nginx_conf,
)
from components.serving.vllm_process import NGINX_UID, SOCKET, SOCKET_DIRECTORY, SOCKET_GID, SOCKET_NAME
from components.settings.limits import Limits
from tests.integration.hostile.recorder import Recorder, recording
from tests.integration.hostile.wire import Server, answers, exchange

START_SECONDS = 20
CURRENT, PREVIOUS, DROPPED = "a1" * 32, "b2" * 32, "c3" * 32
"""Keys: two accepted ones and a former one."""


@dataclass(frozen=True)
class Twin:
    """A running Nginx with its recorder."""

    server: Server
    recorder: Recorder
    container: Container
    socket: Path
    certificate: str
    """The self-signed certificate, PEM."""

    @contextmanager
    def absent(self, *, socket: bool) -> Iterator[None]:
        """Remove vLLM from behind Nginx until the block ends; `socket`: leave one that nobody listens on."""
        aside = self.socket.with_name("aside")
        self.socket.rename(aside)
        if socket:
            with unix_socket.socket(unix_socket.AF_UNIX) as closed:
                closed.bind(str(self.socket))
            self.socket.chmod(0o777)
        try:
            yield
        finally:
            self.socket.unlink(missing_ok=True)
            aside.rename(self.socket)


@contextmanager
def serving(image: str, limits: Limits, change: Callable[[str], str] = lambda conf: conf) -> Iterator[Twin]:
    """Run a twin with these limits until the block ends; `change` modifies the program's configuration."""
    with tempfile.TemporaryDirectory(prefix="elastic-vllm-twin-") as directory:
        root = Path(directory)
        current, sockets, metrics = root / "nginx" / "current", root / "socket", root / "metrics"
        for each in (root, root / "nginx", current, sockets, metrics):
            each.mkdir(exist_ok=True)
            each.chmod(0o777)
        write_configuration(current, change(nginx_conf([f"unix:{SOCKET}"], limits=limits)))
        with recording(sockets / SOCKET_NAME) as recorder:
            container = docker.from_env(timeout=120).containers.run(
                image,
                entrypoint=["sh"],
                command=[f"{CONFIG_DIRECTORY}/current/{START_SCRIPT}"],
                detach=True,
                user=f"{NGINX_UID}:{SOCKET_GID}",
                network="bridge",
                read_only=True,
                cap_drop=["ALL"],
                security_opt=["no-new-privileges:true"],
                tmpfs={"/tmp": "rw,noexec,nosuid,nodev,size=64m,mode=1777"},
                volumes={
                    str(root / "nginx"): {"bind": CONFIG_DIRECTORY, "mode": "ro"},
                    str(sockets): {"bind": SOCKET_DIRECTORY, "mode": "ro"},
                    str(metrics): {"bind": METRICS_DIRECTORY, "mode": "rw"},
                },
            )
            try:
                server = _answering(container, current / "certificate.pem")
                recorder.take()
                yield Twin(
                    server, recorder, container, sockets / SOCKET_NAME, (current / "certificate.pem").read_text()
                )
            finally:
                container.remove(force=True)


def write_configuration(directory: Path, conf: str) -> None:
    """Write all files of a configuration, with a new certificate."""
    certificate = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes"]
    files = ["-keyout", "private-key.pem", "-out", "certificate.pem", "-subj", "/CN=twin", "-days", "1"]
    subprocess.run([*certificate, *files], cwd=directory, check=True, capture_output=True)
    (directory / "nginx.conf").write_text(conf)
    (directory / "keys.conf").write_text(keys_conf({"v2": CURRENT, "v1": PREVIOUS}))
    (directory / "metrics.conf").write_text((render.FILES / "nginx/nginx-metrics.conf").read_text())
    (directory / START_SCRIPT).write_text((render.FILES / "nginx" / START_SCRIPT).read_text())
    for path in directory.iterdir():
        path.chmod(0o644)


def _answering(container: Container, certificate: Path) -> Server:
    context = ssl.create_default_context(cafile=str(certificate))
    context.check_hostname = False
    end = time.monotonic() + START_SECONDS
    while True:
        container.reload()
        address = container.attrs["NetworkSettings"]["Networks"]["bridge"]["IPAddress"]
        assert container.status != "exited", container.logs().decode()
        server = Server(address, CONTAINER_PORT, context)
        with suppress(OSError):
            if answers(exchange(server, b"")):
                return server
        assert time.monotonic() < end, container.logs().decode()
        time.sleep(0.1)

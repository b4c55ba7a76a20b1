"""The ways to the source: direct, through a stack's Nginx, and through an Nginx as in Elastic's guide."""

import os
import re
import shutil
import socket
import ssl
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import docker
from docker.models.containers import Container

from components.serving.nginx_config import CONFIG_DIRECTORY, CONTAINER_PORT, START_SCRIPT
from components.serving.vllm_process import SOCKET_DIRECTORY, SOCKET_NAME
from scripts.maintain.price.traffic import Way

ROOT = Path(__file__).resolve().parents[3]
STACKS = Path("/var/lib/elastic-vllm")
ROOT_GROUP = Path("/sys/fs/cgroup/cpu/cgroup.procs")
SOURCE_PORT = 18999
PORTS = {"ours": 18998, "guide": 18997}
"""Ports of both Nginx on loopback: otherwise the benchmark would include Docker's network."""
PROXY_CORE, OTHER_CORE = 0, 1
"""Cores of Nginx and of the client."""
DIRECT, OURS, GUIDE = "direct", "ours", "guide"

# The guide's Nginx: TLS, one secret, and Nginx's defaults for everything else. Its upstream is the same socket.
GUIDE_CONF = """
pid /tmp/nginx.pid;
error_log stderr;
worker_processes auto;
events { worker_connections 1024; }
http {
  access_log /dev/stdout;
  client_body_temp_path /tmp/body; proxy_temp_path /tmp/proxy; fastcgi_temp_path /tmp/fastcgi;
  uwsgi_temp_path /tmp/uwsgi; scgi_temp_path /tmp/scgi;
  server {
    listen 8443 ssl;
    ssl_certificate certificate.pem;
    ssl_certificate_key private-key.pem;
    location / {
      if ($http_authorization != "Bearer KEY") { return 401; }
      proxy_pass http://unix:/run/vllm/vllm.sock;
      proxy_set_header Host $host;
      proxy_set_header X-Real-IP $remote_addr;
      proxy_set_header X-Forwarded-For $proxy_add_x_forwarded_for;
      proxy_set_header X-Forwarded-Proto $scheme;
    }
  }
}
"""


@dataclass(frozen=True)
class Ways:
    """The ways by name, and the containers of those through Nginx."""

    ways: Mapping[str, Way]
    containers: Mapping[str, Container]
    source_pid: int

    def place_source(self, core: int) -> None:
        """Make the source run on that core."""
        os.sched_setaffinity(self.source_pid, {core})

    def cpu_seconds(self, name: str) -> float:
        """Return the CPU time of a container's processes so far."""
        used = [Path(f"/proc/{pid}/schedstat").read_text().split()[0] for pid in processes(self.containers[name])]
        return sum(map(int, used)) / 1e9


def processes(container: Container) -> list[int]:
    """Return the process ids on this machine of a container's processes."""
    return [int(pid) for (pid,) in container.top(ps_args="-eo pid")["Processes"]]


def first(pid: int) -> None:
    """Give a process (0: this one) priority over all others, whose work is not to be measured."""
    if pid and ROOT_GROUP.exists():
        ROOT_GROUP.write_text(str(pid))  # Docker's groups have no real-time share
    os.sched_setscheduler(pid, os.SCHED_RR, os.sched_param(10))


@contextmanager
def opened(stack: str, image: str, key: str) -> Iterator[Ways]:
    """Open all ways until the block ends, with configuration, certificate and key of a stack that is up here."""
    with ExitStack() as closing:
        directory = Path(closing.enter_context(tempfile.TemporaryDirectory(prefix="elastic-vllm-price-")))
        sockets = directory / "socket"
        for path in (directory, sockets):
            path.mkdir(exist_ok=True)
            path.chmod(0o755)
        source_pid = closing.enter_context(_source(sockets / SOCKET_NAME))
        configuration = STACKS / stack / "nginx" / "current"
        ways, containers = {DIRECT: Way(DIRECT, "127.0.0.1", SOURCE_PORT, None, key)}, {}
        for name in (OURS, GUIDE):
            files = directory / name
            shutil.copytree(configuration, files / "current")
            _prepare(files / "current", name, key)
            containers[name] = closing.enter_context(_nginx(image, files, sockets))
            ways[name] = Way(name, "127.0.0.1", PORTS[name], any_certificate(), key)
        for container in containers.values():
            for pid in processes(container):
                first(pid)
        yield Ways(ways, containers, source_pid)


def any_certificate() -> ssl.SSLContext:
    """Return a context that accepts any certificate: the containers' addresses are in none."""
    context = ssl.create_default_context()
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return context


def _prepare(files: Path, name: str, key: str) -> None:
    conf = files / "nginx.conf"
    if name == GUIDE:
        conf.write_text(GUIDE_CONF.replace("KEY", key))
        (files / START_SCRIPT).write_text(
            f"exec nginx -e stderr -c {CONFIG_DIRECTORY}/current/nginx.conf -g 'daemon off;'\n"
        )
    else:
        # Nginx checks the limits, but the benchmark never reaches them.
        text = re.sub(r"rate=\d+r/[sm]", "rate=100000r/s", conf.read_text())
        text = re.sub(r"burst=\d+", "burst=100000", text)
        conf.write_text(text.replace("include metrics.conf;", ""))
    conf.write_text(conf.read_text().replace(f"listen {CONTAINER_PORT} ssl", f"listen 127.0.0.1:{PORTS[name]} ssl"))
    for path in files.iterdir():
        path.chmod(0o644)


@contextmanager
def _source(path: Path) -> Iterator[int]:
    command = [
        "taskset",
        "-c",
        str(OTHER_CORE),
        sys.executable,
        "-m",
        "scripts.maintain.price.source",
        str(SOURCE_PORT),
        str(path),
    ]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT) as process:
        try:
            if not process.stdout or process.stdout.readline() != "ready\n":
                raise RuntimeError("the source of events does not start")
            path.chmod(0o777)
            first(process.pid)
            yield process.pid
        finally:
            process.terminate()


@contextmanager
def _nginx(image: str, files: Path, sockets: Path) -> Iterator[Container]:
    container = docker.from_env(timeout=120).containers.run(
        image,
        entrypoint=["sh", f"{CONFIG_DIRECTORY}/current/{START_SCRIPT}"],
        volumes={str(files): {"bind": CONFIG_DIRECTORY}, str(sockets): {"bind": SOCKET_DIRECTORY}},
        tmpfs={"/tmp": ""},  # noqa: S108 - inside the container
        cpuset_cpus=str(PROXY_CORE),
        network_mode="host",
        detach=True,
    )
    try:
        container.reload()
        _wait_for(PORTS[files.name], container)
        yield container
    finally:
        container.remove(force=True)


def _wait_for(port: int, container: Container) -> None:
    end = time.monotonic() + 30
    while time.monotonic() < end:
        with suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
            return
        time.sleep(0.05)
    raise RuntimeError(f"Nginx does not start: {container.logs(tail=5).decode()}")

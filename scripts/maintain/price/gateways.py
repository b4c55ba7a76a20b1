"""The gateways that are compared, running in front of the source: both Nginx, their peers, and none (direct)."""

import json
import os
import re
import signal
import socket
import ssl
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import docker
from docker.models.containers import Container

from components.errors import UserError
from components.serving.nginx_config import (
    CONFIG_DIRECTORY,
    CONTAINER_PORT,
    METRICS_DIRECTORY,
    START_SCRIPT,
    nginx_conf,
)
from components.serving.vllm_process import SOCKET, SOCKET_DIRECTORY, SOCKET_NAME
from components.settings.limits import Limits
from scripts.lib.progress import Display
from scripts.maintain.price import peers
from scripts.maintain.price.source import PLAIN_BODY
from scripts.maintain.price.traffic import Way, latencies
from tests.integration.hostile.twin import CURRENT, write_configuration

ROOT = Path(__file__).resolve().parents[3]
PORTS = {
    "source": 18999,
    "ours": 18998,
    "guide": 18997,
    "envoy": 18996,
    "router": 18995,
    "litellm": 18994,
    "router's metrics": 18993,
}
"""Ports on loopback: otherwise the benchmark would include Docker's network."""
DIRECT, OURS, GUIDE = "direct", "ours", "guide"
PEERS = ("envoy", "router", "litellm")
NAMES = {
    DIRECT: "direct",
    OURS: "this project's Nginx",
    GUIDE: "the guide's Nginx",
    "envoy": "Envoy",
    "router": "vllm-router",
    "litellm": "LiteLLM",
}
# The program's own, except those of how often and how much at once, which are checked but never reached.
LIMITS = Limits(concurrent_requests=10_000, requests_per_minute=600_000, body_mib=32)
LABEL = "proxy-price"
PRIORITY = 10
ROOT_GROUP = Path("/sys/fs/cgroup/cpu/cgroup.procs")
OUR_START = ("sh", f"{CONFIG_DIRECTORY}/current/{START_SCRIPT}")
PLAIN_START = ("nginx", "-e", "stderr", "-c", f"{CONFIG_DIRECTORY}/current/nginx.conf", "-g", "daemon off;")
START_SECONDS = 120
SHARES = re.compile(r"^(Rss|Pss): +(\d+) kB", re.MULTILINE)

# Answers as the source does to a plain request, with the same body, but a hundred thousand times a second.
FAST_CONF = """
pid /tmp/nginx.pid;
error_log stderr;
worker_processes 1;
events { worker_connections 1024; }
http {
  access_log off;
  keepalive_requests 1000000000;
  client_body_temp_path /tmp/body; proxy_temp_path /tmp/proxy; fastcgi_temp_path /tmp/fastcgi;
  uwsgi_temp_path /tmp/uwsgi; scgi_temp_path /tmp/scgi;
  server {
    listen 127.0.0.1:PORT backlog=512;
    listen unix:SOCKET backlog=512;
    location / {
      default_type application/json;
      return 200 'ANSWER';
    }
  }
}
"""


@dataclass(frozen=True)
class Gateway:
    """A way through a gateway that runs here; `pid` is its first process, 0 for the direct way."""

    title: str
    """Name and version."""
    way: Way
    pid: int = 0

    def cpu_seconds(self) -> float:
        """Return the CPU time of all its threads so far."""
        tasks = [task for pid in self.processes() for task in Path(f"/proc/{pid}/task").iterdir()]
        return sum(int((task / "schedstat").read_text().split()[0]) for task in tasks) / 1e9

    def memory_mib(self) -> tuple[float, float]:
        """Return the resident memory of all its processes, and the same with shared pages counted once."""
        text = "".join(Path(f"/proc/{pid}/smaps_rollup").read_text() for pid in self.processes())
        found = SHARES.findall(text)
        resident, proportional = (
            sum(int(kib) for name, kib in found if name == wanted) / 1024 for wanted in ("Rss", "Pss")
        )
        return resident, proportional

    def processes(self) -> list[int]:
        """Return its process ids."""
        parents = {}
        for path in Path("/proc").glob("[0-9]*/stat"):
            with suppress(OSError):  # it has ended
                parents[int(path.parent.name)] = int(path.read_text().rpartition(")")[2].split()[1])
        found = [self.pid]
        for pid in found:  # grows meanwhile
            found += [child for child, parent in parents.items() if parent == pid]
        return found


@dataclass
class Source:
    """The stand-in for vLLM; it may stop and return."""

    directory: Path
    notes: Path
    _process: subprocess.Popen[bytes] | None = None
    _ids: int = 0

    @property
    def socket(self) -> Path:
        """Path of the unix socket that it listens on."""
        return self.directory / SOCKET_NAME

    @property
    def pid(self) -> int:
        """Return the id of its process, once it is started."""
        return self._process.pid if self._process else 0

    def start(self) -> None:
        """Start it, and wait until it listens."""
        command = [sys.executable, "-m", "scripts.maintain.price.source"]
        command += [str(PORTS["source"]), str(self.socket), str(self.notes)]
        self._process = subprocess.Popen(command, cwd=ROOT)
        _wait_for(PORTS["source"], lambda: self._process is not None and self._process.poll() is None)

    def stop(self) -> None:
        """End it."""
        if self._process:
            self._process.kill()
            self._process.wait()

    def new_id(self) -> str:
        """Return an identity for a request that leaves notes."""
        self._ids += 1
        return f"n{self._ids}"

    def note(self, what: str, identity: str, seconds: float) -> dict[str, Any] | None:
        """Wait for a note, and return it; None: it did not come in this time."""
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            for line in self.notes.read_text().splitlines():
                note: dict[str, Any] = json.loads(line)
                if (note["what"], note["id"]) == (what, identity):
                    return note
            time.sleep(0.002)
        return None


@dataclass(frozen=True)
class Opened:
    """All gateways by name, in the order of the tables, and what they stand in front of."""

    gateways: Mapping[str, Gateway]
    source: Source
    cores: tuple[int, int]
    """The core of the gateways, and that of source and client."""
    image: str
    undisturbed: bool

    @contextmanager
    def fast_source(self) -> Iterator[None]:
        """Replace the source until the block ends by one that is faster than any gateway."""
        self.source.stop()
        with tempfile.TemporaryDirectory(prefix="elastic-vllm-price-") as scratch:
            files = Path(scratch)
            (files / "current").mkdir()
            conf = FAST_CONF.replace("PORT", str(PORTS["source"])).replace("SOCKET", SOCKET)
            write_configuration(files / "current", conf.replace("ANSWER", PLAIN_BODY))
            self.source.socket.unlink(missing_ok=True)
            sockets, core = self.source.directory, self.cores[1]
            with _nginx(self.image, files, sockets, core, port=PORTS["source"], start=PLAIN_START) as container:
                if self.undisturbed:
                    for pid in Gateway("", self.gateways[DIRECT].way, container.attrs["State"]["Pid"]).processes():
                        first(pid)
                yield
        self.source.socket.unlink(missing_ok=True)
        self.source.start()


@contextmanager
def opened(
    image: str, display: Display, names: Collection[str] = (), programs: Path = Path(), *, undisturbed: bool = False
) -> Iterator[Opened]:
    """Run both Nginx, of this image, and these peers until the block ends; `programs` is the directory of theirs.

    This process and its children get one core, the gateways another one; `undisturbed`: before all other processes.
    """
    before = os.sched_getaffinity(0)
    if len(before) == 1:
        raise UserError("only one core", "run the benchmark where there are two: one is for the gateways alone")
    cores = (min(before), min(before - {min(before)}))
    for name, port in PORTS.items():
        with socket.socket() as free:
            free.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                free.bind(("127.0.0.1", port))
            except OSError:
                raise UserError(f"port {port} (for {name}) is taken", "end what listens there: `ss -ltnp`") from None
    for left in docker.from_env().containers.list(all=True, filters={"label": LABEL}):  # of a run that was killed
        left.remove(force=True)
    with ExitStack() as closing:
        directory = Path(closing.enter_context(tempfile.TemporaryDirectory(prefix="elastic-vllm-price-")))
        sockets = directory / "socket"
        for path in (directory, sockets):
            path.mkdir(exist_ok=True)
            path.chmod(0o777)
        notes = directory / "notes"
        notes.touch()
        closing.callback(os.sched_setaffinity, 0, before)
        os.sched_setaffinity(0, {cores[1]})
        source = Source(sockets, notes)
        closing.callback(source.stop)
        source.start()
        found = {DIRECT: Gateway(NAMES[DIRECT], Way(DIRECT, "127.0.0.1", PORTS["source"], None, CURRENT))}
        configurations = {
            OURS: nginx_conf([f"unix:{SOCKET}"], limits=LIMITS),
            GUIDE: peers.GUIDE_CONF.replace("KEY", CURRENT).replace("SOURCE", str(PORTS["source"])),
        }
        for name in (OURS, GUIDE):
            conf = configurations[name].replace(f"listen {CONTAINER_PORT} ", f"listen 127.0.0.1:{PORTS[name]} ")
            (directory / name / "current").mkdir(parents=True)
            write_configuration(directory / name / "current", conf)
            start = OUR_START if name == OURS else PLAIN_START
            container = closing.enter_context(
                _nginx(image, directory / name, sockets, cores[0], port=PORTS[name], start=start)
            )
            version = cast("bytes", container.exec_run(["nginx", "-v"]).output).decode().strip().rpartition("/")[2]
            found[name] = Gateway(f"{NAMES[name]} {version}", _way(name), container.attrs["State"]["Pid"])
        started = peers.programs(directory / OURS / "current", PORTS, (PORTS["source"], source.socket), CURRENT)
        for name in PEERS:
            if name in names:
                with display.task(NAMES[name], "start"):
                    found[name] = closing.enter_context(_running(name, started[name], programs, directory, cores[0]))
        if undisturbed:
            closing.enter_context(
                _undisturbed([pid for each in found.values() if each.pid for pid in each.processes()])
            )
            first(source.pid)
        yield Opened(found, source, cores, image, undisturbed)


def _way(name: str, *, has_tls: bool = True) -> Way:
    return Way(name, "127.0.0.1", PORTS[name], any_certificate() if has_tls else None, CURRENT)


def first(pid: int) -> None:
    """Give a process priority over all others, whose work is not to be measured."""
    for task in tasks_out_of_their_group(pid):
        os.sched_setscheduler(task, os.SCHED_RR, os.sched_param(PRIORITY))


def tasks_out_of_their_group(pid: int) -> list[int]:
    """Return a process's threads, which from now on have their priority among those of the whole machine."""
    if ROOT_GROUP.exists():
        ROOT_GROUP.write_text(str(pid))  # Docker's groups have no real-time share, and count as one process each
    return [int(task.name) for task in Path(f"/proc/{pid}/task").iterdir()]


@contextmanager
def _undisturbed(pids: Sequence[int]) -> Iterator[None]:
    """Put these processes and this one, whose children inherit it, before all others until the block ends."""
    # What passes a core's packets on would otherwise have to wait for them, and they for it.
    kernels = [int(path.parent.name) for path in Path("/proc").glob("[0-9]*/comm") if _is_ksoftirqd(path)]
    try:
        for pid in kernels:
            os.sched_setscheduler(pid, os.SCHED_RR, os.sched_param(PRIORITY + 1))
        for pid in (*pids, os.getpid()):
            first(pid)
        yield
    finally:
        for pid in (*kernels, 0):
            os.sched_setscheduler(pid, os.SCHED_OTHER, os.sched_param(0))


def _is_ksoftirqd(path: Path) -> bool:
    try:
        return path.read_text().startswith("ksoftirqd/")
    except OSError:  # it has ended
        return False


def any_certificate() -> ssl.SSLContext:
    """Return a context that accepts any certificate."""
    context = ssl.create_default_context()
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return context


@contextmanager
def _running(name: str, program: peers.Program, programs: Path, directory: Path, core: int) -> Iterator[Gateway]:
    """Run a peer as a process of its own session, so that all its processes can be ended."""
    executable, *arguments = program.command
    command = ["taskset", "--cpu-list", str(core), str(programs / executable), *arguments]
    # Nothing else of this process's environment: a proxy named there would be asked for the source.
    environment = {"PATH": f"{programs}:{os.environ['PATH']}", "HOME": str(directory), **program.variables}
    version = next(iter(programs.parent.glob(f"lib/*/site-packages/{program.package.replace('-', '_')}-*.dist-info")))
    log = directory / f"{name}.log"
    with (
        log.open("wb") as output,
        subprocess.Popen(
            command, stdout=output, stderr=output, cwd=directory, env=environment, start_new_session=True
        ) as process,
    ):
        try:
            _wait_for(PORTS[name], lambda: process.poll() is None)
            way = _way(name, has_tls=program.has_tls)
            _wait_for_answer(way)
            yield Gateway(f"{NAMES[name]} {version.stem.partition('-')[2]}", way, process.pid)
        except UserError as error:
            raise UserError(f"{NAMES[name]}: {error.cause}", f"see its log: {log.read_text()[-2000:]}") from None
        finally:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)


@contextmanager
def _nginx(
    image: str, files: Path, sockets: Path, core: int, *, port: int, start: Sequence[str]
) -> Iterator[Container]:
    container = docker.from_env(timeout=120).containers.run(
        image,
        entrypoint=list(start),
        volumes={str(files): {"bind": CONFIG_DIRECTORY}, str(sockets): {"bind": SOCKET_DIRECTORY}},
        tmpfs={"/tmp": "", METRICS_DIRECTORY: ""},  # noqa: S108 - inside the container
        cpuset_cpus=str(core),
        network_mode="host",
        labels=[LABEL],
        detach=True,
    )
    try:
        _wait_for(port, lambda: _runs(container))
        yield container
    finally:
        container.remove(force=True)


def _runs(container: Container) -> bool:
    container.reload()
    return bool(container.status == "running")


def _wait_for(port: int, runs: Callable[[], bool]) -> None:
    """Wait until something listens."""
    end = time.monotonic() + START_SECONDS
    while time.monotonic() < end and runs():
        with suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
            return
        time.sleep(0.02)
    raise UserError(f"nothing listens on port {port}", "see its log")


def _wait_for_answer(way: Way) -> None:
    """Wait until a request is answered: vllm-router listens before it knows its workers."""
    end = time.monotonic() + START_SECONDS
    while True:
        try:
            latencies(way, 1)
        except (OSError, RuntimeError) as error:
            if time.monotonic() > end:
                raise UserError(f"no answer: {error}", "see its log") from None
            time.sleep(0.2)
        else:
            return

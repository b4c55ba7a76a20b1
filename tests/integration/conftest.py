"""Fixtures of the integration tests: the stack `test`, up once for all of them, on real SSH, Docker, Nginx and vLLM.

Nothing here skips: a machine without Docker or vLLM fails with the rehearsal's error message.
While writing tests: ELASTIC_VLLM_TEST_STACK names another stack, ELASTIC_VLLM_TEST_KEEP=1 leaves it up at the end.
"""

import fcntl
import os
import signal
import ssl
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from secrets import token_hex
from typing import Any

import docker
import httpx2
import openai
import pytest
from docker.models.containers import Container

from scripts.lab.emulator import engine

ROOT = Path(__file__).resolve().parents[2]
STACK = os.environ.get("ELASTIC_VLLM_TEST_STACK", "test")
# The tests know what the embedded engine prints; those in engine/ try the other.
os.environ.setdefault("ELASTIC_VLLM_ENGINE", "embedded")
PREFIX = f"elastic-vllm-{STACK}"
REHEARSAL = Path("/var/lib/elastic-vllm-rehearsal")
STACK_DIRECTORY = Path("/var/lib/elastic-vllm") / STACK
VLLM_SOCKET = STACK_DIRECTORY / "socket" / "vllm.sock"
PROVE = "ELASTIC_VLLM_PROVE" in os.environ
"""True in the slow run (make prove)."""
KEEP = "ELASTIC_VLLM_TEST_KEEP" in os.environ
TCP_LISTEN = "0A"  # in /proc/net/tcp
LOG_SECONDS = 30
"""Limit for a line to reach a container's log: it takes milliseconds unless the machine or Docker is very busy."""


def rehearse(
    *arguments: str, stack: str = STACK, timeout: float = 1500, under: Sequence[str] = ()
) -> subprocess.CompletedProcess[str]:
    """Run `scripts/rehearse ARGUMENTS --stack STACK` until it exits, with any status; `under` is a command prefix."""
    command = [*under, str(ROOT / "scripts" / "rehearse"), *arguments, "--stack", stack]
    environment = {**os.environ, "TERM": "dumb"}
    return subprocess.run(command, capture_output=True, text=True, timeout=timeout, env=environment, check=False)


def rehearse_cluster(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Run `scripts/rehearse cluster ARGUMENTS` until it exits, with any status; the first `up` builds Kubernetes."""
    command = [str(ROOT / "scripts" / "rehearse"), "cluster", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=3600, check=False)


def rehearse_up(*arguments: str, stack: str = STACK) -> str:
    """Run `up`, which must succeed, and return its output."""
    done = rehearse("up", *arguments, stack=stack)
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
    return done.stdout


@dataclass(frozen=True)
class Deployment:
    """A stack that is up."""

    url: str
    """The connector's URL, ending in /v1/chat/completions."""
    key: str = field(repr=False)
    model: str
    alias: str
    ca_certificate: str
    docker: docker.DockerClient

    @property
    def base_url(self) -> str:
        return self.url.removesuffix("/v1/chat/completions")

    @property
    def vllm(self) -> Container:
        return self.docker.containers.get(f"{PREFIX}-vllm")

    @property
    def nginx(self) -> Container:
        return self.docker.containers.get(f"{PREFIX}-nginx")

    def http(self, key: str | None = None) -> httpx2.Client:
        """A plain client that trusts the stack's CA, with `key` as its bearer token where one is given."""
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        context = ssl.create_default_context(cadata=self.ca_certificate)
        return httpx2.Client(base_url=self.base_url, verify=context, headers=headers, timeout=60, trust_env=False)

    def openai(self, key: str | None = None) -> openai.OpenAI:
        """The official client, retries off, with the stack's own key unless another is given."""
        return openai.OpenAI(
            base_url=f"{self.base_url}/v1", api_key=key or self.key, max_retries=0, http_client=self.http()
        )


def log_once(container: Container, whole: Callable[[str], bool], since: float | None = None) -> str:
    """Return a container's log once it is whole, or as it is after LOG_SECONDS: a line can follow its answer."""
    end = time.monotonic() + LOG_SECONDS
    while True:
        log: str = container.logs(since=since).decode()
        if whole(log) or time.monotonic() > end:
            return log
        time.sleep(0.1)


def vllm_directly() -> httpx2.Client:
    """Client for vLLM's socket, bypassing Nginx, which only root on this machine can do."""
    return httpx2.Client(transport=httpx2.HTTPTransport(uds=str(VLLM_SOCKET)), base_url="http://vllm", timeout=60)


def vllm_log(deployed: Deployment, since: float) -> str:
    """Return vLLM's log since then, complete up to now.

    vLLM logs in the order of its answers, so the line of a last request, sent past Nginx, shows that the log is whole.
    """
    last = f"/{token_hex(16)}"
    with vllm_directly() as vllm:
        assert vllm.get(last).status_code == httpx2.codes.NOT_FOUND
    log, reached, _ = log_once(deployed.vllm, lambda log: last in log, since).partition(last)
    assert reached, f"after {LOG_SECONDS} s vLLM's log has no line for a request: {log[-2000:]}"
    return log


def outputs_of(stack: str) -> dict[str, Any]:
    """Return the output of `scripts/rehearse outputs --json --show-secrets`, which takes half a second."""
    return {name: output["value"] for name, output in engine.outputs(stack).items()}


def deployment(stack: str = STACK) -> Deployment:
    """Return the stack as its outputs describe it now."""
    values = outputs_of(stack)
    return Deployment(
        url=values["connectorUrl"],
        key=values["connectorApiKey"],
        model=values["model"],
        alias=values["servedModelName"],
        ca_certificate=values["caCertificate"],
        docker=docker.from_env(timeout=120),
    )


def identity(container: Container) -> tuple[str, str]:
    """Id and start time: both stay while a container is neither replaced nor restarted."""
    container.reload()
    return str(container.id), str(container.attrs["State"]["StartedAt"])


def tcp_listeners() -> set[int]:
    """Return the ports that processes on this machine listen on, on any address.

    One reading can miss a socket, because the kernel lists them in pieces while others come and go.
    """
    readings = [Path(f"/proc/net/{name}").read_text() for _ in range(3) for name in ("tcp", "tcp6")]
    lines = [line.split() for reading in readings for line in reading.splitlines()]
    return {int(fields[1].rpartition(":")[2], 16) for fields in lines if fields[3] == TCP_LISTEN}


def installed(program: str, package: str) -> None:
    """Ensure that a program is installed, without starting a service that its package contains."""
    if any((Path(folder) / program).exists() for folder in ("/usr/bin", "/usr/sbin", "/usr/local/bin")):
        return
    quiet = {**os.environ, "DEBIAN_FRONTEND": "noninteractive", "RUNLEVEL": "1", "SYSTEMD_OFFLINE": "1"}
    for command in (["update"], ["install", "-y", "--no-install-recommends", package]):
        subprocess.run(
            ["apt-get", "-q", "-o", "DPkg::Lock::Timeout=300", *command], env=quiet, capture_output=True, check=True
        )


@contextmanager
def _alone(directories: pytest.TempPathFactory) -> Iterator[bool]:
    """Let the processes of a run (support/side_by_side.py) in one by one: true for the first, which sets up.

    The others must not set up: by then the tests of the first bring the same stack up and down.
    """
    own = directories.getbasetemp()
    done = (own.parent if "PYTEST_XDIST_WORKER" in os.environ else own) / "set-up"
    with (ROOT / "pyproject.toml").open() as lock:
        # Waiting for images that another process builds must not count against this test's timeout (this timer).
        left, _ = signal.setitimer(signal.ITIMER_REAL, 0)
        fcntl.flock(lock, fcntl.LOCK_EX)
        signal.setitimer(signal.ITIMER_REAL, left)
        yield not done.exists()
        done.touch()


@pytest.fixture(scope="session")
def machine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Ensure that this machine has what stacks need (packages, Docker, sshd, images), whether or not one is up."""
    with _alone(tmp_path_factory) as first:
        done = rehearse("setup") if first else None
        nothing_to_do = f"stack {STACK} runs on its own host"
        assert not done or done.returncode == 0 or nothing_to_do in done.stderr, f"{done.stdout}\n{done.stderr}"
        # Install now, because the other process checks later which packages a stack leaves.
        for program in ("skopeo", "docker-registry", "wrk"):
            installed(program, program)
    yield
    if not KEEP:
        rehearse("down")


@pytest.fixture(scope="session")
def first_up(tmp_path_factory: pytest.TempPathFactory) -> Iterator[set[int]]:
    """Bring the stack up until the end; the value is the set of ports that were opened by that."""
    before = tcp_listeners()
    try:
        with _alone(tmp_path_factory):
            rehearse_up()
        yield tcp_listeners() - before
    finally:
        if not KEEP:
            done = rehearse("down")
            assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"


@pytest.fixture(scope="module")
def deployed(first_up: set[int]) -> Deployment:
    """The stack as it is when a module of tests starts."""
    return deployment()


@pytest.fixture
def ahead_of_other_tests() -> Iterator[None]:
    """Let this process and those that it starts compute first: the tests beside them take both cores."""
    os.sched_setscheduler(0, os.SCHED_RR, os.sched_param(1))
    yield
    os.sched_setscheduler(0, os.SCHED_OTHER, os.sched_param(0))

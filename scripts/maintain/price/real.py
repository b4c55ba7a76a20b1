"""The price with the real vLLM: throughput, time to the first token, and time to stop after a client leaves."""

import itertools
import os
import random
import re
import selectors
import socket
import ssl
import statistics
import subprocess
import sys
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import Any, TypeVar, cast

import docker
from docker.models.containers import Container

from components.serving.nginx_config import CONTAINER_PORT
from scripts.maintain.price.compare import ms
from scripts.maintain.price.gateways import (
    DIRECT,
    NAMES,
    OURS,
    any_certificate,
    first,
    tasks_out_of_their_group,
)
from scripts.maintain.price.traffic import Way

STREAMS = 4
TOKENS = 250
ARRIVALS, A_SECOND, FEW_TOKENS = 300, 20, 2
"""For the time to the first token: requests at random moments, at this rate, as `vllm bench serve` sends them, and so
short that they seldom wait for each other in the engine."""
CONNECTIONS = 16  # kept alive, in turns: none is idle for as long as vLLM keeps one (5 s)
LONG = 12_000  # tokens: a minute or so
POLL_SECONDS = 0.01
PATIENCE_SECONDS = 60
ABORTS = 6
BUSY_PROCESSES = 4
PROXY_CORE, OTHER_CORE = 0, 1
"""Cores of Nginx and the client, and of vLLM."""
AHEAD = -20
"""Niceness of vLLM, which computes all the time: with a real-time priority nothing else would run on its core."""
PROMISED_FIRST_TOKEN_MS = 2
PROMISED_THROUGHPUT = 0.99
PROMISED_STOP_SECONDS = 1
RESAMPLES = 1000
PAIRS = 8  # of blocks for the throughput, in each round: short ones, because the machine's speed varies
STACKS = Path("/var/lib/elastic-vllm")
T = TypeVar("T")


@dataclass
class Load:
    """Results of some blocks of streams, block by block."""

    tokens_a_second: list[float] = field(default_factory=list)
    first_token_seconds: list[list[float]] = field(default_factory=list)


@dataclass
class Stream:
    """A stream's answer, as far as it has come."""

    begun: float
    received: bytes = b""
    first: float = 0.0
    """Seconds to the first token."""

    def over(self, connection: socket.socket) -> bool:
        """Read the available bytes, and return True if the stream is over."""
        while True:
            try:
                data = connection.recv(65536)
            except (BlockingIOError, ssl.SSLWantReadError):
                return False
            if not data:
                raise RuntimeError(f"a stream was cut off: {self.received[-200:]!r}")
            self.received += data
            # The first event has only the role.
            if not self.first and self.received.count(b"data: ") > 1:
                self.first = time.monotonic() - self.begun
            if self.received.endswith(b"\r\n0\r\n\r\n"):
                return True


def random_moments(seed: int) -> list[float]:
    """Return the moments of independent requests, in seconds from the start (Poisson)."""
    chance = random.Random(seed)  # noqa: S311 - the same for every way
    return list(itertools.accumulate(chance.expovariate(A_SECOND) for _ in range(ARRIVALS)))


def throughput(way: Way, model: str, load: Load) -> None:
    """Measure some long streams at once."""
    _, seconds = _streams(way, model, TOKENS, [0.0] * STREAMS)
    load.tokens_a_second.append(STREAMS * TOKENS / seconds)


def first_tokens(way: Way, model: str, load: Load, moments: list[float]) -> None:
    """Measure short streams that start at these moments."""
    first_token_seconds, _ = _streams(way, model, FEW_TOKENS, moments)
    load.first_token_seconds.append(first_token_seconds)


def _streams(way: Way, model: str, tokens: int, moments: list[float]) -> tuple[list[float], float]:
    """Return the seconds to the first token of each stream, and to the end of all."""
    request = way.request(model=model, max_tokens=tokens, stream=True, ignore_eos=True, skip_special_tokens=False)
    found: list[float] = []
    with ExitStack() as closing, selectors.EpollSelector() as selector:
        free = deque(closing.enter_context(way.connection()) for _ in range(CONNECTIONS))
        for connection in free:
            connection.setblocking(False)
        begun, coming = time.monotonic(), deque(moments)
        while coming or selector.get_map():
            if coming and free and time.monotonic() - begun >= coming[0]:
                coming.popleft()
                connection = free.popleft()
                selector.register(connection, selectors.EVENT_READ, Stream(time.monotonic()))
                connection.sendall(request)
            pause = max(0.0, begun + coming[0] - time.monotonic()) if coming and free else PATIENCE_SECONDS
            ready = selector.select(pause)
            if not ready and pause == PATIENCE_SECONDS:
                raise RuntimeError(f"no stream sent anything for {PATIENCE_SECONDS} s")
            for key, _ in ready:
                connection = cast("socket.socket", key.fileobj)
                if key.data.over(connection):
                    found.append(key.data.first)
                    selector.unregister(connection)
                    free.append(connection)
        return found, time.monotonic() - begun


def seconds_to_stop(way: Way, model: str, metrics: Way) -> float:
    """Return the seconds from a client's disconnect until vLLM counts no more requests."""
    _wait(metrics, 0)
    with way.connection() as connection:
        connection.sendall(way.request(model=model, max_tokens=LONG, stream=True, ignore_eos=True))
        _wait(metrics, 1)
        time.sleep(0.5)
        connection.recv(65536)
    start = time.monotonic()
    _wait(metrics, 0)
    return time.monotonic() - start


def _wait(metrics: Way, number: int) -> None:
    end = time.monotonic() + PATIENCE_SECONDS
    while _running(metrics) != number:
        if time.monotonic() > end:
            raise RuntimeError(f"vLLM never works on {number} requests")
        time.sleep(POLL_SECONDS)


def _running(metrics: Way) -> int:
    with metrics.connection() as connection:
        connection.sendall(b"GET /metrics HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
        text = b"".join(iter(lambda: connection.recv(65536), b"")).decode()
    return round(sum(float(value) for value in re.findall(r"^vllm:num_requests_running\S* (\S+)", text, re.M)))


@contextmanager
def busy(processes: int) -> Iterator[None]:
    """Keep the machine busy with this number of computing processes until the block ends."""
    burning = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(processes)]
    try:
        yield
    finally:
        for each in burning:
            each.kill()
            each.wait()


# --- All of it, with its tables


def processes_of(container: Container) -> list[int]:
    """Return the process ids on this machine of a container's processes."""
    return [int(pid) for (pid,) in container.top(ps_args="-eo pid")["Processes"]]


def renice(container: Container, nice: int) -> None:
    """Give all threads of a container this niceness, among the processes of the machine."""
    for pid in processes_of(container):
        for task in tasks_out_of_their_group(pid):
            os.setpriority(os.PRIO_PROCESS, task, nice)


def with_vllm(stack: str, outputs: dict[str, Any], rounds: int, say: Callable[[str], None]) -> str:
    """Return the results as Markdown. vLLM has one core, Nginx and the client share the other."""
    client = docker.from_env(timeout=120)
    containers = {role: client.containers.get(f"elastic-vllm-{stack}-{role}") for role in ("vllm", "nginx")}
    address = next(iter(containers["nginx"].attrs["NetworkSettings"]["Networks"].values()))["IPAddress"]
    key, model = outputs["connectorApiKey"], outputs["model"]
    direct = Way(DIRECT, "vllm", 0, None, key, path=str(STACKS / stack / "socket" / "vllm.sock"))
    both = (direct, Way(OURS, address, CONTAINER_PORT, any_certificate(), key))
    every_core = f"0-{(os.cpu_count() or 1) - 1}"
    first(os.getpid())
    for pid in processes_of(containers["nginx"]):
        first(pid)
    renice(containers["vllm"], AHEAD)
    containers["vllm"].update(cpuset_cpus=str(OTHER_CORE))
    containers["nginx"].update(cpuset_cpus=str(PROXY_CORE))
    try:
        loads = {way.name: Load() for way in both}
        for number in range(1, rounds + 1):
            say(f"round {number} of {rounds}: vLLM")
            for pair in range(PAIRS):
                for way in both if pair % 2 else both[::-1]:
                    throughput(way, model, loads[way.name])
            moments = random_moments(number)
            for way in both if number % 2 else both[::-1]:
                first_tokens(way, model, loads[way.name], moments)
    finally:
        # From here on all processes share all cores at the same priority.
        renice(containers["vllm"], 0)
        for container in containers.values():
            container.update(cpuset_cpus=every_core)
        os.sched_setaffinity(0, set(range(os.cpu_count() or 1)))
        for pid in (0, *processes_of(containers["nginx"])):
            os.sched_setscheduler(pid, os.SCHED_OTHER, os.sched_param(0))
    stops: dict[tuple[str, int], list[float]] = {}
    for processes in (0, BUSY_PROCESSES):
        with busy(processes):
            for number in range(ABORTS):
                say(f"{number + 1} of {ABORTS}: a client leaves; {processes} other processes compute")
                for way in both:
                    stops.setdefault((way.name, processes), []).append(seconds_to_stop(way, model, direct))
    return f"{load_table(loads)}\n\n{stop_table(stops)}"


def load_table(loads: dict[str, Load]) -> str:
    """Return throughput and first tokens as Markdown, with the verdicts on what was promised."""
    lines = [
        f"| with vLLM | tokens per second, {STREAMS} streams of {TOKENS} tokens, median "
        f"| first token p50, {A_SECOND} requests per second | p99 |",
        "| --- | --- | --- | --- |",
    ]
    rates = {name: statistics.median(load.tokens_a_second) for name, load in loads.items()}
    for name, load in loads.items():
        p50, p99 = (ms(list(chain.from_iterable(load.first_token_seconds)), percent) for percent in (50, 99))
        lines.append(f"| {NAMES[name]} | {rates[name]:.1f} | {p50:.1f} ms | {p99:.1f} ms |")
    pairs = list(zip(loads[OURS].tokens_a_second, loads[DIRECT].tokens_a_second, strict=True))
    ratio, *ratios = with_interval(pairs, lambda drawn: statistics.median(ours / direct for ours, direct in drawn))
    blocks = list(zip(loads[OURS].first_token_seconds, loads[DIRECT].first_token_seconds, strict=True))
    more, *mores = with_interval(blocks, _p99_more)
    kept = [ratio >= PROMISED_THROUGHPUT, more <= PROMISED_FIRST_TOKEN_MS]
    words = ["kept" if each else "not kept" for each in kept]
    lines += [
        "",
        f"Promised: throughput at least {PROMISED_THROUGHPUT} of direct, measured {ratio:.3f} ({ratios[0]:.3f} to "
        f"{ratios[1]:.3f}): **{words[0]}**; first token p99 at most {PROMISED_FIRST_TOKEN_MS} ms more, "
        f"measured {more:.1f} ms ({mores[0]:.1f} to {mores[1]:.1f}): **{words[1]}**. In brackets: the 95 % interval of "
        f"{RESAMPLES} bootstrap samples of the pairs of measurements.",
    ]
    return "\n".join(lines)


def with_interval(pairs: Sequence[T], figure: Callable[[Sequence[T]], float]) -> tuple[float, float, float]:
    """Return a figure of paired measurements, and the ends of its 95 % interval (percentile bootstrap)."""
    chance = random.Random(0)  # noqa: S311 - no secret
    found = sorted(figure(chance.choices(pairs, k=len(pairs))) for _ in range(RESAMPLES))
    return figure(pairs), found[RESAMPLES * 25 // 1000], found[RESAMPLES * 975 // 1000]


def _p99_more(blocks: Sequence[tuple[list[float], list[float]]]) -> float:
    """Return by how many ms the first token of our blocks is later than in those beside them, at p99."""
    ours, direct = (ms(list(chain.from_iterable(way)), 99) for way in zip(*blocks, strict=True))
    return ours - direct


def stop_table(stops: dict[tuple[str, int], list[float]]) -> str:
    """Return the times to stop as Markdown, with the verdict on what was promised."""
    lines = ["| from the client's disconnect to `num_requests_running` 0 | median | longest |", "| --- | --- | --- |"]
    for (name, processes), seconds in stops.items():
        busy = f", while {processes} other processes compute" if processes else ""
        lines.append(f"| {NAMES[name]}{busy} | {statistics.median(seconds):.2f} s | {max(seconds):.2f} s |")
    longest = max(stops[OURS, 0])
    kept = "kept" if longest <= PROMISED_STOP_SECONDS else "not kept"
    lines += ["", f"Promised: within {PROMISED_STOP_SECONDS} s: **{kept}**."]
    return "\n".join(lines)

"""The price with the real vLLM: throughput, time to the first token, and time to stop after a client leaves."""

import itertools
import random
import re
import selectors
import socket
import ssl
import subprocess
import sys
import time
from collections import deque
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import cast

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


@dataclass
class Load:
    """Results of some blocks of streams, block by block."""

    tokens_a_second: list[float] = field(default_factory=list)
    first_token_seconds: list[list[float]] = field(default_factory=list)


@dataclass
class _Stream:
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
                selector.register(connection, selectors.EVENT_READ, _Stream(time.monotonic()))
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

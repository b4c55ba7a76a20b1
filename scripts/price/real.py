"""The price with the real vLLM: throughput, time to the first token, and how soon it stops when a client leaves."""

import re
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from scripts.price.traffic import Way

STREAMS = 4
TOKENS = 1000
FEW_TOKENS, BURSTS = 8, 25
"""For the time to the first token: many short streams."""
LONG = 12_000  # tokens: a minute or so
POLL_SECONDS = 0.01
PATIENCE_SECONDS = 60


@dataclass
class Load:
    """What some blocks of streams showed."""

    tokens_a_second: list[float] = field(default_factory=list)
    first_token_seconds: list[float] = field(default_factory=list)


def one_block(way: Way, model: str, load: Load) -> None:
    """Long streams for the throughput, then short ones for the time to the first token."""
    load.tokens_a_second.append(STREAMS * TOKENS / _side_by_side(way, model, TOKENS, []))
    for _ in range(BURSTS):
        _side_by_side(way, model, FEW_TOKENS, load.first_token_seconds)


def _side_by_side(way: Way, model: str, tokens: int, first_token_seconds: list[float]) -> float:
    """Seconds of some streams, from their start to the last one's end."""
    errors: list[Exception] = []
    connected = threading.Barrier(STREAMS + 1)  # a client keeps its connections

    def stream() -> None:
        try:
            first_token_seconds.append(_read_stream(way, model, tokens, connected))
        except Exception as error:  # raised again below, in the thread that waits
            errors.append(error)

    threads = [threading.Thread(target=stream) for _ in range(STREAMS)]
    for thread in threads:
        thread.start()
    connected.wait(PATIENCE_SECONDS)
    start = time.monotonic()
    for thread in threads:
        thread.join()
    if errors:
        raise errors[0]
    return time.monotonic() - start


def _read_stream(way: Way, model: str, tokens: int, connected: threading.Barrier) -> float:
    """Seconds to the first token; reads on to the end."""
    asked = {"model": model, "max_tokens": tokens, "stream": True, "ignore_eos": True, "skip_special_tokens": False}
    first, received = 0.0, b""
    with way.connection() as connection:
        connection.settimeout(PATIENCE_SECONDS)
        connected.wait(PATIENCE_SECONDS)
        start = time.monotonic()
        connection.sendall(way.request(**asked))
        while b"data: [DONE]" not in received[-200:]:
            data = connection.recv(65536)
            if not data:
                raise RuntimeError(f"a stream was cut off: {received[-200:]!r}")
            received += data
            # The first event has the role alone.
            if not first and received.count(b"data: ") > 1:
                first = time.monotonic() - start
    return first


def seconds_to_stop(way: Way, model: str, metrics: Way) -> float:
    """From a client's leaving until vLLM counts no request any more."""
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
            raise RuntimeError(f"vLLM does not come to work on {number} requests")
        time.sleep(POLL_SECONDS)


def _running(metrics: Way) -> int:
    with metrics.connection() as connection:
        connection.sendall(b"GET /metrics HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
        text = b"".join(iter(lambda: connection.recv(65536), b"")).decode()
    return round(sum(float(value) for value in re.findall(r"^vllm:num_requests_running\S* (\S+)", text, re.M)))


@contextmanager
def busy(processes: int) -> Iterator[None]:
    """The machine, with so many processes that only compute."""
    burning = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(processes)]
    try:
        yield
    finally:
        for each in burning:
            each.kill()
            each.wait()

"""Measurements of a client: latency on one connection, lag of a stream's events, and requests a second."""

import json
import re
import selectors
import socket
import ssl
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field

WARM_UP = 5  # requests of a connection, or events of a stream, that do not count
BUNCHED_NS = 2_000_000
"""Events of a stream are sent ten times further apart: if they arrive closer together, one waited for the next."""
EVENT_TIME = re.compile(rb"@(\d+)@")
CONNECTIONS = 16  # for the requests a second


@dataclass(frozen=True)
class Way:
    """A client's way to the source."""

    name: str
    host: str
    port: int
    tls: ssl.SSLContext | None
    key: str = field(repr=False)
    path: str = ""
    """Path of a unix socket, instead of host and port."""

    @contextmanager
    def connection(self) -> Iterator[socket.socket]:
        """Open a connection that is kept alive."""
        if self.path:
            with socket.socket(socket.AF_UNIX) as local:
                local.settimeout(30)
                local.connect(self.path)
                yield local
            return
        with socket.create_connection((self.host, self.port), 30) as plain:
            plain.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            if not self.tls:
                yield plain
                return
            with self.tls.wrap_socket(plain, server_hostname=self.host) as encrypted:
                yield encrypted

    def request(self, **more: object) -> bytes:
        """Return a request as bytes, with these fields in its body."""
        body = chat(**more)
        head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: {self.host}\r\nAuthorization: Bearer {self.key}\r\n"
        return f"{head}Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n{body}".encode()


def chat(**more: object) -> str:
    """Return a request's body."""
    return json.dumps({"model": "m", "messages": [{"role": "user", "content": "Hello"}], **more})


def latencies(way: Way, count: int) -> list[float]:
    """Return the seconds of each request, one after the other on one connection."""
    request, found = way.request(), []
    with way.connection() as connection:
        for number in range(count + WARM_UP):
            start = time.perf_counter()
            connection.sendall(request)
            _whole_answer(connection)
            if number >= WARM_UP:
                found.append(time.perf_counter() - start)
    return found


def _whole_answer(connection: socket.socket) -> None:
    answer = b""
    while b"\r\n\r\n" not in answer:
        answer += _some(connection)
    head, _, body = answer.partition(b"\r\n\r\n")
    if not head.startswith(b"HTTP/1.1 200"):
        raise RuntimeError(f"the proxy answered {answer[:200]!r}")
    missing = int(head.lower().partition(b"content-length:")[2].split(b"\r\n")[0]) - len(body)
    while missing > 0:
        missing -= len(_some(connection))


def _some(connection: socket.socket) -> bytes:
    data = connection.recv(65536)
    if not data:
        raise RuntimeError("the connection was closed")
    return data


@dataclass
class Lags:
    """Lags of the events of some streams: seconds from sending to arrival."""

    seconds: list[float] = field(default_factory=list)
    held_back: int = 0
    """Events after which the next one of their stream arrived within BUNCHED_NS."""


class _Stream:
    def __init__(self, connection: socket.socket) -> None:
        self.connection = connection
        self.buffer = b""
        self.events = 0
        self.last = 0
        """When an event arrived last, in ns."""

    def read(self, lags: Lags) -> bool:
        """Read the available bytes, and return True if the stream is over."""
        while True:
            try:
                data = self.connection.recv(65536)
            except (BlockingIOError, ssl.SSLWantReadError):
                return False
            now = time.monotonic_ns()
            if not data:
                raise RuntimeError("a stream was cut off")
            self.buffer += data
            self._take(now, lags)
            if self.buffer.endswith(b"\r\n0\r\n\r\n"):
                return True

    def _take(self, now: int, lags: Lags) -> None:
        sent = [int(each) for each in EVENT_TIME.findall(self.buffer)]
        if not sent:
            return
        self.buffer = self.buffer[self.buffer.rindex(b"@") + 1 :]
        self.events += len(sent)
        if self.events > WARM_UP:
            lags.seconds += [(now - each) / 1e9 for each in sent]
            lags.held_back += len(sent) - 1 + (now - self.last < BUNCHED_NS)
        self.last = now


def stream_lags(way: Way, streams: int, events: int) -> Lags:
    """Read streams side by side, each with this number of events."""
    lags = Lags()
    with _connections(way, streams) as connections, selectors.EpollSelector() as selector:
        for connection in connections:
            connection.sendall(way.request(stream=True, max_tokens=events))
            connection.setblocking(False)
            selector.register(connection, selectors.EVENT_READ, _Stream(connection))
        while selector.get_map():
            for ready, _ in selector.select(30):
                if ready.data.read(lags):
                    selector.unregister(ready.fileobj)
    return lags


@contextmanager
def _connections(way: Way, count: int) -> Iterator[list[socket.socket]]:

    with ExitStack() as closing:
        yield [closing.enter_context(way.connection()) for _ in range(count)]


def throughput(way: Way, seconds: int) -> float:
    """Send requests on 16 connections, each as soon as the one before is answered, and return how many a second."""
    headers = {"Authorization": f"Bearer {way.key}", "Content-Type": "application/json"}
    with tempfile.NamedTemporaryFile("w", suffix=".lua") as script:
        script.write(f"wrk.method = 'POST'\nwrk.body = [=[{chat()}]=]\n")
        script.writelines(f"wrk.headers['{name}'] = '{value}'\n" for name, value in headers.items())
        script.flush()
        command = ["wrk", "--threads=1", f"--connections={CONNECTIONS}", f"--duration={seconds}s"]
        url = f"{'https' if way.tls else 'http'}://{way.host}:{way.port}/v1/chat/completions"
        done = subprocess.run([*command, f"--script={script.name}", url], capture_output=True, text=True, check=False)
    rate = re.search(r"Requests/sec: +([\d.]+)", done.stdout)
    if not rate or "Non-2xx" in done.stdout:
        raise RuntimeError(f"{way.name}: wrk failed: {done.stdout}{done.stderr}")
    return float(rate[1])

"""Measurements of a client: the latency of answers on one connection, and the lag of a stream's events."""

import json
import selectors
import socket
import ssl
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field

WARM_UP = 5  # requests of a connection, or events of a stream, that do not count


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
        """Return a request as bytes, with these fields in its body. For the source, `events` asks for a stream."""
        body = json.dumps({"model": "m", "messages": [{"role": "user", "content": "Hello"}], **more})
        head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: {self.host}\r\nAuthorization: Bearer {self.key}\r\n"
        return f"{head}Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n{body}".encode()


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
    """Events that arrived together with the next one of their stream."""


class _Stream:
    def __init__(self, connection: socket.socket) -> None:
        self.connection = connection
        self.buffer = b""
        self.events = 0

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
        sent = []
        while (start := self.buffer.find(b'data: {"t": ')) >= 0 and (end := self.buffer.find(b"\n\n", start)) >= 0:
            sent.append(int(self.buffer[start + 12 : end].split(b",", 1)[0]))
            self.buffer = self.buffer[end + 2 :]
        self.events += len(sent)
        if self.events > WARM_UP:
            lags.seconds += [(now - each) / 1e9 for each in sent]
            lags.held_back += max(0, len(sent) - 1)


def stream_lags(way: Way, streams: int, events: int) -> Lags:
    """Read streams side by side, each with this number of events."""
    lags = Lags()
    with _connections(way, streams) as connections, selectors.EpollSelector() as selector:
        for connection in connections:
            connection.sendall(way.request(events=events))
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

"""Bytes over TLS as no client library would send them, and what comes back, answer by answer."""

import json
import re
import socket
import ssl
from contextlib import suppress
from dataclasses import dataclass, field

STATUS_LINE = re.compile(rb"HTTP/1\.1 (\d{3}) [^\r\n]*")
QUIET_SECONDS = 0.3
"""Nothing for so long: the other side waits for more of the request."""
HANG_SECONDS = 10
LAST = b"GET /the-last-one HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
"""Sent behind everything else: with its answer (401) the connection ends, so that nobody waits for more."""


class HangsError(AssertionError):
    """The other side neither answers nor closes, though it knows that no more will come."""


@dataclass(frozen=True)
class Answer:
    """One answer; status 0 is one without a head, as HTTP/0.9 has it."""

    status: int
    headers: tuple[tuple[str, str], ...]
    body: bytes

    def header(self, name: str) -> str:
        """The value, or empty; a header that comes twice is no answer of ours."""
        values = [value for key, value in self.headers if key == name]
        assert len(values) <= 1, f"{name} comes {len(values)} times"
        return values[0] if values else ""

    @property
    def error(self) -> dict[str, object]:
        """What is under `error` in the body."""
        found: dict[str, object] = json.loads(self.body)["error"]
        return found


@dataclass(frozen=True)
class Server:
    """Where Nginx listens."""

    host: str
    port: int
    context: ssl.SSLContext = field(repr=False)

    def connect(self, seconds: float = HANG_SECONDS) -> ssl.SSLSocket:
        """A connection of one's own."""
        plain = socket.create_connection((self.host, self.port), seconds)
        plain.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return self.context.wrap_socket(plain)


def exchange(server: Server, payload: bytes) -> bytes:
    """All that comes back until the other side closes.

    Raises ConnectionResetError where it does so rudely, HangsError where it does not.
    """
    with server.connect() as tls:
        received = b""
        with suppress(ConnectionError):  # refused before all of it was there: the answer may still be on its way
            tls.sendall(payload + LAST)
        tls.settimeout(QUIET_SECONDS)
        ended = False
        while True:
            try:
                piece = tls.recv(65536)
            except TimeoutError as error:
                if ended:
                    raise HangsError(f"no end after {HANG_SECONDS} s; so far {received[:200]!r}") from error
                ended = True
                tls.settimeout(HANG_SECONDS)
                _end_of_input(tls)
                continue
            except ssl.SSLEOFError:
                return received
            if not piece:
                return received
            received += piece


def _end_of_input(tls: ssl.SSLSocket) -> None:
    with suppress(OSError):
        # On the connection below TLS: one's own close_notify would make Nginx drop what it still has to say.
        socket.socket.shutdown(tls, socket.SHUT_WR)


def answers(received: bytes) -> list[Answer]:
    """The bytes of a connection as answers. Fails where they are not well-formed."""
    found = []
    while received:
        if not received.startswith(b"HTTP/"):
            found.append(Answer(0, (), received))
            break
        head, separator, rest = received.partition(b"\r\n\r\n")
        assert separator, f"an answer's head has no end: {received[:200]!r}"
        first, *lines = head.split(b"\r\n")
        match = STATUS_LINE.fullmatch(first)
        assert match, f"not a status line: {first!r}"
        pairs = [line.decode("ascii").partition(": ") for line in lines]
        headers = tuple((name.lower(), value) for name, _, value in pairs)
        status = int(match[1])
        named = dict(headers)
        if status == 100:
            body = b""
        elif named.get("transfer-encoding") == "chunked":
            body, rest = _chunks(rest)
        else:
            assert "content-length" in named or named.get("connection") == "close", f"no end is told: {head!r}"
            size = int(named.get("content-length", len(rest)))
            size = 0 if _without_body(rest, size) else size
            assert len(rest) >= size, f"a body was cut off: {received[:300]!r}"
            body, rest = rest[:size], rest[size:]
        found.append(Answer(status, headers, body))
        received = rest
    return [answer for answer in found if answer.status != 100]


def _without_body(rest: bytes, size: int) -> bool:
    """Whether a head that tells a size answers HEAD: what comes next is no body of that size.

    It is nothing, another head, or an HTTP/0.9 error: JSON without a head, with which the connection ends.
    """
    if not rest or rest.startswith(b"HTTP/"):
        return True
    with suppress(ValueError):
        return len(rest) != size and "error" in json.loads(rest)
    return False


def _chunks(data: bytes) -> tuple[bytes, bytes]:
    body = b""
    while True:
        size, separator, rest = data.partition(b"\r\n")
        assert separator, f"a chunk was cut off: {data[:100]!r}"
        length = int(size, 16)
        assert rest[length : length + 2] == b"\r\n", "a chunk does not end where it says"
        body, data = body + rest[:length], rest[length + 2 :]
        if not length:
            return body, data

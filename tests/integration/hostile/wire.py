"""Bytes over TLS that no client library would send, and the answers."""

import json
import re
import socket
import ssl
from contextlib import suppress
from dataclasses import dataclass, field

STATUS_LINE = re.compile(rb"HTTP/1\.1 (\d{3}) [^\r\n]*")
QUIET_SECONDS = 0.3
"""Silence after which the other side is waiting for more of the request."""
HANG_SECONDS = 10
LAST = b"GET /the-last-one HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
"""Sent after everything else: its answer (401) ends the connection, so that neither side waits for more."""


class HangsError(AssertionError):
    """The other side neither answers nor closes, although the request has ended."""


@dataclass(frozen=True)
class Answer:
    """One answer; status 0 is an answer without a head, as in HTTP/0.9."""

    status: int
    headers: tuple[tuple[str, str], ...]
    body: bytes

    def header(self, name: str) -> str:
        """Return the value, or an empty string; a repeated header fails."""
        values = [value for key, value in self.headers if key == name]
        assert len(values) <= 1, f"{name} comes {len(values)} times"
        return values[0] if values else ""

    @property
    def error(self) -> dict[str, object]:
        """Return the value of `error` in the body."""
        found: dict[str, object] = json.loads(self.body)["error"]
        return found


@dataclass(frozen=True)
class Server:
    """Address of Nginx, and its certificate."""

    host: str
    port: int
    context: ssl.SSLContext = field(repr=False)

    def connect(self, seconds: float = HANG_SECONDS) -> ssl.SSLSocket:
        """Open a new connection."""
        plain = socket.create_connection((self.host, self.port), seconds)
        plain.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return self.context.wrap_socket(plain)


def exchange(server: Server, payload: bytes) -> bytes:
    """Send bytes and return everything received until the other side closes.

    Raises ConnectionResetError if it resets the connection, HangsError if it does not close it.
    """
    with server.connect() as tls:
        received = b""
        with suppress(ConnectionError):  # refused before all of it was sent: the answer may still be on its way
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
        # On the connection below TLS: our close_notify would make Nginx drop the rest of its answer.
        socket.socket.shutdown(tls, socket.SHUT_WR)


def answers(received: bytes) -> list[Answer]:
    """Split the bytes of a connection into answers. Fails if they are malformed."""
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
            assert "content-length" in named or named.get("connection") == "close", (
                f"the head declares no end: {head!r}"
            )
            size = int(named.get("content-length", len(rest)))
            size = 0 if _without_body(rest, size) else size
            assert len(rest) >= size, f"a body was cut off: {received[:300]!r}"
            body, rest = rest[:size], rest[size:]
        found.append(Answer(status, headers, body))
        received = rest
    return [answer for answer in found if answer.status != 100]


def _without_body(rest: bytes, size: int) -> bool:
    """Return True if a head that declares a size answers HEAD: no body of that size follows.

    Instead there is nothing, another head, or an HTTP/0.9 error: JSON without a head, which ends the connection.
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

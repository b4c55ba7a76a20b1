"""Stand-in for vLLM behind Nginx that records what really arrives: heads, bodies, and anything malformed.

It reads strictly by RFC 9112: a request that can be read in two ways is an error here.
"""

import json
import re
import socketserver
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO, cast

TOKEN = rb"[!#$%&'*+.^_`|~0-9A-Za-z-]+"
REQUEST_LINE = re.compile(rb"([A-Z]+) (/[!-~]*) HTTP/1\.1\r\n")
HEADER = re.compile(rb"(" + TOKEN + rb"):[ \t]*([^\r\n\0]*?)[ \t]*\r\n")
PAUSE_SECONDS = 0.02
"""Delay for each of a request's `max_tokens`; its `seed` is the number of bytes that pad the answer."""


@dataclass(frozen=True)
class Arrived:
    """A request as vLLM would receive it."""

    method: str
    path: str
    headers: tuple[tuple[str, str], ...]
    body: bytes

    def values(self, name: str) -> list[str]:
        return [value for key, value in self.headers if key == name]


@dataclass
class Recorder:
    """Requests that have arrived since the last `take`."""

    arrived: list[Arrived] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    under_way: int = 0
    most_under_way: int = 0
    lock: threading.Lock = field(default_factory=threading.Lock)
    silent_seconds: float = 0
    """Seconds of silence before an answer."""
    breaks_off: bool = False
    """True to close the connection instead of answering."""

    def take(self) -> list[Arrived]:
        """Return the requests that have arrived, and forget them. Fails if any was malformed."""
        with self.lock:
            arrived, problems = list(self.arrived), list(self.problems)
            self.arrived.clear()
            self.problems.clear()
        assert not problems, problems
        return arrived


class _Handler(socketserver.StreamRequestHandler):
    def handle(self) -> None:
        recorder = cast(_Server, self.server).recorder
        reader = cast(BinaryIO, self.rfile)
        while True:
            line = reader.readline(100_000)
            if not line:
                return
            try:
                arrived = _request(line, reader)
            except EOFError:
                return  # the client left in the middle of its request, and Nginx closed the connection
            except ValueError as error:
                with recorder.lock:
                    recorder.problems.append(f"{error} in {line!r}")
                return
            with recorder.lock:
                recorder.arrived.append(arrived)
                recorder.under_way += 1
                recorder.most_under_way = max(recorder.most_under_way, recorder.under_way)
            try:
                if recorder.breaks_off:
                    return
                self._answer(arrived, recorder.silent_seconds)
            except ConnectionError:
                return
            finally:
                with recorder.lock:
                    recorder.under_way -= 1

    def _answer(self, arrived: Arrived, silent_seconds: float) -> None:
        time.sleep(silent_seconds)
        body: dict[str, object] = {"object": "list", "data": []}
        if arrived.method == "POST":
            asked = _json(arrived.body)
            time.sleep(PAUSE_SECONDS * int(str(asked.get("max_tokens", 0))))
            body = {"id": "c", "object": "chat.completion", "created": 1, "model": "m", "choices": []}
            body |= {"padding": " " * int(str(asked.get("seed", 0)))}
        text = b"" if arrived.path == "/health" else json.dumps(body).encode()
        head = f"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: {len(text)}\r\n\r\n"
        self.wfile.write(head.encode() + text)


def _json(body: bytes) -> dict[str, object]:
    try:
        found = json.loads(body)
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}


def _request(line: bytes, reader: BinaryIO) -> Arrived:
    """Read the rest of a request. Raises ValueError if it is ambiguous, EOFError if it ends early."""
    match = REQUEST_LINE.fullmatch(line)
    if not match:
        raise ValueError("not a request line")
    headers = []
    while (header := reader.readline(100_000)) != b"\r\n":
        if not header:
            raise EOFError
        parsed = HEADER.fullmatch(header)
        if not parsed:
            raise ValueError(f"not a header: {header!r}")
        headers.append((parsed[1].decode().lower(), parsed[2].decode("latin-1")))
    framing = [pair for pair in headers if pair[0] in {"content-length", "transfer-encoding"}]
    if len(framing) > 1:
        raise ValueError(f"two framings: {framing}")
    body = _body(framing[0], reader) if framing else b""
    return Arrived(match[1].decode(), match[2].decode(), tuple(headers), body)


def _body(framing: tuple[str, str], reader: BinaryIO) -> bytes:
    name, value = framing
    if name == "content-length":
        if not re.fullmatch("[0-9]{1,15}", value):
            raise ValueError(f"no length: {value!r}")
        return _exactly(int(value), reader)
    if value != "chunked":
        raise ValueError(f"an unknown encoding: {value!r}")
    body = b""
    while True:
        size = reader.readline(100)
        if not size:
            raise EOFError
        if not re.fullmatch(rb"[0-9a-f]{1,8}\r\n", size):
            raise ValueError(f"no chunk size: {size!r}")
        chunk = _exactly(int(size, 16), reader)
        if _exactly(2, reader) != b"\r\n":
            raise ValueError("a chunk without an end")
        if not chunk:
            return body
        body += chunk


def _exactly(size: int, reader: BinaryIO) -> bytes:
    data = reader.read(size)
    if len(data) < size:
        raise EOFError
    return data


class _Server(socketserver.ThreadingUnixStreamServer):
    daemon_threads = True
    request_queue_size = 512
    recorder: Recorder


@contextmanager
def recording(socket: Path) -> Iterator[Recorder]:
    """Listen on this socket until the block ends."""
    with _Server(str(socket), _Handler) as server:
        socket.chmod(0o777)
        server.recorder = Recorder()
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
        thread.start()
        try:
            yield server.recorder
        finally:
            server.shutdown()
            thread.join()
            socket.unlink()

"""Stand-in for vLLM to measure time: an answer at once, or events at an even pace, each with its time.

    python -m scripts.maintain.price.source PORT SOCKET

A body of {"events": N} asks for a stream. All streams get an event at the same moment, as from an engine's step.
"""

import asyncio
import json
import socket
import sys
import time

PACE_SECONDS = 0.02
EVENT_BYTES = 240  # of vLLM's events for a token
PLAIN = (
    b'HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 300\r\n\r\n{"padding": "'
    + b"x" * 285
    + b'"}'
)
HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
END = b"e\r\ndata: [DONE]\n\n\r\n0\r\n\r\n"


class Connection(asyncio.Protocol):
    """Connection of one client; `streams` are the connections that get events."""

    streams: dict["Connection", int] = {}  # noqa: RUF012 - of all connections

    def connection_made(self, transport: asyncio.BaseTransport) -> None:  # noqa: D102
        assert isinstance(transport, asyncio.Transport)  # noqa: S101
        self._transport = transport
        self._received = b""
        connection = transport.get_extra_info("socket")
        if connection.family != socket.AF_UNIX:
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def data_received(self, data: bytes) -> None:  # noqa: D102
        self._received += data
        head, found, body = self._received.partition(b"\r\n\r\n")
        if not found or len(body) < _length(head):
            return
        self._received = b""
        events = json.loads(body).get("events", 0) if body else 0
        if events:
            self._transport.write(HEAD)
            self.streams[self] = events
        else:
            self._transport.write(PLAIN)

    def connection_lost(self, _error: Exception | None) -> None:  # noqa: D102
        self.streams.pop(self, None)

    def send_event(self) -> None:
        """Send the next event, and the end after the last."""
        text = b'data: {"t": %d, "padding": "' % time.monotonic_ns()
        text += b"x" * (EVENT_BYTES - len(text)) + b'"}\n\n'
        self._transport.write(b"%x\r\n%s\r\n" % (len(text), text))
        self.streams[self] -= 1
        if not self.streams[self]:
            del self.streams[self]
            self._transport.write(END)


def _length(head: bytes) -> int:
    _, found, rest = head.lower().partition(b"content-length:")
    return int(rest.split(b"\r\n")[0]) if found else 0


async def serve(port: int, path: str) -> None:
    """Serve until the process is killed."""
    loop = asyncio.get_running_loop()
    await loop.create_server(Connection, "127.0.0.1", port, backlog=512)
    await loop.create_unix_server(Connection, path, backlog=512)
    print("ready", flush=True)
    due = loop.time()
    while True:
        due = max(due + PACE_SECONDS, loop.time())
        await asyncio.sleep(due - loop.time())
        for connection in list(Connection.streams):
            connection.send_event()


if __name__ == "__main__":
    asyncio.run(serve(int(sys.argv[1]), sys.argv[2]))

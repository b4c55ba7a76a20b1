"""Stand-in for vLLM to measure time: an answer at once, or events at an even pace, each with its time.

    python -m scripts.maintain.price.source PORT SOCKET NOTES

A request with `stream` gets `max_tokens` events; all streams get theirs at the same moment, as from an engine's step.
With the word `silent` in its text, a stream gets one event and no end, and a plain request nothing. A request with
`note=ID` in its text leaves lines in the file NOTES: its arrival, with the Authorization header, and the moment its
connection is closed.
"""

import asyncio
import json
import os
import re
import socket
import sys
import time
from pathlib import Path

PACE_SECONDS = 0.02
EVENT_BYTES = 240  # of vLLM's events for a token
ANSWER = {"index": 0, "message": {"role": "assistant", "content": "x" * 60}, "finish_reason": "stop"}
PLAIN_BODY = json.dumps(
    {
        "id": "chatcmpl-1",
        "object": "chat.completion",
        "created": 1,
        "model": "m",
        "choices": [ANSWER],
        "usage": {"prompt_tokens": 9, "completion_tokens": 5, "total_tokens": 14},
    }
)
MODELS_BODY = json.dumps({"object": "list", "data": [{"id": "m", "object": "model", "created": 1, "owned_by": "x"}]})
HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"


def _whole(body: str) -> bytes:
    head = f"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    return (head + body).encode()


def _event(content: str, finish_reason: str | None = None) -> bytes:
    choice = {"index": 0, "delta": {"content": content}, "finish_reason": finish_reason}
    return (
        b"data: %s\n\n"
        % json.dumps(
            {"id": "chatcmpl-1", "object": "chat.completion.chunk", "created": 1, "model": "m", "choices": [choice]}
        ).encode()
    )


def _chunk(data: bytes) -> bytes:
    return b"%x\r\n%s\r\n" % (len(data), data)


PLAIN, MODELS = _whole(PLAIN_BODY), _whole(MODELS_BODY)
TIME = "@0000000000000000000@"  # of nanoseconds
BEFORE_TIME, AFTER_TIME = _event(TIME + "x" * (EVENT_BYTES - len(_event(TIME)))).split(TIME.encode())
END = _chunk(_event("", "stop")) + _chunk(b"data: [DONE]\n\n") + b"0\r\n\r\n"


class Connection(asyncio.Protocol):
    """Connection of one client; `streams` are the connections that get events."""

    streams: dict["Connection", int] = {}  # noqa: RUF012 - of all connections
    notes = sys.stdout

    def connection_made(self, transport: asyncio.BaseTransport) -> None:  # noqa: D102
        assert isinstance(transport, asyncio.Transport)  # noqa: S101
        self._transport = transport
        self._received = bytearray()
        self._note = ""
        connection = transport.get_extra_info("socket")
        if connection.family != socket.AF_UNIX:
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def data_received(self, data: bytes) -> None:  # noqa: D102
        self._received += data
        end = self._received.find(b"\r\n\r\n")
        if end < 0:
            return
        head = bytes(self._received[:end])
        if len(self._received) - end - 4 < _length(head):
            return
        body = bytes(self._received[end + 4 :])
        self._received = bytearray()
        if not head.startswith(b"POST /v1/chat/completions"):
            self._transport.write(MODELS if head.startswith(b"GET /v1/models") else PLAIN)
            return
        asked = json.loads(body)
        text = str(asked["messages"][-1]["content"])[:100]
        if note := re.search(r"note=(\w+)", text):
            self._note = note[1]
            authorization = re.search(rb"\r\nauthorization: *([^\r\n]*)", head, re.IGNORECASE)
            self._write_note("arrived", authorization[1].decode() if authorization else "")
        silent = "silent" in text
        if asked.get("stream"):
            self._transport.write(HEAD)
            self.streams[self] = asked["max_tokens"]
            if silent:
                self.send_event()
                del self.streams[self]
        elif not silent:
            self._transport.write(PLAIN)

    def connection_lost(self, _error: Exception | None) -> None:  # noqa: D102
        self.streams.pop(self, None)
        if self._note:
            self._write_note("left", "")

    def _write_note(self, what: str, authorization: str) -> None:
        note = {"what": what, "id": self._note, "ns": time.monotonic_ns(), "authorization": authorization}
        self.notes.write(json.dumps(note) + "\n")

    def send_event(self) -> None:
        """Send the next event, and the end after the last."""
        self._transport.write(_chunk(b"%s@%019d@%s" % (BEFORE_TIME, time.monotonic_ns(), AFTER_TIME)))
        self.streams[self] -= 1
        if not self.streams[self]:
            del self.streams[self]
            self._transport.write(END)


def _length(head: bytes) -> int:
    found = re.search(rb"\r\ncontent-length: *(\d+)", head, re.IGNORECASE)
    return int(found[1]) if found else 0


async def serve(port: int, path: str) -> None:
    """Serve until the process is killed."""
    loop = asyncio.get_running_loop()
    os.umask(0)  # the user of Nginx's container is another one
    await loop.create_server(Connection, "127.0.0.1", port, backlog=512)
    await loop.create_unix_server(Connection, path, backlog=512)
    due = loop.time()
    while True:
        due = max(due + PACE_SECONDS, loop.time())
        await asyncio.sleep(due - loop.time())
        for connection in list(Connection.streams):
            connection.send_event()


if __name__ == "__main__":
    with Path(sys.argv[3]).open("a", buffering=1) as Connection.notes:
        asyncio.run(serve(int(sys.argv[1]), sys.argv[2]))

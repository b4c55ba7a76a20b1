"""A stand-in for an endpoint with known latencies, in a process of its own.

It computes nothing, so its times are exact: first tokens come after a time that it chooses and writes down, tokens at
an even pace. It can stall for a while, as a machine does that is short of something, serve only so many requests at a
time, and refuse as the gateway does. `python -m tests.support.paced_endpoint` reads its behaviour as JSON from standard
input and prints its port.
"""

import asyncio
import json
import random
import ssl
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

MODEL = "paced"
KEY = "k" * 32
ROOT = Path(__file__).resolve().parents[2]


@dataclass
class Behaviour:
    """Behaviour of the endpoint; times in seconds."""

    certificate: str
    first_token: tuple[float, float] = (0.02, 0.02)
    """From and to: each request's time is drawn from between."""
    between_tokens: float = 0.002
    stall: tuple[float, float] = (0.0, 0.0)
    """From and to, from the first request of a load on: what is due then comes at the end."""
    slots: int = 10_000
    """Requests served at a time; others wait."""
    context: int = 100_000
    has_tools: bool = True
    refuse_after: int = 1_000_000
    """Requests after which the gateway's own limit refuses more."""
    status_after: dict[str, int] = field(default_factory=dict)
    """`requests`, after which it answers `status`."""
    cut_after: int = 1_000_000
    """Requests after which it closes connections in the middle of a stream."""


class _Endpoint:
    def __init__(self, behaviour: Behaviour) -> None:
        self.behaviour = behaviour
        self.slots = asyncio.Semaphore(behaviour.slots)
        self.generator = random.Random(7)  # noqa: S311
        self.first_tokens: list[float] = []
        self.requests = 0
        self.loaded_since = 0.0

    async def connection(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while head := await reader.readuntil(b"\r\n\r\n"):
                lines = head.decode().split("\r\n")
                headers = {name.lower(): value for name, _, value in (line.partition(": ") for line in lines[1:])}
                body = await reader.readexactly(int(headers.get("content-length", 0)))
                received = time.monotonic()
                await self.answer(lines[0], headers, json.loads(body or b"{}"), writer, received)
                await writer.drain()
        except (asyncio.IncompleteReadError, ConnectionError, ssl.SSLError):
            pass
        finally:
            writer.close()

    async def answer(
        self,
        line: str,
        headers: dict[str, str],
        body: dict[str, Any],
        writer: asyncio.StreamWriter,
        received: float,
    ) -> None:
        if headers.get("authorization") != f"Bearer {KEY}":
            whole(writer, 401, {"error": {"message": "Wrong key.", "code": "invalid_api_key"}})
        elif line.startswith("GET /seen"):
            whole(writer, 200, self.first_tokens)
        elif line.startswith("GET"):
            whole(writer, 200, {"data": [{"id": MODEL, "max_model_len": self.behaviour.context}]})
        else:
            await self.generate(body, writer, received)

    async def generate(self, body: dict[str, Any], writer: asyncio.StreamWriter, received: float) -> None:
        own = self.behaviour
        prompt = sum(len(str(message.get("content", "")).split()) for message in body["messages"]) + 10
        usage = {"prompt_tokens": prompt, "completion_tokens": body["max_tokens"]}
        if body.get("tools") and not own.has_tools:
            whole(
                writer,
                400,
                {"error": {"message": '"auto" tool choice requires --enable-auto-tool-choice', "code": 400}},
            )
            return
        if "min_tokens" not in body:  # a question before the load
            whole(writer, 200, {"choices": [{"message": {"content": "a"}}], "usage": usage})
            return
        self.requests += 1
        if self.requests > own.refuse_after:
            whole(writer, 429, {"error": {"message": "Too many.", "code": "too_many_requests"}})
            return
        if own.status_after and self.requests > own.status_after["requests"]:
            whole(writer, own.status_after["status"], {"error": {"message": "Busy.", "code": None}})
            return
        if self.requests > 1:  # the first is the warm-up
            self.loaded_since = self.loaded_since or received
        async with self.slots:
            await asyncio.sleep(self.generator.uniform(*own.first_token))
            if self.loaded_since + own.stall[0] < time.monotonic() < self.loaded_since + own.stall[1]:
                await asyncio.sleep(self.loaded_since + own.stall[1] - time.monotonic())
            if body["stream"]:
                await self.stream(body["max_tokens"], usage, writer, received)
            else:
                await asyncio.sleep(own.between_tokens * body["max_tokens"])
                whole(writer, 200, {"choices": [{"message": {"content": "a"}}], "usage": usage})

    async def stream(self, tokens: int, usage: dict[str, int], writer: asyncio.StreamWriter, received: float) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n")
        event(writer, {"choices": [{"delta": {"role": "assistant", "content": ""}}]})  # as vLLM does: no token yet
        self.first_tokens.append(time.monotonic() - received)
        start = time.monotonic()
        for number in range(tokens):
            await asyncio.sleep(max(0.0, start + number * self.behaviour.between_tokens - time.monotonic()))
            event(writer, {"choices": [{"delta": {"content": "a"}}]})
            if self.requests > self.behaviour.cut_after:
                raise ConnectionResetError
        event(writer, {"choices": [], "usage": usage})
        chunk(writer, b"data: [DONE]\n\n")
        writer.write(b"0\r\n\r\n")


def whole(writer: asyncio.StreamWriter, status: int, document: Any) -> None:
    body = json.dumps(document).encode()
    head = f"HTTP/1.1 {status} X\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    writer.write(head.encode() + body)


def event(writer: asyncio.StreamWriter, document: Any) -> None:
    chunk(writer, b"data: " + json.dumps(document).encode() + b"\n\n")


def chunk(writer: asyncio.StreamWriter, data: bytes) -> None:
    writer.write(b"%x\r\n%s\r\n" % (len(data), data))


async def serve(behaviour: Behaviour) -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(behaviour.certificate)
    server = await asyncio.start_server(_Endpoint(behaviour).connection, "127.0.0.1", 0, ssl=context, limit=2**24)
    print(server.sockets[0].getsockname()[1], flush=True)
    await server.serve_forever()


@contextmanager
def paced(certificate: Path, **behaviour: Any) -> Iterator[str]:
    """Yield the URL of an endpoint in a process of its own."""
    command = [sys.executable, "-m", "tests.support.paced_endpoint"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=ROOT, text=True) as process:
        assert process.stdin
        assert process.stdout
        process.stdin.write(json.dumps(asdict(Behaviour(str(certificate), **behaviour))) + "\n")
        process.stdin.flush()
        try:
            yield f"https://127.0.0.1:{int(process.stdout.readline())}/v1/chat/completions"
        finally:
            process.kill()


if __name__ == "__main__":
    asyncio.run(serve(Behaviour(**json.loads(sys.stdin.readline()))))

"""The kinds of traffic of a soak: each makes requests and raises an error unless they go as they should."""

import http.client
import json
import socket
import ssl
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import Any
from urllib.parse import urlsplit

from scripts.lib.verification.generation import TOOL, TOOLS

TOKENS = 40
MANY_TOKENS = 3000
"""Tokens of a stream that its client leaves."""
LEAVE_AFTER = 5  # events
SLOW_BUFFER = 4096  # bytes that a slow reader's kernel buffers before Nginx has to wait
SLOW_SECONDS = 0.02  # before each piece
PATIENCE_SECONDS = 120
BODY_BYTES = 10 * 2**20


class BadAnswerError(Exception):
    """Wrong answer."""


@dataclass(frozen=True)
class Endpoint:
    """Address, key and model."""

    url: str
    """URL that ends in /v1/chat/completions."""
    key: str = field(repr=False)
    ca: str
    model: str

    def connect(self) -> http.client.HTTPSConnection:
        """Return a connection that opens when it is first used."""
        address = urlsplit(self.url)
        context = ssl.create_default_context(cadata=self.ca)
        host = address.hostname or ""
        return http.client.HTTPSConnection(host, address.port, timeout=PATIENCE_SECONDS, context=context)

    def question(self, **more: Any) -> dict[str, Any]:
        """Return a chat request with these further fields."""
        messages = [{"role": "user", "content": "What is the weather in Paris? Use the tool."}]
        return {"model": self.model, "messages": messages, "max_tokens": TOKENS, **more}


def _ask(
    endpoint: Endpoint, connection: http.client.HTTPSConnection, body: dict[str, Any], status: int = HTTPStatus.OK
) -> http.client.HTTPResponse:
    headers = {"Authorization": f"Bearer {endpoint.key}", "Content-Type": "application/json"}
    connection.request("POST", urlsplit(endpoint.url).path, json.dumps(body), headers)
    answer = connection.getresponse()
    if answer.status != status:
        raise BadAnswerError(f"{answer.status} {answer.read(300)!r}")
    return answer


def _whole(endpoint: Endpoint, body: dict[str, Any]) -> Any:
    """Return the answer to a plain call."""
    connection = endpoint.connect()
    try:
        return json.loads(_ask(endpoint, connection, body).read())
    finally:
        connection.close()


def _events(answer: http.client.HTTPResponse) -> Iterator[bytes]:
    return (line for line in answer if line.startswith(b"data: "))


def _read_to_the_end(answer: http.client.HTTPResponse, pause: float) -> None:
    last = b""
    for event in _events(answer):
        last = event
        time.sleep(pause)
    if last.strip() != b"data: [DONE]":
        raise BadAnswerError(f"a stream ended with {last[-80:]!r}")


def streams(endpoint: Endpoint) -> None:
    """Read a stream to its end, as fast as it comes."""
    connection = endpoint.connect()
    try:
        _read_to_the_end(_ask(endpoint, connection, endpoint.question(stream=True, ignore_eos=True)), 0)
    finally:
        connection.close()


def tool_calls(endpoint: Endpoint) -> None:
    """Ask for a tool call, which must come with arguments."""
    answer = _whole(endpoint, endpoint.question(tools=TOOLS, tool_choice="required", max_tokens=200))
    call = answer["choices"][0]["message"]["tool_calls"][0]["function"]
    if call["name"] != TOOL or not isinstance(json.loads(call["arguments"]), dict):
        raise BadAnswerError(f"the tool call is {call}")


def clients_that_leave(endpoint: Endpoint) -> None:
    """Leave a long stream after some events."""
    connection = endpoint.connect()
    try:
        answer = _ask(endpoint, connection, endpoint.question(stream=True, ignore_eos=True, max_tokens=MANY_TOKENS))
        for _, _ in zip(range(LEAVE_AFTER), _events(answer), strict=False):
            pass
    finally:
        connection.close()


def slow_readers(endpoint: Endpoint) -> None:
    """Read more slowly than the model generates, with small buffers: Nginx must wait and lose nothing."""
    connection = endpoint.connect()
    try:
        connection.connect()
        connection.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, SLOW_BUFFER)
        answer = _ask(endpoint, connection, endpoint.question(stream=True, ignore_eos=True, max_tokens=3 * TOKENS))
        _read_to_the_end(answer, SLOW_SECONDS)
    finally:
        connection.close()


def plain_calls(endpoint: Endpoint) -> None:
    """Make three plain calls on one connection."""
    connection = endpoint.connect()
    try:
        for _ in range(3):
            if json.loads(_ask(endpoint, connection, endpoint.question()).read())["object"] != "chat.completion":
                raise BadAnswerError("a plain call is no chat completion")
    finally:
        connection.close()


def bodies_of_10_mb(endpoint: Endpoint) -> None:
    """Send a large body in a field that vLLM ignores: the tiny model's context is too small for such a prompt."""
    if _whole(endpoint, endpoint.question(user="x" * BODY_BYTES))["object"] != "chat.completion":
        raise BadAnswerError("a large call is no chat completion")


def refusals(endpoint: Endpoint) -> None:
    """Send a request with a wrong key."""
    connection = endpoint.connect()
    try:
        stranger = Endpoint(endpoint.url, "0" * 64, endpoint.ca, endpoint.model)
        _ask(stranger, connection, endpoint.question(), status=HTTPStatus.UNAUTHORIZED).read()
    finally:
        connection.close()

"""A middleware of vLLM's server that lengthens ids of tool calls to the nine characters that Mistral's tokenizers want.

Kibana invents ids of six characters for the tool calls of its history. Mistral's tokenizers up to version 11 take nine
letters and digits only, and vLLM 0.32 cuts longer ids to nine but leaves shorter ones alone, so they are refused. An id
is a name without a meaning: a longer one says the same, as long as a call and its result get the same one.
"""

import hashlib
import json
import re
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

LENGTH = 9
SHORT = re.compile(r"[A-Za-z0-9]{1,8}")

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[MutableMapping[str, Any], Receive, Send], Awaitable[None]]


def longer(identity: object) -> object:
    """Append digits of the id's hash to a short id; return anything else unchanged."""
    if not isinstance(identity, str) or not SHORT.fullmatch(identity):
        return identity
    return (identity + hashlib.sha256(identity.encode()).hexdigest())[:LENGTH]


def with_longer_ids(body: bytes) -> bytes:
    """Lengthen the short ids of a chat request; return any other body unchanged."""
    if b'"tool_call' not in body:
        return body
    try:
        request = json.loads(body)
        for message in request["messages"]:
            if "tool_call_id" in message:
                message["tool_call_id"] = longer(message["tool_call_id"])
            for call in message.get("tool_calls") or []:
                call["id"] = longer(call["id"])
    except (ValueError, LookupError, TypeError, AttributeError):
        return body  # vLLM reports what is wrong with it
    return json.dumps(request).encode()


class LongerCallIds:
    """The middleware; vLLM imports it by name (--middleware)."""

    def __init__(self, app: App) -> None:
        self._app = app

    async def __call__(self, scope: MutableMapping[str, Any], receive: Receive, send: Send) -> None:
        """Pass the request on, with longer ids where it has short ones."""
        if scope["type"] != "http" or scope["method"] != "POST":
            await self._app(scope, receive, send)
            return
        parts: list[bytes] = []
        message: Message = {"more_body": True}
        while message.get("more_body"):
            message = await receive()
            if message["type"] != "http.request":
                return  # the client has gone away
            parts.append(message.get("body", b""))
        body = with_longer_ids(b"".join(parts))
        length = str(len(body)).encode()
        scope["headers"] = [(k, length if k == b"content-length" else v) for k, v in scope["headers"]]
        pending: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

        async def replay() -> Message:
            return pending.pop() if pending else await receive()

        await self._app(scope, replay, send)

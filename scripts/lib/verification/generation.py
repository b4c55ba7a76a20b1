"""Checks of vLLM behind Nginx: the model, chat, streams and tool calls, as Elastic uses them."""

import json
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

from jsonschema import Draft202012Validator
from openai.types.chat import (
    ChatCompletion,
    ChatCompletionChunk,
    ChatCompletionMessageFunctionToolCall,
    ChatCompletionToolChoiceOptionParam,
    ChatCompletionToolParam,
)
from pydantic import BaseModel

from scripts.lib.verification.failures import CheckFailedError
from scripts.lib.verification.probe import ANSWER_SECONDS, Probe

# Events closer together than this arrived in one piece. vLLM sends one event a step, and a step takes longer.
SAME_PIECE_SECONDS = 0.001
# Nginx's smallest buffer (4 KiB) holds about 17 events: more than 12 a piece on average means that something buffers.
MOST_EVENTS_A_PIECE = 12
QUOTED_CHARACTERS = 60

# Chat may be cut off: reasoning counts as an answer too. A tool call may not, and reasoning models think first.
CHAT_TOKENS = 256
TOOL_CALL_TOKENS = 2048

TOOL = "get_weather"
TOOL_PROMPT = "What is the weather in Paris? Use the tool."
TOOL_SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {"city": {"type": "string"}, "unit": {"type": "string", "enum": ["celsius", "fahrenheit"]}},
    "required": ["city"],
}
TOOLS: list[ChatCompletionToolParam] = [
    {
        "type": "function",
        "function": {"name": TOOL, "description": "The current weather in a city.", "parameters": TOOL_SCHEMA},
    }
]
TOOL_CHOICES: dict[str, ChatCompletionToolChoiceOptionParam] = {
    "auto": "auto",
    "required": "required",
    "named": {"type": "function", "function": {"name": TOOL}},
}
TOOL_FIX = "check vLLM's --tool-call-parser for this model, or pass --no-tools if it has none"


STREAM_PAUSES = (0.5, 2, 5, 15)
"""Seconds between the tries of a stream."""


@dataclass
class _ToolCall:
    id: str = ""
    name: str = ""
    arguments: str = ""


@dataclass
class _Answer:
    """A plain answer, or the sum of a stream's events; `arrivals` are the times of events with content."""

    text: str = ""
    calls: dict[int, _ToolCall] = field(default_factory=dict)
    finish_reason: str | None = None
    tokens: int | None = None
    arrivals: list[float] = field(default_factory=list)


def models(probe: Probe) -> str:
    """The model is listed."""
    cards = probe.client.with_options(timeout=ANSWER_SECONDS).models.list().data
    probe.served = [card.id for card in cards]
    mine = next((card for card in cards if card.id == probe.endpoint.model), None)
    if mine is None:
        listed = ", ".join(probe.served) or "none"
        raise CheckFailedError(
            f"model {probe.endpoint.model!r} is not listed, only {listed}", "pass one of these as the model"
        )
    context = (mine.model_extra or {}).get("max_model_len")
    if not isinstance(context, int):
        return f"{mine.id} is listed"
    # vLLM refuses a request whose prompt and max_tokens together exceed the context.
    probe.max_tokens = context // 2
    return f"{mine.id} is listed, context {context} tokens"


def chat(probe: Probe) -> str:
    """A plain question gets an answer."""
    answer = _plain(probe.complete("Say hello in one sentence.", CHAT_TOKENS))
    return f"answered {_require_text(answer)}"


def streamed_chat(probe: Probe) -> str:
    """A streamed answer arrives while it is generated, not in one piece or a few.

    If it seems buffered, the check is repeated after a while: a busy machine shows lumps sometimes, a buffer always.
    """
    for pause in STREAM_PAUSES:
        with suppress(CheckFailedError):
            return _streamed_chat_once(probe)
        time.sleep(pause)
    return _streamed_chat_once(probe)


def _streamed_chat_once(probe: Probe) -> str:
    started = time.monotonic()
    answer = _sum(probe, probe.stream("Count from one to one hundred in words.", CHAT_TOKENS))
    seen = _require_text(answer)
    events, pieces = len(answer.arrivals), _pieces(answer.arrivals)
    first, last = answer.arrivals[0] - started, answer.arrivals[-1] - started
    timing = f"first event after {first:.2f} s of {last:.2f} s"
    if events == 1:
        raise CheckFailedError(f"the whole answer came as one event, {timing}", "is it streamed at all")
    if pieces == 1 or events > MOST_EVENTS_A_PIECE * pieces:
        raise CheckFailedError(
            f"{events} events came in {pieces} piece{'s'[: pieces > 1]}, {timing}",
            "set proxy_buffering off in Nginx; does something in front of it buffer",
        )
    return f"{timing}, {events} events, {seen}"


def _pieces(arrivals: list[float]) -> int:
    gaps = (later - earlier for earlier, later in pairwise(arrivals))
    return 1 + sum(gap > SAME_PIECE_SECONDS for gap in gaps)


def _require_text(answer: _Answer) -> str:
    if not answer.text.strip():
        raise CheckFailedError("the answer is empty", "does the model's chat template fit; see vLLM's log")
    return f"{answer.tokens} tokens" if answer.tokens else f"{len(answer.text)} characters"


def tool_call(choice: str, *, streamed: bool) -> Callable[[Probe], str]:
    """Return the check that the model calls the tool; `choice` is a key of TOOL_CHOICES."""

    def check(probe: Probe) -> str:
        ask = (TOOL_PROMPT, TOOL_CALL_TOKENS, TOOLS, TOOL_CHOICES[choice])
        answer = _sum(probe, probe.stream(*ask)) if streamed else _plain(probe.complete(*ask))
        if not answer.calls:
            raise CheckFailedError(f"no tool call but {_quote(answer.text)}", _tool_fix(answer))
        for call in answer.calls.values():
            flaw = _call_flaw(call)
            if flaw:
                raise CheckFailedError(flaw, _tool_fix(answer))
        return ", ".join(f"{call.name} {' '.join(call.arguments.split())}" for call in answer.calls.values())

    return check


def _call_flaw(call: _ToolCall) -> str | None:
    if call.name != TOOL:
        return f"a call of {call.name or 'no tool'!r}, not of {TOOL!r}"
    if not call.id:
        return "a tool call without an id"
    try:
        arguments = json.loads(call.arguments)
    except ValueError:
        return f"the tool's arguments are not JSON but {_quote(call.arguments)}"
    flaw = next(Draft202012Validator(TOOL_SCHEMA).iter_errors(arguments), None)
    return f"the tool's arguments do not fit its schema ({flaw.message})" if flaw else None


def _tool_fix(answer: _Answer) -> str:
    if answer.finish_reason == "length":
        return f"the answer was cut off after {answer.tokens} tokens: give the model a larger context"
    return TOOL_FIX


def _quote(text: str) -> str:
    return repr(text[:QUOTED_CHARACTERS] + ("..." if len(text) > QUOTED_CHARACTERS else ""))


def _plain(completion: ChatCompletion) -> _Answer:
    choice = completion.choices[0]
    calls = [
        _ToolCall(call.id, call.function.name, call.function.arguments)
        for call in choice.message.tool_calls or []
        if isinstance(call, ChatCompletionMessageFunctionToolCall)
    ]
    tokens = completion.usage.completion_tokens if completion.usage else None
    return _Answer(_text(choice.message), dict(enumerate(calls)), choice.finish_reason, tokens)


def _sum(probe: Probe, chunks: Iterable[ChatCompletionChunk]) -> _Answer:
    answer = _Answer()
    for chunk in chunks:
        if chunk.usage:
            answer.tokens = chunk.usage.completion_tokens
        for choice in chunk.choices:
            answer.finish_reason = choice.finish_reason or answer.finish_reason
            text = _text(choice.delta)
            if text:
                answer.text += text
                answer.arrivals.append(probe.last_read)
            for part in choice.delta.tool_calls or []:
                call = answer.calls.setdefault(part.index, _ToolCall())
                call.id = call.id or part.id or ""
                if part.function:
                    call.name += part.function.name or ""
                    call.arguments += part.function.arguments or ""
    if answer.finish_reason is None:
        raise CheckFailedError("the stream ended without a finish reason", "see vLLM's log")
    return answer


def _text(message: BaseModel) -> str:
    """Content or reasoning: vLLM calls the latter `reasoning`, older ones `reasoning_content`."""
    fields = ("content", "reasoning", "reasoning_content")
    return next((text for name in fields if (text := getattr(message, name, None))), "")

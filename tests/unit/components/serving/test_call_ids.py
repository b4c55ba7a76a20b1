"""The middleware that gives Mistral's tokenizers ids of nine characters where Kibana sends six."""

import asyncio
import json
import re
from collections.abc import MutableMapping
from typing import Any

import pytest

from components.catalogue.models import load_catalogue
from components.elastic.corpus import all_forms
from components.files.vllm.call_ids import LongerCallIds, longer, with_longer_ids
from tests.unit.components.test_render import command_line

MISTRAL = load_catalogue().models["mistralai/Mistral-Small-3.2-24B-Instruct-2506"]


def ids(request: dict[str, Any]) -> tuple[list[str], list[str]]:
    """Return the ids of calls and those of results, each in order."""
    calls = [call["id"] for message in request["messages"] for call in message.get("tool_calls") or []]
    return calls, [message["tool_call_id"] for message in request["messages"] if "tool_call_id" in message]


@pytest.mark.parametrize("form", all_forms(), ids=lambda form: form.name)
def test_nothing_but_short_ids_changes_and_calls_keep_their_results(form: Any) -> None:
    before = form.request("m", 8)
    after = json.loads(with_longer_ids(json.dumps(before).encode()))
    calls, results = ids(after)
    assert all(re.fullmatch("[A-Za-z0-9]{9}|chatcmpl-tool-[0-9a-f]{32}", identity) for identity in calls + results)
    order = {identity: number for number, identity in enumerate(ids(before)[0])}
    assert [calls[order[identity]] for identity in ids(before)[1]] == results
    text = json.dumps(after)
    for identity in {*ids(before)[0], *ids(before)[1]}:
        text = text.replace(str(longer(identity)), identity)
    assert json.loads(text) == before


def test_ids_that_differ_stay_different() -> None:
    short = [f"{number:06x}" for number in range(2000)] + ["a", "a0", "a00", "A"]
    assert len({longer(identity) for identity in short}) == len(short)


@pytest.mark.parametrize("identity", ["abcdefghi", "chatcmpl-tool-1", "call_1", "", None, 7])
def test_another_id_stays_as_it_is(identity: object) -> None:
    assert longer(identity) == identity


@pytest.mark.parametrize("body", [b"", b"{", b'{"tool_calls": 1}', b'{"messages": [1], "tool_call_id": ""}', b"[]"])
def test_a_body_that_is_no_request_is_left_to_vllm(body: bytes) -> None:
    assert with_longer_ids(body) == body


def test_the_server_behind_it_gets_the_changed_body_whole_and_with_its_length() -> None:
    request = next(form for form in all_forms() if form.name == "stream-tool-result").request("m", 8)
    raw = json.dumps(request).encode()
    seen: dict[str, Any] = {}

    async def app(scope: MutableMapping[str, Any], receive: Any, _send: Any) -> None:
        seen["scope"], seen["first"], seen["next"] = scope, await receive(), await receive()

    async def main() -> None:
        messages = [
            {"type": "http.request", "body": raw[:100], "more_body": True},
            {"type": "http.request", "body": raw[100:], "more_body": False},
            {"type": "http.disconnect"},
        ]

        async def receive() -> Any:
            return messages.pop(0)

        async def send(_message: Any) -> None:
            raise AssertionError("it answers nothing itself")

        headers = [(b"content-length", str(len(raw)).encode()), (b"x", b"y")]
        scope = {"type": "http", "method": "POST", "path": "/v1/chat/completions", "headers": headers}
        await LongerCallIds(app)(scope, receive, send)

    asyncio.run(main())
    body = seen["first"]["body"]
    assert body == with_longer_ids(raw) != raw
    assert seen["first"]["more_body"] is False
    assert seen["scope"]["headers"] == [(b"content-length", str(len(body)).encode()), (b"x", b"y")]
    assert seen["next"] == {"type": "http.disconnect"}


@pytest.mark.parametrize("name", load_catalogue().models)
def test_it_runs_for_models_with_a_tokenizer_of_mistrals_alone(name: str) -> None:
    line = " ".join(command_line(load_catalogue().models[name], 2))
    for part in ("--middleware call_ids.LongerCallIds", 'printf %s "$CALL_IDS" >/tmp/python/call_ids.py'):
        assert (part in line) is (name == MISTRAL.name)

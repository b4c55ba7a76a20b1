"""Answers that `up` and `verify` accept, and their messages about others."""

import json
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from socketserver import ThreadingUnixStreamServer
from threading import Thread
from typing import Any

import pytest

from components.files.vllm import ask_vllm

TOOLS = [{"type": "function", "function": {"name": "look", "parameters": {}}}]
CALL = {"id": "c1", "type": "function", "function": {"name": "look", "arguments": '{"at": 1}'}}
USAGE = {"prompt_tokens": 1, "completion_tokens": 1, "total_tokens": 2}


def plain(reason: Any = "stop", usage: Any = USAGE, **message: Any) -> str:
    choice = {"index": 0, "message": {"role": "assistant", "content": "x", **message}, "finish_reason": reason}
    return json.dumps({"choices": [choice], "usage": usage})


def stream(*deltas: dict[str, Any], reason: Any = "stop", usage: Any = None, end: str = "data: [DONE]\n\n") -> str:
    choices: list[list[dict[str, Any]]] = [[{"delta": delta, "finish_reason": None}] for delta in deltas]
    chunks = [{"choices": each} for each in [*choices, [{"delta": {}, "finish_reason": reason}]]]
    if usage:
        chunks.append({"choices": [], "usage": usage})
    return "".join(f"data: {json.dumps(chunk)}\n\n" for chunk in chunks) + end


def part(**function: str) -> dict[str, Any]:
    return {"tool_calls": [{"index": 0, "function": function}]}


FIRST_PART = {"tool_calls": [{"index": 0, "id": "c1", "function": {"name": "look", "arguments": ""}}]}


@pytest.mark.parametrize(
    ("request_", "answer"),
    [
        ({}, plain()),
        ({}, plain(content=None, reasoning="hm", reason="length")),
        ({"tools": TOOLS}, plain(tool_calls=[CALL], reason="tool_calls")),
        ({"tools": TOOLS, "tool_choice": "required"}, plain(tool_calls=[], reason="length")),
        ({"stream": True}, stream({"content": "a"})),
        ({"stream": True}, stream({"content": "a\u2028b"}).replace("\\u2028", "\u2028")),
        ({"stream": True, "stream_options": {"include_usage": True}}, stream({"content": "a"}, usage=USAGE)),
        ({"stream": True, "tools": TOOLS}, stream(FIRST_PART, part(arguments='{"at"'), part(arguments=": 1}"))),
    ],
)
def test_a_good_answer_has_no_flaw(request_: dict[str, Any], answer: str) -> None:
    assert ask_vllm.flaw(request_, 200, answer) is None


@pytest.mark.parametrize(
    ("request_", "status", "answer", "words"),
    [
        ({}, 400, '{"error": {"message": "Tool call id was abc"}}', "HTTP 400: Tool call id was abc"),
        ({}, 500, "<html>", "HTTP 500: <html>"),
        ({}, 502, "", "HTTP 502: empty body"),
        ({}, 200, "<html>", "not in OpenAI's form"),
        ({}, 200, '{"choices": []}', "not in OpenAI's form"),
        ({}, 200, plain(role="user"), "role is user"),
        ({}, 200, plain(reason=None), "no finish_reason"),
        ({}, 200, plain(usage=None), "no usage"),
        ({"stream": True}, 200, stream({"content": "a"}, reason=None), "no finish_reason"),
        ({"stream": True}, 200, stream({"content": "a"}, end=""), "does not end with [DONE]"),
        ({"stream": True}, 200, 'data: {"error": {"message": "boom"}}\n\ndata: [DONE]\n\n', "an error: boom"),
        ({"stream": True, "stream_options": {"include_usage": True}}, 200, stream({"content": "a"}), "no usage"),
        ({"tools": TOOLS, "tool_choice": "required"}, 200, plain(), "no tool was called"),
        ({"tools": TOOLS, "tool_choice": {"type": "function"}}, 200, plain(), "no tool was called"),
        ({}, 200, plain(tool_calls=[CALL]), "a call of 'look'"),
        ({"tools": TOOLS}, 200, plain(tool_calls=[CALL | {"id": ""}]), "with the id ''"),
        ({"tools": TOOLS, "stream": True}, 200, stream(FIRST_PART), "the arguments of look are no JSON object"),
        ({"tools": TOOLS, "stream": True}, 200, stream(FIRST_PART, part(arguments="[1]")), "are no JSON object"),
    ],
)
def test_a_flaw_names_what_is_wrong(request_: dict[str, Any], status: int, answer: str, words: str) -> None:
    assert words in str(ask_vllm.flaw(request_, status, answer))


class Handler(BaseHTTPRequestHandler):
    def log_message(self, *_: object) -> None:
        pass

    def address_string(self) -> str:
        return "socket"

    def do_POST(self) -> None:
        request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        good = self.path == "/v1/chat/completions" and request["model"] == "good"
        body = plain() if good else '{"error": {"message": "no such form"}}'
        self.send_response(200 if good else 400)
        self.end_headers()
        self.wfile.write(body.encode())


@pytest.fixture
def socket_path(tmp_path: Path) -> Iterator[str]:
    path = str(tmp_path / "vllm.sock")
    with ThreadingUnixStreamServer(path, Handler) as server:
        thread = Thread(target=server.serve_forever, kwargs={"poll_interval": 0.005})
        thread.start()
        yield path
        server.shutdown()
        thread.join()


def test_each_refused_request_is_a_line_with_cause_and_feature(
    socket_path: str, capsys: pytest.CaptureFixture[str]
) -> None:
    forms = [{"feature": f"feature {name}", "request": {"model": name}} for name in ("good", "bad", "good", "worse")]
    assert ask_vllm.main(socket_path, forms) == 1
    lines = ["HTTP 400: no such form (feature bad)", "HTTP 400: no such form (feature worse)"]
    assert capsys.readouterr().out.splitlines() == lines
    assert ask_vllm.main(socket_path, forms[:1]) == 0


def test_a_long_list_of_refusals_is_cut(socket_path: str, capsys: pytest.CaptureFixture[str]) -> None:
    forms = [{"feature": str(number), "request": {"model": "bad"}} for number in range(9)]
    assert ask_vllm.main(socket_path, forms) == 1
    lines = capsys.readouterr().out.splitlines()
    assert (len(lines), lines[-1]) == (ask_vllm.SHOWN + 1, "and 4 more")


def test_nobody_who_listens_is_a_flaw(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert ask_vllm.main(str(tmp_path / "absent.sock"), [{"feature": "f", "request": {}}]) == 1
    assert "no answer (" in capsys.readouterr().out

"""Check, in vLLM's container and once after its start, that the model answers the requests that Elastic will send.

Usage: python3 -c THIS SOCKET, with [{"feature": TEXT, "request": BODY}, ...] on standard input. Prints a line for each
request without a good answer, and exits with 1 if there is one. `scripts/elastic-vllm verify` uses `flaw` as well.
"""

import http.client
import json
import socket
import sys
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

ANSWER_SECONDS = 300
AT_ONCE = 4
SHOWN = 5
QUOTED_CHARACTERS = 200


class FlawError(Exception):
    """An answer that Elastic cannot use; the text says why."""


class _Connection(http.client.HTTPConnection):
    def __init__(self, path: str) -> None:
        super().__init__("vllm", timeout=ANSWER_SECONDS)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(self.timeout)
        self.sock.connect(self._path)


def flaw(request: dict[str, Any], status: int, body: str) -> str | None:
    """Reason why the answer is not accepted, well-formed and ended; None if it is."""
    if status != http.client.OK:
        return f"HTTP {status}: {_message(body)}"
    try:
        answer = _streamed(body) if request.get("stream") else _whole(body)
        _check_calls(request, answer)
    except FlawError as error:
        return str(error)
    except (ValueError, LookupError, TypeError, AttributeError) as error:
        return f"the answer is not in OpenAI's form ({type(error).__name__}: {error})"
    if request.get("stream_options", {}).get("include_usage", not request.get("stream")) and not answer["usage"]:
        return "the answer has no usage"
    return None


def _message(body: str) -> str:
    try:
        return str(json.loads(body)["error"]["message"])[:QUOTED_CHARACTERS]
    except (ValueError, LookupError, TypeError):
        return body[:QUOTED_CHARACTERS] or "empty body"


def _whole(body: str) -> dict[str, Any]:
    """Calls, finish reason and usage of a plain answer."""
    document = json.loads(body)
    choice = document["choices"][0]
    message = choice["message"]
    if message["role"] != "assistant":
        raise FlawError(f"the answer's role is {message['role']}")
    calls = [
        (call["id"], call["function"]["name"], call["function"]["arguments"])
        for call in message.get("tool_calls") or []
    ]
    return {"calls": calls, "reason": _reason(choice["finish_reason"]), "usage": document.get("usage")}


def _streamed(body: str) -> dict[str, Any]:
    """Calls, finish reason and usage of a stream's events."""
    # Not by splitlines(): texts may hold other separators of lines as they are.
    events = [line.removeprefix("data: ") for line in body.split("\n") if line.startswith("data: ")]
    if not events or events[-1] != "[DONE]":
        raise FlawError("the stream does not end with [DONE]")
    calls: dict[int, list[str]] = {}
    reason = usage = None
    for chunk in map(json.loads, events[:-1]):
        if "error" in chunk:
            raise FlawError(f"the stream holds an error: {chunk['error'].get('message')}")
        usage = chunk.get("usage") or usage
        for choice in chunk["choices"]:
            reason = choice.get("finish_reason") or reason
            for part in choice["delta"].get("tool_calls") or []:
                call = calls.setdefault(part["index"], ["", "", ""])
                function = part.get("function") or {}
                for place, text in enumerate((part.get("id"), function.get("name"), function.get("arguments"))):
                    call[place] += text or ""
    return {"calls": [tuple(call) for call in calls.values()], "reason": _reason(reason), "usage": usage}


def _reason(reason: object) -> str:
    if not isinstance(reason, str):
        raise FlawError("the answer has no finish_reason")
    return reason


def _check_calls(request: dict[str, Any], answer: dict[str, Any]) -> None:
    """Raises FlawError for a call that Kibana could not run; one that was cut off by the limit of tokens may be."""
    offered = [tool["function"]["name"] for tool in request.get("tools") or []]
    choice = request.get("tool_choice")
    if answer["reason"] == "length":
        return
    if (choice == "required" or isinstance(choice, dict)) and not answer["calls"]:
        raise FlawError("no tool was called, although the request demands it")
    for identity, name, arguments in answer["calls"]:
        if not identity or name not in offered:
            raise FlawError(f"a call of {name or 'no tool'!r} with the id {identity!r}, offered: {', '.join(offered)}")
        try:
            is_object = isinstance(json.loads(arguments), dict)
        except ValueError:
            is_object = False
        if not is_object:
            raise FlawError(f"the arguments of {name} are no JSON object")


def ask(path: str, request: dict[str, Any]) -> str | None:
    """Send the request; return the flaw of the answer, or None."""
    connection = _Connection(path)
    try:
        connection.request("POST", "/v1/chat/completions", json.dumps(request), {"Content-Type": "application/json"})
        response = connection.getresponse()
        return flaw(request, response.status, response.read().decode())
    except (OSError, http.client.HTTPException) as error:
        return f"no answer ({error or type(error).__name__})"
    finally:
        connection.close()


def main(path: str, forms: Iterable[dict[str, Any]]) -> int:
    """Return 0 if every request was answered, else 1."""
    forms = list(forms)
    with ThreadPoolExecutor(AT_ONCE) as pool:
        flaws = pool.map(lambda form: ask(path, form["request"]), forms)
        failed = [(form["feature"], cause) for form, cause in zip(forms, flaws, strict=True) if cause]
    for feature, cause in failed[:SHOWN]:
        print(f"{cause} ({feature})")
    if failed[SHOWN:]:
        print(f"and {len(failed[SHOWN:])} more")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], json.load(sys.stdin)))

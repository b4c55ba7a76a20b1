"""Clients of a server under a fault: each records the answers that it gets, and when."""

import errno
import http.client
import json
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from itertools import groupby, pairwise
from typing import Any

CHAT = "/v1/chat/completions"
HEALTH = "/healthz"
PATIENCE_SECONDS = 15
"""Limit for one answer: longer than `/healthz` may take to report that vLLM does not answer."""
GOOD = "200"
LATE = "answered late"
LATE_SECONDS = 3


@dataclass(frozen=True)
class Endpoint:
    """Address, key and model for clients."""

    host: str
    port: int
    key: str = field(repr=False)
    ca: str
    model: str

    def connect(self, timeout: float = PATIENCE_SECONDS) -> http.client.HTTPSConnection:
        context = ssl.create_default_context(cadata=self.ca)
        return http.client.HTTPSConnection(self.host, self.port, timeout=timeout, context=context)

    def ask(self, path: str, body: dict[str, Any] | None = None) -> str:
        """Send one request on a new connection and return GOOD, or a description of what the client got instead."""
        connection = self.connect()
        try:
            self.send(connection, path, body)
            answer = connection.getresponse()
            text = answer.read()
        except ConnectionRefusedError:
            return "connection refused"
        except TimeoutError:
            return "no answer"
        except ssl.SSLCertVerificationError as error:
            return error.verify_message
        except (OSError, http.client.HTTPException) as error:
            gone = isinstance(error, OSError) and error.errno in {errno.EHOSTUNREACH, errno.ENETUNREACH}
            return "unreachable" if gone else "connection closed"
        finally:
            connection.close()
        return GOOD if answer.status == http.HTTPStatus.OK else f"{answer.status} {_kind(text)}"

    def send(self, connection: http.client.HTTPSConnection, path: str, body: dict[str, Any] | None) -> None:
        headers = {"Authorization": f"Bearer {self.key}", "Content-Type": "application/json"}
        connection.request("POST" if body else "GET", path, json.dumps(body) if body else None, headers)

    def chat(self, tokens: int, **more: Any) -> dict[str, Any]:
        """Return the body of a request for exactly this number of tokens."""
        messages = [{"role": "user", "content": "Hello"}]
        return {"model": self.model, "messages": messages, "max_tokens": tokens, "ignore_eos": True, **more}


def _kind(text: bytes) -> str:
    """Describe an error's body: its code, if it has the shape of OpenAI's errors."""
    try:
        error = json.loads(text)["error"]
        return str(error["code"]) if error.keys() == {"message", "type", "param", "code"} else "another JSON"
    except (ValueError, KeyError, TypeError):
        return "no JSON" if text else "without a body"


class Watch(threading.Thread):
    """Thread that keeps sending the same request, each time on a new connection."""

    def __init__(self, endpoint: Endpoint, path: str, pause: float) -> None:
        super().__init__(daemon=True)
        self._endpoint, self._path, self._pause = endpoint, path, pause
        self._body = endpoint.chat(1) if path == CHAT else None
        self._ended = threading.Event()
        self.seen: list[tuple[float, float, str]] = []
        """Time of each request, time of its answer (both time.monotonic), and the answer."""

    def run(self) -> None:
        while not self._ended.wait(self._pause):
            start = time.monotonic()
            what = self._endpoint.ask(self._path, self._body)
            end = time.monotonic()
            self.seen.append((start, end, LATE if what == GOOD and end - start > LATE_SECONDS else what))

    def stop(self) -> None:
        self._ended.set()
        self.join(2 * PATIENCE_SECONDS)

    def is_well(self, since: float) -> bool:
        """Return True if the last request, sent just now and after `since`, got a good answer."""
        start, _, what = self.seen[-1]
        return start >= max(since, time.monotonic() - 2) and what == GOOD

    def recovered(self, since: float) -> float:
        """Return the seconds from the first bad answer to the first good one after the last; 0 if none was bad."""
        return self._out(since, lambda what: what != GOOD)

    def reached(self, since: float) -> float:
        """Return the same until Nginx answered again, with any status."""
        return self._out(since, lambda what: not (what[:3].isdigit() or what == LATE))

    def _out(self, since: float, bad: Callable[[str], bool]) -> float:
        after = [entry for entry in self.seen if entry[1] >= since]
        found = [index for index, (_, _, what) in enumerate(after) if bad(what)]
        return after[found[-1] + 1][1] - max(since, after[found[0]][0]) if found else 0.0

    def summary(self, since: float) -> str:
        """Summarize the bad answers since then, like `503 model_unavailable for 3.1 s`; empty if all were good."""
        after = [entry for entry in self.seen if entry[1] >= since]
        runs = [(what, list(entries)) for what, entries in groupby(after, key=lambda entry: entry[2])]
        ends = [entries[-1][1] for _, entries in runs]
        starts = [since, *ends]
        parts = [
            f"{what} for {end - start:.1f} s"
            for (what, _), (start, end) in zip(runs, pairwise(starts), strict=True)
            if what != GOOD
        ]
        return ", ".join(_merged(parts))


def _merged(parts: list[str]) -> list[str]:
    """Shorten to at most four parts, for a server that comes and goes."""
    return parts if len(parts) <= 4 else [*parts[:3], f"and {len(parts) - 3} more"]


class Stream(threading.Thread):
    """One stream, read to its end."""

    def __init__(self, endpoint: Endpoint, tokens: int) -> None:
        super().__init__(daemon=True)
        self._endpoint, self._tokens = endpoint, tokens
        self.events = 0
        self.end = ""
        """`whole`, or `cut off` if it ended early."""

    def run(self) -> None:
        connection = self._endpoint.connect(timeout=120)
        try:
            self._endpoint.send(connection, CHAT, self._endpoint.chat(self._tokens, stream=True))
            answer = connection.getresponse()
            last, failed = b"", False
            for line in answer:
                if line.startswith(b"data: "):
                    self.events, last = self.events + 1, line
                    failed |= line.startswith(b'data: {"error"')
            self.end = "whole" if last.strip() == b"data: [DONE]" and not failed else "cut off"
        except (OSError, http.client.HTTPException):
            self.end = "cut off"
        finally:
            connection.close()


@contextmanager
def watching(endpoint: Endpoint, streams: int, tokens: int) -> Iterator[tuple[Watch, Watch, list[Stream]]]:
    """Yield clients that keep asking for health and for chat, and streams that have begun to flow."""
    health, chat = Watch(endpoint, HEALTH, 0.1), Watch(endpoint, CHAT, 0.2)
    flowing = [Stream(endpoint, tokens) for _ in range(streams)]
    with ExitStack() as stopping:
        for thread in (health, chat):
            thread.start()
            stopping.callback(thread.stop)
        for stream in flowing:
            stream.start()
        limit = time.monotonic() + 60
        while not (all(stream.events > 1 for stream in flowing) and health.seen and chat.seen):
            assert time.monotonic() < limit, "clients don't get going"
            time.sleep(0.02)
        yield health, chat, flowing

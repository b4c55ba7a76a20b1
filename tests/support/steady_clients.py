"""Clients that ask an endpoint without a pause and without retries, while something is done to it."""

import ssl
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any

import httpx2

PAUSE_SECONDS = 0.1
TOKENS = {False: 4, True: 60}
"""Length of an answer, at once and as a stream."""


@dataclass(frozen=True)
class Answer:
    """A request and what came of it."""

    start: float
    end: float
    """Seconds since the epoch."""
    flaw: str
    """Empty for a whole answer."""


class Client(threading.Thread):
    """One client, which keeps its connection, like Kibana's."""

    def __init__(self, outputs: Mapping[str, Any], *, stream: bool) -> None:
        super().__init__()
        self._outputs, self._stream = outputs, stream
        self.leave = threading.Event()
        self.answers: list[Answer] = []

    def run(self) -> None:
        context = ssl.create_default_context(cadata=self._outputs["caCertificate"])
        headers = {"Authorization": f"Bearer {self._outputs['connectorApiKey']}"}
        with httpx2.Client(verify=context, headers=headers, timeout=120, trust_env=False) as client:
            while not self.leave.wait(PAUSE_SECONDS):
                start = time.time()
                try:
                    flaw = self._ask(client)
                except httpx2.HTTPError as error:
                    flaw = f"{type(error).__name__}: {error}"
                self.answers.append(Answer(start, time.time(), flaw))

    def _ask(self, client: httpx2.Client) -> str:
        body = {
            "model": self._outputs["servedModelName"],
            "messages": [{"role": "user", "content": "Hello"}],
            "max_tokens": TOKENS[self._stream],
            "ignore_eos": True,
            "stream": self._stream,
        }
        answer = client.post(self._outputs["connectorUrl"], json=body)
        if answer.status_code != HTTPStatus.OK:
            return f"{answer.status_code} {answer.text[:200]}"
        whole = "data: [DONE]" in answer.text if self._stream else answer.json()["choices"][0]["finish_reason"]
        return "" if whole else f"cut off after {len(answer.text)} characters: {answer.text[-200:]}"


@contextmanager
def asking(outputs: Mapping[str, Any], *, each: int = 2) -> Iterator[list[Answer]]:
    """Run `each` clients for whole answers and as many for streams; the list holds all answers at the end."""
    clients = [Client(outputs, stream=stream) for stream in (False, True) for _ in range(each)]
    answers: list[Answer] = []
    for client in clients:
        client.start()
    try:
        yield answers
    finally:
        for client in clients:
            client.leave.set()
        for client in clients:
            client.join()
        answers += [answer for client in clients for answer in client.answers]


def flaws(answers: list[Answer]) -> list[str]:
    """Return what was wrong, with how many answers there were at all."""
    found = [each.flaw for each in answers if each.flaw]
    print(f"{len(found)} of {len(answers)} requests failed")
    assert answers
    return found

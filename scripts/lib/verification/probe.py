"""Connections that the checks share: plain HTTP for refusals, the official OpenAI client for the rest."""

import json
import re
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import httpx2
import openai
from openai.types import CompletionUsage
from openai.types.chat import (
    ChatCompletion,
    ChatCompletionChunk,
    ChatCompletionToolChoiceOptionParam,
    ChatCompletionToolParam,
)

from scripts.lib.verification.endpoint import Endpoint
from scripts.lib.verification.failures import CONNECT_SECONDS

GENERATION_SECONDS = 600.0
# For what does not generate: Nginx refuses by itself, and vLLM lists its models at once.
ANSWER_SECONDS = 30.0
FORM_TOKENS = 64


@dataclass
class Cost:
    """Requests to the model so far, and their tokens."""

    requests: int = 0
    """Requests for an answer of the model."""
    measured_tokens: int = 0
    """Tokens of prompts and answers as the endpoint reported them."""
    bounded_tokens: int = 0
    """Upper bound for the prompts and answers of the other requests."""

    def add(self, usage: CompletionUsage | None) -> None:
        """Count a request whose answer reports its usage."""
        self.requests += 1
        self.measured_tokens += usage.total_tokens if usage else 0

    def add_answer(self, request: Mapping[str, Any], body: str) -> None:
        """Count a request by its answer's text. A stream reports its usage only if asked to, which Kibana does not."""
        self.requests += 1
        usages = re.findall(r'"total_tokens": ?(\d+)', body)
        if usages:
            self.measured_tokens += int(usages[-1])
        elif '"error"' not in body:
            # No tokenizer makes more tokens than there are bytes, and templates add less than JSON's own signs.
            self.bounded_tokens += len(json.dumps(request)) + int(request.get("max_tokens", 0))

    def __str__(self) -> str:
        text = f"{self.requests} requests to the model cost {self.measured_tokens} tokens as the endpoint counts them"
        if not self.bounded_tokens:
            return text
        return f"{text}, and at most {self.bounded_tokens} in streams that report none, as Kibana asks for them"


@dataclass
class Probe:
    """Connections to one endpoint, and facts about it from earlier checks."""

    endpoint: Endpoint
    http: httpx2.Client
    client: openai.OpenAI
    served: Sequence[str] = ()
    max_tokens: int = sys.maxsize
    """Tokens that the model's context leaves for an answer."""
    form_tokens: int = FORM_TOKENS
    """Upper bound for the tokens of an answer to one of Elastic's requests."""
    cost: Cost = field(default_factory=Cost)
    last_read: float = 0.0
    """When a body's newest bytes came in: what came at once has one time, however slowly it is parsed."""

    def request(self, method: str, path: str, key: str | None) -> httpx2.Response:
        """Return the answer to a request outside the OpenAI client; a POST carries the smallest chat request."""
        body = {
            "model": self.endpoint.model,
            "messages": [{"role": "user", "content": "Hello"}],
            "max_tokens": 1,
        }
        return self.http.request(
            method,
            self.endpoint.root + path,
            headers={} if key is None else {"Authorization": f"Bearer {key}"},
            json=body if method == "POST" else None,
        )

    def complete(
        self,
        prompt: str,
        max_tokens: int,
        tools: Sequence[ChatCompletionToolParam] = (),
        tool_choice: ChatCompletionToolChoiceOptionParam | openai.Omit = openai.omit,
    ) -> ChatCompletion:
        """Return the plain answer. Raises TypeError if the endpoint answers 200 with something else."""
        completion = self.client.chat.completions.create(
            model=self.endpoint.model,
            messages=[{"role": "user", "content": prompt}],
            max_tokens=min(max_tokens, self.max_tokens),
            temperature=0,
            tools=tools or openai.omit,
            tool_choice=tool_choice,
        )
        # The client hands on a body that is not JSON as a string.
        if not isinstance(completion, ChatCompletion):
            raise TypeError("the body is no JSON")
        self.cost.add(completion.usage)
        return completion

    def stream(
        self,
        prompt: str,
        max_tokens: int,
        tools: Sequence[ChatCompletionToolParam] = (),
        tool_choice: ChatCompletionToolChoiceOptionParam | openai.Omit = openai.omit,
    ) -> Iterator[ChatCompletionChunk]:
        """Yield the answer's chunks as they arrive, the last one with the usage and no choices."""
        chunks = self.client.chat.completions.create(
            model=self.endpoint.model,
            messages=[{"role": "user", "content": prompt}],
            max_tokens=min(max_tokens, self.max_tokens),
            temperature=0,
            tools=tools or openai.omit,
            tool_choice=tool_choice,
            stream=True,
            stream_options={"include_usage": True},
        )
        with chunks:
            for chunk in chunks:
                if chunk.usage:
                    self.cost.add(chunk.usage)
                yield chunk


class _TimedBody(httpx2.SyncByteStream):
    def __init__(self, body: httpx2.SyncByteStream, probe: Probe) -> None:
        self._body = body
        self._probe = probe

    def __iter__(self) -> Iterator[bytes]:
        for piece in self._body:
            self._probe.last_read = time.monotonic()
            yield piece

    def close(self) -> None:
        self._body.close()


@contextmanager
def probing(endpoint: Endpoint) -> Iterator[Probe]:
    """Yield a probe of the endpoint, without retries, redirects or proxies, which would hide its behaviour."""
    limit = httpx2.Timeout(ANSWER_SECONDS, connect=CONNECT_SECONDS)
    with httpx2.Client(verify=endpoint.tls_context(), trust_env=False, timeout=limit) as http:
        client = openai.OpenAI(
            api_key=endpoint.key,
            base_url=endpoint.root + "/v1",
            max_retries=0,
            timeout=httpx2.Timeout(GENERATION_SECONDS, connect=CONNECT_SECONDS),
            http_client=http,
        )
        probe = Probe(endpoint, http, client)

        def time_reads(response: httpx2.Response) -> None:
            if isinstance(response.stream, httpx2.SyncByteStream):
                response.stream = _TimedBody(response.stream, probe)

        http.event_hooks = {"response": [time_reads]}
        yield probe

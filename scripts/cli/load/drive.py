"""Requests at intended moments, whether earlier ones were answered or not, and the outcome of each.

Latency counts from the intended moment: if the endpoint or this client stalls, everything that was due meanwhile shows
it. A client that waits for answers before it sends more would hide a stall (coordinated omission).
"""

import asyncio
import json
import random
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import httpx2

from scripts.cli.load.profiles import Profile, Sizes, requests
from scripts.lib.verification.endpoint import CHAT_PATH, Endpoint
from scripts.lib.verification.failures import CONNECT_SECONDS

OWN_LIMITS = frozenset({"too_many_requests", "too_many_concurrent_requests"})
"""Codes by which the gateway says that its own limits refused a request (components/serving/gateway_errors.py)."""
UNFINISHED = "unfinished"
"""Error of a request that had no complete answer when its step ended."""
DATA = b"data: "


@dataclass
class Answer:
    """Outcome of one request; times in seconds, None where there are none."""

    profile: str
    intended: float
    """Moment on the clock of time.monotonic."""
    is_stream: bool = True
    late_start: float = 0.0
    """Delay by this client, from the intended moment to the request."""
    first_token: float | None = None
    """From the intended moment; None for an answer in one piece."""
    whole: float | None = None
    """From the intended moment; None without a complete answer."""
    between_tokens: float | None = None
    """Mean time between two tokens."""
    longest_gap: float = 0.0
    """Longest time between two pieces of the stream."""
    prompt_tokens: int = 0
    answer_tokens: int = 0
    cached_tokens: int | None = None
    """Prompt tokens from the prefix cache; None where the endpoint does not report them."""
    error: str = ""
    """Kind of failure: `own limit: CODE` of the gateway, `HTTP STATUS`, `connection`, `cut` or UNFINISHED."""
    limit_seconds: float = 0.0
    ended: float = 0.0


@dataclass
class Client:
    """Connections to an endpoint, and the answers so far."""

    endpoint: Endpoint
    sizes: Sizes
    http: httpx2.AsyncClient
    seed: int = 1
    answers: list[Answer] = field(default_factory=list)
    under_way: dict[int, Answer] = field(default_factory=dict)

    async def work(self, profile: Profile, intended: float, number: int) -> None:
        """Do one piece of work that is due at `intended`; a later request is due when the answer before it was read."""
        generator = random.Random(f"{self.seed}/{number}")  # noqa: S311 - words, not secrets
        shared = random.Random(profile.name)  # noqa: S311
        for turn, request in requests(profile, self.endpoint.model, self.sizes, generator, shared):
            intended += turn.pause_seconds
            await asyncio.sleep(max(0.0, intended - time.monotonic()))
            answer = await self.ask(profile, request, intended)
            if answer.error:
                return
            intended = answer.ended

    async def ask(self, profile: Profile, request: dict[str, Any], intended: float) -> Answer:
        """Send one request; no failure is an exception."""
        answer = Answer(profile.name, intended, bool(request["stream"]), limit_seconds=profile.limit_seconds)
        answer.late_start = max(0.0, time.monotonic() - intended)
        self.under_way[id(answer)] = answer
        try:
            await self._exchange(request, answer)
        except httpx2.HTTPError as error:
            answer.error = "connection" if isinstance(error, httpx2.ConnectError) else "cut"
        except asyncio.CancelledError:
            answer.error = UNFINISHED
            raise
        finally:
            answer.ended = time.monotonic()
            del self.under_way[id(answer)]
            self.answers.append(answer)
        return answer

    async def _exchange(self, request: dict[str, Any], answer: Answer) -> None:
        url = self.endpoint.root + CHAT_PATH
        headers = {"Authorization": f"Bearer {self.endpoint.key}"}
        async with self.http.stream("POST", url, json=request, headers=headers) as response:
            if response.status_code != httpx2.codes.OK:
                answer.error = _refusal(response.status_code, await response.aread())
            elif answer.is_stream:
                await _read_stream(response, answer)
            else:
                document = json.loads(await response.aread())
                answer.whole = time.monotonic() - answer.intended
                _count(answer, document.get("usage"))


async def _read_stream(response: httpx2.Response, answer: Answer) -> None:
    rest, usage, last, done = b"", None, 0.0, False
    async for piece in response.aiter_bytes():
        now = time.monotonic()
        *lines, rest = (rest + piece).split(b"\n")
        for line in lines:
            if not line.startswith(DATA):
                continue
            if line.startswith(b"data: [DONE]"):
                done = True
            elif answer.first_token is None:
                if _has_token(json.loads(line[len(DATA) :])):
                    answer.first_token = now - answer.intended
            elif b'"usage":{' in line or b'"usage": {' in line:
                usage = json.loads(line[len(DATA) :]).get("usage")
        if answer.first_token is not None:
            answer.longest_gap = max(answer.longest_gap, now - last if last else 0.0)
            last = now
    if not done:
        answer.error = "cut"
        return
    answer.whole = last - answer.intended if last else time.monotonic() - answer.intended
    _count(answer, usage)
    if answer.first_token is not None and answer.answer_tokens > 1:
        answer.between_tokens = (answer.whole - answer.first_token) / (answer.answer_tokens - 1)


def _has_token(event: dict[str, Any]) -> bool:
    for choice in event.get("choices", []):
        delta = choice.get("delta", {})
        if any(delta.get(key) for key in ("content", "tool_calls", "reasoning", "reasoning_content")):
            return True
    return False


def _count(answer: Answer, usage: dict[str, Any] | None) -> None:
    if usage:
        answer.prompt_tokens = usage.get("prompt_tokens", 0)
        answer.answer_tokens = usage.get("completion_tokens", 0)
        answer.cached_tokens = (usage.get("prompt_tokens_details") or {}).get("cached_tokens")


def _refusal(status: int, body: bytes) -> str:
    try:
        code = json.loads(body)["error"]["code"]
    except (ValueError, KeyError, TypeError):
        code = None
    return f"own limit: {code}" if code in OWN_LIMITS else f"HTTP {status}"


def connect(endpoint: Endpoint, seconds: float) -> httpx2.AsyncClient:
    """Return connections as many as needed, without retries, redirects or proxies; an answer may take `seconds`."""
    return httpx2.AsyncClient(
        verify=endpoint.tls_context(),
        trust_env=False,
        timeout=httpx2.Timeout(seconds, connect=CONNECT_SECONDS),
        limits=httpx2.Limits(max_connections=None, max_keepalive_connections=None),
    )


@dataclass
class Step:
    """Load at one rate, as it was carried out."""

    per_hour: float
    """Pieces of work that were due in an hour."""
    seconds: float = 0.0
    """Time in which work arrived."""
    answers: list[Answer] = field(default_factory=list)
    cpu_share: float = 0.0
    """Share of one core that this client used."""
    stopped: str = ""
    """Reason why it ended before its time; empty if it did not."""


def arrivals(per_hour: float, seconds: float, generator: random.Random) -> list[float]:
    """Return the moments of a Poisson process, in seconds: people who know nothing of each other."""
    moments, now = [], generator.expovariate(per_hour / 3600)
    while now < seconds:
        moments.append(now)
        now += generator.expovariate(per_hour / 3600)
    return moments


async def run_step(
    client: Client,
    choose: Callable[[int], Profile],
    per_hour: float,
    seconds: float,
    *,
    enough: Callable[[Sequence[Answer]], str],
    on_progress: Callable[[Step, int], None] = lambda _step, _due: None,
) -> Step:
    """Let work arrive for `seconds`, then wait for the last answers, at most as long as their limit.

    `choose` returns the profile of the work with that number. `enough`, asked twice a second, returns why there is no
    use in going on, from the answers so far and the requests in progress; empty: go on.
    """
    step = Step(per_hour)
    client.answers = step.answers
    generator = random.Random(f"{client.seed}/{per_hour}")  # noqa: S311
    moments = arrivals(per_hour, seconds, generator)
    wall, cpu = time.monotonic(), time.process_time()
    start = wall + 0.05
    tasks = [
        asyncio.create_task(_due(client, choose(number), start + moment, number))
        for number, moment in enumerate(moments)
    ]
    try:
        pending = set(tasks)
        last_limit = max((choose(number).limit_seconds for number in range(len(moments))), default=0.0)
        while pending and not step.stopped and time.monotonic() < start + seconds + 3 * last_limit:
            _, pending = await asyncio.wait(pending, timeout=0.5)
            on_progress(step, len(moments))
            step.stopped = enough([*step.answers, *waiting(client)])
    finally:
        ended = time.monotonic()
        step.seconds = min(seconds, ended - start)
        step.cpu_share = (time.process_time() - cpu) / (ended - wall)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
    return step


async def _due(client: Client, profile: Profile, intended: float, number: int) -> None:
    await asyncio.sleep(max(0.0, intended - time.monotonic()))
    await client.work(profile, intended, number)


def waiting(client: Client) -> list[Answer]:
    """Requests in progress, as they would be if nobody waited any longer."""
    now = time.monotonic()
    return [replace(each, error=UNFINISHED, ended=now) for each in client.under_way.values()]

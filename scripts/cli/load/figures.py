"""Figures of a step of load, and the step up to which an endpoint keeps its limits."""

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from scripts.cli.load.drive import UNFINISHED, Answer, Step

FAILED_SHARE = 0.01
"""Share of failed requests from which a step is past the limit."""
LATE_SHARE = 0.05
"""Share of late requests from which the 95th percentile is late."""
BUSY_CLIENT = 0.7
"""Share of a core from which this client may itself be what is slow."""
LATE_CLIENT_SHARE = 0.1
"""Delay of its own requests from which it may be, as a share of what people bear: in the percentile of the verdict."""
GROWTH = 0.2
"""Seconds that an answer takes longer with every second of a step, from which work piles up: it is due about a quarter
faster than it is done."""
LEAST_FOR_GROWTH = 8
SLOWER = 2.0
"""Factor by which tokens come slower at the limit where computing is what is short."""


@dataclass(frozen=True, kw_only=True)
class Limits:
    """Times that an answer may take."""

    first_token_seconds: float
    """Wait that people bear: 95 % of the streamed answers must begin within it."""
    answer_seconds: float | None = None
    """Limit for whole answers in place of each profile's; None: the profile's own."""

    def whole(self, answer: Answer) -> float:
        """Limit for the whole answer."""
        return self.answer_seconds or answer.limit_seconds


@dataclass(frozen=True, kw_only=True)
class Figures:
    """A step in figures; times in seconds, None where there was nothing to measure."""

    per_hour: float
    """Pieces of work due in an hour."""
    seconds: float
    requests: int
    requests_per_hour: float
    """Requests answered, by the time in which work arrived."""
    first_token_p50: float | None
    first_token_p95: float | None
    first_token_p99: float | None
    whole_p50: float | None
    whole_p95: float | None
    whole_p99: float | None
    between_tokens_p50: float | None
    between_tokens_p95: float | None
    longest_gap: float
    whole_late: int
    """Answers that were complete too late for Kibana, or not at all."""
    failed: int
    own_limit: int
    """Requests that the gateway's own limits refused."""
    errors: dict[str, int]
    prompt_tokens_per_second: float
    answer_tokens_per_second: float
    cached_share: float | None
    """Share of prompt tokens from the prefix cache; None where the endpoint does not report it."""
    client_cpu_share: float
    client_late_p95: float
    """Delay of this client's own requests."""
    client_busy: bool
    """True if this client was so busy that the figures may be its own."""
    past: str
    """Reason for which the step is past the limit; empty if it keeps it."""


def percentile(values: Sequence[float], percent: float) -> float | None:
    """Return the value that `percent` % of the values do not exceed (nearest rank); None without values."""
    return sorted(values)[max(0, math.ceil(percent / 100 * len(values)) - 1)] if values else None


def first_token(answer: Answer) -> float | None:
    """Time to the first token of a stream; of one that ended without any, the time that it waited in vain."""
    if answer.is_stream and answer.first_token is None and answer.whole is None:
        return answer.ended - answer.intended
    return answer.first_token


def whole(answer: Answer) -> float:
    """Time to the complete answer; of a request without one, the time that it waited in vain."""
    return answer.ended - answer.intended if answer.whole is None else answer.whole


def is_late(answer: Answer, limits: Limits) -> bool:
    """True if people or Kibana would have given up on it."""
    first = first_token(answer)
    return whole(answer) > limits.whole(answer) or (first is not None and first > limits.first_token_seconds)


def is_own_limit(answer: Answer) -> bool:
    """True if the gateway's own limits refused it, which says nothing about the model."""
    return answer.error.startswith("own limit")


def figures(step: Step, limits: Limits) -> Figures:
    """Return a step's figures and its verdict."""
    own = [answer for answer in step.answers if is_own_limit(answer)]
    # Requests that were cut short with the step before they were late say nothing.
    counted = [
        answer
        for answer in step.answers
        if not is_own_limit(answer) and (answer.error != UNFINISHED or is_late(answer, limits))
    ]
    waited = [answer for answer in counted if not answer.error or answer.error == UNFINISHED]
    firsts = [value for answer in waited if (value := first_token(answer)) is not None]
    wholes = [whole(answer) for answer in waited]
    between = [answer.between_tokens for answer in counted if answer.between_tokens is not None]
    errors: dict[str, int] = {}
    for answer in step.answers:
        if answer.error:
            errors[answer.error] = errors.get(answer.error, 0) + 1
    failed = len(counted) - len(waited)
    whole_late = sum(whole(answer) > limits.whole(answer) for answer in waited)
    seconds = max(step.seconds, 1e-9)
    prompts = sum(answer.prompt_tokens for answer in counted)
    cached = [answer.cached_tokens for answer in counted if answer.cached_tokens is not None]
    first_p95 = percentile(firsts, 95)
    past = ""
    if own:
        past = f"the gateway's own limit refused {len(own)} of {len(step.answers)} requests"
    elif counted and failed > FAILED_SHARE * len(counted):
        past = f"{failed} of {len(counted)} requests failed ({', '.join(sorted(errors))})"
    elif first_p95 is not None and first_p95 > limits.first_token_seconds:
        past = f"95 % of the answers began within {first_p95:.3g} s, not {limits.first_token_seconds:g} s"
    elif whole_late > LATE_SHARE * len(waited):
        past = f"{whole_late} of {len(waited)} answers were complete too late for Kibana, or never"
    elif growth(waited) > GROWTH * seconds * 3 / 4:
        past = f"answers took longer and longer: {growth(waited):.1f} s more at its end than at its beginning"
    client_late = percentile([answer.late_start for answer in step.answers], 95) or 0.0
    return Figures(
        per_hour=step.per_hour,
        seconds=step.seconds,
        requests=len(step.answers),
        requests_per_hour=sum(not answer.error for answer in counted) / seconds * 3600,
        first_token_p50=percentile(firsts, 50),
        first_token_p95=first_p95,
        first_token_p99=percentile(firsts, 99),
        whole_p50=percentile(wholes, 50),
        whole_p95=percentile(wholes, 95),
        whole_p99=percentile(wholes, 99),
        between_tokens_p50=percentile(between, 50),
        between_tokens_p95=percentile(between, 95),
        longest_gap=max((answer.longest_gap for answer in counted), default=0.0),
        whole_late=whole_late,
        failed=failed,
        own_limit=len(own),
        errors=errors,
        prompt_tokens_per_second=prompts / seconds,
        answer_tokens_per_second=sum(answer.answer_tokens for answer in counted) / seconds,
        cached_share=sum(cached) / prompts if cached and prompts else None,
        client_cpu_share=step.cpu_share,
        client_late_p95=client_late,
        client_busy=step.cpu_share > BUSY_CLIENT or client_late > LATE_CLIENT_SHARE * limits.first_token_seconds,
        past=past,
    )


def growth(answers: Sequence[Answer]) -> float:
    """Return how much longer the last quarter of the work took than the first one, in seconds (medians)."""
    times = [whole(answer) for answer in sorted(answers, key=lambda answer: answer.intended)]
    quarter = len(times) // 4
    return (
        statistics.median(times[-quarter:]) - statistics.median(times[:quarter])
        if len(times) >= LEAST_FOR_GROWTH
        else 0.0
    )


def carried(steps: Sequence[Figures]) -> Figures | None:
    """The last step before the first that is past the limit; None if the first one is."""
    kept = None
    for found in steps:
        if found.past:
            break
        kept = found
    return kept


LESS = "use a smaller model, faster or more GPUs, or shorter contexts"
RAISE_LIMITS = "raise maxRequestsPerMinute or maxConcurrentRequests: they hold for each key"
COMPUTING = "use faster or more GPUs, a second machine, or a smaller model"
MEMORY = "use more GPU memory or a shorter maxModelLen (preflight shows the contexts that fit), or a second machine"


def advice(steps: Sequence[Figures]) -> str:
    """Advice for more, from what grew at the step past the limit."""
    broken = next((found for found in steps if found.past), None)
    if not steps:
        return "let it run longer (--minutes, --tokens) or begin higher (--from): a step has at least 20 requests"
    if broken is None:
        return "the limit was not reached: let it run longer (--minutes), or begin higher (--from)"
    slower = (broken.between_tokens_p50 or 0.0) > SLOWER * (steps[0].between_tokens_p50 or math.inf)
    causes = (
        (broken.own_limit, RAISE_LIMITS),
        (broken.client_busy, "run this command on a faster or idle machine: it was itself too busy"),
        ({"connection", "cut"} & broken.errors.keys(), "connections broke: see scripts/elastic-vllm diagnose first"),
        (broken is steps[0], f"not even the least load keeps the limits: {LESS}"),
        (slower, f"answers in progress became slower as well, so computing is short: {COMPUTING}"),
    )
    waited = f"requests waited while answers in progress kept their pace, so prompts or memory are short: {MEMORY}"
    return next((advised for applies, advised in causes if applies), waited)

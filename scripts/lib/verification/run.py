"""Runner of the checks, in order: a failed check is a result, never an exception."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

from components.elastic.corpus import all_forms
from scripts.lib.verification import gateway, generation
from scripts.lib.verification.corpus import QUICK_TOKENS, form_check
from scripts.lib.verification.endpoint import Endpoint
from scripts.lib.verification.failures import Blocks, KnownLimitError, explain
from scripts.lib.verification.probe import Cost, Probe, probing


@dataclass(frozen=True)
class CheckResult:
    """One check's outcome: `detail` is the observation, or cause and fix; it never contains the key."""

    name: str
    ok: bool
    detail: str
    seconds: float
    limit: bool = False
    """True if the model is known to refuse the request; `detail` has the consequence for Elastic."""


@dataclass(frozen=True)
class Report:
    """The outcome of every check, and the cost of all."""

    results: list[CheckResult]
    cost: Cost

    @property
    def failed(self) -> int:
        """Number of checks that failed."""
        return sum(not result.ok for result in self.results)

    def summary(self) -> str:
        """Return the number of failed checks, the number of known limits, and the cost."""
        number, limits = len(self.results), sum(result.limit for result in self.results)
        known = f", {limits} of them with a known limit" if limits else ""
        verdict = f"{self.failed} of {number} checks failed" if self.failed else f"all {number} checks passed{known}"
        return f"{self.cost}\n{verdict}"


class _Check(NamedTuple):
    name: str
    run: Callable[[Probe], str]
    """Returns what was seen, or raises: CheckFailedError where it knows cause and fix, anything else where not."""
    generates: bool = False
    calls_tools: bool = False
    shows_certificate: bool = False
    thorough: bool = False
    """Left out of the quick form."""


CHECKS = (
    _Check("certificate", gateway.certificate),
    _Check("healthz", gateway.health),
    _Check("no-key", gateway.missing_key),
    _Check("no-client-certificate", gateway.missing_client_certificate, shows_certificate=True),
    _Check("wrong-key", gateway.wrong_key),
    _Check("error-shape", gateway.error_shape),
    _Check("models", generation.models),
    _Check("chat", generation.chat, generates=True),
    _Check("chat-stream", generation.streamed_chat, generates=True, thorough=True),
    *(
        _Check(
            f"tool-{choice}{'-stream' if streamed else ''}",
            generation.tool_call(choice, streamed=streamed),
            generates=True,
            calls_tools=True,
            thorough=True,
        )
        for choice in generation.TOOL_CHOICES
        for streamed in (False, True)
    ),
    *(
        _Check(form.name, form_check(form), generates=True, calls_tools=form.has_tools, thorough=not form.needed)
        for form in all_forms()
    ),
    _Check("closed-paths", gateway.closed_paths),
    _Check("methods", gateway.methods),
)


def verify(
    endpoint: Endpoint,
    *,
    quick: bool = False,
    on_result: Callable[[CheckResult], None] = lambda _result: None,
    on_start: Callable[[str], None] = lambda _name: None,
) -> Report:
    """Run every check, in order; those of tools and of client certificates only if there are any.

    `quick` leaves out checks with many tokens: long answers, and requests that Elastic's features can do without.
    `on_start` gets a check's name before it runs, `on_result` its result right after.
    Proxies named in the environment are not used: the checks are of the endpoint itself.
    """
    results: list[CheckResult] = []
    pointless: dict[Blocks, str] = {}

    def add(result: CheckResult) -> None:
        results.append(result)
        on_result(result)

    with probing(endpoint) as probe:
        if quick:
            probe.form_tokens = QUICK_TOKENS
        for check in CHECKS:
            if check.calls_tools and not endpoint.supports_tools:
                continue
            if check.shows_certificate and endpoint.client_certificate is None:
                continue
            if check.thorough and quick:
                continue
            on_start(check.name)
            add(_result(check, probe, pointless))
    return Report(results, probe.cost)


def _result(check: _Check, probe: Probe, pointless: dict[Blocks, str]) -> CheckResult:
    """Return the check's outcome; a failure that makes later checks pointless is added to `pointless`."""
    reason = pointless.get(Blocks.EVERYTHING)
    if check.generates and not reason:
        reason = pointless.get(Blocks.GENERATION)
    started = time.monotonic()
    ok, limit = True, False
    try:
        ok, detail = (False, f"not tried: {reason}") if reason else (True, check.run(probe))
    except KnownLimitError as known:
        limit, detail = True, str(known)
    except Exception as error:
        failure = explain(error, probe.endpoint, probe.served)
        pointless.setdefault(failure.blocks, failure.cause)
        ok, detail = False, str(failure)
    seconds = round(time.monotonic() - started, 3)
    return CheckResult(check.name, ok, probe.endpoint.redact(detail), seconds, limit)


def format_result(result: CheckResult) -> str:
    """Return the result as a line of the report."""
    verdict = "limit" if result.limit else "ok" if result.ok else "FAIL"
    return f"{verdict:<6}{result.name:<34}{result.detail} ({result.seconds:.2f} s)"

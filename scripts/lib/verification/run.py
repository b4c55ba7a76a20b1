"""Runs the checks in order and makes each outcome a result: a failed check is a result, never an exception."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

from scripts.lib.verification import gateway, generation
from scripts.lib.verification.endpoint import Endpoint
from scripts.lib.verification.failures import Blocks, explain
from scripts.lib.verification.probe import Probe, probing


@dataclass(frozen=True)
class CheckResult:
    """One check's outcome: `detail` is what was seen, or cause and fix; it never holds the key."""

    name: str
    ok: bool
    detail: str
    seconds: float


class _Check(NamedTuple):
    name: str
    run: Callable[[Probe], str]
    """Returns what was seen, or raises: CheckFailedError where it knows cause and fix, anything else where not."""
    generates: bool = False
    calls_tools: bool = False
    shows_certificate: bool = False


CHECKS = (
    _Check("certificate", gateway.certificate),
    _Check("healthz", gateway.health),
    _Check("no-key", gateway.missing_key),
    _Check("no-client-certificate", gateway.missing_client_certificate, shows_certificate=True),
    _Check("wrong-key", gateway.wrong_key),
    _Check("error-shape", gateway.error_shape),
    _Check("models", generation.models),
    _Check("chat", generation.chat, generates=True),
    _Check("chat-stream", generation.streamed_chat, generates=True),
    *(
        _Check(
            f"tool-{choice}{'-stream' if streamed else ''}",
            generation.tool_call(choice, streamed=streamed),
            generates=True,
            calls_tools=True,
        )
        for choice in generation.TOOL_CHOICES
        for streamed in (False, True)
    ),
    _Check("closed-paths", gateway.closed_paths),
    _Check("methods", gateway.methods),
)


def verify(
    endpoint: Endpoint,
    *,
    on_result: Callable[[CheckResult], None] = lambda _result: None,
    on_start: Callable[[str], None] = lambda _name: None,
) -> list[CheckResult]:
    """Runs every check, in order, those of tools and of client certificates only where there are any.

    `on_start` gets a check's name before it runs, `on_result` its result right after. About 30 requests, 8 of which
    generate. Proxies named in the environment are not used: what is proven is the endpoint itself.
    """
    results: list[CheckResult] = []
    pointless: dict[Blocks, str] = {}
    with probing(endpoint) as probe:
        for check in CHECKS:
            if check.calls_tools and not endpoint.supports_tools:
                continue
            if check.shows_certificate and endpoint.client_certificate is None:
                continue
            on_start(check.name)
            started = time.monotonic()
            ok, detail = _outcome(check, probe, pointless)
            seconds = round(time.monotonic() - started, 3)
            results.append(CheckResult(check.name, ok, endpoint.redact(detail), seconds))
            on_result(results[-1])
    return results


def _outcome(check: _Check, probe: Probe, pointless: dict[Blocks, str]) -> tuple[bool, str]:
    """Whether the check passed, and its detail; a failure that makes later checks pointless is added to `pointless`."""
    reason = pointless.get(Blocks.EVERYTHING)
    if check.generates and not reason:
        reason = pointless.get(Blocks.GENERATION)
    if reason:
        return False, f"not tried: {reason}"
    try:
        return True, check.run(probe)
    except Exception as error:
        failure = explain(error, probe.endpoint, probe.served)
        pointless.setdefault(failure.blocks, failure.cause)
        return False, str(failure)


def format_result(result: CheckResult) -> str:
    """The result as a line of the report."""
    verdict = "ok" if result.ok else "FAIL"
    return f"{verdict:<6}{result.name:<22}{result.detail} ({result.seconds:.2f} s)"

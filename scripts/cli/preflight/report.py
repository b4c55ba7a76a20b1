"""Results of checks, and their report."""

from dataclasses import dataclass
from enum import StrEnum
from typing import NamedTuple


class Verdict(StrEnum):
    """Outcome of a check. NOT_CHECKED: the check found out nothing; WARNING: the reader must decide if it is fine."""

    OK = "ok"
    FAILED = "FAIL"
    WARNING = "warn"
    NOT_CHECKED = "not checked"


class Outcome(NamedTuple):
    """A check's verdict and observation, with the fix for FAIL and warn."""

    verdict: Verdict
    detail: str


@dataclass(frozen=True)
class Result:
    """One line of the report; `seconds` is the check's duration."""

    name: str
    verdict: Verdict
    detail: str
    seconds: float


class NotCheckedError(Exception):
    """A check could not be made; the text says why."""


def ok(detail: str) -> Outcome:
    """Return an outcome without a problem."""
    return Outcome(Verdict.OK, detail)


def failed(cause: str, fix: str) -> Outcome:
    """Return an outcome with which `up` would fail."""
    return Outcome(Verdict.FAILED, f"{cause}: {fix}")


def warning(cause: str, fix: str) -> Outcome:
    """Return an outcome with which `up` may fail, or do something unintended."""
    return Outcome(Verdict.WARNING, f"{cause}: {fix}")


def format_result(result: Result) -> str:
    """Return the result as a line of the report."""
    return f"{result.verdict:<12}{result.name:<19}{result.detail} ({result.seconds:.2f} s)"


def summary(results: list[Result]) -> list[str]:
    """Return the last lines of a report."""

    def named(verdict: Verdict) -> list[str]:
        return [result.name for result in results if result.verdict is verdict]

    lines = []
    if failures := named(Verdict.FAILED):
        lines.append(f"{len(failures)} of {len(results)} checks failed: {', '.join(failures)}")
    if warnings := named(Verdict.WARNING):
        lines.append(f"{_checks(warnings)} left a warning: {', '.join(warnings)}")
    if unknown := named(Verdict.NOT_CHECKED):
        lines.append(f"{_checks(unknown)} could not be made: {', '.join(unknown)}")
    return lines or [f"all {len(results)} checks passed"]


def _checks(names: list[str]) -> str:
    return "1 check" if len(names) == 1 else f"{len(names)} checks"

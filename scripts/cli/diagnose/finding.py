"""What is wrong, and why it comes before other things that are wrong."""

from dataclasses import dataclass
from enum import IntEnum

from scripts.lib.errors import ExitCode


class Rank(IntEnum):
    """What explains what: the lowest that was found is the cause, the others follow from it or come beside it."""

    SERVER = 1
    CONTAINERS = 2
    ROUTE = 3
    REQUEST = 4
    KIBANA = 5
    UNSEEN = 6
    """It could not be looked at."""
    SYMPTOM = 7
    """Something else must be the cause: this says so where nothing else was found."""
    SOON = 8
    """Nothing is broken by it yet."""


@dataclass(frozen=True)
class Finding:
    """One thing that is wrong."""

    kind: ExitCode
    rank: Rank
    cause: str
    fix: str


@dataclass(frozen=True)
class Look:
    """One thing that was looked at: `seen` is what there was; empty where there are findings instead."""

    name: str
    seen: str
    findings: tuple[Finding, ...] = ()

"""Findings of `diagnose`, and their rank as causes."""

from dataclasses import dataclass
from enum import IntEnum

from scripts.lib.errors import ExitCode


class Rank(IntEnum):
    """Rank of a finding: the lowest one is the cause, the others follow from it or are independent."""

    SERVER = 1
    CONTAINERS = 2
    ROUTE = 3
    REQUEST = 4
    KIBANA = 5
    UNSEEN = 6
    """Something could not be checked."""
    SYMPTOM = 7
    """Effect of another cause, reported if no cause was found."""
    SOON = 8
    """Something that breaks nothing yet."""


@dataclass(frozen=True)
class Finding:
    """One problem."""

    kind: ExitCode
    rank: Rank
    cause: str
    fix: str


@dataclass(frozen=True)
class Look:
    """One check: `seen` is the observation, empty if there are findings instead."""

    name: str
    seen: str
    findings: tuple[Finding, ...] = ()

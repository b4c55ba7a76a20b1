"""What is wrong, why it comes before other things that are wrong, and the exit status that stands for its kind."""

from dataclasses import dataclass
from enum import IntEnum


class Kind(IntEnum):
    """The kinds of causes; each is an exit status."""

    NETWORK = 10
    TLS = 11
    KEY = 12
    REQUEST = 13
    CONTAINERS = 14
    SERVER = 15
    KIBANA = 16
    LOADING = 17


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

    kind: Kind
    rank: Rank
    cause: str
    fix: str


@dataclass(frozen=True)
class Look:
    """One thing that was looked at: `seen` is what there was; empty where there are findings instead."""

    name: str
    seen: str
    findings: tuple[Finding, ...] = ()

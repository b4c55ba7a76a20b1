"""What an adapter is given and what it has to offer: one adapter stands for one resource type."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

from scripts.lab import RehearsalError

Seen = Literal["same", "repaired", "gone", "expired"]


class NothingDoneError(RehearsalError):
    """It failed before anything could have changed, so there is nothing to clean up later."""


@dataclass(frozen=True, kw_only=True)
class Resource:
    """A resource as the program wants it, or as it was last made: plain values, secrets in clear.

    `provider` holds the inputs of its explicit provider; `say` shows a line while it is worked on; differences of
    `ignored` inputs are none.
    """

    name: str
    type: str
    inputs: dict[str, Any]
    outputs: dict[str, Any]
    id: str
    provider: dict[str, Any]
    say: Callable[[str], None]
    ignored: frozenset[str] = frozenset()


def all_changes_replace(_changed: set[str]) -> bool:
    """No input of such a resource can be changed in place."""
    return True


def always_there(_resource: Resource) -> Seen:
    """Nothing outside the state could have changed."""
    return "same"


def nothing_to_delete(_resource: Resource) -> None:
    """It exists in the state only, or is kept on purpose."""


@dataclass(frozen=True, kw_only=True)
class Adapter:
    """The operations of one resource type.

    `create` makes or adopts it and returns (id, outputs); `update` changes it in place and returns the outputs;
    `read` looks at the real thing and may repair it; `delete` is content if it is gone already;
    `replaces` says whether these changed inputs force a replacement. An input not in `inputs` is refused.
    Each raises RehearsalError for what the user can put right.
    """

    inputs: frozenset[str]
    create: Callable[[Resource], tuple[str, dict[str, Any]]]
    update: Callable[[Resource], dict[str, Any]] | None = None
    read: Callable[[Resource], Seen] = always_there
    delete: Callable[[Resource], None] = nothing_to_delete
    replaces: Callable[[set[str]], bool] = all_changes_replace

"""Interface of adapters, each of which implements one resource type."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

from scripts.lab import RehearsalError

Seen = Literal["same", "repaired", "gone", "expired"]


class NothingDoneError(RehearsalError):
    """The operation failed before it changed anything, so nothing needs to be cleaned up later."""


@dataclass(frozen=True, kw_only=True)
class Resource:
    """A resource as the program declares it, or as it was last made: plain values, secrets in clear text.

    `provider` holds the inputs of its explicit provider; `say` shows a line during the operation; differences in
    `ignored` inputs do not count.
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
    """Return True: no input of such a resource can be changed in place."""
    return True


def nothing_replaces(_old: dict[str, Any], _new: dict[str, Any]) -> bool:
    """Return False: no part of an input decides."""
    return False


def always_there(_resource: Resource) -> Seen:
    """Report the resource as present: nothing outside the state could have changed."""
    return "same"


def nothing_to_delete(_resource: Resource) -> None:
    """Delete nothing: the resource exists only in the state, or is kept on purpose."""


@dataclass(frozen=True, kw_only=True)
class Adapter:
    """The operations of one resource type.

    `create` makes or adopts it and returns (id, outputs); `update` changes it in place and returns the outputs;
    `read` examines the real resource and may repair it; `delete` accepts that it is gone already;
    `replaces` returns True if these changed inputs force a replacement, and `remakes` if the old and new inputs do,
    where a part of one decides; `overlaps` returns True if the new one can be made while the old one exists, which then
    goes last, as Pulumi does it. An input not in `inputs` is refused.
    Each raises RehearsalError for errors that the user can correct.
    """

    inputs: frozenset[str]
    create: Callable[[Resource], tuple[str, dict[str, Any]]]
    update: Callable[[Resource], dict[str, Any]] | None = None
    read: Callable[[Resource], Seen] = always_there
    delete: Callable[[Resource], None] = nothing_to_delete
    replaces: Callable[[set[str]], bool] = all_changes_replace
    remakes: Callable[[dict[str, Any], dict[str, Any]], bool] = nothing_replaces
    overlaps: Callable[[dict[str, Any], dict[str, Any]], bool] = nothing_replaces

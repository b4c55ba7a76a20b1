"""Part that a bundle must contain: its source, and how to build it."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from components.errors import UserError

Say = Callable[[str], None]
Make = Callable[[Path, Say], None]


class UnreachableError(UserError):
    """The source of a part can't be reached; an optional part is then left out."""


@dataclass(frozen=True, kw_only=True)
class Wanted:
    """A part that the bundle must contain."""

    name: str
    directory: str
    source: str
    """Description of the source: a part with an equal source is not built again."""
    bytes: Callable[[], int]
    """Rough size on disk; it may have to ask the source, so it is called only for parts to build."""
    make: Make
    """Function that fills the part's directory, which may hold an earlier try. Raises UserError or OSError."""
    licence: str | None = None
    about: Mapping[str, str] = field(default_factory=dict)
    optional: bool = False
    """True if the part is left out, with a notice, when `bytes` raises UnreachableError."""

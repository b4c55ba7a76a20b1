"""A part that a bundle is to hold: where it comes from, and how it is made."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from components.errors import UserError

Say = Callable[[str], None]
Make = Callable[[Path, Say], None]


class UnreachableError(UserError):
    """Where a part comes from can't be reached; a part that is optional is then left out."""


@dataclass(frozen=True, kw_only=True)
class Wanted:
    """A part that the bundle is to hold."""

    name: str
    directory: str
    source: str
    """The same source is the same part: it is not made again."""
    bytes: Callable[[], int]
    """What it takes on disk, roughly; may have to ask where it comes from, so only for what is to be made."""
    make: Make
    """Fills the part's directory, where an earlier try may have left something. Raises UserError or OSError."""
    licence: str | None = None
    about: Mapping[str, str] = field(default_factory=dict)
    optional: bool = False
    """Left out, with a word, where `bytes` raises UnreachableError."""

"""Build a bundle part by part; the manifest is written after each.

An interrupted run can thus be resumed, and a second one fetches nothing.
"""

import fcntl
import os
import platform
import shutil
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path

from components.bundle import manifest
from components.bundle.manifest import MANIFEST, SIGNATURE, SUMS, File, Manifest, Part
from components.errors import UserError
from scripts.cli.bundle import collect
from scripts.cli.bundle.wanted import Say, UnreachableError, Wanted
from scripts.lib.errors import BadInputError
from scripts.lib.progress import Display

ARCHITECTURES = {"x86_64": "amd64", "aarch64": "arm64"}
SPARE_BYTES = 1_000_000_000
RESUMED_IN = ("images/", "weights/", "packages", "pulumi")
"""Part whose build resumes from any earlier try."""


@dataclass(frozen=True)
class Base:
    """The bundle that a delta builds on."""

    manifest: Manifest
    sha256: str
    """Checksum of its manifest.json."""

    @classmethod
    def read(cls, path: Path) -> "Base":
        """Read the base from a manifest's file. Raises UserError."""
        found = manifest.read(path.parent) if path.name == MANIFEST else None
        if not found:
            raise BadInputError(f"--since {path}: no {MANIFEST}", "give that of the bundle before, under that name")
        return cls(found, manifest.sha256(path))

    def left_out(self, part: Part) -> Part:
        """Return the part without files that the bundle before has under any path."""
        known = {file.sha256 for file in self.manifest.files}
        return replace(part, files=tuple(replace(file, carried=file.sha256 not in known) for file in part.files))

    def whole(self, wanted: Wanted) -> Part | None:
        """Return the part of the bundle before if it has the same source."""
        found = self.manifest.parts.get(wanted.name)
        if not found or found.source != wanted.source:
            return None
        files = tuple(replace(file, carried=False) for file in found.files)
        return Part(source=wanted.source, licence=wanted.licence, about=wanted.about, files=files)


@contextmanager
def alone(output: Path) -> Iterator[None]:
    """Create the directory and lock it for this process until the block ends. Raises UserError, OSError."""
    output.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(output, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    except BlockingIOError:
        raise UserError(f"another build is writing to {output}", "wait for it") from None
    finally:
        os.close(descriptor)


def build(
    output: Path,
    about: Manifest,
    wanted: Sequence[Wanted],
    finish: Callable[[list[Wanted]], list[Wanted]],
    base: Base | None,
) -> Manifest:
    """Build what is missing; `finish` returns the parts that describe the others. Raises UserError, OSError."""
    strangers = [path.name for path in output.iterdir() if path.name not in _places(wanted, finish)]
    if strangers:
        raise BadInputError(f"--output {output} holds {min(strangers)}", "give a new directory, or that of a bundle")
    before = manifest.read(output) if (output / MANIFEST).exists() else None
    if before and before.stack != about.stack:
        raise BadInputError(f"--output {output} is the bundle of stack {before.stack}", "give another directory")
    if before and before.since != about.since:
        raise BadInputError(f"--output {output} builds on another bundle (--since)", "give another directory")
    with Display() as display:
        return _Making(output, about, before, base, display).make(list(wanted), finish)


class _Making:
    """One build."""

    def __init__(
        self, output: Path, about: Manifest, before: Manifest | None, base: Base | None, display: Display
    ) -> None:
        self._output, self._before, self._base, self._display = output, before, base, display
        self._made = about

    def make(self, wanted: list[Wanted], finish: Callable[[list[Wanted]], list[Wanted]]) -> Manifest:
        """Build all parts, and the documents about them. Raises UserError, OSError."""
        output, before = self._output, self._before
        with self._display.task("what is there", "bundle") as task:
            kept = self._good(wanted, task.say)
            wanted = [part for part in wanted if part.name in kept or self._reachable(part)]
            last = finish(wanted)
            wanted += last
            kept |= self._good(last, task.say)
        self._made = replace(self._made, parts={part.name: kept[part.name] for part in wanted if part.name in kept})
        if before and before == replace(self._made, made=before.made):
            self._made = before  # so that its signature stays valid
        missing = [part for part in wanted if part.name not in kept]
        if missing:
            self._room_for(missing)
            # It is a bundle again only once it is complete.
            for name in (SUMS, SIGNATURE):
                (output / name).unlink(missing_ok=True)
            manifest.write(output, self._made)
        for path in collect.unneeded(output, wanted):
            self._display.line(f"removing {path.relative_to(output)}, left by an earlier build")
            shutil.rmtree(path)
        for part in wanted:
            with self._display.task(part.name, part.directory) as task:
                task.outcome = "unchanged"
                if part.name not in kept:
                    self._make(part, task.say)
                    task.outcome = "collected"
        if self._made is not before:
            # In a fixed order, whichever was built first.
            self._made = replace(self._made, parts={part.name: self._made.parts[part.name] for part in wanted})
            manifest.write(output, self._made)
        sums = manifest.sums(output, self._made)
        if not (output / SUMS).exists() or (output / SUMS).read_text(encoding="utf-8") != sums:
            (output / SIGNATURE).unlink(missing_ok=True)
            new = output / f"{SUMS}.new"
            new.write_text(sums, encoding="utf-8")
            new.replace(output / SUMS)
        return self._made

    def _make(self, part: Wanted, say: Say) -> None:
        place = self._output / part.directory
        if not part.directory.startswith(RESUMED_IN):
            shutil.rmtree(place, ignore_errors=True)
        part.make(place, say)
        say("checksums")
        now = _as_it_is(self._output, part)
        now = self._base.left_out(now) if self._base else now
        self._made = replace(self._made, parts={**self._made.parts, part.name: now})
        for file in now.files:
            if not file.carried:
                (self._output / file.path).unlink()
        _remove_empty(place)
        manifest.write(self._output, self._made)

    def _good(self, wanted: Sequence[Wanted], say: Say) -> dict[str, Part]:
        """Return the existing parts that are unaltered and have the same source."""
        good: dict[str, Part] = {}
        for part in wanted:
            say(part.name)
            known = self._before.parts.get(part.name) if self._before else None
            if known and known.source == part.source:
                known = replace(known, licence=part.licence, about=part.about)
                carried = tuple(file for file in known.files if file.carried)
                if _as_it_is(self._output, part).files == carried:
                    good[part.name] = known
            elif self._base and (whole := self._base.whole(part)):
                good[part.name] = whole
                shutil.rmtree(self._output / part.directory, ignore_errors=True)
        return good

    def _reachable(self, part: Wanted) -> bool:
        if not part.optional or (self._base and self._base.whole(part)):
            return True
        try:
            part.bytes()
        except UnreachableError as error:
            self._display.line(f"without {part.name}: {error}")
            return False
        return True

    def _room_for(self, missing: Sequence[Wanted]) -> None:
        output = self._output
        there = sum(path.stat().st_size for part in missing for path in _files(output, part))
        needed, free = sum(part.bytes() for part in missing) + SPARE_BYTES - there, shutil.disk_usage(output).free
        if free < needed:
            raise UserError(
                f"too little disk at {output}: {needed / 1e9:.1f} GB needed, {free / 1e9:.1f} GB free", "free some"
            )


def about(stack: str, commit: str, base: Base | None) -> Manifest:
    """Return a manifest without parts."""
    return Manifest(
        stack=stack,
        commit=commit,
        made=datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
        architecture=architecture(),
        python=".".join(map(str, sys.version_info[:2])),
        since=base.sha256 if base else None,
        parts={},
    )


def architecture() -> str:
    """Return this machine's architecture as Debian and container images call it."""
    return ARCHITECTURES.get(platform.machine(), platform.machine())


def _places(wanted: Sequence[Wanted], finish: Callable[[list[Wanted]], list[Wanted]]) -> set[str]:
    names = {MANIFEST, SUMS, SIGNATURE, f"{MANIFEST}.new", f"{SUMS}.new", *collect.DIRECTORIES}
    return names | {part.directory.partition("/")[0] for part in [*wanted, *finish(list(wanted))]}


def _files(output: Path, part: Wanted) -> list[Path]:
    return sorted(path for path in (output / part.directory).rglob("*") if path.is_file())


def _as_it_is(output: Path, part: Wanted) -> Part:
    files = []
    for path in _files(output, part):
        name = path.relative_to(output).as_posix()
        if flaw := manifest.flaw(name):
            raise UserError(f"the file {name!r} of {part.name} {flaw}", "rename it where it comes from")
        files.append(File(path=name, bytes=path.stat().st_size, sha256=manifest.sha256(path)))
    return Part(source=part.source, licence=part.licence, about=part.about, files=tuple(files))


def _remove_empty(place: Path) -> None:
    """Remove empty directories, including this one."""
    for path in sorted([each for each in place.rglob("*") if each.is_dir()], reverse=True):
        if not any(path.iterdir()):
            path.rmdir()
    if place.is_dir() and not any(place.iterdir()):
        place.rmdir()

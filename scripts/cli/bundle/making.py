"""Build a bundle part by part; the manifest is written after each.

An interrupted run can thus be resumed, and a second one fetches nothing.
"""

import fcntl
import os
import platform
import shutil
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import partial
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
"""Parts whose build resumes from any earlier try."""


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
        with display.task("what is there", "bundle") as task:
            good = partial(_good, output, before, base, task.say)
            kept = good(wanted)
            available = [part for part in wanted if part.name in kept or _is_reachable(part, base, display)]
            last = finish(available)
            plan = _Plan(about, before, (*available, *last), kept | good(last))
        made = _apply(output, plan, base, display)
    _seal(output, made)
    return made


class _Plan:
    """The parts of a bundle, and which of them are there already."""

    def __init__(
        self, about: Manifest, before: Manifest | None, wanted: Sequence[Wanted], kept: Mapping[str, Part]
    ) -> None:
        self.wanted, self.kept = wanted, kept
        self.missing = [part for part in wanted if part.name not in kept]
        self.manifest = about
        self.manifest = self.with_parts(kept)
        # If nothing changes, the manifest keeps its date, so that its signature stays valid.
        self.is_unchanged = bool(before and before == replace(self.manifest, made=before.made))
        if before and self.is_unchanged:
            self.manifest = before

    def with_parts(self, parts: Mapping[str, Part]) -> Manifest:
        """Return the manifest with these parts, in the order in which they are wanted."""
        return replace(self.manifest, parts={part.name: parts[part.name] for part in self.wanted if part.name in parts})


def _good(
    output: Path, before: Manifest | None, base: Base | None, say: Say, wanted: Sequence[Wanted]
) -> dict[str, Part]:
    """Return the existing parts that are unaltered and have the same source."""
    good: dict[str, Part] = {}
    for part in wanted:
        say(part.name)
        known = before.parts.get(part.name) if before else None
        if known and known.source == part.source:
            known = replace(known, licence=part.licence, about=part.about)
            carried = tuple(file for file in known.files if file.carried)
            if _as_it_is(output, part).files == carried:
                good[part.name] = known
        elif base and (whole := base.whole(part)):
            good[part.name] = whole
            shutil.rmtree(output / part.directory, ignore_errors=True)
    return good


def _is_reachable(part: Wanted, base: Base | None, display: Display) -> bool:
    if not part.optional or (base and base.whole(part)):
        return True
    try:
        part.bytes()
    except UnreachableError as error:
        display.line(f"without {part.name}: {error}")
        return False
    return True


def _apply(output: Path, plan: _Plan, base: Base | None, display: Display) -> Manifest:
    """Build what is missing and remove what is not wanted. Raises UserError, OSError."""
    if plan.missing:
        _require_room(output, plan.missing)
        # It is a bundle again only once it is complete.
        for name in (SUMS, SIGNATURE):
            (output / name).unlink(missing_ok=True)
    if not plan.is_unchanged:
        manifest.write(output, plan.manifest)
    for path in collect.unneeded(output, plan.wanted):
        display.line(f"removing {path.relative_to(output)}, left by an earlier build")
        shutil.rmtree(path)
    parts = dict(plan.kept)
    for part in plan.wanted:
        with display.task(part.name, part.directory) as task:
            task.outcome = "unchanged"
            if part.name not in plan.kept:
                parts[part.name] = _make(output, part, base, task.say)
                made = replace(
                    plan.manifest, parts={each.name: parts[each.name] for each in plan.wanted if each.name in parts}
                )
                manifest.write(output, made)
                task.outcome = "collected"
    return made if plan.missing else plan.manifest


def _make(output: Path, wanted: Wanted, base: Base | None, say: Say) -> Part:
    """Build one part, without what the bundle before it has."""
    place = output / wanted.directory
    if not wanted.directory.startswith(RESUMED_IN):
        shutil.rmtree(place, ignore_errors=True)
    wanted.make(place, say)
    say("checksums")
    part = _as_it_is(output, wanted)
    part = base.left_out(part) if base else part
    for file in part.files:
        if not file.carried:
            (output / file.path).unlink()
    _remove_empty(place)
    return part


def _seal(output: Path, made: Manifest) -> None:
    """Write the checksums; a signature of others goes."""
    sums = manifest.sums(output, made)
    if (output / SUMS).exists() and (output / SUMS).read_text(encoding="utf-8") == sums:
        return
    (output / SIGNATURE).unlink(missing_ok=True)
    new = output / f"{SUMS}.new"
    new.write_text(sums, encoding="utf-8")
    new.replace(output / SUMS)


def _require_room(output: Path, missing: Sequence[Wanted]) -> None:
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

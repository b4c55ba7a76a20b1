"""Checks of a bundle's archives: no entry may be unpacked elsewhere, or have a type that no bundle contains.

This module needs Python's own library only, and never holds a whole archive in memory.
"""

import json
import re
import shutil
import stat
import subprocess
import tarfile
import threading
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import IO

BLOCK_BYTES = 1 << 20
AR, AR_HEADER_BYTES = b"!<arch>\n", 60
GZIP, ZSTD = b"\x1f\x8b", b"\x28\xb5\x2f\xfd"
CONFIGURATION_BYTES = 10_000_000
"""Upper bound for a JSON document of an image."""
LAYER = re.compile(r"images/[^/]+/blobs/sha256/[0-9a-f]{64}")
LOAD = re.compile(r"images/[^/]+/manifest\.json")
BROKEN = (tarfile.TarError, zipfile.BadZipFile, OSError, EOFError, ValueError, LookupError, TypeError)


class UnreadableError(ValueError):
    """No program here can read the archive's compression."""


def flaws(path: Path, name: str, *, compressed_layers: bool) -> Iterator[str]:
    """Yield a line for each flaw inside one file, whose kind follows from `name`. Only archives have flaws.

    Compressed layers of images are read only if asked for: it takes ten times as long as their checksums.
    """
    try:
        if LAYER.fullmatch(name):
            yield from _layer(path, compressed=compressed_layers)
        elif LOAD.fullmatch(name):
            yield from _load_list(path)
        elif name.endswith((".tar", ".tar.gz")):
            with tarfile.open(path) as archive:
                yield from _of_tree(archive)
        elif name.endswith((".whl", ".zip")):
            yield from _zip(path)
        elif name.endswith(".deb"):
            yield from _deb(path)
    except BROKEN as error:
        yield f"no archive that can be read: {error}"


def _entries(archive: tarfile.TarFile) -> Iterator[tarfile.TarInfo]:
    """Yield one entry after the other; tarfile itself would keep them all in memory."""
    while entry := archive.next():
        archive.members.clear()  # type: ignore[attr-defined] # since ever
        yield entry


def _of_tree(archive: tarfile.TarFile) -> Iterator[str]:
    """Yield the flaws of an archive that any program may unpack into a directory."""
    links: set[PurePosixPath] = set()
    parents: dict[PurePosixPath, str] = {}
    for entry in _entries(archive):
        if flaw := _flaw(entry):
            yield f"its entry {entry.name!r} {flaw}"
        place = PurePosixPath(entry.name)
        parents |= dict.fromkeys(place.parents, entry.name)
        if entry.issym():
            links.add(place)
    for link in sorted(links & parents.keys()):
        yield f"its entry {parents[link]!r} goes through the link {str(link)!r}"


def _flaw(entry: tarfile.TarInfo) -> str:
    if outside(entry.name):
        return "leads out of its directory"
    if entry.issym():
        target = PurePosixPath(entry.linkname)
        # After a name, `..` would start from the target of that name.
        late = ".." in [part for part, before in zip(target.parts[1:], target.parts, strict=False) if before != ".."]
        if late or outside((PurePosixPath(entry.name).parent / target).as_posix()):
            return f"is a link to {entry.linkname!r}, outside"
    if entry.islnk() and outside(entry.linkname):
        return f"is a link to {entry.linkname!r}, outside"
    return "" if entry.isreg() or entry.isdir() or entry.issym() or entry.islnk() else "is no file and no directory"


def _of_root(archive: tarfile.TarFile, *, devices: bool) -> Iterator[str]:
    """Yield the flaws of an archive unpacked at a root, which links may name; `devices` permits these and pipes."""
    for entry in _entries(archive):
        if outside(entry.name.removeprefix("/") if devices else entry.name):
            yield f"its entry {entry.name!r} leads out of its directory"
        elif entry.islnk() and outside(entry.linkname.removeprefix("/") if devices else entry.linkname):
            yield f"its entry {entry.name!r} is a link to {entry.linkname!r}, outside"
        elif not devices and (entry.isdev() or entry.isfifo()):
            yield f"its entry {entry.name!r} is no file and no directory"


def outside(path: str) -> bool:
    """Return True if a path in an archive is absolute, or leads out of the archive at any point."""
    depth = 0
    for part in path.replace("\\", "/").split("/"):
        depth += {"..": -1, ".": 0, "": 0}.get(part, 1)
        if depth < 0:
            return True
    return path.startswith(("/", "\\")) or re.match(r"[A-Za-z]:", path) is not None


def _zip(path: Path) -> Iterator[str]:
    with zipfile.ZipFile(path) as archive:
        for entry in archive.infolist():
            kind = stat.S_IFMT(entry.external_attr >> 16)
            if outside(entry.filename):
                yield f"its entry {entry.filename!r} leads out of its directory"
            elif kind not in {0, stat.S_IFREG, stat.S_IFDIR}:
                yield f"its entry {entry.filename!r} is no file and no directory"


def _layer(path: Path, *, compressed: bool) -> Iterator[str]:
    with path.open("rb") as file:
        start = file.read(4)
        file.seek(0)
        if start[:1] == b"{" and path.stat().st_size < CONFIGURATION_BYTES:
            json.load(file)
        elif start[:2] != GZIP and start != ZSTD:
            with tarfile.open(fileobj=file, mode="r:") as archive:
                yield from _of_root(archive, devices=True)
        elif compressed:
            yield from _stream(file, start, devices=True)


def _load_list(path: Path) -> Iterator[str]:
    """Yield the flaws of the list for `docker load`, which may name only blobs beside it and localhost images."""
    for image in json.loads(path.read_text(encoding="utf-8")):
        for name in [image["Config"], *image["Layers"]]:
            if not re.fullmatch(r"blobs/sha256/[0-9a-f]{64}", name):
                yield f"it names {name!r}, which is no blob of this image"
        for name in image["RepoTags"]:
            if not name.startswith("localhost/elastic-vllm/"):
                yield f"it would name the image {name!r}"


def _deb(path: Path) -> Iterator[str]:
    """Yield the flaws of a Debian package: an ar archive of a version, the package's scripts and its files."""
    seen: list[str] = []
    with path.open("rb") as file:
        if file.read(len(AR)) != AR:
            raise ValueError("it is no Debian package")
        while header := file.read(AR_HEADER_BYTES):
            if len(header) < AR_HEADER_BYTES or header[58:] != b"`\n":
                raise ValueError("it is cut off, or has something in it that no package has")
            name, size, at = header[:16].decode("ascii").strip().rstrip("/"), int(header[48:58]), file.tell()
            if at + size > path.stat().st_size:
                raise ValueError("it is cut off")
            seen.append(name.partition(".tar")[0])
            if ".tar" in name:
                start = file.read(4)
                file.seek(at)
                yield from _stream(_Slice(file, size), start, devices=False)
            file.seek(at + size + size % 2)
    if seen != ["debian-binary", "control", "data"]:
        yield f"it holds {', '.join(seen)} instead of debian-binary, control and data"


def _stream(file: "IO[bytes] | _Slice", start: bytes, *, devices: bool) -> Iterator[str]:
    """Yield the flaws of a tar archive with any compression, read from beginning to end."""
    if start == ZSTD:
        with (
            _decompressed(file) as content,
            tarfile.open(fileobj=content, mode="r|", bufsize=BLOCK_BYTES) as archive,
        ):
            yield from _of_root(archive, devices=devices)
    else:
        with tarfile.open(fileobj=file, mode="r|*", bufsize=BLOCK_BYTES) as archive:  # type: ignore[call-overload] # reads only
            yield from _of_root(archive, devices=devices)


@contextmanager
def _decompressed(file: "IO[bytes] | _Slice") -> Iterator[IO[bytes]]:
    """Decompress zstd by its program: Python has zstd since 3.14 only, and distributions that use zstd have it."""
    program = shutil.which("zstd")
    if not program:
        raise UnreadableError(
            "compressed with zstd, which is not on this machine: install it, or leave it to sha256sum"
        )
    with subprocess.Popen(
        [program, "-dc"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    ) as process:
        assert process.stdin  # noqa: S101 - asked for
        assert process.stdout  # noqa: S101 - asked for
        feeder = threading.Thread(target=_feed, args=(file, process.stdin), daemon=True)
        feeder.start()
        try:
            yield process.stdout
        finally:
            process.stdout.close()
            feeder.join()


def _feed(file: "IO[bytes] | _Slice", to: IO[bytes]) -> None:
    try:
        while block := file.read(BLOCK_BYTES):
            to.write(block)
        to.close()
    except BrokenPipeError:  # the reader has seen enough
        pass


class _Slice:
    """A range of a file, as a separate file."""

    def __init__(self, file: IO[bytes], size: int) -> None:
        self._file, self._left = file, size

    def read(self, count: int) -> bytes:
        data = self._file.read(min(count, self._left))
        self._left -= len(data)
        return data

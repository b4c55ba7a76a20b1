"""The Pulumi CLI and the plugins of its providers, as published, checked against the checksum files beside them.

Names and checksum files: the release workflows of github.com/pulumi (the CLI's has SHA-256, a plugin's SHA-1).
"""

import hashlib
import re
import shutil
import urllib.error
import urllib.request
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from http.client import HTTPException
from pathlib import Path

from components.bundle.manifest import BLOCK_BYTES
from components.errors import UserError
from scripts.cli.bundle.wanted import Say, UnreachableError, Wanted
from scripts.lib.errors import BadInputError

RELEASES = "https://github.com/pulumi"
PLUGINS = {
    "existing": ("command", "docker", "random", "tls"),
    "gcp": ("command", "docker", "random", "tls", "gcp"),
    "kubernetes": ("kubernetes", "random", "tls"),
    "gke": ("kubernetes", "random", "tls", "gcp"),
}
"""Target -> the plugins that its resources need."""
CLI_ARCHITECTURES = {"amd64": "x64", "arm64": "arm64"}
LINE = re.compile(r"([0-9a-f]{64}|[0-9a-f]{40}) [ *](?:\./)?(\S+)")
HASHES = {64: "sha256", 40: "sha1"}
SECONDS = 30
BY_HAND = "carry the archives with their checksum files yourself (--pulumi DIR), or none (--pulumi none)"


@dataclass(frozen=True, kw_only=True)
class Archive:
    """A file and its checksum file."""

    repository: str
    version: str
    name: str
    checksums: str


def archives(requirements: Path, architecture: str, target: str) -> list[Archive]:
    """Return the archives that match requirements.txt: plugins have their SDKs' versions."""
    pins = dict(re.findall(r"^(pulumi[\w-]*)==([\w.]+)", requirements.read_text(encoding="utf-8"), re.MULTILINE))
    cli = pins["pulumi"]
    name = f"pulumi-v{cli}-linux-{CLI_ARCHITECTURES.get(architecture, architecture)}.tar.gz"
    found = [Archive(repository="pulumi", version=cli, name=name, checksums=f"pulumi-{cli}-checksums.txt")]
    for plugin in PLUGINS[target]:
        version = pins[f"pulumi-{plugin}"]
        found.append(
            Archive(
                repository=f"pulumi-{plugin}",
                version=version,
                name=f"pulumi-resource-{plugin}-v{version}-linux-{architecture}.tar.gz",
                checksums=f"pulumi-{plugin}_{version}_checksums.txt",
            )
        )
    return found


class Directory:
    """Archives and their checksum files in a directory of this machine."""

    def __init__(self, path: Path, wanted: Sequence[Archive]) -> None:
        """Raises BadInputError for a file that is missing."""
        self._path = path
        for name in (name for each in wanted for name in (each.name, each.checksums)):
            if not (path / name).is_file():
                raise BadInputError(f"--pulumi {path}: there is no {name}", f"put it there, from {RELEASES}, releases")

    def place(self, archive: Archive, name: str) -> str:
        """Return where a file is, for messages."""
        return str(self._path / name)

    def size(self, archive: Archive) -> int:
        """Return the bytes of an archive."""
        return (self._path / archive.name).stat().st_size

    def checksums(self, archive: Archive) -> str:
        """Return the text of the checksum file."""
        return (self._path / archive.checksums).read_text(encoding="utf-8")

    def fetch(self, archive: Archive, target: Path, _say: Say) -> None:
        """Copy an archive."""
        shutil.copyfile(self._path / archive.name, target)


class Mirror:
    """Archives and their checksum files at github.com/pulumi, or at a mirror with the same paths."""

    def __init__(self, base: str) -> None:
        self._base = base.rstrip("/")

    def place(self, archive: Archive, name: str) -> str:
        """Return the address of a file."""
        return f"{self._base}/{archive.repository}/releases/download/v{archive.version}/{name}"

    def size(self, archive: Archive) -> int:
        """Return the bytes of an archive. Raises UnreachableError."""
        return _size(self.place(archive, archive.name))

    def checksums(self, archive: Archive) -> str:
        """Return the text of the checksum file. Raises UnreachableError."""
        return _text(self.place(archive, archive.checksums))

    def fetch(self, archive: Archive, target: Path, say: Say) -> None:
        """Download an archive. Raises UserError."""
        _fetch(self.place(archive, archive.name), target, say)


def part(wanted: Sequence[Archive], given: str) -> Wanted | None:
    """Return the part for `--pulumi`: a directory, `download`, a mirror's URL, or None for `none`. Raises UserError."""
    if given == "none":
        return None
    is_mirror = given == "download" or re.match(r"https?://", given)
    source = (
        Mirror(RELEASES if given == "download" else given) if is_mirror else Directory(Path(given).expanduser(), wanted)
    )

    def make(path: Path, say: Say) -> None:
        path.mkdir(parents=True, exist_ok=True)
        for each in wanted:
            say(each.name)
            _take(each, source, path / each.name, say)
        for stranger in {entry.name for entry in path.iterdir()} - {each.name for each in wanted}:
            (path / stranger).unlink()

    return Wanted(
        name="pulumi",
        directory="pulumi",
        source=" ".join(each.name for each in wanted),
        bytes=lambda: sum(source.size(each) for each in wanted),
        make=make,
        licence="Apache-2.0",
        about={each.repository: each.version for each in wanted},
        optional=given == "download",
    )


def _take(archive: Archive, source: Directory | Mirror, target: Path, say: Say) -> None:
    """Have an archive whose checksum is right. Raises UserError."""
    checksum = _checksum(source.checksums(archive), archive)
    if target.is_file() and _hash(target, checksum) == checksum:
        return
    source.fetch(archive, target, say)
    if (found := _hash(target, checksum)) != checksum:
        target.unlink()
        place = source.place(archive, archive.name)
        raise UserError(f"{place} has checksum {found}, {archive.checksums} says {checksum}", "download both again")


def _checksum(sums: str, archive: Archive) -> str:
    known = {match[2]: match[1] for match in map(LINE.fullmatch, sums.splitlines()) if match}
    if archive.name not in known:
        raise UserError(f"{archive.checksums} does not name {archive.name}", BY_HAND)
    return known[archive.name]


def _hash(path: Path, like: str) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, HASHES[len(like)]).hexdigest()


def _open(url: str, headers: Mapping[str, str], method: str = "GET") -> "urllib.request._UrlopenRet":
    request = urllib.request.Request(url, headers=dict(headers), method=method)  # noqa: S310 - http(s), as given
    return urllib.request.urlopen(request, timeout=SECONDS)  # noqa: S310


def _size(url: str) -> int:
    try:
        with _open(url, {}, "HEAD") as answer:
            return int(answer.headers["Content-Length"] or 0)
    except (OSError, HTTPException) as error:
        raise UnreachableError(f"{url}: {error}", BY_HAND) from error


def _text(url: str) -> str:
    try:
        with _open(url, {}) as answer:
            return str(answer.read().decode("utf-8", "replace"))
    except (OSError, HTTPException) as error:
        raise UnreachableError(f"{url}: {error}", BY_HAND) from error


def _fetch(url: str, target: Path, say: Say) -> None:
    """Download a file, and resume from TARGET.part of an earlier try."""
    begun = target.with_name(f"{target.name}.part")
    there = begun.stat().st_size if begun.exists() else 0
    try:
        with _open(url, {"Range": f"bytes={there}-"} if there else {}) as answer:
            resumed = answer.status == 206  # noqa: PLR2004 - partial content
            left = int(answer.headers["Content-Length"] or 0)
            with begun.open("ab" if resumed else "wb") as file:
                while block := answer.read(BLOCK_BYTES):
                    file.write(block)
                    left -= len(block)
                    say(f"{target.name}: {file.tell() / 1e6:.0f} MB")
    except (OSError, HTTPException) as error:
        if isinstance(error, urllib.error.HTTPError) and error.code == 416:  # noqa: PLR2004 - more than there is
            begun.unlink(missing_ok=True)
        raise UserError(f"{url}: {error}", "run the same again: it resumes") from error
    if left > 0:
        raise UserError(f"{url}: broke off {left} bytes before its end", "run the same again: it resumes")
    begun.replace(target)

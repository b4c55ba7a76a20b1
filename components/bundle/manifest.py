"""Manifest of a bundle: its files, their origin and their checksums. This module needs only Python's own library.

manifest.json: `format` (1), `stack`, `commit` (of this project), `made` (UTC), `architecture` (Debian's name), `python`
(X.Y, for which the wheels are), `since` (in a delta, the SHA-256 of the manifest.json that it builds on; else null),
and `parts`: name -> `source` (its origin; equal sources mean equal parts), `licence` (SPDX or a word; null if
unknown), `about` (texts, by kind of part), `files`: each with `path` (relative, POSIX), `bytes`, `sha256`
(hexadecimal) and `carried` (false for files that a delta omits, because the bundle before it had the same content).
SHA256SUMS lists the manifest and all carried files in the format of sha256sum; SHA256SUMS.sig is its OpenSSH signature.

`about` of an image: `reference` (as pinned by the stack) and `name` (its name at the site). The image of the weights,
which only bundles for clusters have, was made by the build: `name`, `model` and `revision`.
`about` of the weights: `model`, `revision` (the hub's commit, or a summary of files from a directory).
"""

import hashlib
import json
import re
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from components.errors import UserError

FORMAT = 1
MANIFEST, SUMS, SIGNATURE = "manifest.json", "SHA256SUMS", "SHA256SUMS.sig"
PUBLIC_KEYS = ("ssh-", "ecdsa-", "sk-")
"""Beginnings of a public SSH key, to tell it from the path of a file that holds one."""
SHA256 = re.compile(r"[0-9a-f]{64}")
# Characters that every file system, and sha256sum, write unchanged.
PATH = re.compile(r"[A-Za-z0-9._+@~=,-]+(/[A-Za-z0-9._+@~=,-]+)*")
BLOCK_BYTES = 1 << 20


@dataclass(frozen=True, kw_only=True)
class File:
    """One file of a bundle."""

    path: str
    bytes: int
    sha256: str
    carried: bool = True


@dataclass(frozen=True, kw_only=True)
class Part:
    """Files that belong together: an image, a model's weights, the wheels, this project."""

    source: str
    licence: str | None
    about: Mapping[str, str]
    files: tuple[File, ...]


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """Contents of manifest.json."""

    stack: str
    commit: str
    made: str
    architecture: str
    python: str
    since: str | None = None
    parts: Mapping[str, Part]

    @property
    def files(self) -> list[File]:
        """Return all files except the manifest itself and its signature, carried or not."""
        return [file for part in self.parts.values() for file in part.files]

    @property
    def carried(self) -> list[File]:
        """Return the files that the bundle itself holds."""
        return [file for file in self.files if file.carried]


def flaw(path: str) -> str:
    """Describe what is wrong with a path in a bundle; empty if nothing is."""
    if not PATH.fullmatch(path):
        return "has characters that no bundle uses, or is absolute"
    if {".", ".."} & set(PurePosixPath(path).parts) or "/./" in f"/{path}/":
        return "leads out of its directory"
    return ""


def sha256(path: Path, seen: Callable[[int], None] = lambda _: None) -> str:
    """Return the checksum of a file; `seen` is called with the size of each block. Raises OSError."""
    state = hashlib.sha256()
    with path.open("rb", buffering=0) as file:
        while block := file.read(BLOCK_BYTES):
            state.update(block)
            seen(len(block))
    return state.hexdigest()


def read(directory: Path) -> Manifest:
    """Read the manifest in a directory. Raises UserError if there is none, or none of this format."""
    path = directory / MANIFEST
    try:
        return parse(json.loads(path.read_text(encoding="utf-8")))
    except FileNotFoundError as error:
        raise UserError(
            f"{directory} is no bundle: there is no {MANIFEST}", "give the directory that holds it"
        ) from error
    except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
        raise UserError(f"{path} can't be used: {error}", "build the bundle or carry it over again") from error


def parse(document: Any) -> Manifest:
    """Check and convert a parsed manifest. Raises ValueError, LookupError or TypeError."""
    if document["format"] != FORMAT:
        raise ValueError(f"it has format {document['format']}, this program knows {FORMAT}")
    parts = {
        str(name): Part(
            source=str(part["source"]),
            licence=part["licence"],
            about={str(key): str(value) for key, value in part["about"].items()},
            files=tuple(
                File(
                    path=str(file["path"]),
                    bytes=int(file["bytes"]),
                    sha256=str(file["sha256"]),
                    carried=bool(file["carried"]),
                )
                for file in part["files"]
            ),
        )
        for name, part in document["parts"].items()
    }
    texts = {key: str(document[key]) for key in ("stack", "commit", "made", "architecture", "python")}
    manifest = Manifest(**texts, since=document["since"], parts=parts)
    paths = [file.path for file in manifest.files]
    for path in paths:
        if problem := flaw(path):
            raise ValueError(f"the path {path!r} {problem}")
    if len(set(paths)) < len(paths):
        raise ValueError("it names a file twice")
    if any(not SHA256.fullmatch(file.sha256) or file.bytes < 0 for file in manifest.files):
        raise ValueError("it has an invalid checksum or size")
    if manifest.since is None and len(manifest.carried) < len(paths):
        raise ValueError("it omits files and does not name the bundle that it builds on")
    return manifest


def write(directory: Path, manifest: Manifest) -> None:
    """Write the manifest atomically."""
    new = directory / f"{MANIFEST}.new"
    new.write_text(json.dumps({"format": FORMAT, **asdict(manifest)}, indent=1) + "\n", encoding="utf-8")
    new.replace(directory / MANIFEST)


def sums(directory: Path, manifest: Manifest) -> str:
    """Return the text of SHA256SUMS."""
    lines = [f"{sha256(directory / MANIFEST)}  {MANIFEST}"]
    lines += sorted((f"{file.sha256}  {file.path}" for file in manifest.carried), key=lambda line: line[66:])
    return "\n".join([*lines, ""])


def parse_sums(text: str) -> dict[str, str]:
    """Map each path to its checksum. Raises ValueError with the first invalid line."""
    found: dict[str, str] = {}
    for number, line in enumerate(text.splitlines(), 1):
        checksum, _, path = line.partition("  ")
        if not SHA256.fullmatch(checksum) or flaw(path) or path in found:
            raise ValueError(f"line {number} is no checksum of a file in this directory")
        found[path] = checksum
    return found

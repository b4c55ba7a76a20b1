"""Weights of the model as a container image, which a cluster mounts: made here, in the form of a bundle's images.

The same files always make the same image: two builds can be compared, and a registry stores them once.
"""

import hashlib
import json
import math
import tarfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import IO, Any

from components.bundle.manifest import BLOCK_BYTES
from components.catalogue.models import Model
from components.errors import UserError
from scripts.cli.bundle import images, weights
from scripts.cli.bundle.wanted import Make, Say, Wanted

SMALL_BYTES = 100_000_000
"""Smaller files (configuration, tokenizer) share the first layer; each larger one has a layer of its own."""
MOST_LAYERS = 100
"""Beyond that, files share layers: container engines mount at most 127."""
LARGEST_BYTES = 10_000_000_000
"""Size of the largest files that weights are split into: one is there twice while it is moved into its layer."""
FILES = "files"
"""In the image's directory while it is made: downloaded files that are in no layer yet."""
PLAN = "layers.json"
"""There as well: the files of each layer, and its blob once it is made."""
OURS = ".elastic-vllm-"
"""Beginning of the names of files that a download leaves among the model's."""
LONGEST_NAME = 100
"""Length limit for the model's name in a tag, which may have 128 characters."""


def from_hub(model: Model, revision: str, endpoint: str, architecture: str) -> Wanted:
    """Return the image of a model's files of one commit, which are downloaded and then moved into it."""
    download = weights.from_hub(model, revision, endpoint)
    image = _Image(model=model, revision=revision, architecture=architecture)

    def make(path: Path, say: Say) -> None:
        if not (path / PLAN).exists():
            download.make(path / FILES, say)
        image.make(path, path / FILES, say)

    return image.wanted(download.source, lambda: download.bytes() + min(download.bytes(), LARGEST_BYTES), make)


def from_directory(model: Model, given: Path, architecture: str) -> Wanted:
    """Return the image of a model's files in a local directory, which are left there."""
    sums = weights.checksums(given)
    image = _Image(model=model, revision=weights.revision_of(sums), architecture=architecture, sums=sums)
    size = sum((given / name).stat().st_size for name in sums)
    return image.wanted(image.revision, lambda: size, lambda path, say: image.make(path, given, say))


def grouped(sizes: Mapping[str, int]) -> list[list[str]]:
    """Return the files of each layer."""
    small = [name for name in sorted(sizes) if sizes[name] < SMALL_BYTES]
    large = [name for name in sorted(sizes) if sizes[name] >= SMALL_BYTES]
    together = max(1, math.ceil(len(large) / MOST_LAYERS))
    groups = [small, *(large[start : start + together] for start in range(0, len(large), together))]
    return [group for group in groups if group]


@dataclass(frozen=True, kw_only=True)
class _Image:
    model: Model
    revision: str
    architecture: str
    """Architecture of the nodes: they refuse images of others, whatever is in them."""
    sums: Mapping[str, str] | None = None
    """Checksums of files that are to be left alone; None to remove each file once it is in a layer."""

    def wanted(self, source: str, size: Callable[[], int], make: Make) -> Wanted:
        return Wanted(
            name="image-weights",
            directory=f"images/weights-{self._short}",
            source=f"image of {self.model.name}, {source}",
            bytes=size,
            make=make,
            licence=self.model.licence,
            about={"name": self._name, "model": self.model.name, "revision": self.revision},
        )

    def make(self, path: Path, files: Path, say: Say) -> None:
        """Make the image, or resume that. Raises UserError for a file that differs from its checksum."""
        blobs = path / images.BLOBS
        blobs.mkdir(parents=True, exist_ok=True)
        if not (path / PLAN).exists():
            names = (each for each in files.rglob("*") if each.is_file() and not each.name.startswith(OURS))
            sizes = {each.relative_to(files).as_posix(): each.stat().st_size for each in names}
            _write(path / PLAN, [{"files": group, "blob": ""} for group in grouped(sizes)])
        plan: list[dict[str, Any]] = json.loads((path / PLAN).read_text(encoding="utf-8"))
        for number, layer in enumerate(plan, 1):
            say(f"layer {number} of {len(plan)}")
            if not layer["blob"]:
                layer["blob"] = _layer(files, layer["files"], blobs, self.sums)
                _write(path / PLAN, plan)
            if self.sums is None:
                for name in layer["files"]:
                    (files / name).unlink(missing_ok=True)
        layers = [layer["blob"] for layer in plan]
        config = json.dumps(self._config(layers)).encode()
        digest = hashlib.sha256(config).hexdigest()
        (blobs / digest).write_bytes(config)
        images.finish(path, self._name, digest, layers)

    def _config(self, layers: Sequence[str]) -> dict[str, Any]:
        labels = {"title": self.model.name, "revision": self.revision, "licenses": self.model.licence}
        return {
            "architecture": self.architecture,
            "os": "linux",
            "config": {"Labels": {f"org.opencontainers.image.{key}": each for key, each in labels.items() if each}},
            "rootfs": {"type": "layers", "diff_ids": [f"sha256:{layer}" for layer in layers]},
        }

    @property
    def _short(self) -> str:
        return self.revision.removeprefix("files-")[:12]

    @property
    def _name(self) -> str:
        return f"{images.LOCAL}elastic-vllm/weights:{self.model.directory_name[:LONGEST_NAME]}-{self._short}"


def _layer(files: Path, names: Sequence[str], blobs: Path, sums: Mapping[str, str] | None) -> str:
    """Write a tar of files that everybody may read, and return its checksum."""
    part = blobs / "part"
    with part.open("wb") as out:
        hashed = _Hashed(out)
        # Nothing of when and by whom: the same files are the same layer.
        with tarfile.open(fileobj=hashed, mode="w|", bufsize=BLOCK_BYTES) as tar:  # type: ignore[call-overload] # writes
            for directory in sorted(
                {parent.as_posix() for name in names for parent in PurePosixPath(name).parents[:-1]}
            ):
                entry = tarfile.TarInfo(directory)
                entry.type, entry.mode = tarfile.DIRTYPE, 0o755
                tar.addfile(entry)
            for name in names:
                entry = tarfile.TarInfo(name)
                entry.size, entry.mode = (files / name).stat().st_size, 0o644
                with (files / name).open("rb") as file:
                    content = _Hashed(file)
                    tar.addfile(entry, content)
                if sums and content.checksum != sums[name]:
                    raise UserError(f"{files / name} changed while it was copied", "run the same again")
    part.replace(blobs / hashed.checksum)
    return hashed.checksum


class _Hashed:
    """A file whose content is hashed as it is read or written."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file, self._state = file, hashlib.sha256()

    def read(self, count: int) -> bytes:
        """Read the next bytes."""
        data = self._file.read(count)
        self._state.update(data)
        return data

    def write(self, data: bytes) -> int:
        """Append bytes."""
        self._state.update(data)
        return self._file.write(data)

    @property
    def checksum(self) -> str:
        """SHA-256 of everything up to now."""
        return self._state.hexdigest()


def _write(path: Path, plan: Sequence[Mapping[str, Any]]) -> None:
    new = path.with_suffix(".new")
    new.write_text(json.dumps(plan), encoding="utf-8")
    new.replace(path)

"""Parts of a bundle: each is built from a source, in a dedicated directory, and built again only if needed."""

import hashlib
import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from components.bundle import manifest
from components.errors import UserError
from scripts.cli.bundle import archives, images, sbom
from scripts.cli.bundle.wanted import Say, Wanted

WHEELS_BYTES = 130_000_000
"""Twice the size of requirements.txt on Python 3.11 and amd64: 66 MB."""


def image(role: str, reference: str, architecture: str) -> Wanted:
    """Return a container image, from this machine's Docker if its name begins with localhost/, else its registry."""
    local = reference.startswith(images.LOCAL)
    source, size = images.id_in_docker(reference) if local else (reference.partition("@")[2], 0)
    name = images.local_name(role, reference, source)
    directory = f"images/{role}-{source.removeprefix('sha256:')[:12]}"

    def make(path: Path, say: Say) -> None:
        if local:
            images.from_docker(reference, name, path, say)
        else:
            images.from_registry(reference, name, architecture, path, say)
        # Only here, once: reading compressed layers takes ten times as long as their checksums.
        for blob in sorted((path / images.BLOBS).iterdir()):
            say(f"looking into {blob.name[:12]}")
            flaw = next(archives.flaws(blob, f"{directory}/{images.BLOBS}/{blob.name}", compressed_layers=True), "")
            if flaw:
                raise UserError(f"image {reference}, layer {blob.name[:12]}: {flaw}", "pin another image")

    return Wanted(
        name=f"image-{role}",
        directory=directory,
        source=source,
        bytes=lambda: size if local else images.bytes_in_registry(reference, architecture),
        make=make,
        about={"reference": reference, "name": name},
    )


def wheels(root: Path) -> Wanted:
    """Return the Python packages of requirements.txt, for this Python and this machine's architecture."""
    requirements = root / "requirements.txt"

    def make(path: Path, say: Say) -> None:
        say("pip download")
        pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "download", "--quiet", "--require-hashes"]
        # The list is complete; source distributions would need a compiler at the site.
        options = ["--no-deps", "--only-binary", ":all:", "--dest", str(path), "--requirement", str(requirements)]
        done = subprocess.run([*pip, *options], capture_output=True, text=True, check=False)
        if done.returncode:
            error = " ".join(done.stderr.split())[-300:]
            raise UserError(f"pip can't download requirements.txt: {error}", "a package index must be reachable")

    source = f"requirements.txt {hashlib.sha256(requirements.read_bytes()).hexdigest()}, Python {sys.version_info[:2]}"
    return Wanted(name="wheels", directory="wheels", source=source, bytes=lambda: WHEELS_BYTES, make=make)


def project(root: Path, commit: str) -> Wanted:
    """Return this project at its commit."""

    def make(path: Path, say: Say) -> None:
        say(commit)
        path.mkdir(parents=True, exist_ok=True)
        archive = path / "elastic-vllm.tar.gz"
        _git(root, "archive", "--format=tar.gz", "--prefix=elastic-vllm/", f"--output={archive}", commit)

    return Wanted(name="project", directory="project", source=commit, bytes=lambda: 0, make=make)


def text(name: str, path: str, content: str) -> Wanted:
    """Return a text that this program writes."""
    directory, _, file = path.rpartition("/")

    def make(place: Path, _say: Say) -> None:
        place.mkdir(parents=True, exist_ok=True)
        (place / file).write_text(content, encoding="utf-8")

    source = f"sha256:{hashlib.sha256(content.encode()).hexdigest()}"
    return Wanted(name=name, directory=directory, source=source, bytes=lambda: 0, make=make)


def bill_of_materials(output: Path, parts: Sequence[Wanted]) -> Wanted:
    """Return the SBOM of the other parts, which must be built before it."""

    def make(path: Path, _say: Say) -> None:
        path.mkdir(parents=True, exist_ok=True)
        (path / "elastic-vllm.cdx.json").write_text(sbom.text(output, manifest.read(output)), encoding="utf-8")

    sources = json.dumps([(part.name, part.source, dict(part.about)) for part in parts])
    source = f"sources {hashlib.sha256(sources.encode()).hexdigest()}"
    return Wanted(name="sbom", directory="sbom", source=source, bytes=lambda: 0, make=make)


def commit(root: Path) -> str:
    """Return this project's commit. Raises UserError if files differ from it."""
    changed = [line[3:] for line in _git(root, "status", "--porcelain", "--untracked-files=no").splitlines()]
    # Stack files belong to users, and travel beside the project.
    changed = [path for path in changed if not path.startswith("stacks/")]
    if changed:
        raise UserError(f"{changed[0]} is changed and not committed", "commit it: a bundle holds one commit")
    return _git(root, "rev-parse", "HEAD").strip()


def _git(root: Path, *arguments: str) -> str:
    try:
        done = subprocess.run(["git", "-C", str(root), *arguments], capture_output=True, text=True, check=False)
    except OSError as error:
        raise UserError(f"git can't be run: {error}", "install git") from error
    if done.returncode:
        raise UserError(f"git {arguments[0]}: {' '.join(done.stderr.split())}", "run it in a clone of this project")
    return done.stdout


DIRECTORIES = ("images", "weights", "packages", "pulumi")
"""Directories of parts that differ between bundles of the same stack."""


def unneeded(directory: Path, wanted: Sequence[Wanted]) -> list[Path]:
    """Return directories of parts that the bundle must no longer contain."""
    keep = {part.directory for part in wanted}
    found = [directory / name for name in DIRECTORIES if name not in keep and (directory / name).is_dir()]
    for kind in ("images", "weights"):
        if directory / kind in found:
            found.remove(directory / kind)
            found += (directory / kind).iterdir()
    return [path for path in found if path.relative_to(directory).as_posix() not in keep]

"""Container images in a bundle: content-addressed blobs, and a manifest.json for `docker load`.

A directory is loaded with `tar -C DIRECTORY -c . | docker load`, by Docker and Podman alike, whichever program wrote
it; images that share layers share files.
"""

import hashlib
import json
import subprocess
import tarfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import IO, Any

from components.bundle.manifest import BLOCK_BYTES
from components.errors import UserError
from scripts.lib.errors import BadInputError

BLOBS = Path("blobs/sha256")
LOCAL = "localhost/"
UNKNOWN = ("manifest unknown", "name unknown")
"""Words of skopeo for the codes MANIFEST_UNKNOWN and NAME_UNKNOWN of registries (OCI's distribution specification)."""
LOAD = "manifest.json"
"""File that `docker load` reads: github.com/moby/docker-image-spec, Combined Image JSON + Filesystem Changeset."""


def local_name(role: str, reference: str, source: str) -> str:
    """Return the name of an image at its site: on localhost, so it is never pulled, and unique for its content."""
    tag = reference.partition("@")[0].rpartition(":")[2]
    return f"{LOCAL}elastic-vllm/{role}:{tag}-{source.removeprefix('sha256:')[:12]}"


def id_in_docker(reference: str) -> tuple[str, int]:
    """Return the id and size of an image in this machine's Docker. Raises UserError, BadInputError if there is none."""
    command = ["docker", "image", "inspect", "--format", "{{.Id}} {{.Size}}", reference]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    except OSError as error:
        raise UserError(f"there is no docker here for image {reference}: {error}", "install it") from error
    if done.returncode:
        message = " ".join(done.stderr.split())
        if "No such image" in message:
            raise BadInputError(f"image {reference} is not in this machine's Docker", "build or load it here first")
        raise UserError(f"image {reference} can't be taken from Docker: {message}", "see if docker info works")
    id_, _, size = done.stdout.strip().partition(" ")
    return id_, int(size)


def from_docker(reference: str, name: str, directory: Path, say: Callable[[str], None]) -> None:
    """Export an image from this machine's Docker. Raises UserError."""
    blobs = directory / BLOBS
    blobs.mkdir(parents=True, exist_ok=True)
    stored: dict[str, str] = {}  # entry -> blob
    links: dict[str, str] = {}
    manifests: list[dict[str, object]] = []
    say("docker image save")
    with subprocess.Popen(["docker", "image", "save", reference], stdout=subprocess.PIPE) as process:
        assert process.stdout  # noqa: S101 - asked for
        try:
            with tarfile.open(fileobj=process.stdout, mode="r|") as archive:
                for entry in archive:
                    if entry.issym() or entry.islnk():
                        links[entry.name] = Path(entry.linkname).parent.name if entry.issym() else entry.linkname
                    content = archive.extractfile(entry) if entry.isreg() else None
                    if content and entry.name == LOAD:
                        manifests = json.load(content)
                    elif content:
                        stored[entry.name] = _store(content, blobs, say)
        except tarfile.TarError as error:
            process.kill()
            raise UserError(f"docker image save {reference} broke off: {error}", "run the same again") from error
    if process.returncode or len(manifests) != 1:
        raise UserError(f"docker image save {reference} failed ({process.returncode})", "see its lines above")
    # Older Dockers write a repeated layer as a link to ../LAYER/layer.tar.
    for link, target in links.items():
        stored[link] = stored[f"{target}/layer.tar" if f"{target}/layer.tar" in stored else target]
    (image,) = manifests
    layers = image["Layers"]
    assert isinstance(layers, list)  # noqa: S101 - the format
    finish(directory, name, stored[str(image["Config"])], [stored[layer] for layer in layers])


def from_registry(reference: str, name: str, architecture: str, directory: Path, say: Callable[[str], None]) -> None:
    """Fetch an image from its registry by digest, without the parts that an earlier try has fetched. Raises UserError.

    skopeo checks the digests of the image and of each layer. It converts an image in Docker's own format to OCI's: the
    same layers, another id, and no HEALTHCHECK, SHELL and ONBUILD, which nothing here uses.
    """
    directory.mkdir(parents=True, exist_ok=True)
    target = f"oci:{directory}:image"
    command = [*_platform(architecture), "copy", *plain(reference, "--src-tls-verify=false")]
    code, output = run_skopeo([*command, _without_tag(reference), target], say)
    if code:
        last_line = output.strip().rpartition("\n")[2]
        raise UserError(f"image {reference} can't be fetched: {last_line[-300:]}", "check its name and the network")
    index = json.loads((directory / "index.json").read_text(encoding="utf-8"))
    manifest = json.loads((directory / BLOBS / _hex(index["manifests"][0]["digest"])).read_text(encoding="utf-8"))
    finish(directory, name, _hex(manifest["config"]["digest"]), [_hex(layer["digest"]) for layer in manifest["layers"]])


def bytes_in_registry(reference: str, architecture: str) -> int:
    """Return the size of an image's layers as they are fetched. Raises UserError."""
    found = _manifest(reference)
    if "manifests" in found:
        wanted = {"os": "linux", "architecture": architecture}
        fitting = [each for each in found["manifests"] if wanted.items() <= each.get("platform", {}).items()]
        if not fitting:
            raise UserError(f"image {reference} is not there for {architecture}", "pin another, or build elsewhere")
        found = _manifest(f"{reference.partition('@')[0]}@{fitting[0]['digest']}")
    return sum(int(layer["size"]) for layer in found["layers"])


def _manifest(reference: str) -> dict[str, Any]:
    """Return a reference's document in its registry: an image's manifest, or an index of several."""
    command = ["inspect", "--raw", *plain(reference, "--tls-verify=false"), _without_tag(reference)]
    code, text = run_skopeo(command, lambda _: None)
    if code:
        error = " ".join(text.split())[-300:]
        if any(word in error for word in UNKNOWN):
            raise BadInputError(f"there is no image {reference} in its registry", "correct its name, or pin it again")
        raise UserError(f"the registry does not describe {reference}: {error}", "check its name and the network")
    found: dict[str, Any] = json.loads(text)
    return found


def loaded_id(directory: Path) -> str:
    """Return the id that the image gets when it is loaded."""
    (image,) = json.loads((directory / LOAD).read_text(encoding="utf-8"))
    return f"sha256:{Path(image['Config']).name}"


def run_skopeo(arguments: Sequence[str], say: Callable[[str], None]) -> tuple[int, str]:
    """Run skopeo, and return its exit status and all of its output; `say` gets each line. Raises UserError."""
    pipe, same = subprocess.PIPE, subprocess.STDOUT
    lines: list[str] = []
    try:
        with subprocess.Popen(["skopeo", *arguments], stdout=pipe, stderr=same, text=True) as process:
            assert process.stdout  # noqa: S101 - asked for
            for line in process.stdout:
                lines.append(line)
                say(line)
    except FileNotFoundError as error:
        raise UserError("there is no skopeo here, which moves images", "install the package skopeo") from error
    return process.returncode, "".join(lines)


def _platform(architecture: str) -> list[str]:
    return ["--override-os", "linux", "--override-arch", architecture]


def plain(reference: str, option: str) -> list[str]:
    """Return skopeo's option for plain HTTP with a registry on this machine, as Docker does."""
    return [option] if reference.partition("/")[0].partition(":")[0] in {"localhost", "127.0.0.1"} else []


def _without_tag(reference: str) -> str:
    """Remove a reference's tag: skopeo accepts a tag or a digest, not both."""
    name, _, digest = reference.partition("@")
    return f"docker://{name.rpartition(':')[0]}@{digest}"


def _hex(digest: str) -> str:
    return digest.removeprefix("sha256:")


def _store(content: IO[bytes], blobs: Path, say: Callable[[str], None]) -> str:
    """Write a blob under its checksum, and return the checksum."""
    state, part = hashlib.sha256(), blobs / "part"
    with part.open("wb") as out:
        while block := content.read(BLOCK_BYTES):
            state.update(block)
            out.write(block)
            say(f"docker image save: layer of {out.tell() / 1e6:.0f} MB")
    part.replace(blobs / state.hexdigest())
    return state.hexdigest()


def finish(directory: Path, name: str, config: str, layers: Sequence[str]) -> None:
    """Write manifest.json, and remove everything that `docker load` does not read."""
    image = {"Config": f"{BLOBS}/{config}", "RepoTags": [name], "Layers": [f"{BLOBS}/{layer}" for layer in layers]}
    (directory / LOAD).write_text(json.dumps([image]) + "\n")
    kept = {LOAD, *(f"{BLOBS}/{blob}" for blob in (config, *layers))}
    for path in list(directory.rglob("*")):
        if path.is_file() and path.relative_to(directory).as_posix() not in kept:
            path.unlink()

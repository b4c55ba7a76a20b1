"""Bundles as the program reads them: a manifest, its checksums, and no files."""

import hashlib
from collections.abc import Mapping
from pathlib import Path

from components.bundle import manifest as bundle_manifest
from components.bundle.manifest import SUMS, File, Manifest, Part
from tests.support.program import PINS

MODEL = "google/gemma-4-31B-it"


def part(paths: Mapping[str, int], about: Mapping[str, str]) -> Part:
    """Return a part of files of these sizes, with distinct checksums."""
    files = tuple(
        File(path=path, bytes=size, sha256=hashlib.sha256(path.encode()).hexdigest()) for path, size in paths.items()
    )
    return Part(source="test", licence=None, about=dict(about), files=files)


def parts(
    *, model: str = MODEL, revision: str = PINS["modelRevision"], vllm: str = PINS["vllmImage"], packages: bool = True
) -> dict[str, Part]:
    """Return the parts of a bundle for a server with GPUs."""
    weights = f"weights/{model.replace('/', '--')}--{revision[:12]}"
    images = {"vllm": vllm, "nginx": PINS["nginxImage"]}
    found = {}
    for role, reference in images.items():
        tag, digest = reference.rpartition("@")[0].rpartition(":")[2], reference[-12:]
        directory = f"images/{role}-{digest}"
        about = {"reference": reference, "name": f"localhost/elastic-vllm/{role}:{tag}-{digest}"}
        found[f"image-{role}"] = part(
            {f"{directory}/manifest.json": 200, f"{directory}/blobs/sha256/{'0' * 64}": 12_000_000_000}, about
        )
    found["weights"] = part(
        {f"{weights}/config.json": 600, f"{weights}/model.safetensors": 48_000_000_000},
        {"model": model, "revision": revision},
    )
    if packages:
        about = {"distribution": "ubuntu 24.04", "architecture": "amd64", "names": "docker.io"}
        found["packages"] = part({"packages/docker.io_28.2.2_amd64.deb": 30_000_000}, about)
    return found


def write(directory: Path, given: Mapping[str, Part], since: str | None = None) -> Path:
    """Write a bundle of these parts and return its directory."""
    directory.mkdir(parents=True, exist_ok=True)
    about = {"stack": "airgap", "commit": "c", "made": "now", "architecture": "amd64", "python": "3.11"}
    manifest = Manifest(**about, since=since, parts=given)
    bundle_manifest.write(directory, manifest)
    (directory / SUMS).write_text(bundle_manifest.sums(directory, manifest))
    (directory / bundle_manifest.SIGNATURE).write_text("a signature\n")
    (directory / "signer.pub").write_text("ssh-ed25519 AAAA signer\n")
    return directory

"""Each kind of damage to a bundle is found, and never reaches the server."""

import json
import shutil
import tarfile
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace as replace_fields
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest

from components.bundle import manifest as bundle_manifest
from scripts.cli.bundle import signature
from tests.support.airgap_site import CHATTER, MODELS, SECOND, STORE, Factory, Made, Site, copy_of, replace


def files_on(site: Site) -> str:
    """List all files on the server that could come from a bundle, with their times."""
    return site.hosts.server.shell(f"find {STORE} {MODELS} -printf '%p %s %T@\\n' | sort")


def refused(site: Site, made: Made, bundle: Path, name: str) -> None:
    """Check that `up` refuses a bundle, names the file, and leaves the server as it was."""
    before, sent, containers = files_on(site), site.sent_bytes(), site.containers()
    site.set(bundle=str(bundle))
    try:
        found(site.rehearse("up"), name)
    finally:
        site.set(bundle=str(made.first))
    assert files_on(site) == before
    assert site.sent_bytes() - sent < CHATTER
    assert site.containers() == containers


def sign_as_it_is(bundle: Path, changed: Path, factory: Factory) -> None:
    """Sign the bundle as if the signer had received this damaged file."""
    document = json.loads((bundle / "manifest.json").read_text())
    for file in (file for part in document["parts"].values() for file in part["files"]):
        if bundle / file["path"] == changed:
            file["sha256"], file["bytes"] = bundle_manifest.sha256(changed), changed.stat().st_size
    made = bundle_manifest.parse(document)
    bundle_manifest.write(bundle, made)
    replace(bundle / "SHA256SUMS", bundle_manifest.sums(bundle, made).encode())
    signature.sign(bundle, factory.key)


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 4
    replace(path, bytes(content))


def cut_short(path: Path) -> None:
    content = path.read_bytes()
    replace(path, content[: len(content) // 2])


def swap(path: Path) -> None:
    """Swap a file with another one of the same directory."""
    other = next(each for each in sorted(path.parent.iterdir()) if each != path)
    contents = other.read_bytes(), path.read_bytes()
    for target, content in zip((path, other), contents, strict=True):
        replace(target, content)


def add(path: Path) -> None:
    (path.parent / "extra.safetensors").write_bytes(b"")


def lead_elsewhere(path: Path) -> None:
    path.unlink()
    path.symlink_to("/etc/passwd")


# Kind of damage -> function that does it, and the files, as patterns in a bundle.
DAMAGE: dict[str, tuple[Callable[[Path], None], list[str]]] = {
    "a bit flipped": (
        flip,
        [
            "images/vllm-*/blobs/sha256/*",
            "images/nginx-*/manifest.json",
            "weights/*/model.safetensors",
            "wheels/pulumi-3*.whl",
            "packages/docker.io_*.deb",
            "project/*.tar.gz",
            "sbom/*.json",
            "stack/*.yaml",
            "manifest.json",
            "SHA256SUMS",
            "SHA256SUMS.sig",
        ],
    ),
    "cut short": (cut_short, ["weights/*/model.safetensors", "SHA256SUMS.sig"]),
    "missing": (Path.unlink, ["weights/*/config.json", "manifest.json", "SHA256SUMS", "SHA256SUMS.sig"]),
    "swapped": (swap, ["weights/*/config.json"]),
    "another beside it": (add, ["weights/*/model.safetensors"]),
    "a link in its place": (lead_elsewhere, ["weights/*/tokenizer.json"]),
}


def first_of(kinds: Iterable[str]) -> list[Any]:
    """Return all cases, of which `make test` runs only the first."""
    return [pytest.param(kind, marks=pytest.mark.slow if number else ()) for number, kind in enumerate(kinds)]


@pytest.fixture(scope="module")
def light(site: Site, made: Made) -> Path:
    """The second bundle without Debian packages, which are slow to check and which the server already has."""
    again = replace_fields(made.factory, probe=made.factory.directory / "probe-again.json")
    again.look_at(site.hosts)
    copy_of(made.second, again.directory / "light")
    return again.build("light", made.small, SECOND)


@pytest.fixture
def damaged(made: Made, light: Path, request: pytest.FixtureRequest) -> Iterator[Path]:
    """Copy of a bundle that the server does not have yet."""
    packages = "packages" in request.node.name
    copy = copy_of(made.second if packages else light, made.factory.directory / "damaged")
    yield copy
    shutil.rmtree(copy)


def damage(bundle: Path, kind: str, pattern: str) -> str:
    """Damage a file of a bundle and return the name that the message must contain."""
    path = sorted(bundle.glob(pattern))[0]
    DAMAGE[kind][0](path)
    return "extra.safetensors" if kind == "another beside it" else path.name


def found(result: tuple[int, str], name: str) -> None:
    assert result[0] in {1, 2}, result
    assert name in result[1]
    assert "Traceback" not in result[1]


@pytest.mark.parametrize(
    ("kind", "pattern"),
    [
        pytest.param(kind, each, marks=pytest.mark.slow if number else ())
        for kind, (_, files) in DAMAGE.items()
        for number, each in enumerate(files)
    ],
)
def test_damage_of_each_kind_is_found_and_named(site: Site, made: Made, damaged: Path, kind: str, pattern: str) -> None:
    name = damage(damaged, kind, pattern)
    found(site.bundle("verify", damaged, "--key", made.factory.public_key), name)


@pytest.mark.parametrize("kind", first_of(DAMAGE))
def test_a_damaged_bundle_never_reaches_the_server(site: Site, made: Made, damaged: Path, kind: str) -> None:
    name = damage(damaged, kind, DAMAGE[kind][1][0])
    refused(site, made, damaged, name)


MALICIOUS = {
    "out of its directory": tarfile.TarInfo("../../etc/cron.d/evil"),
    "absolute": tarfile.TarInfo("/etc/cron.d/evil"),
    "a link outside": tarfile.TarInfo("elastic-vllm/link"),
    "a device": tarfile.TarInfo("elastic-vllm/disk"),
}
MALICIOUS["a link outside"].type, MALICIOUS["a link outside"].linkname = tarfile.SYMTYPE, "../../etc"
MALICIOUS["a device"].type = tarfile.BLKTYPE


@pytest.mark.parametrize("kind", first_of(MALICIOUS))
def test_an_archive_that_leads_out_is_refused_whoever_signed_it(
    site: Site, made: Made, damaged: Path, kind: str
) -> None:
    packed = BytesIO()
    with tarfile.open(fileobj=packed, mode="w:gz") as archive:
        archive.addfile(MALICIOUS[kind])
    path = damaged / "project" / "elastic-vllm.tar.gz"
    replace(path, packed.getvalue())
    sign_as_it_is(damaged, path, made.factory)
    found(site.bundle("verify", damaged, "--key", made.factory.public_key), MALICIOUS[kind].name)
    if kind == "absolute":
        refused(site, made, damaged, MALICIOUS[kind].name)

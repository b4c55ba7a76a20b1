"""A small bundle with one file of each kind, as `bundle build` leaves it, and the keys to sign it with."""

import io
import json
import subprocess
import tarfile
import zipfile
from collections.abc import Iterable
from pathlib import Path

import pytest

from components.bundle import manifest
from components.bundle.manifest import SUMS, File, Manifest, Part
from scripts.cli.bundle import signature

LAYER = "images/vllm-0123456789ab/blobs/sha256/" + "0" * 64
CONFIGURATION = "images/vllm-0123456789ab/blobs/sha256/" + "1" * 64
LOAD = "images/vllm-0123456789ab/manifest.json"
WHEEL, PROJECT = "wheels/acme-1.0-py3-none-any.whl", "project/elastic-vllm.tar.gz"
PACKAGE = "packages/curl_7.88.1-10_amd64.deb"
PLUGIN = "pulumi/pulumi-resource-tls-v5.5.1-linux-amd64.tar.gz"


def key(path: Path) -> Path:
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", path], check=True)
    return path


@pytest.fixture(scope="session")
def signer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Private key, with its public key in the file beside it."""
    return key(tmp_path_factory.mktemp("signer") / "key")


@pytest.fixture
def public_key(signer: Path) -> Path:
    return signer.with_suffix(".pub")


def archive(entries: Iterable[tarfile.TarInfo], how: str = "gz") -> bytes:
    """Return a tar archive; `how` is gz, xz or empty."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode=f"w:{how}") as tar:  # type: ignore[call-overload] # one of those
        for entry in entries:
            tar.addfile(entry, io.BytesIO(bytes(entry.size)))
    return out.getvalue()


def debian(data: bytes, control: bytes | None = None, names: Iterable[str] = ()) -> bytes:
    """Return a Debian package of two archives, or with other `names` of its three members."""
    found = tuple(names) or ("debian-binary", "control.tar.gz", "data.tar.xz")
    control = archive([tarfile.TarInfo("./control")]) if control is None else control
    out = b"!<arch>\n"
    for name, content in zip(found, (b"2.0\n", control, data), strict=True):
        out += (
            f"{name:16}{0:<12}{0:<6}{0:<6}{100644:<8}{len(content):<10}`\n".encode()
            + content
            + b"\n" * (len(content) % 2)
        )
    return out


def wheel(*names: str) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        for name in names:
            archive.writestr(name, "text")
    return out.getvalue()


def write(directory: Path, contents: dict[str, bytes], signer: Path | None) -> Path:
    """Write a bundle of these files, with a correct manifest and checksums."""
    files = []
    for name, content in contents.items():
        path = directory / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
        files.append(File(path=name, bytes=len(content), sha256=manifest.sha256(path)))
    part = Part(source="test", licence=None, about={}, files=tuple(files))
    about = Manifest(stack="x", commit="c", made="now", architecture="amd64", python="3.11", parts={"all": part})
    manifest.write(directory, about)
    (directory / SUMS).write_text(manifest.sums(directory, about))
    if signer:
        signature.sign(directory, signer)
    return directory


def contents() -> dict[str, bytes]:
    """Return the contents of one file of each kind."""
    image = {"Config": CONFIGURATION[-77:], "RepoTags": ["localhost/elastic-vllm/vllm:1"], "Layers": [LAYER[-77:]]}
    files = [tarfile.TarInfo("./usr/bin/curl"), link("./usr/bin/get", "/usr/bin/curl")]
    return {
        LAYER: archive([tarfile.TarInfo("etc/passwd"), link("etc/mtab", "/proc/mounts")], ""),
        CONFIGURATION: b"{}",
        LOAD: json.dumps([image]).encode(),
        "weights/acme--own--0123456789ab/model.safetensors": bytes(3_000_000),
        "weights/acme--own--0123456789ab/.elastic-vllm-complete": b"{}",
        WHEEL: wheel("acme/__init__.py"),
        PACKAGE: debian(archive(files, "xz")),
        PLUGIN: archive([tarfile.TarInfo("pulumi-resource-tls")]),
        PROJECT: archive([tarfile.TarInfo("elastic-vllm/README.md")]),
        "site/README.md": b"# What to do\n",
    }


def entry(name: str, **about: object) -> tarfile.TarInfo:
    """Return an entry of a tar archive."""
    made = tarfile.TarInfo(name)
    for attribute, value in about.items():
        setattr(made, attribute, value)
    return made


def link(name: str, target: str) -> tarfile.TarInfo:
    return entry(name, type=tarfile.SYMTYPE, linkname=target)


@pytest.fixture
def bundle(tmp_path: Path, signer: Path) -> Path:
    return write(tmp_path / "bundle", contents(), signer)


def rewritten(bundle: Path, signer: Path, **changes: object) -> None:
    """Replace some top-level values of the manifest, and correct its checksum and signature."""
    path = bundle / manifest.MANIFEST
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))
    lines = (bundle / SUMS).read_text().splitlines()[1:]
    (bundle / SUMS).write_text("\n".join([f"{manifest.sha256(path)}  {manifest.MANIFEST}", *lines, ""]))
    signature.sign(bundle, signer)

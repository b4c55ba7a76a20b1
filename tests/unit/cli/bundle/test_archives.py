"""Entries that lead out of an archive in a bundle are found, in each kind of archive, even in a signed one."""

import io
import json
import os
import shutil
import tarfile
import zipfile
from pathlib import Path

import pytest

from scripts.cli.bundle import archives
from scripts.cli.bundle.verify import problems
from tests.unit.cli.bundle.conftest import (
    LAYER,
    LOAD,
    PACKAGE,
    PLUGIN,
    PROJECT,
    WHEEL,
    archive,
    contents,
    debian,
    entry,
    link,
    wheel,
    write,
)


def found(tmp_path: Path, signer: Path, changes: dict[str, bytes], *, layers: bool = False) -> list[str]:
    bundle = write(tmp_path / "b", {**contents(), **changes}, signer)
    return list(problems(bundle, signer.with_suffix(".pub"), compressed_layers=layers))


# Archives that are unpacked into a directory: nothing may leave it
BAD_IN_TREES = {
    "traversal": entry("a/../../etc/cron.d/x"),
    "absolute": entry("/etc/cron.d/x"),
    "link up": link("a/b/c", "../../../etc"),
    "link absolute": link("a/b", "/etc"),
    "link through a link": link("a/b", "c/../../.."),
    "hard link": entry("a/b", type=tarfile.LNKTYPE, linkname="../etc/shadow"),
    "hard link absolute": entry("a/b", type=tarfile.LNKTYPE, linkname="/etc/shadow"),
    "device": entry("a/b", type=tarfile.CHRTYPE),
    "disk": entry("a/b", type=tarfile.BLKTYPE),
    "pipe": entry("a/b", type=tarfile.FIFOTYPE),
}


@pytest.mark.parametrize("name", [PROJECT, PLUGIN])
@pytest.mark.parametrize("kind", BAD_IN_TREES)
def test_an_entry_that_leads_out(tmp_path: Path, signer: Path, name: str, kind: str) -> None:
    bad = archive([tarfile.TarInfo("a/good"), BAD_IN_TREES[kind]])
    (problem,) = found(tmp_path, signer, {name: bad})
    assert problem.startswith(f"{name}: its entry '{BAD_IN_TREES[kind].name}' ")


@pytest.mark.parametrize("order", [1, -1])
def test_an_entry_below_a_link_is_found_wherever_the_link_stands(tmp_path: Path, signer: Path, order: int) -> None:
    entries = [link("a/l", "."), entry("a/l/x")][::order]
    (problem,) = found(tmp_path, signer, {PROJECT: archive(entries)})
    assert problem == f"{PROJECT}: its entry 'a/l/x' goes through the link 'a/l'"


def test_links_inside_are_fine(tmp_path: Path, signer: Path) -> None:
    inside = [link("elastic-vllm/a/b", "../c"), link("elastic-vllm/d", "a/b")]
    assert found(tmp_path, signer, {PROJECT: archive(inside)}) == []


# Archives that are unpacked at a root: links may name it, only images may have devices
BAD_AT_ROOTS = {
    "traversal": entry("./usr/../../etc/cron.d/x"),
    "hard link": entry("./usr/x", type=tarfile.LNKTYPE, linkname="../etc/shadow"),
}


@pytest.mark.parametrize("kind", BAD_AT_ROOTS)
@pytest.mark.parametrize("how", ["", "gz"])
def test_a_layer_that_leads_out(tmp_path: Path, signer: Path, kind: str, how: str) -> None:
    bad = archive([entry("dev/null", type=tarfile.CHRTYPE), link("a", "/b"), BAD_AT_ROOTS[kind]], how)
    (problem,) = found(tmp_path, signer, {LAYER: bad}, layers=bool(how))
    assert problem.startswith(f"{LAYER}: its entry '{BAD_AT_ROOTS[kind].name}' ")


@pytest.mark.parametrize("kind", [*BAD_AT_ROOTS, "device", "pipe", "absolute"])
@pytest.mark.parametrize("member", ["data", "control"])
def test_a_debian_package_that_leads_out(tmp_path: Path, signer: Path, kind: str, member: str) -> None:
    bad = {**BAD_IN_TREES, **BAD_AT_ROOTS}[kind]
    good = archive([tarfile.TarInfo("./control")])
    package = debian(archive([bad], "xz")) if member == "data" else debian(good, archive([bad]))
    (problem,) = found(tmp_path, signer, {PACKAGE: package})
    assert problem.startswith(f"{PACKAGE}: its entry '{bad.name}' ")


def zstd(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Stand-in for the program zstd without the algorithm: after the four magic bytes the data is uncompressed."""
    program = tmp_path / "bin" / "zstd"
    program.parent.mkdir()
    program.write_text("#!/bin/sh\nexec tail -c +5\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{program.parent}:{os.environ['PATH']}")


@pytest.mark.parametrize("kind", [None, *BAD_AT_ROOTS])
def test_ubuntus_packages_are_decompressed_by_zstd_itself(
    tmp_path: Path, signer: Path, monkeypatch: pytest.MonkeyPatch, kind: str | None
) -> None:
    zstd(tmp_path, monkeypatch)
    bad = [BAD_AT_ROOTS[kind]] if kind else []
    data = archives.ZSTD + archive([tarfile.TarInfo("./usr/bin/curl"), *bad], "")
    package = debian(data, names=("debian-binary", "control.tar.gz", "data.tar.zst"))
    problems = found(tmp_path, signer, {PACKAGE: package})
    assert [line.partition("' ")[0] for line in problems] == [f"{PACKAGE}: its entry '{entry.name}" for entry in bad]


def test_without_zstd_the_fix_is_named(tmp_path: Path, signer: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ssh_keygen = shutil.which("ssh-keygen")
    assert ssh_keygen
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "ssh-keygen").symlink_to(ssh_keygen)
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    package = debian(archives.ZSTD + b"...", names=("debian-binary", "control.tar.gz", "data.tar.zst"))
    (problem,) = found(tmp_path, signer, {PACKAGE: package})
    assert problem.startswith(
        f"{PACKAGE}: no archive that can be read: compressed with zstd, which is not on this machine"
    )


@pytest.mark.parametrize(
    "package",
    [
        b"no package",
        debian(b"no archive"),
        debian(archive([], "xz"))[:-3],
        debian(archive([], "xz"), names=("debian-binary", "data.tar.xz", "control.tar.gz")),
        debian(archive([], "xz"), names=("debian-binary", "control.tar.gz", "extra")),
    ],
    ids=["text", "data", "cut off", "order", "member"],
)
def test_what_is_no_debian_package(tmp_path: Path, signer: Path, package: bytes) -> None:
    assert {line.partition(": ")[0] for line in found(tmp_path, signer, {PACKAGE: package})} == {PACKAGE}


@pytest.mark.parametrize("name", ["../x.py", "/etc/x", "a/../../x", "..\\x", "C:/x"])
def test_a_wheel_that_leads_out(tmp_path: Path, signer: Path, name: str) -> None:
    (problem,) = found(tmp_path, signer, {WHEEL: wheel(name)})
    assert problem.startswith(f"{WHEEL}: its entry ")


def test_a_wheel_with_a_link(tmp_path: Path, signer: Path) -> None:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as made:
        inner = zipfile.ZipInfo("a/b")
        inner.external_attr = 0o120777 << 16
        made.writestr(inner, "/etc/passwd")
    (problem,) = found(tmp_path, signer, {WHEEL: out.getvalue()})
    assert problem == f"{WHEEL}: its entry 'a/b' is no file and no directory"


@pytest.mark.parametrize(
    "changes",
    [
        {"Config": "../../../etc/shadow"},
        {"Layers": ["/etc/shadow"]},
        {"Layers": ["blobs/sha256/" + "0" * 64, "layer.tar"]},
        {"RepoTags": ["docker.io/library/nginx:latest"]},
        {"RepoTags": None},
    ],
    ids=str,
)
def test_an_image_that_would_be_loaded_as_something_else(
    tmp_path: Path, signer: Path, changes: dict[str, object]
) -> None:
    (image,) = json.loads(contents()[LOAD])
    (problem,) = found(tmp_path, signer, {LOAD: json.dumps([{**image, **changes}]).encode()})
    assert problem.startswith(f"{LOAD}: ")


@pytest.mark.parametrize("name", [WHEEL, PROJECT, PLUGIN, PACKAGE, LAYER, LOAD])
def test_a_file_that_is_no_archive_is_named(tmp_path: Path, signer: Path, name: str) -> None:
    (problem,) = found(tmp_path, signer, {name: b"no archive at all"})
    assert problem.startswith(f"{name}: no archive that can be read")

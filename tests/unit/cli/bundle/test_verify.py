"""`bundle verify` finds each kind of damage, and names the file."""

import errno
import json
import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from components.bundle import manifest
from components.bundle.manifest import MANIFEST, SIGNATURE, SUMS
from scripts.cli.bundle.verify import problems
from tests.support.program import ROOT
from tests.unit.cli.bundle.conftest import LAYER, contents, key, rewritten, write

WEIGHTS = "weights/acme--own--0123456789ab/model.safetensors"


def run(bundle: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run the command as users do, with the system's Python and no package."""
    command = [str(ROOT / "scripts" / "elastic-vllm"), "bundle", "verify", str(bundle), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False, env={"PATH": os.environ["PATH"]})


def test_a_good_one_is_good(bundle: Path, public_key: Path) -> None:
    done = run(bundle, "--key", str(public_key))
    assert (done.returncode, done.stderr) == (0, "")
    assert "complete and unaltered, signed by" in done.stdout
    assert f"{len(contents())} files" in done.stdout


def test_the_signers_key_can_be_given_as_text(bundle: Path, public_key: Path) -> None:
    assert run(bundle, "--key", public_key.read_text().strip()).returncode == 0
    other = public_key.read_text().strip().replace("AAAA", "AAAB", 1)
    assert run(bundle, "--key", other).returncode == 1


def test_the_sites_own_tools_find_it_good_too(bundle: Path, public_key: Path) -> None:
    allowed = bundle.parent / "allowed"
    allowed.write_text(f"bundle {' '.join(public_key.read_text().split()[:2])}\n")
    check = ["ssh-keygen", "-Y", "verify", "-f", str(allowed), "-I", "bundle", "-n", "elastic-vllm-bundle"]
    with (bundle / SUMS).open() as sums:
        subprocess.run([*check, "-s", str(bundle / SIGNATURE)], stdin=sums, check=True)
    subprocess.run(["sha256sum", "--check", "--strict", "--quiet", SUMS], cwd=bundle, check=True)


@pytest.mark.parametrize("name", [*contents(), MANIFEST, SUMS, SIGNATURE])
def test_one_bit_in_any_file(bundle: Path, public_key: Path, name: str) -> None:
    data = bytearray((bundle / name).read_bytes())
    data[len(data) // 2] ^= 4
    (bundle / name).write_bytes(data)
    found = list(problems(bundle, public_key))
    assert len(found) == 1
    assert found[0].startswith(f"{SIGNATURE if name == SUMS else name}: ")
    assert run(bundle, "--key", str(public_key)).returncode == 1


@pytest.mark.parametrize("name", [*contents(), MANIFEST])
@pytest.mark.parametrize("damage", ["truncated", "longer", "missing", "link", "directory"])
def test_a_file_that_is_not_what_it_was(bundle: Path, public_key: Path, name: str, damage: str) -> None:
    path = bundle / name
    data = path.read_bytes()
    path.unlink()
    if damage == "truncated":
        path.write_bytes(data[:-1])
    elif damage == "longer":
        path.write_bytes(data + b"\0")
    elif damage == "link":
        (bundle.parent / "elsewhere").write_bytes(data)
        path.symlink_to(bundle.parent / "elsewhere")
    elif damage == "directory":
        path.mkdir()
    found = list(problems(bundle, public_key))
    assert {line.partition(": ")[0] for line in found} == {name}


@pytest.mark.parametrize("name", ["extra", "wheels/extra.whl", f"{LAYER}0", ".hidden", "SHA256SUMS.new"])
def test_a_file_too_many(bundle: Path, public_key: Path, name: str) -> None:
    (bundle / name).write_text("")
    assert list(problems(bundle, public_key)) == [f"{name}: not in {SUMS}"]


def test_a_directory_that_is_a_link(bundle: Path, public_key: Path) -> None:
    shutil.move(bundle / "weights", bundle.parent / "weights")
    (bundle / "weights").symlink_to(bundle.parent / "weights")
    assert "weights: a symbolic link, which no bundle has" in list(problems(bundle, public_key))


def test_two_files_of_one_size_that_changed_places(tmp_path: Path, signer: Path, public_key: Path) -> None:
    bundle = write(tmp_path / "b", {"a": b"1", "b": b"2"}, signer)
    (bundle / "a").write_bytes(b"2")
    (bundle / "b").write_bytes(b"1")
    assert sorted(problems(bundle, public_key)) == ["a: altered", "b: altered"]


def test_a_disk_that_goes_bad(bundle: Path, public_key: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = manifest.sha256

    def reads(path: Path, *arguments: Any) -> str:
        if path.name == "model.safetensors":
            raise OSError(errno.EIO, "Input/output error")
        return whole(path, *arguments)

    monkeypatch.setattr(manifest, "sha256", reads)
    assert list(problems(bundle, public_key)) == [f"{WEIGHTS}: can't be read: Input/output error"]


# Signatures


@pytest.mark.parametrize("forge", [False, True], ids=["unsigned", "by another"])
def test_nobody_or_another_signed_it(tmp_path: Path, public_key: Path, forge: bool) -> None:
    bundle = write(tmp_path / "b", contents(), key(tmp_path / "other") if forge else None)
    (found,) = problems(bundle, public_key)
    assert found.startswith(SIGNATURE)
    done = run(bundle, "--unsigned")
    assert done.returncode == 0
    assert "not signed" in done.stdout


def test_a_signature_for_something_else_is_none(bundle: Path, signer: Path, public_key: Path) -> None:
    (bundle / SIGNATURE).unlink()
    subprocess.run(["ssh-keygen", "-q", "-Y", "sign", "-f", signer, "-n", "file", bundle / SUMS], check=True)
    (found,) = problems(bundle, public_key)
    assert found.startswith(SIGNATURE)


def test_trust_must_be_explicit(bundle: Path) -> None:
    done = run(bundle)
    assert done.returncode == 2
    assert "--key --unsigned is required" in done.stderr


@pytest.mark.parametrize("which", ["missing", "private", "empty", "binary"])
def test_what_is_no_public_key(bundle: Path, signer: Path, tmp_path: Path, which: str) -> None:
    path = signer if which == "private" else tmp_path / "key"
    if which in {"empty", "binary"}:
        path.write_bytes(b"" if which == "empty" else b"\xff\xfe")
    done = run(bundle, "--key", str(path))
    assert done.returncode == 2
    assert "fix: give the signer's public key file" in done.stderr
    assert "Traceback" not in done.stderr


# Contents that a signer could have been tricked into signing: see also test_archives


def _files(path: str) -> dict[str, object]:
    file = {"path": path, "bytes": 1, "sha256": "0" * 64}
    return {"parts": {"all": {"source": "", "licence": None, "about": {}, "files": [file]}}}


@pytest.mark.parametrize(
    "changes",
    [
        {"format": 2},
        {"parts": None},
        {"parts": {"all": {}}},
        *map(_files, ["../x", "/x", "a/../../x", "a\nb", "a//b", "./a", "a/./b", "a\\b", "", "a/", "é"]),
        {**_files("x"), "stack": None, "commit": 1},
    ],
    ids=str,
)
def test_a_manifest_with_impossible_contents_is_refused(
    bundle: Path, signer: Path, public_key: Path, changes: dict[str, object]
) -> None:
    rewritten(bundle, signer, **changes)
    done = run(bundle, "--key", str(public_key))
    assert done.returncode in {1, 2}
    assert "Traceback" not in done.stderr
    assert "fix: " in done.stderr


@pytest.mark.parametrize(
    "line",
    ["", "x", f"{'0' * 64}  ../x", f"{'0' * 64}  /etc/x", f"{'0' * 63}  x", f"{'0' * 64} *x", f"\\{'0' * 64}  a\\nb"],
)
def test_checksums_of_files_elsewhere(bundle: Path, signer: Path, public_key: Path, line: str) -> None:
    with (bundle / SUMS).open("a") as sums:
        sums.write(f"{line}\n")
    found = list(problems(bundle, None))
    assert found
    assert found[0].startswith(f"{SUMS}: ")


def test_a_checksum_that_the_manifest_does_not_know(bundle: Path) -> None:
    with (bundle / SUMS).open("a") as sums:
        sums.write(f"{'0' * 64}  x\n")
    (bundle / "x").write_text("")
    assert list(problems(bundle, None)) == [f"{SUMS}: it lists other files than {MANIFEST}"]


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (shutil.rmtree, "is no finished bundle"),
        (lambda bundle: (bundle / SUMS).unlink(), "is no finished bundle"),
    ],
)
def test_what_is_no_bundle(bundle: Path, spoil: Callable[[Path], None], message: str) -> None:
    spoil(bundle)
    done = run(bundle, "--unsigned")
    assert done.returncode == 2
    assert message in done.stderr
    assert "fix: " in done.stderr


def test_the_manifest_matches_its_documentation(bundle: Path) -> None:
    document = json.loads((bundle / MANIFEST).read_text())
    assert set(document) == {"format", "stack", "commit", "made", "architecture", "python", "since", "parts"}
    assert set(document["parts"]["all"]) == {"source", "licence", "about", "files"}
    assert set(document["parts"]["all"]["files"][0]) == {"path", "bytes", "sha256", "carried"}

"""`bundle push`: names in a registry, what can't be pushed, and what a registry's refusals are reported as."""

import hashlib
import json
import os
import subprocess
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

import pytest

from components.bundle import manifest
from components.bundle.manifest import File, Manifest, Part
from components.errors import UserError
from components.settings.rules import version
from scripts.cli.bundle import images, push
from scripts.lib.errors import BadInputError, ExitCode
from scripts.lib.progress import Task
from tests.support.program import ROOT
from tests.unit.cli.bundle.conftest import key

HOST = "registry.example:5000"
REGISTRY = f"{HOST}/elastic-vllm"
SKOPEO = """#!/bin/sh
echo "$@" >>"$(dirname "$0")/calls"
case "$1" in inspect) echo "manifest unknown: manifest unknown" >&2; exit 1 ;; esac
"""


def image(directory: Path, role: str, tag: str, layers: list[bytes], about: dict[str, str]) -> Part:
    """Write an image as a bundle has it, and return its part."""
    place = f"images/{role}-0123456789ab"
    contents = {f"{place}/blobs/sha256/{hashlib.sha256(content).hexdigest()}": content for content in (b"{}", *layers)}
    names = [path.partition("/blobs/")[2] for path in contents]
    name = f"localhost/elastic-vllm/{role}:{tag}-0123456789ab"
    entry = {"Config": f"blobs/{names[0]}", "RepoTags": [name], "Layers": [f"blobs/{each}" for each in names[1:]]}
    contents[f"{place}/manifest.json"] = json.dumps([entry]).encode()
    files = []
    for path, content in contents.items():
        (directory / path).parent.mkdir(parents=True, exist_ok=True)
        (directory / path).write_bytes(content)
        files.append(File(path=path, bytes=len(content), sha256=hashlib.sha256(content).hexdigest()))
    return Part(source="x", licence=None, about={"name": name, **about}, files=tuple(files))


def written(directory: Path, parts: dict[str, Part], since: str | None = None) -> Manifest:
    about = {"stack": "x", "commit": "c", "made": "now", "architecture": "amd64", "python": "3.11"}
    made = Manifest(**about, since=since, parts=parts)
    manifest.write(directory, made)
    (directory / manifest.SUMS).write_text(manifest.sums(directory, made))
    return made


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    """A bundle of three images; layers are a tar, gzip and zstd by their first bytes."""
    directory = tmp_path / "b"
    empty = bytes(10240)
    parts = {
        "image-vllm": image(directory, "vllm", "v0.32.0", [empty + bytes(512)], {"reference": "x"}),
        "image-nginx": image(directory, "nginx", "1.30.6", [empty], {"reference": "x"}),
        "image-weights": image(
            directory, "weights", "acme--own", [empty + bytes(1024)], {"model": "acme/own", "revision": "1"}
        ),
    }
    written(directory, parts)
    return directory


@pytest.fixture
def skopeo(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[], list[str]]:
    """Put a stand-in for skopeo on PATH: no registry has anything, and each takes all. Returns its calls."""
    program = tmp_path / "bin" / "skopeo"
    program.parent.mkdir()
    program.write_text(SKOPEO)
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{program.parent}:{os.environ['PATH']}")
    calls = program.parent / "calls"
    return lambda: calls.read_text().splitlines() if calls.exists() else []


def run(bundle: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run the command as users do, with the system's Python and no package."""
    command = [str(ROOT / "scripts" / "elastic-vllm"), "bundle", "push", str(bundle), "--unsigned", *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False, env={"PATH": os.environ["PATH"]})


def test_all_images_are_pushed_unchanged_and_the_settings_name_them(
    bundle: Path, skopeo: Callable[[], list[str]]
) -> None:
    done = run(bundle, "--registry", REGISTRY)
    assert (done.returncode, done.stderr) == (0, "")
    asked, *copied = skopeo()
    assert asked.startswith("inspect ")
    assert [call.split()[:2] for call in copied] == [["copy", "--preserve-digests"]] * 3
    names = [call.split()[-1].removeprefix("docker://") for call in copied]
    assert names == [
        f"{REGISTRY}/nginx:1.30.6-id.0123456789ab",
        f"{REGISTRY}/vllm:v0.32.0-id.0123456789ab",
        f"{REGISTRY}/weights:acme--own-id.0123456789ab",
    ]
    printed = done.stdout[done.stdout.index("config:") :]
    first, *settings = printed.splitlines()
    assert first == "config:"
    assert settings[0] == "  elastic-vllm:model: acme/own"
    for line, name in zip(settings[1:4], names, strict=True):
        assert line.partition(": ")[2].startswith(f"{name}@sha256:")
    assert "imagePullSecret" in settings[4]
    assert "without modelRevision" in settings[5]
    assert run(bundle, "--registry", REGISTRY).stdout.endswith(printed)


@pytest.mark.parametrize("short", ["b1aaaaaaaaaa", "a0aaaaaaaaaa", "dev1aaaaaaaa", "0123456789ab"])
def test_the_tag_still_names_the_version(short: str) -> None:
    part = Part(source="", licence=None, about={"name": f"localhost/elastic-vllm/vllm:v0.32.0-{short}"}, files=())
    about = {"stack": "x", "commit": "c", "made": "now", "architecture": "amd64", "python": "3.11"}
    (found,) = push.pushed(Manifest(**about, parts={"image-vllm": part}), REGISTRY)
    assert version(found.name.rpartition(":")[2]) == (0, 32, 0)


@pytest.mark.parametrize(("start", "suffix"), [(b"\x1f\x8b", "+gzip"), (b"\x28\xb5\x2f\xfd", "+zstd"), (b"", "")])
def test_a_layers_type_is_that_of_its_content(tmp_path: Path, start: bytes, suffix: str) -> None:
    layer = start + bytes(512)
    part = image(tmp_path, "vllm", "1", [layer], {})
    about = {"stack": "x", "commit": "c", "made": "now", "architecture": "amd64", "python": "3.11"}
    files = push.located(part.files, [tmp_path], Manifest(**about, parts={"image-vllm": part}))
    with push.layout(files) as (place, digest):
        (entry,) = json.loads((place / "index.json").read_text())["manifests"]
        assert entry["digest"] == digest
        document = (place / "blobs/sha256" / digest.removeprefix("sha256:")).read_bytes()
        assert f"sha256:{hashlib.sha256(document).hexdigest()}" == digest
        assert entry["size"] == len(document)
        (described,) = json.loads(document)["layers"]
        assert described == {
            "mediaType": f"application/vnd.oci.image.layer.v1.tar{suffix}",
            "digest": f"sha256:{hashlib.sha256(layer).hexdigest()}",
            "size": len(layer),
        }
        assert (place / "blobs/sha256" / described["digest"].removeprefix("sha256:")).read_bytes() == layer
    assert not place.exists()


def test_a_damaged_bundle_is_not_pushed(bundle: Path, skopeo: Callable[[], list[str]]) -> None:
    layer = max((bundle / "images").glob("weights-*/blobs/sha256/*"), key=lambda path: path.stat().st_size)
    layer.write_bytes(layer.read_bytes()[:-1] + b"x")
    done = run(bundle, "--registry", REGISTRY)
    assert done.returncode == ExitCode.FAILED
    assert f"{layer.relative_to(bundle)}: altered\n  fix: see with" in done.stderr
    assert [call.split()[0] for call in skopeo()] == ["inspect"]


def test_a_bundle_that_somebody_else_signed_is_not_pushed(
    bundle: Path, skopeo: Callable[[], list[str]], tmp_path: Path
) -> None:
    command = [str(ROOT / "scripts" / "elastic-vllm"), "bundle", "push", str(bundle), "--registry", REGISTRY]
    command += ["--key", f"{key(tmp_path / 'key')}.pub"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == ExitCode.FAILED
    assert "not signed" in done.stderr
    assert len(skopeo()) == 1


def test_a_bundle_for_a_server_is_refused(bundle: Path, skopeo: Callable[[], list[str]]) -> None:
    parts = dict(manifest.read(bundle).parts)
    written(bundle, {"weights": parts.pop("image-weights"), **parts})
    done = run(bundle, "--registry", REGISTRY)
    assert done.returncode == ExitCode.BAD_INPUT
    assert "it is for a server: its weights are files\n  fix: build it from a stack with target" in done.stderr
    assert skopeo() == []


@pytest.mark.parametrize("registry", ["https://registry.example", "Registry.example/x", "registry.example/x:tag", ""])
def test_a_registry_that_is_none(bundle: Path, registry: str) -> None:
    done = run(bundle, "--registry", registry)
    assert done.returncode == ExitCode.BAD_INPUT
    assert "no HOST[:PORT][/PREFIX]\n  fix: write it as in" in done.stderr


def test_a_ca_that_is_none(bundle: Path, tmp_path: Path) -> None:
    (tmp_path / "ca.pem").write_text("hello")
    done = run(bundle, "--registry", REGISTRY, "--ca", str(tmp_path / "ca.pem"))
    assert done.returncode == ExitCode.BAD_INPUT
    assert "no certificate in PEM" in done.stderr


def test_without_skopeo_the_fix_is_to_install_it(
    bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(SystemExit) as end:
        push.main([str(bundle), "--registry", REGISTRY, "--unsigned"])
    assert end.value.code == ExitCode.FAILED
    assert "there is no skopeo here, which moves images\n  fix: install the package skopeo" in capsys.readouterr().err


def test_a_delta_takes_what_it_leaves_out_from_the_bundle_before(bundle: Path, tmp_path: Path) -> None:
    whole = manifest.read(bundle)
    parts = {
        name: replace(part, files=tuple(replace(file, carried=name != "image-nginx") for file in part.files))
        for name, part in whole.parts.items()
    }
    delta = replace(whole, since="5" * 64, parts=parts)
    nginx, vllm, _ = push.pushed(delta, REGISTRY)
    with pytest.raises(BadInputError, match=rf"this delta leaves out images/nginx-.*--base DIR, whose .* {'5' * 64}"):
        push.located(nginx.files, [tmp_path], delta)
    found = push.located(nginx.files, [tmp_path, bundle], delta)
    assert found["manifest.json"] == bundle / "images/nginx-0123456789ab/manifest.json"
    assert push.located(vllm.files, [tmp_path, bundle], delta)["manifest.json"].is_relative_to(tmp_path)


LOG = 'time="2026-11-30T09:00:00Z" level=fatal msg="{}"\n'
BEFORE = (
    'Error parsing image name \\"docker://HOST/x:1\\": pinging container registry HOST: Get \\"https://HOST/v2/\\": '
)
UPLOAD = 'Patch \\"https://HOST/v2/x/blobs/uploads/b8?_state=xaPdb-z3%3D\\": '
MESSAGES = [
    (f"{BEFORE}x509: certificate signed by unknown authority", f"the certificate of {HOST} is not trusted"),
    (f"{BEFORE}dial tcp 127.0.0.2:1: connect: connection refused", f"no registry answers at {HOST}"),
    (f"{BEFORE}dial tcp: lookup registry.example: no such host", f"no registry answers at {HOST}"),
    (f"{BEFORE}http: server gave HTTP response to HTTPS client", f"{HOST} speaks HTTP without TLS"),
    ("trying to reuse blob sha256:84: unauthorized: authentication required", f"{HOST} does not let you push"),
    ("denied: requested access to the resource is denied", f"{HOST} does not let you push to {REGISTRY}"),
    (
        "writing blob: uploading layer chunked: received unexpected HTTP status: 500 Internal Server Error",
        f"{HOST} can't store it",
    ),
    (f"writing blob: {UPLOAD}write tcp: write: connection reset by peer", f"{HOST} broke off an upload"),
    ("writing blob: StatusCode: 413, Request Entity Too Large", f"a proxy before {HOST} limits the size of a layer"),
    ("open /media/disk/b: permission denied", f"{REGISTRY}/nginx:1 can't be pushed"),
]


@pytest.mark.parametrize(("message", "cause"), MESSAGES)
def test_what_skopeo_reports_has_a_cause_and_a_fix(message: str, cause: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Messages are skopeo 1.9.3's, but for the one with 413 and the denied access."""
    output = f"Getting image source signatures\n{LOG.format(message)}"
    monkeypatch.setattr(images, "run_skopeo", lambda *_: (1, output))
    monkeypatch.setattr(push, "layout", lambda _: nullcontext((Path("/x"), "sha256:1")))
    registry = push.Registry(REGISTRY, None)
    with pytest.raises(UserError) as found:
        registry.push(push.Image(role="nginx", name=f"{REGISTRY}/nginx:1", files=()), {}, Task("nginx", ""))
    assert found.value.cause.startswith(cause)
    assert found.value.cause.endswith(message.replace('\\"', '"').replace("?_state=xaPdb-z3%3D", ""))
    assert "{" not in found.value.fix

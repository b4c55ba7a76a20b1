"""A bundle of a cluster's stack: built from a hub and Docker, and pushed to a real registry with TLS and a login."""

import hashlib
import io
import json
import os
import re
import shutil
import subprocess
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import docker
import pytest
import requests
import yaml

from scripts.cli.bundle import weights_image
from scripts.lab import hub as hub_stand_in
from scripts.lab.hub import COMMIT
from scripts.lib.errors import ExitCode
from tests.integration.conftest import ROOT, installed
from tests.integration.test_bundle import import_image, project
from tests.support import airgap_site, local_registry
from tests.support.local_registry import PASSWORD, USER, SecureRegistry

pytestmark = pytest.mark.usefixtures("machine")

STACK = "clustered"
PREFIX = "team/elastic-vllm"
NGINX = "localhost/elastic-vllm/pushed-nginx:1.30.6"
FILES = {
    "model.safetensors": bytes(range(250)) * 500_000,
    "config.json": b"{}",
    "sub/tokenizer.json": b"{}",
    "LICENSE": b"",
}
MANIFEST = "application/vnd.oci.image.manifest.v1+json"


@dataclass(frozen=True)
class Built:
    """A bundle, the project that built it, and a registry at its site."""

    project: Path
    bundle: Path
    registry: SecureRegistry
    home: Path

    def settings(self, **settings: object) -> None:
        config = {f"elastic-vllm:{key}": value for key, value in settings.items()}
        (self.project / "stacks" / f"Pulumi.{STACK}.yaml").write_text(yaml.safe_dump({"config": config}))

    def build(self, output: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
        command = [str(self.project / "scripts" / "elastic-vllm"), "bundle", "build", "--stack", STACK]
        pip = {"PIP_NO_INDEX": "1", "PIP_FIND_LINKS": str(airgap_site.wheels())}
        return subprocess.run(
            [*command, "--output", str(output), "--pulumi", "none", *arguments],
            capture_output=True,
            text=True,
            check=False,
            env={**os.environ, **pip},
        )

    def push(self, *arguments: str, bundle: Path | None = None, **changes: str) -> subprocess.CompletedProcess[str]:
        """Push with a login and the CA, or other `arguments` and environment."""
        command = [str(ROOT / "scripts" / "elastic-vllm"), "bundle", "push", str(bundle or self.bundle), "--unsigned"]
        defaults = ["--registry", f"{self.registry.host}/{PREFIX}", "--ca", str(self.registry.ca)]
        environment = {"PATH": os.environ["PATH"], "HOME": str(self.home), **changes}
        return subprocess.run(
            [*command, *(arguments or defaults)], capture_output=True, text=True, check=False, env=environment
        )


@pytest.fixture(scope="module")
def built(machine: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Built]:
    installed("skopeo", "skopeo")
    directory = tmp_path_factory.mktemp("clustered")
    for name in ("registry", "public", "home/.docker"):
        (directory / name).mkdir(parents=True)
    with (
        local_registry.secure(directory / "registry") as registry,
        local_registry.running(directory / "public") as public,
        hub_stand_in.running("acme/tiny", FILES) as hub,
    ):
        registry.login(directory / "home" / ".docker" / "config.json")
        made = Built(project(directory / "project"), directory / "bundle", registry, directory / "home")
        import_image(NGINX, b"nginx")
        made.settings(
            target="kubernetes",
            vllmImage=f"{public.host}/team/vllm:v0.32.0@{public.push('team/vllm:v0.32.0', b'vllm')}",
            nginxImage=NGINX,
            model="acme/tiny",
            weightsGb=1,
            modelRevision=COMMIT,
            hfEndpoint=hub.endpoint,
        )
        done = made.build(made.bundle)
        assert done.returncode == 0, done.stdout + done.stderr
        yield made
    docker.from_env().images.remove(NGINX, force=True)


@pytest.fixture(scope="module")
def pushed(built: Built) -> dict[str, str]:
    """Settings that the first push printed."""
    done = built.push()
    assert done.returncode == 0, done.stdout + done.stderr
    printed = yaml.safe_load(done.stdout[done.stdout.index("config:") :])["config"]
    return {key.removeprefix("elastic-vllm:"): value for key, value in printed.items()}


def in_registry(built: Built, path: str) -> requests.Response:
    url = f"https://{built.registry.host}/v2/{path}"
    headers = {"Accept": MANIFEST}
    answer = requests.get(url, headers=headers, auth=(USER, PASSWORD), verify=str(built.registry.ca), timeout=30)
    answer.raise_for_status()
    return answer


def test_the_bundle_has_the_weights_as_an_image_and_is_good(built: Built) -> None:
    parts = json.loads((built.bundle / "manifest.json").read_text())["parts"]
    assert list(parts) == ["image-vllm", "image-nginx", "image-weights", "wheels", "project", "stack", "guide", "sbom"]
    command = [str(ROOT / "scripts" / "elastic-vllm"), "bundle", "verify", str(built.bundle), "--unsigned"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout
    assert not list(built.bundle.rglob(weights_image.PLAN))
    components = json.loads((built.bundle / "sbom" / "elastic-vllm.cdx.json").read_text())["components"]
    (model,) = [each for each in components if each["type"] == "machine-learning-model"]
    assert (model["name"], model["version"]) == ("acme/tiny", COMMIT)


def test_the_registry_has_what_the_settings_name(built: Built, pushed: dict[str, str]) -> None:
    assert set(pushed) == {"model", "vllmImage", "nginxImage", "weightsImage"}
    assert pushed["model"] == "acme/tiny"
    found: dict[str, bytes] = {}
    for role in ("vllm", "nginx", "weights"):
        name, _, digest = pushed[f"{role}Image"].partition("@")
        repository, _, tag = name.removeprefix(f"{built.registry.host}/").rpartition(":")
        assert repository == f"{PREFIX}/{role}"
        by_digest = in_registry(built, f"{repository}/manifests/{digest}")
        assert by_digest.content == in_registry(built, f"{repository}/manifests/{tag}").content
        document = by_digest.json()
        packed = "application/vnd.oci.image.layer.v1.tar" + ("+gzip" if role == "vllm" else "")
        assert {layer["mediaType"] for layer in document["layers"]} == {packed}
        for layer in document["layers"]:
            content = in_registry(built, f"{repository}/blobs/{layer['digest']}").content
            assert f"sha256:{hashlib.sha256(content).hexdigest()}" == layer["digest"]
            with tarfile.open(fileobj=io.BytesIO(content)) as tar:
                files = {entry.name: tar.extractfile(entry) for entry in tar if entry.isreg()}
                found |= {f"{role}/{path}": file.read() for path, file in files.items() if file}
    weights = {f"weights/{name}": content for name, content in FILES.items()}
    assert found == {"vllm/file": b"vllm", "nginx/file": b"nginx", **weights}


def test_the_same_bundle_again_sends_nothing_and_prints_the_same(built: Built, pushed: dict[str, str]) -> None:
    before = len(built.registry.requests("PATCH"))
    done = built.push()
    assert done.returncode == 0, done.stderr
    assert len(built.registry.requests("PATCH")) == before > 0
    assert pushed["weightsImage"] in done.stdout


def test_the_same_files_from_a_directory_are_the_same_layers(
    built: Built, pushed: dict[str, str], tmp_path: Path
) -> None:
    for name, content in FILES.items():
        (tmp_path / "m" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "m" / name).write_bytes(content)
    done = built.build(tmp_path / "b", "--weights", str(tmp_path / "m"))
    assert done.returncode == 0, done.stdout + done.stderr
    before = len(built.registry.requests("PATCH"))
    done = built.push(bundle=tmp_path / "b")
    assert done.returncode == 0, done.stderr
    # The configuration has another revision, and is all that was sent.
    assert len(built.registry.requests("PATCH")) == before + 1
    assert pushed["weightsImage"] not in done.stdout


@pytest.mark.parametrize("password", ["wrong", ""])
def test_a_wrong_login_is_reported_as_one(built: Built, tmp_path: Path, password: str) -> None:
    (tmp_path / ".docker").mkdir()
    if password:
        built.registry.login(tmp_path / ".docker" / "config.json", password)
    done = built.push(HOME=str(tmp_path))
    assert done.returncode == ExitCode.FAILED
    assert f"error: {built.registry.host} does not let you push to {built.registry.host}/{PREFIX}: " in done.stderr
    assert f"fix: log in with a user that may (`skopeo login {built.registry.host}`" in done.stderr


def test_an_unknown_ca_is_reported_as_one_before_the_bundle_is_read(built: Built) -> None:
    done = built.push("--registry", f"{built.registry.host}/{PREFIX}")
    assert done.returncode == ExitCode.FAILED
    assert f"error: the certificate of {built.registry.host} is not trusted: " in done.stderr
    assert "fix: give the CA that signed it (--ca FILE)" in done.stderr
    assert "checked" not in done.stdout


def test_no_registry_is_reported_as_such_before_the_bundle_is_read(built: Built) -> None:
    done = built.push("--registry", "127.0.0.2:1/x")
    assert done.returncode == ExitCode.FAILED
    assert "error: no registry answers at 127.0.0.2:1: " in done.stderr
    assert "checked" not in done.stdout


def test_a_registry_without_tls_is_reported_as_such(built: Built, tmp_path: Path) -> None:
    with local_registry.running(tmp_path, "127.0.0.3") as plain:
        done = built.push("--registry", f"{plain.host}/x")
    assert done.returncode == ExitCode.FAILED
    assert f"error: {plain.host} speaks HTTP without TLS: " in done.stderr


def test_a_registry_whose_disk_is_full_is_reported_and_takes_the_rest_once_it_is_not(
    built: Built, tmp_path: Path
) -> None:
    data = tmp_path / "data"
    data.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64m", "small", data], check=True)
    try:
        with local_registry.secure(tmp_path) as full:
            full.login(tmp_path / "auth.json")
            to = ("--registry", f"{full.host}/x", "--ca", str(full.ca))
            done = built.push(*to, REGISTRY_AUTH_FILE=str(tmp_path / "auth.json"))
            assert done.returncode == ExitCode.FAILED
            # It answers 500, or resets the connection before the answer is read.
            assert re.search(rf"error: {full.host} (can't store it|broke off an upload): ", done.stderr)
            assert "its disk may be full" in done.stderr
            sent = {path for path in full.requests("PUT") if "/manifests/" in path}
            assert len(sent) == 2  # the smaller ones are there
            subprocess.run(["mount", "-o", "remount,size=512m", data], check=True)
            before = full.requests("PATCH")
            done = built.push(*to, REGISTRY_AUTH_FILE=str(tmp_path / "auth.json"))
            assert done.returncode == 0, done.stderr
            later = full.requests("PATCH")[len(before) :]
            assert later
            assert {path.split("/blobs/")[0] for path in later} == {"/v2/x/weights"}
    finally:
        subprocess.run(["umount", data], check=True)


def test_a_delta_brings_other_weights_and_takes_the_rest_from_the_bundle_before(
    built: Built, pushed: dict[str, str], tmp_path: Path
) -> None:
    model = tmp_path / "m"
    for name, content in {**FILES, "config.json": b"[]"}.items():
        (model / name).parent.mkdir(parents=True, exist_ok=True)
        (model / name).write_bytes(content)
    since = ("--since", str(built.bundle / "manifest.json"))
    done = built.build(tmp_path / "delta", "--weights", str(model), *since)
    assert done.returncode == 0, done.stdout + done.stderr
    large = [path for path in (tmp_path / "delta" / "images").rglob("*") if path.stat().st_size > 10**6]
    assert large == []
    to = ("--registry", f"{built.registry.host}/{PREFIX}", "--ca", str(built.registry.ca))
    refused = built.push(*to, bundle=tmp_path / "delta")
    assert refused.returncode == ExitCode.BAD_INPUT
    assert "this delta leaves out images/nginx-" in refused.stderr
    done = built.push(*to, "--base", str(built.bundle), bundle=tmp_path / "delta")
    assert done.returncode == 0, done.stderr
    assert pushed["vllmImage"] in done.stdout
    assert pushed["weightsImage"] not in done.stdout


def test_a_damaged_bundle_changes_nothing_in_the_registry(built: Built, tmp_path: Path) -> None:
    damaged = tmp_path / "b"
    shutil.copytree(built.bundle, damaged)
    layer = max((damaged / "images").glob("weights-*/blobs/sha256/*"), key=lambda path: path.stat().st_size)
    with layer.open("r+b") as file:
        file.seek(600)
        file.write(b"?")
    before = built.registry.requests("PUT")
    done = built.push(bundle=damaged)
    assert done.returncode == ExitCode.FAILED
    assert f"{layer.relative_to(damaged)}: altered" in done.stderr
    assert built.registry.requests("PUT") == before

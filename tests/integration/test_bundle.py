"""A bundle is collected from a real registry, Docker, a hub and PyPI, and used without network."""

import fcntl
import hashlib
import io
import json
import os
import signal
import subprocess
import tarfile
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from secrets import token_hex

import docker
import pytest
import yaml
from cyclonedx.schema import SchemaVersion
from cyclonedx.validation.json import JsonStrictValidator

from scripts.cli.bundle import images
from scripts.lab import hub as hub_stand_in
from scripts.lab.hub import COMMIT, Hub
from scripts.lib.errors import ExitCode
from tests.integration.conftest import ROOT, installed
from tests.support import local_registry
from tests.support.local_registry import Registry
from tests.unit.cli.bundle import releases
from tests.unit.cli.bundle.releases import Mirror

pytestmark = pytest.mark.usefixtures("machine")

STACK = "site"
TOKEN = f"hf_{token_hex(16)}"
LOCAL = "localhost/elastic-vllm/bundled:1.30.6"
WEIGHTS = "model.safetensors"
FILES = {WEIGHTS: bytes(range(250)) * 100_000, "config.json": b"{}", "tokenizer.json": b"{}", "LICENSE": b""}
WITHOUT_NETWORK = ["unshare", "--net"]


@dataclass(frozen=True)
class Site:
    """A connected machine with the project, and a directory to bundle into."""

    project: Path
    bundle: Path
    key: Path
    hub: Hub
    registry: Registry
    releases: Mirror

    def start(self, *arguments: str, within: list[str] | None = None) -> subprocess.Popen[str]:
        command = [*(within or []), str(self.project / "scripts" / "elastic-vllm"), "bundle", "build", "--stack", STACK]
        options = ["--pulumi", self.releases.url]
        return subprocess.Popen(
            [*command, "--output", str(self.bundle), "--sign-key", str(self.key), *options, *arguments],
            env={**os.environ, "HF_TOKEN": TOKEN},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )

    def build(self, *arguments: str, within: list[str] | None = None) -> tuple[int, str]:
        process = self.start(*arguments, within=within)
        output = process.communicate(timeout=300)[0]
        return process.returncode, output

    def verify(self) -> subprocess.CompletedProcess[str]:
        command = [*WITHOUT_NETWORK, str(ROOT / "scripts" / "elastic-vllm"), "bundle", "verify", str(self.bundle)]
        return subprocess.run([*command, "--key", f"{self.key}.pub"], capture_output=True, text=True, check=False)

    @property
    def parts(self) -> dict[str, dict[str, object]]:
        parts: dict[str, dict[str, object]] = json.loads((self.bundle / "manifest.json").read_text())["parts"]
        return parts

    def set(self, **settings: object) -> None:
        path = self.project / "stacks" / f"Pulumi.{STACK}.yaml"
        config = yaml.safe_load(path.read_text())["config"] if path.exists() else {}
        config |= {f"elastic-vllm:{key}": value for key, value in settings.items()}
        path.write_text(yaml.safe_dump({"config": config}))


def import_image(name: str, content: bytes) -> str:
    """Import an image with one file and return its id."""
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w") as tar:
        entry = tarfile.TarInfo("file")
        entry.size = len(content)
        tar.addfile(entry, io.BytesIO(content))
    client = docker.from_env()
    client.api.import_image_from_data(stream.getvalue(), *name.rsplit(":", 1))
    return str(client.images.get(name).id)


def project(directory: Path) -> Path:
    """Copy this project as it is now into a separate repository whose files are all committed."""
    directory.mkdir()
    # Stack files that are not committed belong to other tests, and may disappear meanwhile.
    listed = ["git", "-C", str(ROOT), "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    listed.append("--exclude=stacks/")
    names = subprocess.run(listed, capture_output=True, check=True).stdout.split(b"\0")
    there = b"\0".join(name for name in names if name and (ROOT / os.fsdecode(name)).is_file())
    packed = subprocess.run(
        ["tar", "-C", ROOT, "-c", "--null", "-T", "-"], input=there, capture_output=True, check=True
    )
    subprocess.run(["tar", "-C", directory, "-x"], input=packed.stdout, check=True)
    identity = ["-c", "user.name=test", "-c", "user.email=test@localhost"]
    for command in (["init", "-q"], ["add", "-A"], [*identity, "commit", "-q", "-m", "all"]):
        subprocess.run(["git", "-C", directory, *command], check=True)
    (directory / ".venv").symlink_to(ROOT / ".venv")
    return directory


@pytest.fixture(scope="module")
def site(machine: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    installed("skopeo", "skopeo")
    directory = tmp_path_factory.mktemp("site")
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", directory / "key"], check=True)
    (directory / "registry").mkdir()
    with (
        local_registry.running(directory / "registry") as registry,
        hub_stand_in.running("acme/tiny", FILES) as hub,
        releases.running() as mirror,
    ):
        hub.token = TOKEN
        made = Site(project(directory / "project"), directory / "bundle", directory / "key", hub, registry, mirror)
        digest = registry.push("team/vllm:v0.32.0", b"vllm")
        import_image(LOCAL, b"nginx")
        made.set(
            vllmImage=f"{registry.host}/team/vllm:v0.32.0@{digest}",
            nginxImage=LOCAL,
            model="acme/tiny",
            weightsGb=1,
            modelRevision=COMMIT,
            hfEndpoint=hub.endpoint,
        )
        yield made
    docker.from_env().images.remove(LOCAL, force=True)


@pytest.mark.parametrize(
    ("setting", "image", "cause"),
    [
        ("nginxImage", "localhost/elastic-vllm/none:1", "is not in this machine's Docker"),
        ("vllmImage", f"HOST/team/vllm:v0.32.0@sha256:{'0' * 64}", "in its registry"),
        ("vllmImage", f"HOST/team/none:v0.32.0@sha256:{'0' * 64}", "in its registry"),
    ],
)
def test_an_image_that_is_nowhere_is_the_users_mistake(site: Site, setting: str, image: str, cause: str) -> None:
    stack = site.project / "stacks" / f"Pulumi.{STACK}.yaml"
    before = stack.read_text()
    site.set(**{setting: image.replace("HOST", site.registry.host)})
    code, output = site.build()
    stack.write_text(before)
    assert code == ExitCode.BAD_INPUT, output
    assert [cause in line for line in output.splitlines() if "error: " in line] == [True]
    assert "Traceback" not in output


@pytest.fixture(scope="module")
def built(site: Site) -> Site:
    """A bundle built once, after a first attempt that was killed while it downloaded weights."""
    site.hub.hold_after[WEIGHTS] = 12 * 2**20
    process = site.start()
    end = time.monotonic() + 120
    while not site.hub.ranges(WEIGHTS) or not any(site.bundle.rglob("*model.safetensors")):
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < end
        time.sleep(0.05)
    part = next(site.bundle.rglob("*model.safetensors"))
    while part.stat().st_size < 10 * 2**20:
        assert time.monotonic() < end
        time.sleep(0.05)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    site.hub.release.set()
    assert site.verify().returncode == 2
    code, output = site.build()
    assert code == 0, output
    return site


def test_it_is_complete_and_signed_and_resumes_after_an_interruption(built: Site) -> None:
    done = built.verify()
    assert done.returncode == 0, done.stdout + done.stderr
    parts = ["image-vllm", "image-nginx", "weights", "pulumi", "wheels", "project", "stack", "guide", "sbom"]
    assert list(built.parts) == parts
    place = next((built.bundle / "weights").iterdir())
    assert {name: (place / name).read_bytes() for name in FILES} == FILES
    first, *later = built.hub.ranges(WEIGHTS)
    assert first is None
    assert [each for each in later if each], "it was fetched from its beginning again"


def test_the_hubs_token_is_nowhere_in_it(built: Site) -> None:
    found = subprocess.run(["grep", "-rlF", TOKEN, built.bundle], capture_output=True, text=True, check=False)
    assert found.stdout == ""


def test_its_bill_of_materials_is_valid_and_whole(built: Site) -> None:
    text = (built.bundle / "sbom" / "elastic-vllm.cdx.json").read_text()
    assert JsonStrictValidator(SchemaVersion.V1_6).validate_str(text) is None
    components = json.loads(text)["components"]
    kinds = Counter(component["type"] for component in components)
    wheels = list((built.bundle / "wheels").iterdir())
    assert kinds == {"container": 2, "machine-learning-model": 1, "library": len(wheels), "application": 5}
    pulumi = next(each for each in components if each["name"] == "pulumi" and each["type"] == "library")
    (wheel,) = (path for path in wheels if path.name.startswith(f"pulumi-{pulumi['version']}-"))
    assert pulumi["hashes"][0]["content"] == hashlib.sha256(wheel.read_bytes()).hexdigest()
    assert pulumi["licenses"]


def test_a_second_build_needs_no_network_and_changes_nothing(built: Site) -> None:
    def state() -> dict[str, tuple[int, int]]:
        files = (path for path in built.bundle.rglob("*") if path.is_file() and path.name != "SHA256SUMS.sig")
        return {str(path): (path.stat().st_mtime_ns, path.stat().st_size) for path in files}

    before = state()
    code, output = built.build(within=WITHOUT_NETWORK)
    assert code == 0, output
    assert "collected" not in output
    assert state() == before
    assert built.verify().returncode == 0


@pytest.mark.parametrize("role", ["vllm", "nginx"])
def test_its_images_are_loaded_as_what_they_are(built: Site, role: str) -> None:
    client = docker.from_env()
    part = built.parts[f"image-{role}"]
    about = part["about"]
    assert isinstance(about, dict)
    (place,) = (built.bundle / "images").glob(f"{role}-*")
    id_ = images.loaded_id(place)
    client.images.remove(id_, force=True) if role == "nginx" else None
    assert id_ not in {image.id for image in client.images.list()}
    packed = subprocess.run(["tar", "-C", place, "-c", "."], capture_output=True, check=True).stdout
    subprocess.run(["docker", "load"], input=packed, check=True, capture_output=True)
    assert client.images.get(about["name"]).id == id_
    saved = subprocess.run(["docker", "image", "save", id_], capture_output=True, check=True).stdout
    assert role.encode() in saved
    if role == "vllm":
        client.images.remove(about["name"])


def test_another_model_or_image_is_collected_alone(built: Site) -> None:
    """The rest is not fetched again, and parts that are no longer needed are removed."""
    old = {path.name for path in (built.bundle / "images").iterdir()}
    import_image(LOCAL, b"nginx, newer")
    code, output = built.build()
    assert code == 0, output
    collected = [line.split()[1] for line in output.splitlines() if line.startswith("collected")]
    assert collected == ["image-nginx", "sbom"]
    new = {path.name for path in (built.bundle / "images").iterdir()}
    assert len(new) == len(old) == 2
    assert len(new & old) == 1
    assert built.verify().returncode == 0


@pytest.mark.slow
def test_what_was_damaged_is_collected_again(built: Site) -> None:
    wheel = next((built.bundle / "wheels").glob("pulumi-*.whl"))
    wheel.write_bytes(wheel.read_bytes()[:-1])
    config = next((built.bundle / "weights").iterdir()) / "config.json"
    config.write_text("damaged")
    assert built.verify().returncode == 1
    code, output = built.build()
    assert code == 0, output
    assert [line.split()[1] for line in output.splitlines() if line.startswith("collected")] == ["weights", "wheels"]
    assert built.verify().returncode == 0


@pytest.mark.slow
def test_the_project_is_installed_from_it_without_network(built: Site, tmp_path: Path) -> None:
    with tarfile.open(built.bundle / "project" / "elastic-vllm.tar.gz") as archive:
        archive.extractall(tmp_path, filter="data")
    there = tmp_path / "elastic-vllm"
    environment = {"PATH": os.environ["PATH"], "HOME": str(tmp_path)}

    def run(*command: str | Path) -> subprocess.CompletedProcess[str]:
        full = [*WITHOUT_NETWORK, *command]
        return subprocess.run(full, env=environment, capture_output=True, text=True, check=False)

    done = run(there / "scripts" / "elastic-vllm", "bundle", "install", built.bundle)
    assert done.returncode == 0, done.stdout + done.stderr
    installed = run(there / ".venv" / "bin" / "python", "-c", "import pulumi_gcp, pulumi_docker, openai; print('all')")
    assert installed.stdout == "all\n"
    # The scripts find nothing left to install.
    assert run(there / "scripts" / "elastic-vllm", "verify", "--help").returncode == 0
    again = run(there / "scripts" / "elastic-vllm", "bundle", "install", built.bundle)
    assert again.stdout.splitlines()[0] == "installed: .venv, .pulumi"
    calls = (there / ".pulumi" / "calls").read_text().splitlines()
    assert len(calls) == len(releases.WANTED) - 1
    assert all(line.startswith(f"{there}/.pulumi plugin install resource ") for line in calls)

    # Updates: a delta needs no packages where they are installed, and reports what it needs where they are not.
    import_image(LOCAL, b"nginx, of the delta")
    delta = replace(built, bundle=tmp_path / "delta")
    code, output = delta.build("--since", str(built.bundle / "manifest.json"))
    assert code == 0, output
    collected = [line.split()[1] for line in output.splitlines() if line.startswith("collected")]
    assert collected == ["image-nginx", "guide", "sbom"]
    assert {path.name for path in delta.bundle.iterdir() if path.is_dir()} == {"images", "sbom", "site"}
    base = hashlib.sha256((built.bundle / "manifest.json").read_bytes()).hexdigest()
    checked = delta.verify()
    assert checked.returncode == 0, checked.stdout
    assert checked.stdout.strip().endswith(f"a delta since the bundle whose manifest.json has SHA-256 {base}")
    assert run(there / "scripts" / "elastic-vllm", "bundle", "install", delta.bundle).returncode == 0
    subprocess.run(["rm", "-r", there / ".venv"], check=True)
    refused = run(there / "scripts" / "elastic-vllm", "bundle", "install", delta.bundle)
    assert refused.returncode == 1
    assert f"--base DIR, whose manifest.json has SHA-256 {base}" in refused.stderr
    done = run(there / "scripts" / "elastic-vllm", "bundle", "install", delta.bundle, "--base", built.bundle)
    assert done.returncode == 0, done.stdout + done.stderr


def test_too_little_disk_is_reported_first(built: Site, tmp_path: Path) -> None:
    small = replace(built, bundle=tmp_path / "small")
    small.bundle.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64m", "small", small.bundle], check=True)
    try:
        code, output = small.build()
        left = list(small.bundle.iterdir())
    finally:
        subprocess.run(["umount", small.bundle], check=True)
    assert code == 1
    assert "too little disk" in output
    assert "2.1 GB needed" in output
    assert left == []


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"vllmImage": "docker.io/vllm/vllm-openai:v0.32.0"}, "not pinned as name:tag@sha256:digest"),
        ({"modelRevision": "main"}, "not a commit of 40 hexadecimal digits"),
        ({"nginxImage": "localhost/nobody/has:this"}, "build or load it here first"),
        ({"nginximage": "x"}, "no such setting; did you mean nginxImage?"),
    ],
)
def test_settings_that_cannot_be_bundled(site: Site, settings: dict[str, str], message: str) -> None:
    path = site.project / "stacks" / f"Pulumi.{STACK}.yaml"
    before = path.read_text()
    site.set(**settings)
    try:
        code, output = site.build()
    finally:
        path.write_text(before)
    assert code in {ExitCode.FAILED, ExitCode.BAD_INPUT}
    assert message in " ".join(output.split())
    assert "Traceback" not in output


def test_a_changed_project_is_no_commit(site: Site) -> None:
    readme = site.project / "README.md"
    before = readme.read_text()
    readme.write_text(f"{before}\n")
    try:
        code, output = site.build()
    finally:
        readme.write_text(before)
    assert code == 1
    assert "README.md is changed and not committed\n  fix: commit it" in output


def test_two_builds_at_once_are_one(built: Site) -> None:
    directory = os.open(built.bundle, os.O_RDONLY)
    try:
        fcntl.flock(directory, fcntl.LOCK_EX)
        code, output = built.build()
    finally:
        os.close(directory)
    assert code == 1
    assert "another build is writing to" in output
    assert built.verify().returncode == 0


def test_a_directory_with_something_else_in_it_is_left_alone(site: Site, tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("mine")
    other = replace(site, bundle=tmp_path)
    code, output = other.build()
    assert code == ExitCode.BAD_INPUT
    assert "holds thesis.txt\n  fix: give a new directory" in output
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]

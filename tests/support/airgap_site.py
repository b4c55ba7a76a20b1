"""A site without network: bundles that were built outside, the project from one of them, and a server."""

import hashlib
import json
import os
import shlex
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from scripts.cli.bundle import collect
from tests.integration.conftest import ROOT
from tests.integration.test_bundle import project
from tests.support import debian_roots
from tests.support.made_stacks import NGINX_IMAGE
from tests.support.netns_hosts import SERVER, Hosts
from tests.support.netns_machine import outcomes

STACK = "sealed"
FIRST, SECOND = "rehearsal/tiny", "rehearsal/tiny-2"
CATALOGUE = "scripts/lab/models.yaml"
BALLAST = 300_000_000
LARGE_IMAGE = "localhost/elastic-vllm/vllm-large:0.32.0"
CHATTER = 1_000_000
"""Upper bound, in bytes, for the traffic of an `up` that brings nothing: scripts, and requests to Docker."""
STORE = "/var/lib/elastic-vllm/bundle"
MODELS = Path("/var/lib/elastic-vllm/models")


@dataclass(frozen=True)
class Factory:
    """A connected machine that builds bundles; `key` is the signer's, `probe` was carried out of the site."""

    directory: Path
    project: Path
    key: Path
    probe: Path

    @property
    def public_key(self) -> Path:
        return self.key.with_suffix(".pub")

    def look_at(self, hosts: Hosts) -> None:
        """Probe the server of these hosts."""
        script = (self.project / "scripts" / "cli" / "bundle" / "probe.sh").read_text()
        self.probe.write_text(hosts.server.run("bash", "-c", script))

    def build(self, name: str, vllm_image: str, model: str, *arguments: str | Path, runtime: str = "docker") -> Path:
        """Build the bundle of that name, or resume its build, and return its directory."""
        settings = {
            "host": SERVER,
            "accelerator": "none",
            "vllmImage": vllm_image,
            "nginxImage": NGINX_IMAGE,
            "modelCatalogue": CATALOGUE,
            "model": model,
            "modelSource": "host",
            "containerRuntime": runtime,
        }
        stack = self.project / "stacks" / f"Pulumi.{STACK}.yaml"
        stack.write_text(yaml.safe_dump({"config": {f"elastic-vllm:{key}": value for key, value in settings.items()}}))
        weights = self.directory / "models" / model.replace("/", "--")
        command: list[str | Path] = [self.project / "scripts" / "elastic-vllm", "bundle", "build", "--stack", STACK]
        command += ["--output", self.directory / name, "--weights", weights, "--sign-key", self.key, *arguments]
        command += ["--probe", self.probe, "--pulumi", "none"]
        pip = {"PIP_NO_INDEX": "1", "PIP_FIND_LINKS": str(wheels())}
        done = subprocess.run(command, capture_output=True, text=True, check=False, env={**os.environ, **pip})
        assert done.returncode == 0, done.stdout + done.stderr
        return self.directory / name


def wheels() -> Path:
    """Return a directory with the wheels of requirements.txt, kept because pip needs ten seconds to find them."""
    wanted = collect.wheels(ROOT)
    made = debian_roots.DIRECTORY / f"wheels-{hashlib.sha256(wanted.source.encode()).hexdigest()[:12]}"
    with debian_roots.alone():
        if not made.exists():
            half_made = debian_roots.DIRECTORY / "wheels"
            shutil.rmtree(half_made, ignore_errors=True)
            wanted.make(half_made, print)
            half_made.rename(made)
    return made


def factory(directory: Path, hosts: Hosts) -> Factory:
    """Create a factory for that server in an empty directory."""
    key = directory / "signer"
    # The second image is the first with another tensor, for tests that only need a different one.
    for model in ("rehearsal--tiny", "rehearsal--tiny-2"):
        shutil.copytree(MODELS / "rehearsal--tiny", directory / "models" / model)
    with (directory / "models/rehearsal--tiny-2/model.safetensors").open("r+b") as file:
        file.seek(-1, os.SEEK_END)
        file.write(b"?")
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", key], check=True)
    made = Factory(directory, project(directory / "project"), key, directory / "probe.json")
    made.look_at(hosts)
    return made


@dataclass
class Site:
    """A control machine that has only what came on the disk; `settings` are those of its stack file."""

    hosts: Hosts
    project: Path
    settings: dict[str, Any] = field(default_factory=dict)

    def set(self, **settings: object) -> None:
        """Change the stack file; None removes a setting."""
        self.settings |= settings
        config = {f"elastic-vllm:{key}": value for key, value in self.settings.items() if value is not None}
        (self.project / "stacks" / f"Pulumi.{STACK}.yaml").write_text(yaml.safe_dump({"config": config}))

    def bundle(self, *arguments: str | Path) -> tuple[int, str]:
        return self.hosts.control.attempt(self.project / "scripts" / "elastic-vllm", "bundle", *arguments)

    def rehearse(self, *arguments: str) -> tuple[int, str]:
        return self.hosts.control.attempt(*self._rehearse(*arguments))

    def up(self) -> dict[str, str]:
        """Run `up`, which must succeed, and map each resource to created, unchanged, ..."""
        code, output = self.rehearse("up")
        assert code == 0, output
        return outcomes(output)

    def start_up(self) -> subprocess.Popen[str]:
        return self.hosts.control.start(*self._rehearse("up"))

    def verify(self) -> str:
        """Return the report of verify's checks, which must all pass."""
        code, report = self.rehearse("verify")
        assert code == 0, report
        return report

    def containers(self) -> dict[str, str]:
        """Map each container to its id and start time."""
        shown = self.hosts.server.run(
            "docker", "ps", "--filter", f"name=elastic-vllm-{STACK}", "--format", "{{.Names}} {{.ID}} {{.CreatedAt}}"
        )
        return {line.split()[0].rpartition("-")[2]: line for line in shown.splitlines()}

    def served(self) -> list[str]:
        """Return the models that the endpoint lists for the key."""
        answer = json.loads(self.hosts.control.run(*self._curl("-sS")))
        return [str(model["id"]) for model in answer["data"]]

    @contextmanager
    def asked_again_and_again(self) -> Iterator[list[str]]:
        """Run a client until the block ends; the list then has the statuses that it got."""
        command = shlex.join(self._curl("-sS", "-o", "/dev/null", "-w", "%{http_code}\\n"))
        client = self.hosts.control.start("bash", "-c", f"while {command} || echo failed; do sleep 0.2; done")
        statuses: list[str] = []
        try:
            yield statuses
        finally:
            kill(client)
            assert client.stdout
            statuses += client.stdout.read().splitlines()

    def _curl(self, *options: str) -> list[str]:
        """Return the command that asks for the models."""
        code, output = self.rehearse("outputs", "--json", "--show-secrets")
        assert code == 0, output
        outputs = json.loads(output)
        secret, ca = self.hosts.directory / "curl", self.hosts.directory / "ca.pem"
        secret.write_text(f'header = "Authorization: Bearer {outputs["connectorApiKey"]}"\n')
        ca.write_text(outputs["caCertificate"])
        url = outputs["connectorUrl"].replace("/chat/completions", "/models")
        return ["curl", *options, "--max-time", "20", "--config", str(secret), "--cacert", str(ca), url]

    def sent_bytes(self) -> int:
        """Return the number of bytes sent to the server so far."""
        (link,) = json.loads(self.hosts.control.run("ip", "-json", "-statistics", "link", "show", "cable"))
        return int(link["stats64"]["tx"]["bytes"])

    def _rehearse(self, *arguments: str) -> list[str]:
        return [str(self.project / "scripts" / "rehearse"), *arguments, "--stack", STACK]


def unpack_project(bundle: Path, directory: Path) -> Path:
    """Unpack the project from a bundle, as its guide describes."""
    directory.mkdir(exist_ok=True)
    subprocess.run(["tar", "-xzf", bundle / "project" / "elastic-vllm.tar.gz", "-C", directory], check=True)
    return directory / "elastic-vllm"


def copy_of(bundle: Path, to: Path) -> Path:
    """Copy a bundle by hard links; files in the copy must be replaced, never written to."""
    shutil.copytree(bundle, to, copy_function=os.link)
    return to


def replace(path: Path, content: bytes) -> None:
    """Replace a file that may have several links by another one with this content."""
    path.unlink()
    path.write_bytes(content)


def manifest(bundle: Path) -> Mapping[str, Any]:
    found: dict[str, Any] = json.loads((bundle / "manifest.json").read_text())
    return found


def kill(process: subprocess.Popen[str]) -> None:
    """Kill a process with its whole group, without a chance to clean up."""
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def wait_until(true: Callable[[], bool], process: subprocess.Popen[str], seconds: float = 120) -> None:
    """Poll every 3 ms until the condition holds; the process must keep running."""
    limit = time.monotonic() + seconds
    while not true():
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < limit
        time.sleep(0.003)


@dataclass(frozen=True)
class Made:
    """Bundles that were built outside: two models, and another image."""

    factory: Factory
    small: str
    first: Path
    second: Path
    large: Path


def installed_from(bundle: Path, factory: Factory, hosts: Hosts) -> Site:
    """Follow the guide in the bundle up to the settings."""
    site = Site(hosts, unpack_project(bundle, hosts.directory / "site"))
    code, output = site.bundle("verify", bundle, "--key", factory.public_key)
    assert code == 0, output
    code, output = site.bundle("install", bundle)
    assert code == 0, output
    site.set(**hosts.settings, accelerator="none", modelCatalogue=CATALOGUE, bundle=str(bundle))
    site.set(bundleKey=str(factory.public_key))
    return site


def back_to_first(site: Site, made: Made) -> None:
    """Restore the state after the first `up`, without anything that another bundle brought to the server."""
    site.set(bundle=str(made.first), bundleOnHost=None)
    site.up()
    (weights,) = (made.second / "weights").iterdir()
    site.hosts.server.shell(f"docker image prune --all --force && rm -rf {MODELS}/{weights.name} {STORE}/*/vllm-*")


def bytes_of(bundle: Path, part: str) -> int:
    """Return the size of a part of a bundle."""
    return sum(int(file["bytes"]) for file in manifest(bundle)["parts"][part]["files"])


def checksums(bundle: Path) -> set[str]:
    """Return the checksums of all files that a bundle brings to a server."""
    parts = manifest(bundle)["parts"].items()
    brought = [part for name, part in parts if name.startswith(("image-", "weights", "packages"))]
    return {file["sha256"] for part in brought for file in part["files"]}


def checksums_on(site: Site) -> set[str]:
    output = site.hosts.server.shell(f"find {STORE} {MODELS} -type f -exec sha256sum {{}} +")
    return {line[:64] for line in output.splitlines()}

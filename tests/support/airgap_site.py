"""A site without network: bundles that were built outside, the project out of one of them, and a server."""

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
BALLAST = 300_000_000
LARGE_IMAGE = "localhost/elastic-vllm/vllm-large:0.32.0"
CHATTER = 1_000_000
"""More bytes than an `up` that brings nothing sends: scripts, and what Docker is asked."""
STORE = "/var/lib/elastic-vllm/bundle"
MODELS = Path("/var/lib/elastic-vllm/models")


@dataclass(frozen=True)
class Factory:
    """A connected machine that builds bundles; `key` is the signer's, `probe` what was carried out of the site."""

    directory: Path
    project: Path
    key: Path
    probe: Path

    @property
    def public_key(self) -> Path:
        return self.key.with_suffix(".pub")

    def look_at(self, hosts: Hosts) -> None:
        """Probe their server."""
        script = (self.project / "scripts" / "cli" / "bundle" / "probe.sh").read_text()
        self.probe.write_text(hosts.server.run("bash", "-c", script))

    def build(self, name: str, vllm_image: str, model: str, *arguments: str | Path, runtime: str = "docker") -> Path:
        """A bundle of that name, built anew or gone on with; returns its directory."""
        settings = {
            "host": SERVER,
            "accelerator": "none",
            "vllmImage": vllm_image,
            "nginxImage": NGINX_IMAGE,
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
        pip = {"PIP_NO_INDEX": "1", "PIP_FIND_LINKS": str(_wheels())}
        done = subprocess.run(command, capture_output=True, text=True, check=False, env={**os.environ, **pip})
        assert done.returncode == 0, done.stdout + done.stderr
        return self.directory / name


def _wheels() -> Path:
    """What requirements.txt names, fetched once and kept: pip takes ten seconds to find the right ones on an index."""
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
    """One for that server, in an empty directory."""
    key = directory / "signer"
    # The second is the first with another tensor: it is for what only serves what it has.
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
    """Where the program runs, by what came on the disk; `settings` are those of its stack file."""

    hosts: Hosts
    project: Path
    settings: dict[str, Any] = field(default_factory=dict)

    def set(self, **settings: object) -> None:
        """Change the stack file; None takes a setting away."""
        self.settings |= settings
        config = {f"elastic-vllm:{key}": value for key, value in self.settings.items() if value is not None}
        (self.project / "stacks" / f"Pulumi.{STACK}.yaml").write_text(yaml.safe_dump({"config": config}))

    def bundle(self, *arguments: str | Path) -> tuple[int, str]:
        return self.hosts.control.attempt(self.project / "scripts" / "elastic-vllm", "bundle", *arguments)

    def rehearse(self, *arguments: str) -> tuple[int, str]:
        return self.hosts.control.attempt(*self._rehearse(*arguments))

    def up(self) -> dict[str, str]:
        """Which must succeed; resource -> created, unchanged, ..."""
        code, said = self.rehearse("up")
        assert code == 0, said
        return outcomes(said)

    def start_up(self) -> subprocess.Popen[str]:
        return self.hosts.control.start(*self._rehearse("up"))

    def verify(self) -> str:
        """The report of scripts/elastic-vllm verify's checks, which must all pass."""
        code, said = self.rehearse("verify")
        assert code == 0, said
        return said

    def containers(self) -> dict[str, str]:
        """Container -> its id and when it was started."""
        shown = self.hosts.server.run(
            "docker", "ps", "--filter", f"name=elastic-vllm-{STACK}", "--format", "{{.Names}} {{.ID}} {{.CreatedAt}}"
        )
        return {line.split()[0].rpartition("-")[2]: line for line in shown.splitlines()}

    def served(self) -> list[str]:
        """The models that the endpoint names to who has the key."""
        answer = json.loads(self.hosts.control.run(*self._curl("-sS")))
        return [str(model["id"]) for model in answer["data"]]

    @contextmanager
    def asked_again_and_again(self) -> Iterator[list[str]]:
        """A client until the block ends; then the statuses that it got are in the list."""
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
        """The command that asks for the models."""
        code, said = self.rehearse("outputs", "--json", "--show-secrets")
        assert code == 0, said
        outputs = json.loads(said)
        secret, ca = self.hosts.directory / "curl", self.hosts.directory / "ca.pem"
        secret.write_text(f'header = "Authorization: Bearer {outputs["connectorApiKey"]}"\n')
        ca.write_text(outputs["caCertificate"])
        url = outputs["connectorUrl"].replace("/chat/completions", "/models")
        return ["curl", *options, "--max-time", "20", "--config", str(secret), "--cacert", str(ca), url]

    def sent_bytes(self) -> int:
        """What went over the cable to the server so far."""
        (link,) = json.loads(self.hosts.control.run("ip", "-json", "-statistics", "link", "show", "cable"))
        return int(link["stats64"]["tx"]["bytes"])

    def _rehearse(self, *arguments: str) -> list[str]:
        return [str(self.project / "scripts" / "rehearse"), *arguments, "--stack", STACK]


def unpack_project(bundle: Path, directory: Path) -> Path:
    """The project out of a bundle, as its guide says."""
    directory.mkdir(exist_ok=True)
    subprocess.run(["tar", "-xzf", bundle / "project" / "elastic-vllm.tar.gz", "-C", directory], check=True)
    return directory / "elastic-vllm"


def copy_of(bundle: Path, to: Path) -> Path:
    """A copy that takes no room; files in it are replaced, never written to."""
    shutil.copytree(bundle, to, copy_function=os.link)
    return to


def replace(path: Path, content: bytes) -> None:
    """Another content in place of a file that may have several names."""
    path.unlink()
    path.write_bytes(content)


def manifest(bundle: Path) -> Mapping[str, Any]:
    found: dict[str, Any] = json.loads((bundle / "manifest.json").read_text())
    return found


def kill(process: subprocess.Popen[str]) -> None:
    """All that it started with it; nothing is told to end."""
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def wait_until(true: Callable[[], bool], process: subprocess.Popen[str], seconds: float = 120) -> None:
    """Look every 3 ms, while the process runs."""
    limit = time.monotonic() + seconds
    while not true():
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < limit
        time.sleep(0.003)


@dataclass(frozen=True)
class Made:
    """What was built outside: two models, and another image."""

    factory: Factory
    small: str
    first: Path
    second: Path
    large: Path


def installed_from(bundle: Path, factory: Factory, hosts: Hosts) -> Site:
    """What the guide in the bundle says, up to the settings."""
    site = Site(hosts, unpack_project(bundle, hosts.directory / "site"))
    code, said = site.bundle("verify", bundle, "--key", factory.public_key)
    assert code == 0, said
    code, said = site.bundle("install", bundle)
    assert code == 0, said
    site.set(**hosts.settings, accelerator="none", bundle=str(bundle))
    site.set(bundleKey=str(factory.public_key))
    return site


def back_to_first(site: Site, made: Made) -> None:
    """As after the first `up`: what another bundle brought is gone from the server."""
    site.set(bundle=str(made.first), bundleOnHost=None)
    site.up()
    (weights,) = (made.second / "weights").iterdir()
    site.hosts.server.shell(f"docker image prune --all --force && rm -rf {MODELS}/{weights.name} {STORE}/*/vllm-*")


def bytes_of(bundle: Path, part: str) -> int:
    """What a part of a bundle takes."""
    return sum(int(file["bytes"]) for file in manifest(bundle)["parts"][part]["files"])


def checksums(bundle: Path) -> set[str]:
    """Of what a bundle brings to a server."""
    parts = manifest(bundle)["parts"].items()
    brought = [part for name, part in parts if name.startswith(("image-", "weights", "packages"))]
    return {file["sha256"] for part in brought for file in part["files"]}


def checksums_on(site: Site) -> set[str]:
    said = site.hosts.server.shell(f"find {STORE} {MODELS} -type f -exec sha256sum {{}} +")
    return {line[:64] for line in said.splitlines()}

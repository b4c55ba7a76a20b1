"""A known value in every secret setting, really used: no trace of `up`, a failed `up` or a support archive shows it.

The tests use a separate stack whose hub, Kibana and Elasticsearch ask for these values, with a provided certificate.
"""

import base64
import json
import secrets as random
import shutil
import subprocess
import tarfile
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import yaml
from cryptography.hazmat.primitives import serialization

from components import render
from components.settings.problems import SECRETS
from scripts.lab import hub as hub_stand_in
from scripts.lab.hub import COMMIT, Hub
from scripts.lib.private_files import write_private
from tests.integration.conftest import REHEARSAL, ROOT, Deployment, deployment, rehearse
from tests.support import elastic_stand_in, local_sshd, process_trace, vllm_stand_in
from tests.support.canaries import changed_files, forms
from tests.support.elastic_stand_in import Elastic
from tests.support.made_stacks import stack_file
from tests.support.verify_server import issue, new_authority

pytestmark = pytest.mark.slow  # the quick run covers a key's way through two rotations: test_secrets.py
STACK = "canary"
HEADER = b'{"t":{"dtype":"U8","shape":[8],"data_offsets":[0,8]}}'
FILES = {
    "model.safetensors": len(HEADER).to_bytes(8, "little") + HEADER + bytes(8),
    "config.json": b'{"model_type": "llama"}\n',
    "tokenizer.json": b"{}",
}
STATE = REHEARSAL / "stacks" / STACK / "state.json"
ON_SERVER = Path("/var/lib/elastic-vllm") / STACK


@dataclass(frozen=True)
class Run:
    """Traces of an `up`, a failed `up` and a support archive, and the values that must be in none of them."""

    canaries: dict[str, str] = field(repr=False)
    """Setting -> value."""
    started: float
    directory: Path
    """Directory of the files in which users provide the values."""
    texts: dict[str, bytes] = field(repr=False)
    """Name -> everything that was printed, executed, logged or shown."""
    deployed: Deployment

    def shown_in(self, text: bytes) -> set[str]:
        """Return the settings whose values appear in the text."""
        return {name for name, value in self.canaries.items() if any(form in text for form in forms(value))}


def with_passphrase(private_key: str, passphrase: str) -> str:
    key = serialization.load_ssh_private_key(private_key.encode(), None)
    encryption = serialization.BestAvailableEncryption(passphrase.encode())
    openssh = serialization.PrivateFormat.OpenSSH
    return key.private_bytes(serialization.Encoding.PEM, openssh, encryption).decode()


def new_canaries() -> dict[str, str]:
    """Return values for all secret settings, and the certificate and CA that belong to the private key."""
    authority = new_authority()
    with tempfile.TemporaryDirectory() as directory:
        pem = issue(authority, Path(directory) / "server.pem").read_text()
    certificate, begin, private_key = pem.partition("-----BEGIN PRIVATE KEY-----")
    api_key = base64.b64encode(f"canary:{random.token_hex(16)}".encode()).decode()
    return {
        "hfToken": f"hf_{random.token_hex(17)}",
        "kibanaApiKey": api_key,
        "elasticsearchApiKey": api_key,  # the stand-in knows one administrator
        "tlsPrivateKey": begin + private_key,
        "tlsCertificate": certificate,
        "tlsCa": authority.pem,
        "sshPrivateKeyPassword": random.token_hex(16),
        "downloadProxy": f"http://ops:{random.token_hex(16)}@192.0.2.1:3128",
    }


@dataclass(frozen=True)
class Stage:
    """Everything that asks for the canaries, and the settings of a stack that uses it."""

    hub: Hub
    elastic: Elastic
    settings: dict[str, Any]


def install_hub_client() -> None:
    """Install what `up` would install through the proxy: there is none, and pip has its address in its environment."""
    requirements = (render.FILES / "weights" / "hub-client.txt").read_text().strip()
    script = render.script("host/install-python-client.sh", requirements=requirements)
    script += 'install_client /var/lib/elastic-vllm/hub-client "the hub\'s client" "$REQUIREMENTS" "or not"\n'
    subprocess.run(["bash", "-s"], input=script, text=True, check=True)


@contextmanager
def stage(canaries: dict[str, str], weights: Path) -> Iterator[Stage]:
    """Run a hub, Kibana and Elasticsearch that accept only these values, until the block ends."""
    config = yaml.safe_load((ROOT / "stacks" / "Pulumi.local.yaml").read_text())["config"]
    settings = {key.removeprefix("elastic-vllm:"): value for key, value in config.items()}
    kept_admin = elastic_stand_in.ADMIN
    elastic_stand_in.ADMIN = canaries["kibanaApiKey"]
    try:
        with (
            hub_stand_in.running("acme/tiny", FILES) as hub,
            elastic_stand_in.serving(Elastic(calls_endpoint=False)) as elastic,
            vllm_stand_in.image() as image,
        ):
            hub.token = canaries["hfToken"]
            key = REHEARSAL / "ssh" / "canary"
            private_key = (REHEARSAL / "ssh" / "id_ed25519").read_text()
            write_private(key, with_passphrase(private_key, canaries["sshPrivateKeyPassword"]))
            settings |= {
                "httpsPort": local_sshd.free_port(),
                "sshPrivateKeyPath": str(key),
                "vllmImage": image,
                "model": "acme/tiny",
                "weightsGb": 1,
                "modelSource": "hub",
                "modelRevision": COMMIT,
                "hfEndpoint": hub.endpoint,
                "weightsDirectory": str(weights),
                "kibanaUrl": elastic.address,
                "elasticsearchUrl": elastic.address,
                "tls": "provided",
                "tlsCertificate": canaries["tlsCertificate"],
                "tlsCa": canaries["tlsCa"],
                "keys": {"siem": [1]},
            }
            yield Stage(hub, elastic, settings)
    finally:
        elastic_stand_in.ADMIN = kept_admin


@pytest.fixture(scope="module")
def run(machine: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Run]:
    process_trace.install_strace()
    install_hub_client()
    directory, traces = tmp_path_factory.mktemp("given"), tmp_path_factory.mktemp("traces")
    canaries = new_canaries()
    secrets = {name: canaries[name] for name in SECRETS}
    for name, value in secrets.items():
        (directory / name).write_text(value)
    given = [part for name in secrets for part in ("--set-file", f"{name}={directory / name}")]
    watcher = process_trace.Watcher()
    try:
        with stage(canaries, tmp_path_factory.mktemp("weights")) as stand_ins, stack_file(STACK, stand_ins.settings):
            started = time.time()
            watcher.start()
            with process_trace.attached(process_trace.starters(), traces / "starters"):
                done = rehearse("up", *given, stack=STACK, under=process_trace.launcher(traces / "up"))
            assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
            # They were really used.
            assert stand_ins.hub.fetched()
            assert stand_ins.elastic.connectors
            assert stand_ins.elastic.inference
            texts = {"up": done.stdout + done.stderr, **failures(directory, given, stand_ins.elastic)}
            texts |= support(directory)
            watcher.stop()
            deployed = deployment(STACK)
            yield Run(
                canaries=secrets,
                started=started,
                directory=directory,
                texts={
                    **{name: text.encode() for name, text in texts.items()},
                    **{f"programs started ({path.name})": path.read_bytes() for path in traces.iterdir()},
                    "process list": b"\n".join(watcher.seen),
                    "docker": docker_shows(deployed),
                    "journal": journal(started),
                },
                deployed=deployed,
            )
    finally:
        if watcher.is_alive():
            watcher.stop()


def failures(directory: Path, given: list[str], elastic: Elastic) -> dict[str, str]:
    """Make `up` fail at Elastic, at the hub, and in the settings, and return the output of each."""
    # One value in a setting where it does not belong, and one wrong value in the right setting.
    failed = {"misspelt": rehearse("up", *given, "--set-file", f"hftoken={directory / 'hfToken'}", stack=STACK)}
    elastic.answers = [(503, {})] * 200
    failed["Elastic"] = rehearse("up", *given, "--set", "servedModelName=another", stack=STACK)
    elastic.answers = []
    (directory / "wrong").write_text((directory / "tlsPrivateKey").read_text().replace("M", "N", 3))
    wrong = ("--set-file", f"tlsPrivateKey={directory / 'wrong'}")
    failed["certificate"] = rehearse("up", *given, *wrong, stack=STACK)
    failed["hub"] = rehearse("up", *given, "--set", "model=acme/absent", stack=STACK)
    assert [name for name, done in failed.items() if done.returncode == 0] == []
    back = rehearse("up", *given, stack=STACK)
    assert back.returncode == 0, f"{back.stdout}\n{back.stderr}"
    return {f"up that fails ({name})": done.stdout + done.stderr for name, done in failed.items()}


def support(directory: Path) -> dict[str, str]:
    """Return what commands show of the stack, and the files of its support archive."""
    archive = directory / "support.tar.gz"
    command = [str(ROOT / "scripts" / "elastic-vllm"), "diagnose", "--rehearsal", "--stack", STACK]
    done = subprocess.run([*command, "--bundle", str(archive)], capture_output=True, text=True, check=False)
    with tarfile.open(archive) as tar:
        files = {name: tar.extractfile(name) for name in tar.getnames()}
        found = {f"support archive: {name}": file.read().decode() for name, file in files.items() if file}
    shown = {name: rehearse(*name.split(), stack=STACK).stdout for name in ("outputs", "outputs --json", "verify")}
    return {"diagnose": done.stdout + done.stderr, **found, **shown}


def docker_shows(deployed: Deployment) -> bytes:
    client = deployed.docker
    everything: list[Any] = [*client.containers.list(all=True, ignore_removed=True), *client.networks.list()]
    everything += [*client.images.list(), *client.volumes.list()]
    texts = [json.dumps(each.attrs).encode() for each in everything]
    names = [f"elastic-vllm-{STACK}-{role}" for role in ("nginx", "vllm")]
    return b"\n".join([*texts, *(client.containers.get(name).logs() for name in names)])


def journal(since: float) -> bytes:
    """Return systemd's journal since then, empty on a machine without one."""
    if not shutil.which("journalctl"):
        return b""
    return subprocess.run(["journalctl", f"--since=@{since:.0f}", "--all"], capture_output=True, check=False).stdout


def test_there_is_a_canary_for_every_secret_setting() -> None:
    described = yaml.safe_load((ROOT / "Pulumi.yaml").read_text())["config"].items()
    assert {name for name, setting in described if "--secret" in setting["description"]} == set(SECRETS)
    assert set(SECRETS) <= set(new_canaries())


def test_the_search_would_find_them(run: Run) -> None:
    for name, value in run.canaries.items():
        assert name in run.shown_in(b"..." + value.encode() + b"...")
        assert name in run.shown_in(base64.b64encode(b"x" + value.encode() + b"y"))
        assert name in run.shown_in(STATE.read_bytes()), "and the one file that may hold them does"


def test_what_was_searched_was_really_there(run: Run) -> None:
    executed = b"".join(text for name, text in run.texts.items() if name.startswith("programs started"))
    for program in (b'["bash", "-s"]', b'"-m", "scripts.lab"'):
        assert program in executed
    assert f"elastic-vllm-{STACK}-nginx".encode() in run.texts["docker"]
    assert b"scripts.lab" in run.texts["process list"]
    assert b"connectorUrl" in run.texts["outputs --json"]
    assert any(name.endswith("log-nginx.txt") for name in run.texts)


def test_no_canary_shows(run: Run) -> None:
    assert {name: found for name, text in run.texts.items() if (found := run.shown_in(text))} == {}


def test_a_canary_is_in_no_file_but_where_it_belongs(run: Run) -> None:
    containers = [run.deployed.docker.containers.get(f"elastic-vllm-{STACK}-{role}") for role in ("nginx", "vllm")]
    holding: dict[str, set[str]] = {}
    for path in changed_files(run.started, containers, besides=[run.directory]):
        with suppress(OSError):  # gone meanwhile, or not a file that can be read
            if found := run.shown_in(path.read_bytes()):
                holding[str(path)] = found
    assert holding == {
        str(STATE): set(SECRETS),
        str((ON_SERVER / "nginx" / "current" / "private-key.pem").resolve()): {"tlsPrivateKey"},
        str(ON_SERVER / "downloads" / "environment"): {"downloadProxy"},
        str(ON_SERVER / "downloads" / "apt.conf"): {"downloadProxy"},
    }
    assert {Path(path).stat().st_mode & 0o777 for path in holding} == {0o600}

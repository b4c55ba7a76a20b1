"""A certificate that an ACME server issues: a real server on this machine (pebble, Let's Encrypt's test server)."""

import json
import os
import socket
import ssl
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx2
import pytest
import yaml

from tests.integration.conftest import ROOT, Deployment, deployment, installed, rehearse, rehearse_up
from tests.support import local_sshd, vllm_stand_in
from tests.support.made_stacks import stack_file
from tests.support.netns_machine import outcomes
from tests.support.verify_server import issue, new_authority

pytestmark = (
    pytest.mark.slow
)  # the other modes: test_certificates.py; how it renews: tests/unit/components/tls/test_acme_renewal.py

STACK = "acme"
DIRECTORY = Path("/var/lib/elastic-vllm") / STACK
RENEW = DIRECTORY / "acme" / "renew"
# Certbot renews what lasts less than ten days when half of its time is over.
SOON_DUE_SECONDS = 90
LONG_SECONDS = 36_000


@contextmanager
def acme_server(directory: Path, http_port: int = 80, valid_seconds: int = LONG_SECONDS) -> Iterator[list[str]]:
    """Run an ACME server that validates on `http_port`, and yield the options of a stack that uses it."""
    installed("pebble", "pebble")
    ca = new_authority()
    file = issue(ca, directory / "pebble.pem")
    port, management = local_sshd.free_port(), local_sshd.free_port()
    config = {
        "listenAddress": f"127.0.0.1:{port}",
        "managementListenAddress": f"127.0.0.1:{management}",
        "certificate": str(file),
        "privateKey": str(file),
        "httpPort": http_port,
        "tlsPort": local_sshd.free_port(),
        "certificateValidityPeriod": valid_seconds,
    }
    (directory / "pebble.json").write_text(json.dumps({"pebble": config}))
    # It refuses one nonce in twenty for practice; certbot gives up at the second in a row.
    quick = {**os.environ, "PEBBLE_VA_NOSLEEP": "1", "PEBBLE_WFE_NONCEREJECT": "0"}
    with (directory / "pebble.log").open("w") as log:
        process = subprocess.Popen(["pebble", "-config", directory / "pebble.json"], env=quick, stdout=log, stderr=log)
    try:
        root = _root(f"https://127.0.0.1:{management}/roots/0", ssl.create_default_context(cadata=ca.pem))
        (directory / "cas.pem").write_text(root + ca.pem)
        given = {"tls": "letsencrypt", "acmeServer": f"https://127.0.0.1:{port}/dir", "tlsCa": directory / "cas.pem"}
        yield [part for key, value in given.items() for part in ("--set", f"{key}={value}")]
    finally:
        process.terminate()
        process.wait(10)


def _root(url: str, trusted: ssl.SSLContext) -> str:
    """Return the CA that the server has made for itself, once the server answers."""
    for _ in range(100):
        try:
            return httpx2.get(url, verify=trusted, trust_env=False).raise_for_status().text
        except httpx2.TransportError:
            time.sleep(0.1)
    raise TimeoutError(url)


@pytest.fixture(scope="module")
def options(machine: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[str]]:
    """Options of a stack that may be up already."""
    config = yaml.safe_load((ROOT / "stacks" / "Pulumi.local.yaml").read_text())["config"]
    settings = {key.removeprefix("elastic-vllm:"): value for key, value in config.items()}
    with vllm_stand_in.image() as image, acme_server(tmp_path_factory.mktemp("acme")) as server:
        # By name: pebble 2.4 puts an IP address into a field of its certificates where certbot refuses it.
        own = {"httpsPort": local_sshd.free_port(), "vllmImage": image, "endpointHost": "localhost"}
        with stack_file(STACK, settings | own):
            yield server
    assert not (DIRECTORY / "acme").exists()


def served(deployed: Deployment) -> str:
    """Return the certificate that the endpoint presents."""
    return ssl.get_server_certificate(("127.0.0.1", httpx2.URL(deployed.url).port or 443))


def models(deployed: Deployment) -> int:
    return deployed.http(deployed.key).get("/v1/models").status_code


def renewed() -> str:
    """Run the timer's command and return its output."""
    return subprocess.run([RENEW], capture_output=True, text=True, check=True).stdout


def test_a_certificate_is_issued_and_renewed_with_nginx_running_on(options: list[str], tmp_path: Path) -> None:
    with acme_server(tmp_path, valid_seconds=SOON_DUE_SECONDS) as brief:
        issued_and_renewed(brief)


def issued_and_renewed(options: list[str]) -> None:
    done = rehearse_up(*options, stack=STACK)
    issued = time.monotonic()
    deployed = deployment(STACK)
    first = served(deployed)
    assert models(deployed) == 200
    assert "not due for renewal" in renewed()
    assert set(outcomes(rehearse_up(*options, stack=STACK)).values()) == {"unchanged"}
    assert served(deployed) == first
    started = json.loads(_inspect("{{json .State.StartedAt}}"))

    time.sleep(max(0.0, issued + SOON_DUE_SECONDS / 2 + 1 - time.monotonic()))
    assert "a new certificate of localhost" in renewed()
    for _ in range(300):
        if served(deployed) != first:
            break
        time.sleep(0.1)
    assert served(deployed) != first
    assert models(deployed) == 200
    assert json.loads(_inspect("{{json .State.StartedAt}}")) == started
    assert "PRIVATE KEY" not in done


def test_its_private_key_is_nginxs_alone(options: list[str]) -> None:
    rehearse_up(*options, stack=STACK)
    file = DIRECTORY / "nginx" / "acme" / "certificate-and-key.pem"
    kept = {*file.parent.iterdir(), *(DIRECTORY / "acme").rglob("privkey*.pem")}
    assert file in kept
    assert {path.stat().st_mode & 0o077 for path in kept} == {0}
    assert {path.stat().st_mode & 0o077 for path in (file.parent, DIRECTORY / "acme")} == {0}
    assert "PRIVATE KEY" not in rehearse("outputs", "--json", "--show-secrets", stack=STACK).stdout


def test_a_taken_port_80_is_reported_and_the_endpoint_stays_up(options: list[str]) -> None:
    rehearse_up(*options, stack=STACK)
    with socket.create_server(("127.0.0.1", 80)):
        done = rehearse("up", *options, "--set", "endpointHost=127.0.0.1", stack=STACK)
    assert done.returncode == 1
    assert "port 80 is taken by" in done.stderr
    assert "fix: stop what listens there" in done.stderr
    subprocess.run([RENEW], check=False, capture_output=True)
    assert models(deployment(STACK)) == 200


def test_a_server_that_cannot_connect_is_reported_with_its_own_message(options: list[str], tmp_path: Path) -> None:
    rehearse_up(*options, stack=STACK)
    with acme_server(tmp_path, http_port=local_sshd.free_port()) as elsewhere:
        done = rehearse("up", *elsewhere, stack=STACK)
    assert done.returncode == 1
    message = " ".join(done.stderr.split())
    assert "no certificate for localhost from https://127.0.0.1" in message
    assert "it must reach localhost on port 80" in message
    assert "onnection refused" in message, message
    assert models(deployment(STACK)) == 200


def test_another_server_is_another_certificate_and_the_way_back_leaves_nothing(
    options: list[str], tmp_path: Path
) -> None:
    rehearse_up(*options, stack=STACK)
    before = served(deployment(STACK))
    with acme_server(tmp_path) as another:
        changed = outcomes(rehearse_up(*another, stack=STACK))
    assert {name for name, outcome in changed.items() if outcome != "unchanged"} == {"acme-certificate"}
    assert models(deployment(STACK)) == 200
    assert served(deployment(STACK)) != before
    assert len(list((DIRECTORY / "acme").glob("state-*"))) == 1
    rehearse_up(stack=STACK)
    assert models(deployment(STACK)) == 200
    assert not (DIRECTORY / "acme").exists()
    assert not (DIRECTORY / "nginx" / "acme").exists()


def _inspect(what: str) -> str:
    command = ["docker", "inspect", "--format", what, f"elastic-vllm-{STACK}-nginx"]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout

"""Client certificates, and a provided certificate of the endpoint: which clients get in, in Python and in Node."""

import base64
import json
import ssl
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx2
import openai
import pytest
import yaml
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from scripts.lab.emulator.state import ROOT as STATE_ROOT
from scripts.lab.emulator.state import load
from scripts.lib.stack_outputs import first_client
from scripts.lib.verification import gateway
from scripts.lib.verification.endpoint import Endpoint
from scripts.lib.verification.probe import probing
from tests.integration.conftest import ROOT, Deployment, deployment, installed, outputs_of, rehearse, rehearse_up
from tests.support import local_sshd, vllm_stand_in
from tests.support.made_stacks import stack_file
from tests.support.netns_machine import outcomes
from tests.support.verify_server import issue, new_authority

STACK = "certificates"
NODE = ROOT / "tests" / "support" / "node_client.js"
TWO = ("--set", "clientCertificates=[kibana, second]")


@pytest.fixture(scope="module")
def stack(machine: None) -> Iterator[None]:
    """A stack like local, with the stand-in for vLLM and a separate port."""
    config = yaml.safe_load((ROOT / "stacks" / "Pulumi.local.yaml").read_text())["config"]
    settings = {key.removeprefix("elastic-vllm:"): value for key, value in config.items()}
    with vllm_stand_in.image() as image:
        own = {"httpsPort": local_sshd.free_port(), "vllmImage": image}
        with stack_file(STACK, settings | own):
            yield


@dataclass(frozen=True)
class Two:
    """A stack with two clients."""

    deployed: Deployment
    connector: dict[str, Any]
    """Kibana's client certificate, as in the output."""
    clients: dict[str, str]
    """Name -> certificate and private key, PEM."""


@pytest.fixture(scope="module")
def two(stack: None) -> Two:
    rehearse_up(*TWO, stack=STACK)
    outputs = outputs_of(STACK)
    clients = {name: each["certificate"] + each["privateKey"] for name, each in outputs["clientCertificates"].items()}
    return Two(deployment(STACK), outputs["kibanaConnectorRequest"], clients)


def status(deployed: Deployment, tmp: Path, pem: str, key: str | None = None, path: str = "/v1/models") -> int:
    """Return the endpoint's status for a client with this certificate (none: empty) and key; 0 without an answer."""
    context = ssl.create_default_context(cadata=deployed.ca_certificate)
    if pem:
        (tmp / "client.pem").write_text(pem)
        context.load_cert_chain(tmp / "client.pem")
    headers = {"Authorization": f"Bearer {key or deployed.key}"}
    with httpx2.Client(base_url=deployed.base_url, verify=context, trust_env=False) as client:
        return client.get(path, headers=headers).status_code


def signed(ca: x509.Certificate, ca_key: Any, name: str, days: int) -> str:
    """Return a client certificate of this CA and its key, PEM."""
    key, now = ec.generate_private_key(ec.SECP256R1()), datetime.now(UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)]))
        .issuer_name(ca.subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(days=10))
        .not_valid_after(now + timedelta(days=days))
        .sign(ca_key, hashes.SHA256())
    )
    plain = (serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    return (certificate.public_bytes(serialization.Encoding.PEM) + key.private_bytes(*plain)).decode()


def of_the_stacks_ca(name: str, days: int) -> str:
    """Return a certificate signed by the stack's client CA, whose key is in the rehearsal's state."""
    records = {record.name: record for record in load(STATE_ROOT, STACK).resources.values()}
    ca = x509.load_pem_x509_certificate(records["clients-ca"].outputs["certPem"].encode())
    key = records["clients-ca-key"].outputs["privateKeyPem"].encode()
    return signed(ca, serialization.load_pem_private_key(key, None), name, days)


# Clients


@pytest.mark.parametrize("name", ["kibana", "second"])
def test_a_known_certificate_and_the_key_get_in(two: Two, tmp_path: Path, name: str) -> None:
    assert status(two.deployed, tmp_path, two.clients[name]) == 200


def test_the_official_client_gets_an_answer(two: Two, tmp_path: Path) -> None:
    (tmp_path / "client.pem").write_text(two.clients["kibana"])
    context = ssl.create_default_context(cadata=two.deployed.ca_certificate)
    context.load_cert_chain(tmp_path / "client.pem")
    with httpx2.Client(verify=context, trust_env=False) as http:
        base_url = f"{two.deployed.base_url}/v1"
        client = openai.OpenAI(base_url=base_url, api_key=two.deployed.key, max_retries=0, http_client=http)
        answer = client.chat.completions.create(
            model=two.deployed.alias, messages=[{"role": "user", "content": "Hello"}], max_tokens=3
        )
    assert answer.choices[0].message.content


def test_a_known_certificate_without_the_key_does_not_get_in(two: Two, tmp_path: Path) -> None:
    assert status(two.deployed, tmp_path, two.clients["kibana"], key="0" * 64) == 401


def test_the_key_without_a_certificate_does_not_get_in(two: Two, tmp_path: Path) -> None:
    assert status(two.deployed, tmp_path, "") == 403
    assert status(two.deployed, tmp_path, "", path="/healthz") == 200


def test_a_refusal_is_the_official_clients_own_error(two: Two) -> None:
    with pytest.raises(openai.PermissionDeniedError, match="asks for a client certificate"):
        two.deployed.openai().models.list()


def test_a_certificate_of_a_foreign_ca_does_not_get_in(two: Two, tmp_path: Path) -> None:
    """Even with a known name."""
    foreign = new_authority("elastic-vllm clients")
    assert status(two.deployed, tmp_path, signed(foreign.certificate, foreign.key, "kibana", 10)) == 403


def test_an_expired_certificate_does_not_get_in(two: Two, tmp_path: Path) -> None:
    assert status(two.deployed, tmp_path, of_the_stacks_ca("kibana", 10)) == 200
    assert status(two.deployed, tmp_path, of_the_stacks_ca("kibana", -1)) == 403


def test_a_certificate_with_a_name_that_is_not_in_the_list_does_not_get_in(two: Two, tmp_path: Path) -> None:
    assert status(two.deployed, tmp_path, of_the_stacks_ca("stranger", 10)) == 403


def test_the_servers_own_certificate_is_no_clients(two: Two, tmp_path: Path) -> None:
    records = {record.name: record for record in load(STATE_ROOT, STACK).resources.values()}
    server = records["certificate-server"].outputs["certPem"] + records["certificate-key"].outputs["privateKeyPem"]
    assert status(two.deployed, tmp_path, server) == 403


@pytest.fixture(scope="module")
def node() -> None:
    installed("node", "nodejs")


def in_node(connector: dict[str, Any], **changes: Any) -> str:
    """Return the status, or the error's code, that Kibana's runtime gets with a connector's own fields."""
    secrets = {**connector["secrets"], **changes}
    given = json.dumps({"config": connector["config"], "secrets": secrets})
    done = subprocess.run(["node", str(NODE)], input=given, capture_output=True, text=True, timeout=60, check=True)
    return done.stdout.strip()


def test_kibanas_runtime_gets_in_with_the_connectors_own_fields(two: Two, node: None) -> None:
    assert in_node(two.connector) == "200"


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"certificateData": None, "privateKeyData": None}, "403"),
        ({"apiKey": "0" * 64}, "401"),
        ({"caData": None}, "SELF_SIGNED_CERT_IN_CHAIN"),
    ],
)
def test_kibanas_runtime_needs_them_all(two: Two, node: None, changes: dict[str, Any], expected: str) -> None:
    assert in_node(two.connector, **changes) == expected


def test_kibanas_runtime_does_not_get_in_with_an_expired_or_foreign_certificate(two: Two, node: None) -> None:
    foreign = new_authority()
    for pem in (of_the_stacks_ca("kibana", -1), signed(foreign.certificate, foreign.key, "kibana", 10)):
        certificate, begin, key = pem.partition("-----BEGIN PRIVATE KEY-----")
        halves = {"certificateData": certificate, "privateKeyData": begin + key}
        encoded = {name: base64.b64encode(text.encode()).decode() for name, text in halves.items()}
        assert in_node(two.connector, **encoded) == "403"


def test_verify_shows_its_certificate_and_sees_that_one_is_needed(two: Two) -> None:
    outputs = outputs_of(STACK)
    endpoint = Endpoint(
        url=outputs["connectorUrl"],
        key=outputs["connectorApiKey"],
        model=outputs["model"],
        ca_certificate=outputs["caCertificate"],
        client_certificate=first_client(outputs),
    )
    with probing(endpoint) as probe:
        assert gateway.missing_client_certificate(probe) == "403 with the key but no client certificate"
        gateway.wrong_key(probe)
        gateway.closed_paths(probe)


def test_a_certificate_is_revoked_by_taking_its_name_away_and_the_other_stays(two: Two, tmp_path: Path) -> None:
    done = outcomes(rehearse_up("--set", "clientCertificates=[second]", stack=STACK))
    assert {done[name] for name in ("nginx-container", "vllm-container")} == {"unchanged"}
    assert status(two.deployed, tmp_path, two.clients["kibana"]) == 403
    assert status(two.deployed, tmp_path, two.clients["second"]) == 200


# A certificate that was provided


def test_a_provided_certificate_is_served_and_replaced_by_a_reload(stack: None, tmp_path: Path) -> None:
    ca = new_authority()
    served = []
    for name in ("first", "second"):
        file = issue(ca, tmp_path / f"{name}.pem")
        given = {"tls": "provided", "tlsCertificate": file, "tlsCa": _written(tmp_path / "ca.pem", ca.pem)}
        options = [part for key, value in given.items() for part in ("--set", f"{key}={value}")]
        done = outcomes(rehearse_up(*options, "--set-file", f"tlsPrivateKey={file}", stack=STACK))
        deployed = deployment(STACK)
        assert deployed.ca_certificate == ca.pem
        assert deployed.http(deployed.key).get("/v1/models").status_code == 200
        served.append((ssl.get_server_certificate(("127.0.0.1", httpx2.URL(deployed.url).port or 443)), file))
    assert {done[name] for name in ("nginx-container", "vllm-container")} == {"unchanged"}
    assert [certificate in file.read_text() for certificate, file in served] == [True, True]
    assert served[0][0] != served[1][0]


def test_a_certificate_that_is_wrong_leaves_the_endpoint_as_it_is(stack: None, tmp_path: Path) -> None:
    before = deployment(STACK)
    file = issue(new_authority(), tmp_path / "other.pem")
    options = ["--set", "tls=provided", "--set", f"tlsCertificate={file}", "--set-file", f"tlsPrivateKey={file}"]
    done = rehearse("up", *options, stack=STACK)
    assert done.returncode != 0
    assert "does not lead to a public CA" in done.stderr
    assert "PRIVATE KEY" not in done.stdout + done.stderr
    assert before.http(before.key).get("/v1/models").status_code == 200


def _written(path: Path, text: str) -> Path:
    path.write_text(text)
    return path

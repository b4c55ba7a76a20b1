"""The rehearsal's adapters, as far as they need no host."""

import base64
import datetime
import ssl
import subprocess
from pathlib import Path
from typing import Any

import paramiko
import pytest
from cryptography import x509
from cryptography.x509.oid import ExtendedKeyUsageOID

from scripts.lab import RehearsalError, cli, machine
from scripts.lab.emulator.command_adapter import COMMAND, fingerprint, parse_host_key, read_private_key
from scripts.lab.emulator.docker_adapters import health_check, host_options
from scripts.lab.emulator.resource import Resource
from scripts.lab.emulator.tls_adapters import ADAPTERS
from scripts.lab.ssh_keys import write_keys
from tests.support.program import ROOT

TLS = "tls:index/"


def resource(kind: str, inputs: dict[str, Any], outputs: dict[str, Any] | None = None) -> Resource:
    return Resource(
        name="x", type=kind, inputs=inputs, outputs=outputs or {}, id="", provider={}, say=lambda _line: None
    )


def create(kind: str, **inputs: Any) -> dict[str, Any]:
    adapter = ADAPTERS[kind]
    assert set(inputs) <= adapter.inputs
    return adapter.create(resource(kind, inputs))[1]


@pytest.fixture(scope="module")
def chain() -> dict[str, dict[str, Any]]:
    """CA, and a server certificate that it has signed."""
    ca_key = create(f"{TLS}privateKey:PrivateKey", algorithm="ECDSA", ecdsaCurve="P256")
    ca = create(
        f"{TLS}selfSignedCert:SelfSignedCert",
        privateKeyPem=ca_key["privateKeyPem"],
        isCaCertificate=True,
        maxPathLength=0,
        subject={"commonName": "our CA", "organization": "us"},
        validityPeriodHours=87600,
        allowedUses=["cert_signing", "crl_signing"],
    )
    key = create(f"{TLS}privateKey:PrivateKey", algorithm="ECDSA", ecdsaCurve="P256")
    request = create(
        f"{TLS}certRequest:CertRequest",
        privateKeyPem=key["privateKeyPem"],
        subject={"commonName": "server"},
        dnsNames=["localhost"],
        ipAddresses=["127.0.0.1", "::1"],
    )
    certificate = create(
        f"{TLS}locallySignedCert:LocallySignedCert",
        certRequestPem=request["certRequestPem"],
        caPrivateKeyPem=ca_key["privateKeyPem"],
        caCertPem=ca["certPem"],
        validityPeriodHours=2160,
        earlyRenewalHours=48,
        allowedUses=["digital_signature", "key_encipherment", "server_auth"],
    )
    return {"ca": ca, "key": key, "certificate": certificate}


@pytest.mark.parametrize("name", ["localhost", "127.0.0.1", "::1"])
def test_certificate_chain_passes_strict_verification(chain: dict[str, Any], tmp_path: Path, name: str) -> None:
    (tmp_path / "cert").write_text(chain["certificate"]["certPem"])
    (tmp_path / "key").write_text(chain["key"]["privateKeyPem"])
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server.load_cert_chain(tmp_path / "cert", tmp_path / "key")
    client = ssl.create_default_context(cadata=chain["ca"]["certPem"])
    client.verify_flags |= ssl.VERIFY_X509_STRICT
    to_server, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
    ends = [
        client.wrap_bio(to_client, to_server, server_hostname=name),
        server.wrap_bio(to_server, to_client, server_side=True),
    ]
    for end in [*ends, *ends, ends[0]]:
        try:
            end.do_handshake()
        except ssl.SSLWantReadError:
            continue
    assert ends[0].version() == "TLSv1.3"


def test_certificate_has_the_uses_and_times_that_were_asked_for(chain: dict[str, Any]) -> None:
    certificate = x509.load_pem_x509_certificate(chain["certificate"]["certPem"].encode())
    assert list(certificate.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value) == [
        ExtendedKeyUsageOID.SERVER_AUTH
    ]
    assert certificate.extensions.get_extension_for_class(x509.KeyUsage).value.key_encipherment
    assert certificate.not_valid_after_utc - certificate.not_valid_before_utc == datetime.timedelta(days=90)


@pytest.mark.parametrize(("left", "seen"), [(72, "same"), (24, "expired"), (-1, "expired")])
def test_certificate_is_renewed_early(left: int, seen: str) -> None:
    end = datetime.datetime.now(datetime.UTC) + datetime.timedelta(hours=left)
    kind = f"{TLS}locallySignedCert:LocallySignedCert"
    certificate = resource(kind, {"earlyRenewalHours": 48}, {"validityEndTime": end.isoformat()})
    assert ADAPTERS[kind].read(certificate) == seen


def test_random_bytes_are_the_same_in_both_spellings() -> None:
    first, second = (create("random:index/randomBytes:RandomBytes", length=32) for _ in range(2))
    assert base64.b64decode(first["base64"]).hex() == first["hex"]
    assert len(first["hex"]) == 64
    assert first != second


def test_unknown_uses_and_subjects_are_refused(chain: dict[str, Any]) -> None:
    signed = {"privateKeyPem": chain["key"]["privateKeyPem"], "validityPeriodHours": 1}
    with pytest.raises(RehearsalError, match="nonsense in allowedUses"):
        create(f"{TLS}selfSignedCert:SelfSignedCert", **signed, subject={}, allowedUses=["nonsense"])
    with pytest.raises(RehearsalError, match="serialNumber in a certificate's subject"):
        create(f"{TLS}selfSignedCert:SelfSignedCert", **signed, subject={"serialNumber": "1"}, allowedUses=[])


def test_only_triggers_replace_a_command() -> None:
    assert COMMAND.replaces({"triggers", "create"})
    assert not COMMAND.replaces({"create", "stdin", "connection"})


def test_container_inputs_become_docker_options() -> None:
    options = host_options(
        {
            "networkMode": "front",
            "ports": [{"internal": 8443, "external": 443, "ip": "0.0.0.0", "protocol": "tcp"}],  # noqa: S104
            "volumes": [
                {"hostPath": "/a", "containerPath": "/b", "readOnly": True},
                {"hostPath": "/c", "containerPath": "/d"},
                {"hostPath": "/e", "containerPath": "/f", "readOnly": True, "selinuxRelabel": "z"},
            ],
            "capabilities": {"drops": ["ALL"]},
            "shmSize": 64,
            "memory": 128,
            "memorySwap": -1,
            "restart": "unless-stopped",
            "readOnly": True,
            "securityOpts": ["no-new-privileges"],
            "gpus": "all",
            "ulimits": [{"name": "nofile", "soft": 1, "hard": 2}],
            "logDriver": "local",
            "logOpts": {"max-size": "1m"},
        }
    )
    assert options.pop("ulimits")[0] == {"Name": "nofile", "Soft": 1, "Hard": 2}
    assert options.pop("log_config") == {"Type": "local", "Config": {"max-size": "1m"}}
    assert options.pop("device_requests")[0]["Count"] == -1
    assert options == {
        "network_mode": "front",
        "port_bindings": {"8443/tcp": [("0.0.0.0", 443)]},  # noqa: S104
        "binds": ["/a:/b:ro", "/c:/d:rw", "/e:/f:ro,z"],
        "cap_drop": ["ALL"],
        "shm_size": 64 * 2**20,
        "mem_limit": 128 * 2**20,
        "memswap_limit": -1,
        "restart_policy": {"Name": "unless-stopped"},
        "read_only": True,
        "security_opt": ["no-new-privileges"],
    }


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        ({"volumes": [{"fromContainer": "x"}]}, "doesn't know fromContainer"),
        ({"gpus": "device=1"}, "doesn't know gpus='device=1'"),
        ({"rm": True}, "doesn't know rm=True"),
    ],
)
def test_container_inputs_that_are_not_known_are_refused(inputs: dict[str, Any], message: str) -> None:
    with pytest.raises(RehearsalError, match=message):
        host_options(inputs)


def test_own_keys_are_made_once_and_understood(tmp_path: Path) -> None:
    write_keys(tmp_path / "ssh")
    before = {path.name: path.read_text() for path in (tmp_path / "ssh").iterdir()}
    write_keys(tmp_path / "ssh")
    assert {path.name: path.read_text() for path in (tmp_path / "ssh").iterdir()} == before
    key_type, key = parse_host_key(before["ssh_host_ed25519_key.pub"])
    assert key_type == "ssh-ed25519"
    assert fingerprint(key).startswith("SHA256:")
    assert before["id_ed25519.pub"] == before["authorized_keys"]
    assert isinstance(read_private_key(before["id_ed25519"]), paramiko.Ed25519Key)
    with pytest.raises(RehearsalError, match=r"did you give the \.pub file"):
        read_private_key(before["id_ed25519.pub"])


@pytest.mark.parametrize("text", ["", "ssh-ed25519", "host ssh-ed25519 AAAA"])
def test_a_host_key_in_another_form_is_refused(text: str) -> None:
    with pytest.raises(RehearsalError, match="ssh-keyscan"):
        parse_host_key(text)


def test_a_health_check_is_what_docker_takes() -> None:
    given = {"tests": ["CMD", "true"], "interval": "30s", "timeout": "1m30s", "startPeriod": "1h0m0s", "retries": 1.0}
    assert health_check(given) == {
        "test": ["CMD", "true"],
        "retries": 1,
        "interval": 30 * 10**9,
        "timeout": 90 * 10**9,
        "start_period": 3600 * 10**9,
    }


@pytest.mark.parametrize("duration", ["1.5s", "soon", "30"])
def test_a_duration_that_is_not_known_is_refused(duration: str) -> None:
    with pytest.raises(RehearsalError, match="duration"):
        health_check({"tests": ["CMD", "true"], "interval": duration})


def test_what_people_start_in_their_bashrc_is_not_run(tmp_path: Path) -> None:
    (tmp_path / ".bashrc").write_text("touch ~/started\n")
    session = {"HOME": str(tmp_path), "PATH": "/usr/bin:/bin", "SSH_CLIENT": "127.0.0.1 1 22"}  # as sshd starts bash
    name, _, value = machine.NO_BASHRC.partition("=")
    subprocess.run(["/bin/bash", "-c", "true"], env={**session, name: value}, stdin=subprocess.DEVNULL, check=True)
    assert not (tmp_path / "started").exists()
    subprocess.run(["/bin/bash", "-c", "true"], env=session, stdin=subprocess.DEVNULL, check=True)
    assert (tmp_path / "started").exists()


def test_every_type_of_the_program_can_be_rehearsed() -> None:
    """Those of Google's are in tests/integration/test_google_cloud.py."""
    names = (ROOT / "tests/golden/state-names.txt").read_text().splitlines()
    types = {name.split("::")[0].rpartition("$")[2] for name in names}
    wanted = {each for each in types if not each.startswith(("elastic-vllm:", "gcp:", "pulumi:providers:"))}
    assert len(wanted) > 25
    assert wanted <= {*cli.ADAPTERS}

"""Certificates in settings: a bad one is refused before anything is touched, a good one takes effect."""

import json
import re
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.x509.oid import NameOID

from components.serving.nginx_config import nginx_conf
from components.settings.stack import Settings
from components.settings.tls import ProvidedCertificate
from components.tls.certificate import Certificate, CertificateArgs
from components.tls.client_certificates import subject
from tests.conftest import LIMITS
from tests.support import elastic_schemas as schemas
from tests.support.program import Program, run, tls_key_of
from tests.support.verify_server import Authority, issue, new_authority
from tests.unit.conftest import found

HOST = "127.0.0.1"
CA = new_authority()
Settle = Callable[..., Settings]
Programs = Callable[..., Program]
Provide = Callable[..., dict[str, str]]


@pytest.fixture
def provide(tmp_path: Path) -> Provide:
    """Function that returns settings with a certificate for 127.0.0.1 that is valid except for the given changes."""

    def settings(**changes: Any) -> dict[str, str]:
        file = issue(CA, tmp_path / "server.pem")
        return {"tls": "provided", "tlsCertificate": str(file), "tlsPrivateKey": str(file), "tlsCa": CA.pem, **changes}

    return settings


def key_text(key: rsa.RSAPrivateKey | ec.EllipticCurvePrivateKey, passphrase: str = "") -> str:
    how = serialization.BestAvailableEncryption(passphrase.encode()) if passphrase else serialization.NoEncryption()
    return key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, how).decode()


def below(authority: Authority, name: str, *, is_ca: bool) -> Authority:
    """Return a certificate that the authority has signed, as another authority."""
    key = ec.generate_private_key(ec.SECP256R1())
    now = datetime.now(UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)]))
        .issuer_name(authority.certificate.subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=100))
        .add_extension(x509.BasicConstraints(ca=is_ca, path_length=None), critical=True)
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(name)]), critical=False)
        .sign(authority.key, hashes.SHA256())
    )
    return Authority(certificate, key)


def self_signed(key: rsa.RSAPrivateKey | ec.EllipticCurvePrivateKey, name: str) -> str:
    """Return a root certificate with this key; an empty name leaves the subject empty."""
    named = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)] if name else [])
    now = datetime.now(UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(named)
        .issuer_name(named)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=100))
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
        .public_bytes(serialization.Encoding.PEM)
        .decode()
    )


def refused(settle: Settle, settings: dict[str, str], base: str = "local") -> str:
    messages = found(lambda: settle(base, settings))
    assert messages
    assert not [line for line in messages if "PRIVATE KEY" in line or "; " not in line]
    return "\n".join(messages)


# provided


def test_a_good_certificate_is_used_and_its_key_goes_nowhere_else(settle: Settle, provide: Provide) -> None:
    provided = settle("local", provide()).tls.provided
    assert provided
    assert provided.chain.count("BEGIN CERTIFICATE") == 1
    assert "PRIVATE KEY" not in provided.chain + provided.ca


def test_text_is_as_good_as_a_file(settle: Settle, provide: Provide) -> None:
    text = Path(provide()["tlsCertificate"]).read_text()
    assert found(lambda: settle("local", provide(tlsCertificate=text, tlsPrivateKey=text))) == []


def test_a_chain_through_an_intermediate_is_accepted_only_in_order(settle: Settle, provide: Provide) -> None:
    ca = new_authority()
    middle = below(Authority(ca.certificate, ca.key), "Middle", is_ca=True)
    server = below(middle, "llm.example.com", is_ca=False)
    root = self_signed(middle.key, "Middle")  # OpenSSL demands a root: clients that trust this need nothing above it
    settings = provide(endpointHost="llm.example.com", tlsCa=root, tlsPrivateKey=key_text(server.key))
    assert found(lambda: settle("local", settings | {"tlsCertificate": server.pem + middle.pem})) == []
    assert "is not signed by tlsCa" in refused(settle, settings | {"tlsCertificate": server.pem, "tlsCa": CA.pem})
    assert "does not belong to the certificate" in refused(
        settle, settings | {"tlsCertificate": middle.pem + server.pem}
    )


def wrong_certificates(provide: Provide, directory: Path) -> Iterator[tuple[str, dict[str, str]]]:
    """Yield the base and settings of each refused certificate."""
    elliptic = ec.generate_private_key(ec.SECP256R1())
    old, small = str(issue(CA, directory / "old.pem", days=-1)), rsa.generate_private_key(65537, 1024)  # noqa: S505 - refused
    no_certificate = "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----"
    no_key = no_certificate.replace("CERTIFICATE", "PRIVATE KEY")
    yield "local", provide(tlsCertificate="")
    yield "local", provide(tlsPrivateKey="")
    yield "local", provide(tlsPrivateKey=key_text(elliptic))
    yield "local", provide(tlsPrivateKey=key_text(elliptic, "secret"))
    yield "local", provide(tlsPrivateKey=no_key)
    yield "local", provide(tlsPrivateKey="/no/file")
    yield "local", provide(tlsCertificate=old, tlsPrivateKey=old)
    yield "local", provide(tlsCertificate=self_signed(elliptic, ""), tlsPrivateKey=key_text(small))
    yield "local", provide(tlsCertificate=self_signed(small, "small"), tlsPrivateKey=key_text(small))
    yield "local", provide(tlsCertificate=self_signed(elliptic, HOST), tlsPrivateKey=key_text(elliptic))
    yield "local", provide(endpointHost="llm.example.com")
    yield "local", provide(tlsCa=new_authority().pem)
    yield "local", provide(tlsCa="")
    yield "local", provide(tlsCa=no_certificate)
    yield "local", provide(tlsCa="/no/file")
    yield "local", provide(tlsCertificate=no_certificate)
    yield "prod", provide()  # a VM's address is unknown before the VM exists
    for key in ("tlsCertificate", "tlsPrivateKey", "tlsCa"):
        yield "local", {key: provide()["tlsCertificate"]}


def test_each_refusal_of_a_certificate_is_as_reviewed(
    settle: Settle, provide: Provide, tmp_path: Path, golden: Callable[[str, str], None]
) -> None:
    messages = [refused(settle, settings, base) for base, settings in wrong_certificates(provide, tmp_path)]
    lines = [re.sub(r"\d{4}-\d\d-\d\d", "DATE", line.replace(str(tmp_path), "TEMPORARY")) for line in messages]
    golden("certificate-messages.txt", "".join(f"{line}\n" for line in lines))


def test_an_encrypted_setting_counts_as_there(settle: Settle, provide: Provide) -> None:
    """Scripts can't decrypt it, and must work without it."""
    assert found(lambda: settle("local", provide(tlsPrivateKey="encrypted"))) == []


def test_a_provided_certificate_has_no_ca_of_the_stacks_own(program_of: Programs, provide: Provide) -> None:
    program = program_of("local", **provide())
    assert not [name for name in program.resources if name.startswith("certificate-")]
    assert program.outputs["caCertificate"] == CA.pem
    files = program.resources["nginx-config"].files
    assert files["certificate.pem"].startswith("-----BEGIN CERTIFICATE-----")
    assert "PRIVATE KEY" in files["private-key.pem"]
    assert "PRIVATE KEY" not in files["certificate.pem"]


@pytest.mark.parametrize(("days", "warned"), [(29, True), (31, False)])
def test_a_certificate_near_its_end_is_reported_at_every_up(
    days: int, warned: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    messages: list[str] = []
    monkeypatch.setattr("components.tls.certificate.pulumi.log.warn", lambda text, _resource: messages.append(text))
    expires = datetime.now(UTC) + timedelta(days=days, hours=1)
    no_key: Any = None
    provided = ProvidedCertificate(chain="x", private_key=no_key, ca="", expires=expires)

    def main() -> None:
        Certificate("certificate", CertificateArgs(host=HOST, provided=provided, acme=None))

    run({}, main=main)
    assert bool(messages) == warned
    assert not warned or f"expires in {days} days, on {expires:%Y-%m-%d}" in messages[0]


# clientCertificates


@pytest.mark.parametrize("names", ["kibana", ["Kibana"], ["a b"], [1], {"a": 1}, ["a;b"], ["x" * 33]])
def test_names_of_clients_are_plain(settle: Settle, names: Any) -> None:
    assert "clientCertificates" in refused(settle, {"clientCertificates": json.dumps(names)})


def test_two_clients_have_two_names(settle: Settle) -> None:
    assert "has a name twice" in refused(settle, {"clientCertificates": '["kibana", "kibana"]'})


def test_without_clients_nginx_asks_for_no_certificate() -> None:
    assert "ssl_verify_client" not in nginx_conf(["unix:/x"], limits=LIMITS)


def test_every_guarded_path_asks_for_a_known_client_and_a_key() -> None:
    conf = nginx_conf(["unix:/x"], ["kibana", "second"], limits=LIMITS)
    asked = conf.count('if ($client_known = "") {\n        return 403;\n      }\n      if ($key_label = "-")')
    assert asked == conf.count('if ($key_label = "-")') == 4  # two paths, all others, and the internal one
    assert [f'if ($ssl_client_s_dn = "{subject(name)}")' in conf for name in ("kibana", "second", "third")] == [
        True,
        True,
        False,
    ]
    assert "ssl_session_cache off;" in conf


def test_each_client_has_a_certificate_of_a_ca_that_signs_nothing_else(program_of: Programs) -> None:
    program = program_of("local", clientCertificates=["kibana", "second"])
    certificates = [program.resources[f"clients-of-{name}-certificate"].inputs for name in ("kibana", "second")]
    assert [each["allowedUses"] for each in certificates] == [["digital_signature", "client_auth"]] * 2
    assert program.resources["certificate-server"].inputs["allowedUses"] == ["digital_signature", "server_auth"]
    assert certificates[0]["caCertPem"] != program.resources["certificate-server"].inputs["caCertPem"]
    files = program.resources["nginx-config"].files
    assert files["client-ca.pem"] == certificates[0]["caCertPem"]
    assert set(program.outputs["clientCertificates"]) == {"kibana", "second"}
    assert tls_key_of("clients-of-second-key") in json.dumps(program.outputs["clientCertificates"]).replace("\\n", "\n")
    assert "clientCertificates" in program.secret_outputs


def test_kibana_shows_the_first_certificate_and_there_is_no_inference_endpoint(program_of: Programs) -> None:
    outputs = program_of("local", clientCertificates=["kibana", "second"]).outputs
    assert set(outputs["kibanaConnectorRequest"]["secrets"]) == {
        "apiKey",
        "certificateData",
        "privateKeyData",
        "caData",
    }
    assert schemas.problems(schemas.CONNECTOR, outputs["kibanaConnectorRequest"]) == []
    assert outputs["inferenceEndpointRequest"] == {}

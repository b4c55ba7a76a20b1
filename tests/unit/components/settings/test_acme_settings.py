"""Setting tls letsencrypt: combinations that can't work are refused first, and the others take effect."""

from collections.abc import Callable
from typing import Any

import pytest

from components.settings.stack import Settings
from tests.support.program import Program
from tests.support.verify_server import new_authority
from tests.unit.conftest import found

Settle = Callable[..., Settings]
Programs = Callable[..., Program]
NAMED = {"tls": "letsencrypt", "endpointHost": "llm.example.com"}
OWN = {"tls": "letsencrypt", "acmeServer": "https://ca.lan:9000/acme/acme/directory"}


def refused(settle: Settle, settings: dict[str, str], base: str = "local") -> str:
    return " | ".join(found(lambda: settle(base, settings)))


@pytest.mark.parametrize(
    ("server", "directory"),
    [
        ("production", "https://acme-v02.api.letsencrypt.org/directory"),
        ("staging", "https://acme-staging-v02.api.letsencrypt.org/directory"),
        ("https://ca.lan:9000/acme/acme/directory", "https://ca.lan:9000/acme/acme/directory"),
    ],
)
def test_servers(settle: Settle, server: str, directory: str) -> None:
    acme = settle("local", {**NAMED, "acmeServer": server}).tls.acme
    assert acme
    assert acme.directory == directory


@pytest.mark.parametrize("host", ["127.0.0.1", "10.1.2.3", "llm", "llm.corp.internal", "llm.LAN", "203.0.113.9"])
def test_lets_encrypt_reaches_no_private_name(settle: Settle, host: str) -> None:
    assert "Let's Encrypt can't reach it" in refused(settle, {"tls": "letsencrypt", "endpointHost": host})
    assert settle("local", {**OWN, "endpointHost": host}).tls.acme


def test_lets_encrypt_reaches_no_vm_without_an_external_address(settle: Settle) -> None:
    private = {"externalAddress": "false", "cloudNat": "true"}
    assert "externalAddress" in refused(settle, {**NAMED, **private}, "prod")
    assert settle("prod", {**OWN, **private, "endpointHost": "llm.lan"}).tls.acme


# Settings and the one that is named
WRONG: list[tuple[dict[str, Any], str]] = [
    *(
        ({**NAMED, "acmeServer": server}, "acmeServer")
        for server in ("", "prod", "http://ca.lan/dir", 'https://ca.lan/"$(id)"', "https://u:p@ca.lan/")
    ),
    ({**NAMED, "tlsCa": "x"}, "tlsCa"),
    ({**NAMED, "tlsCertificate": "x"}, "tlsCertificate"),
    ({**NAMED, "httpsPort": "80"}, "httpsPort"),
    ({"acmeServer": "staging"}, "acmeServer"),
    ({**OWN, "tlsCa": "x"}, "tlsCa"),
]


@pytest.mark.parametrize(("settings", "key"), WRONG)
def test_a_wrong_server_or_combination_is_refused(settle: Settle, settings: dict[str, Any], key: str) -> None:
    assert key in refused(settle, settings)


def test_an_own_servers_ca_is_what_clients_must_trust(settle: Settle) -> None:
    authority = new_authority()
    acme = settle("local", {**OWN, "tlsCa": authority.pem}).tls.acme
    assert acme
    assert acme.ca == authority.pem
    acme = settle("local", OWN).tls.acme
    assert acme
    assert acme.ca == ""


def test_port_80_is_let_in_in_this_mode_only(program_of: Programs) -> None:
    assert "network-acme" not in program_of("prod").resources
    rule = program_of("prod", **NAMED).resources["network-acme"].inputs
    assert rule["allows"] == [{"protocol": "tcp", "ports": ["80"]}]


def test_nginx_gets_no_certificate_from_the_program_and_waits_for_the_servers_own(program_of: Programs) -> None:
    program = program_of("gpu", **NAMED)
    files = program.resources["nginx-config"]
    assert not any(name.startswith("certificate-") for name in program.resources)
    assert "acme-certificate" in program.waits_for("nginx-config")
    (config,) = [command for command in program.commands if command.name == files.name]
    assert "ssl_certificate /etc/elastic-vllm/acme/certificate-and-key.pem;" in config.files["nginx.conf"]
    assert not {"certificate.pem", "private-key.pem"} & config.files.keys()

"""Certificates as files of people and tools: which are read, and which are refused with the command that converts."""

import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from components.settings.stack import Settings
from tests.support.verify_server import issue, new_authority
from tests.unit.conftest import found

Settle = Callable[..., Settings]

KIBANA = {"kibanaUrl": "https://kibana.example.com", "kibanaApiKey": "a2liYW5h"}


def openssl(*arguments: str, given: bytes = b"") -> bytes:
    """Return what the command writes."""
    return subprocess.run(["openssl", *arguments], input=given, check=True, capture_output=True).stdout


READ: dict[str, Callable[[bytes], bytes]] = {
    "as it is": bytes,
    "Windows line endings": lambda pem: pem.replace(b"\n", b"\r\n"),
    "a BOM": lambda pem: b"\xef\xbb\xbf" + pem,
    "UTF-16, as PowerShell writes it": lambda pem: pem.decode().encode("utf-16"),
    "no newline at the end": lambda pem: pem.rstrip(),
    "text in front": lambda pem: b"subject=CN = Test CA\nissuer=CN = Test CA\n" + pem,
    "a chain": lambda pem: pem + new_authority("Another CA").pem.encode(),
}


@pytest.mark.parametrize("how", READ)
def test_a_ca_is_read(settle: Settle, tmp_path: Path, how: str) -> None:
    pem = new_authority().pem
    path = tmp_path / "ca.pem"
    path.write_bytes(READ[how](pem.encode()))
    assert settle("local", KIBANA | {"elasticCa": str(path)}).elastic.ca.startswith(pem)


@pytest.mark.parametrize("before", ["\ufeff", "\r\n "])
def test_a_ca_in_the_stack_file_is_read(settle: Settle, before: str) -> None:
    pem = new_authority().pem
    given = KIBANA | {"elasticCa": before + pem.replace("\n", "\r\n")}
    assert settle("local", given).elastic.ca == pem


def test_a_private_key_beside_the_certificate_is_left_where_it_is(settle: Settle, tmp_path: Path) -> None:
    given = KIBANA | {"elasticCa": str(issue(new_authority(), tmp_path / "both.pem"))}
    ca = settle("local", given).elastic.ca
    assert "BEGIN CERTIFICATE" in ca
    assert "PRIVATE" not in ca


REFUSED: dict[str, tuple[Callable[[bytes], bytes], str, str]] = {
    "DER": (lambda pem: openssl("x509", "-outform", "DER", given=pem), "in DER", "openssl x509 -inform DER"),
    "PKCS#12, as elasticsearch-certutil writes it": (
        lambda pem: openssl("pkcs12", "-export", "-nokeys", "-passout", "pass:secret", given=pem),
        "PKCS#12",
        "openssl pkcs12",
    ),
    "PKCS#7 in DER": (
        lambda pem: openssl("crl2pkcs7", "-nocrl", "-certfile", "/dev/stdin", "-outform", "DER", given=pem),
        "PKCS#7",
        "openssl pkcs7 -inform DER",
    ),
    "PKCS#7 in PEM": (
        lambda pem: openssl("crl2pkcs7", "-nocrl", "-certfile", "/dev/stdin", given=pem),
        "PKCS#7",
        "openssl pkcs7 -print_certs",
    ),
    "OpenSSL's trusted certificate": (
        lambda pem: openssl("x509", "-trustout", given=pem),
        "OpenSSL's form",
        "openssl x509 -in",
    ),
    "a Java keystore": (lambda pem: b"\xfe\xed\xfe\xed\0\0\0\2" + pem, "Java keystore", "keytool"),
    "a key in DER": (
        lambda pem: openssl("genpkey", "-algorithm", "RSA", "-outform", "DER"),
        "private key in DER",
        "openssl pkey",
    ),
    "a request": (
        lambda pem: openssl("req", "-new", "-newkey", "ed25519", "-nodes", "-keyout", "/dev/null", "-subj", "/CN=x"),
        "a request",
        "what the CA made of the request",
    ),
    "another binary file": (lambda pem: b"\x7fELF\xff\xfe" + bytes(100), "a binary file", "BEGIN CERTIFICATE"),
    "a certificate that is cut short": (lambda pem: pem[: len(pem) // 2], "no certificate in PEM", "as its CA"),
}


@pytest.mark.parametrize("how", REFUSED)
def test_other_forms_are_refused_with_the_command_that_converts_them(settle: Settle, tmp_path: Path, how: str) -> None:
    write, cause, fix = REFUSED[how]
    path = tmp_path / "ca"
    path.write_bytes(write(new_authority().pem.encode()))
    (message,) = found(lambda: settle("local", KIBANA | {"elasticCa": str(path)}))
    assert message.startswith("elasticCa")
    assert cause in message
    assert fix in message

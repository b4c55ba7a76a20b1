"""Certificates and private keys in settings: as text or as a file on this machine."""

import codecs
import re
from collections.abc import Iterable
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import serialization

from components.settings.problems import Problems

BOM = "\ufeff"
PKCS12 = re.compile(rb"\x30[\x80-\x84].{0,4}?\x02\x01\x03\x30", re.DOTALL)
"""RFC 7292: a sequence that begins with version 3."""
PKCS7 = re.compile(rb"\x30[\x80-\x84].{0,4}?\x06\x09\x2a\x86\x48\x86\xf7\x0d\x01\x07", re.DOTALL)
"""RFC 2315: a sequence that begins with an object identifier of PKCS#7."""
JAVA_KEYSTORE = b"\xfe\xed\xfe\xed"
OTHER_PEM = {
    "PKCS7": (
        "holds a PKCS#7 bundle, no certificate of its own",
        "convert it: openssl pkcs7 -print_certs -in FILE -out FILE.pem",
    ),
    "TRUSTED CERTIFICATE": (
        "holds a certificate in OpenSSL's form for its own trust settings",
        "convert it: openssl x509 -in FILE -out FILE.pem",
    ),
    "CERTIFICATE REQUEST": ("holds a request, no certificate", "give what the CA made of the request"),
}
"""Label of a PEM that is no certificate -> cause and fix."""


def text_or_file(problems: Problems, key: str, project_directory: Path) -> str:
    """PEM text, given as such or as a file that holds it; empty where the setting is, or can't be read."""
    value = problems.values[key].lstrip(BOM).strip()
    if not value or "-----BEGIN" in value:
        return f"{value}\n" if value else ""
    try:
        content = (project_directory / Path(value).expanduser()).read_bytes()
    except (OSError, RuntimeError, ValueError) as error:
        reason = (error.strerror if isinstance(error, OSError) else None) or "no such user, or a null byte"
        problems.add(key, f"neither PEM nor a file that can be read ({reason})", "give the text, or the file's path")
        return ""
    utf16 = content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
    try:
        return content.decode("utf-16" if utf16 else "utf-8-sig").strip() + "\n"
    except UnicodeDecodeError:
        problems.add(key, *_binary(content))
        return ""


def _binary(content: bytes) -> tuple[str, str]:
    """Cause and fix for a file that is no text."""
    with suppress(ValueError):
        x509.load_der_x509_certificate(content)
        return "is a certificate in DER, not in PEM", "convert it: openssl x509 -inform DER -in FILE -out FILE.pem"
    if PKCS12.match(content):
        return (
            "is a PKCS#12 archive, not PEM",
            "convert it: openssl pkcs12 -in FILE -out FILE.pem, -nokeys for certificates, -nocerts -nodes for a key",
        )
    if PKCS7.match(content):
        return (
            "is a PKCS#7 bundle, not PEM",
            "convert it: openssl pkcs7 -inform DER -print_certs -in FILE -out FILE.pem",
        )
    if content.startswith(JAVA_KEYSTORE):
        return "is a Java keystore, not PEM", "convert it: keytool -exportcert -rfc -keystore FILE -file FILE.pem"
    with suppress(ValueError, TypeError):
        serialization.load_der_private_key(content, None)
        return "is a private key in DER, not in PEM", "convert it: openssl pkey -inform DER -in FILE -out FILE.pem"
    return "is a binary file, not PEM", "give a file with -----BEGIN CERTIFICATE----- or -----BEGIN PRIVATE KEY-----"


def authorities(problems: Problems, key: str, project_directory: Path) -> str:
    """CAs to trust, in PEM, given as text or as a file that holds one or more; empty where a certificate is wrong."""
    text = text_or_file(problems, key, project_directory)
    found = certificates(problems, key, text) if text else []
    for certificate in found:
        if not _may_sign(certificate):
            name = certificate.subject.rfc4514_string() or "without a name"
            problems.add(key, f"the certificate {name} is no CA's", "give the CA's own, which signed it")
            return ""
    return as_text(found)


def _may_sign(certificate: x509.Certificate) -> bool:
    try:
        return certificate.extensions.get_extension_for_class(x509.BasicConstraints).value.ca
    except x509.ExtensionNotFound:
        return certificate.issuer == certificate.subject  # an old root


def as_text(certificates: Iterable[x509.Certificate]) -> str:
    """Them alone, in PEM: what else stood in the same file, such as a private key, goes nowhere."""
    return "".join(certificate.public_bytes(serialization.Encoding.PEM).decode() for certificate in certificates)


def certificates(problems: Problems, key: str, text: str) -> list[x509.Certificate]:
    """The certificates in a PEM text, none of which has expired; empty where one is wrong."""
    try:
        found = x509.load_pem_x509_certificates(text.encode())
    except ValueError:
        cause, fix = next(
            (found for label, found in OTHER_PEM.items() if f"-----BEGIN {label}" in text),
            ("holds no certificate in PEM", "give -----BEGIN CERTIFICATE----- ... as its CA hands it out"),
        )
        problems.add(key, cause, fix)
        return []
    now = datetime.now(UTC)
    for certificate in found:
        name = certificate.subject.rfc4514_string() or "without a name"
        if certificate.not_valid_after_utc <= now:
            problems.add(
                key, f"the certificate {name} expired on {certificate.not_valid_after_utc:%Y-%m-%d}", "give a newer one"
            )
            return []
        if certificate.not_valid_before_utc > now:
            problems.add(
                key,
                f"the certificate {name} is valid only from {certificate.not_valid_before_utc:%Y-%m-%d %H:%M} UTC on",
                "give one that is valid now, or correct this machine's clock",
            )
            return []
    return found

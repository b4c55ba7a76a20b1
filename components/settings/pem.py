"""Certificates and private keys in settings: as text or as a file on this machine."""

from collections.abc import Iterable
from datetime import UTC, datetime
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import serialization

from components.settings.problems import Problems


def text_or_file(problems: Problems, key: str, project_directory: Path) -> str:
    """PEM text, given as such or as a file that holds it; empty where the setting is, or can't be read."""
    value = problems.values[key].strip()
    if not value or "-----BEGIN" in value:
        return f"{value}\n" if value else ""
    try:
        return (project_directory / Path(value).expanduser()).read_text(encoding="utf-8").strip() + "\n"
    except (OSError, RuntimeError, ValueError) as error:
        reason = (error.strerror if isinstance(error, OSError) else None) or "not a text file, or no such user"
        problems.add(key, f"neither PEM nor a file that can be read ({reason})", "give the text, or the file's path")
        return ""


def as_text(certificates: Iterable[x509.Certificate]) -> str:
    """Them alone, in PEM: what else stood in the same file, such as a private key, goes nowhere."""
    return "".join(certificate.public_bytes(serialization.Encoding.PEM).decode() for certificate in certificates)


def certificates(problems: Problems, key: str, text: str) -> list[x509.Certificate]:
    """The certificates in a PEM text, none of which has expired; empty where one is wrong."""
    try:
        found = x509.load_pem_x509_certificates(text.encode())
    except ValueError:
        problems.add(key, "holds no certificate in PEM", "give -----BEGIN CERTIFICATE----- ... as its CA hands it out")
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

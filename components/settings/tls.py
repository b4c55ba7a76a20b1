"""The settings of the endpoint's certificate and of client certificates."""

import re
import ssl
import tempfile
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

import certifi
import pulumi
from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa

from components.settings import pem as pem_checks
from components.settings import targets
from components.settings.acme import AcmeSettings, acme_settings
from components.settings.kubernetes import endpoint_name
from components.settings.problems import ENCRYPTED, Problems

CLIENT = re.compile(r"[a-z0-9]([a-z0-9-]{0,30}[a-z0-9])?")
LEAST_RSA_BITS = 2048
MODES = ("private-ca", "provided", "letsencrypt")
USED_BY = {
    "tlsCertificate": ("provided",),
    "tlsPrivateKey": ("provided",),
    "tlsCa": ("provided", "letsencrypt"),
    "acmeServer": ("letsencrypt",),
}
"""Setting -> the values of tls that it belongs to."""


@dataclass(frozen=True, kw_only=True)
class ProvidedCertificate:
    """A certificate that was made elsewhere."""

    chain: str
    """PEM: the server's own first, then those between it and its CA."""
    private_key: pulumi.Output[str]
    """PEM. Secret."""
    ca: str
    """PEM of the CA that clients must be set up to trust; empty for a public one."""
    expires: datetime
    """The first of the chain to expire."""


@dataclass(frozen=True, kw_only=True)
class TlsSettings:
    """The server's certificate, and the clients'."""

    provided: ProvidedCertificate | None
    acme: AcmeSettings | None
    """Neither of the two: one of a CA of the stack's own."""
    clients: tuple[str, ...]
    """Names of client certificates; none: no client needs one."""


def tls_settings(problems: Problems, project_directory: Path, stack: str) -> TlsSettings:
    """Read and check them; a relative path counts from `project_directory`."""
    host = problems.values["endpointHost"] or _default_host(problems, stack)
    mode = problems.choice("tls", MODES)
    return TlsSettings(
        provided=_provided(problems, host, project_directory) if mode == "provided" else None,
        acme=acme_settings(problems, host, project_directory) if mode == "letsencrypt" else None,
        clients=_clients(problems),
    )


def _default_host(problems: Problems, stack: str) -> str:
    """Name or address of the endpoint; empty where Google gives an address that is not known yet."""
    values = problems.values
    if values["target"] == targets.KUBERNETES:
        return endpoint_name(values, stack)
    return "" if values["target"] in {targets.GCP, targets.GKE} else values["host"]


def _clients(problems: Problems) -> tuple[str, ...]:
    key = "clientCertificates"
    fix = 'write ["kibana"]: up to 32 of a-z, 0-9 and "-" each'
    names = problems.texts(key, fix)
    if wrong := [name for name in names if not CLIENT.fullmatch(name)]:
        problems.add(key, f"{wrong[0]!r} can't be a certificate's name", fix)
    if len(set(names)) < len(names):
        problems.add(key, "has a name twice", "give each certificate another name")
    return tuple(names)


def _provided(problems: Problems, host: str, project_directory: Path) -> ProvidedCertificate | None:
    for key in ("tlsCertificate", "tlsPrivateKey"):
        if not problems.values[key]:
            problems.add(key, "not set, but tls is provided", "give the PEM text, or a file on this machine")
    if not host:
        problems.add("endpointHost", "not set, but tls is provided", "set it to the name that the certificate is for")
    before = len(problems.found)
    chain = pem_checks.text_or_file(problems, "tlsCertificate", project_directory)
    ca = pem_checks.text_or_file(problems, "tlsCa", project_directory)
    certificates = pem_checks.certificates(problems, "tlsCertificate", chain) if chain else []
    chain = pem_checks.as_text(certificates)
    ca = pem_checks.as_text(pem_checks.certificates(problems, "tlsCa", ca)) if ca else ""
    if problems.values["tlsPrivateKey"] == ENCRYPTED:  # a script that can't decrypt it
        private_key = ""
    else:
        private_key = pem_checks.text_or_file(problems, "tlsPrivateKey", project_directory)
        known_ca = ca or not problems.values["tlsCa"]
        if private_key and certificates and _matches(problems, private_key, certificates[0]) and host and known_ca:
            _handshake(problems, host, chain, private_key, ca)
    if len(problems.found) > before or not certificates:
        return None
    return ProvidedCertificate(
        chain=chain,
        private_key=pulumi.Output.secret(private_key),
        ca=ca,
        expires=min(certificate.not_valid_after_utc for certificate in certificates),
    )


def _matches(problems: Problems, private_key: str, certificate: x509.Certificate) -> bool:
    key = "tlsPrivateKey"
    try:
        loaded = serialization.load_pem_private_key(private_key.encode(), None)
    except TypeError:
        problems.add(key, "is encrypted with a passphrase", "decrypt it first: openssl pkey -in KEY -out DECRYPTED")
        return False
    except ValueError:
        problems.add(key, "is no private key in PEM", "give the certificate's own key as it was made, in PEM")
        return False
    public = (serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)
    if loaded.public_key().public_bytes(*public) != certificate.public_key().public_bytes(*public):
        name = certificate.subject.rfc4514_string() or "without a name"
        problems.add(key, f"does not belong to the certificate {name}", "give the key that its request was made with")
        return False
    if isinstance(loaded, rsa.RSAPrivateKey) and loaded.key_size < LEAST_RSA_BITS:
        problems.add(key, f"has {loaded.key_size} bits", f"use RSA of {LEAST_RSA_BITS} bits or more, or ECDSA P-256")
        return False
    return True


def _handshake(problems: Problems, host: str, chain: str, private_key: str, ca: str) -> None:
    """Have a server with this certificate meet a client that trusts this CA, in memory: OpenSSL says what is wrong."""
    server, client = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER), ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    with tempfile.NamedTemporaryFile("w", suffix=".pem") as file:  # the module reads files only; mode 0600
        file.write(chain + private_key)
        file.flush()
        try:
            server.load_cert_chain(file.name)
        except ssl.SSLError as error:
            problems.add("tlsCertificate", f"is refused by OpenSSL ({error.reason})", "have another one issued")
            return
    if ca:
        client.load_verify_locations(cadata=ca)
    else:
        client.load_verify_locations(certifi.where())
    to_server, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
    serving = server.wrap_bio(to_server, to_client, server_side=True)
    asking = client.wrap_bio(to_client, to_server, server_hostname=host)
    try:
        for _ in range(4):
            for side in (asking, serving):
                _step(side)
    except ssl.SSLCertVerificationError as error:
        problems.add("tlsCertificate", *_refusal(error.verify_message, host, ca))
    except ssl.SSLError as error:
        problems.add("tlsCertificate", f"is refused by OpenSSL ({error.reason})", "have another one issued")


def _step(side: ssl.SSLObject) -> None:
    with suppress(ssl.SSLWantReadError):  # the other side's turn
        side.do_handshake()


def _refusal(reason: str, host: str, ca: str) -> tuple[str, str]:
    """Cause and fix for the reason that OpenSSL gives for refusing a chain."""
    if "mismatch" in reason:
        return (
            f"is not for {host} ({reason})",
            "set endpointHost to a name in the certificate, or have one issued for it",
        )
    if "issuer" in reason or "self-signed" in reason or "self signed" in reason:
        if ca:
            return (
                f"is not signed by tlsCa ({reason})",
                "add the certificates between the two, in order, or correct tlsCa",
            )
        return (
            f"does not lead to a public CA ({reason})",
            "add the certificates between it and its CA, in order; for a private CA set tlsCa as well",
        )
    return f"is refused by clients ({reason})", "have another one issued"

"""A certificate that an ACME server issues (Let's Encrypt's own, or another): from where, and for what name."""

import ipaddress
import re
from dataclasses import dataclass
from pathlib import Path

from components.settings import pem
from components.settings.problems import Problems

HTTP_PORT = 80
"""The ACME server asks there, and nowhere else (RFC 8555, 8.3)."""
# letsencrypt.org/docs/acme-protocol-updates and /docs/staging-environment
LETS_ENCRYPT = {
    "production": "https://acme-v02.api.letsencrypt.org/directory",
    "staging": "https://acme-staging-v02.api.letsencrypt.org/directory",
}
# RFC 6761, 6762, 8375, and what ICANN keeps for private use: no public CA certifies them.
PRIVATE_NAME = re.compile(r"[^.]+|.*\.(local|localhost|internal|lan|home\.arpa|test|invalid|example)", re.IGNORECASE)
OWN_SERVER = re.compile(r"https://[A-Za-z0-9.-]+(:\d+)?(/[A-Za-z0-9._~/-]*)?")


@dataclass(frozen=True, kw_only=True)
class AcmeSettings:
    """An ACME server."""

    directory: str
    """URL of its directory (RFC 8555, 7.1.1)."""
    ca: str
    """PEM of the CAs that clients, and the server for its ACME server, must be set up to trust; empty for public."""


def acme_settings(problems: Problems, host: str, project_directory: Path) -> AcmeSettings:
    """Check them; `host` is the name or address that clients connect to, empty where it is not known yet."""
    server = problems.values["acmeServer"]
    if server not in LETS_ENCRYPT and not OWN_SERVER.fullmatch(server):
        words = " or ".join(LETS_ENCRYPT)
        problems.add("acmeServer", "unknown value", f"use {words}, or the https:// address of an ACME directory")
    if server in LETS_ENCRYPT:
        _reachable_for_all(problems, host)
    if server == "production" and problems.values["tlsCa"]:
        problems.add("tlsCa", "set, but everyone trusts Let's Encrypt", "remove it")
    if problems.values["httpsPort"] == str(HTTP_PORT):
        problems.add("httpsPort", "is where the ACME server asks", "set another, such as 443")
    text = pem.text_or_file(problems, "tlsCa", project_directory)
    return AcmeSettings(
        directory=LETS_ENCRYPT.get(server, server),
        ca=pem.as_text(pem.certificates(problems, "tlsCa", text)) if text else "",
    )


def _reachable_for_all(problems: Problems, host: str) -> None:
    """Let's Encrypt looks the name up and connects, from anywhere in the Internet."""
    key = "endpointHost" if problems.values["endpointHost"] else "host"
    other = "use tls private-ca or provided, or an ACME server of your own (acmeServer)"
    if problems.values["target"] == "gcp" and problems.values["externalAddress"] == "false":
        problems.add("externalAddress", "Let's Encrypt has to reach the VM on port 80", f"set it to true, or {other}")
    try:
        public = ipaddress.ip_address(host).is_global
    except ValueError:
        public = not host or not PRIVATE_NAME.fullmatch(host)
    if not public:
        problems.add(key, "Let's Encrypt can't reach it: it is private", f"set a public name or address, or {other}")

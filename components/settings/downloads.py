"""How a server that exists reaches what it fetches: through which proxy, and which CA it trusts for that."""

import ipaddress
import re
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

import pulumi

from components.settings import pem
from components.settings.problems import ENCRYPTED, HOST_NAME, Problems

KEYS = ("downloadProxy", "downloadNoProxy", "downloadCa")
ADDRESS_FIX = "write http://HOST:PORT, or http://USER:PASSWORD@HOST:PORT"
# RFC 3986, 3.2.1: whatever else a user's name or password has is written as %XX.
USER_INFO = re.compile(r"([A-Za-z0-9._~!$&'()*+,;=:-]|%[0-9A-Fa-f]{2})+")
LOCAL = ("localhost", "127.0.0.1", "::1")
"""Never reached through a proxy."""


@dataclass(frozen=True, kw_only=True)
class DownloadSettings:
    """The way out of a server that exists."""

    proxy: pulumi.Output[str]
    """URL, which may hold a password. Secret; empty: the server connects directly."""
    proxied: bool
    """True if there is a proxy."""
    exceptions: tuple[str, ...]
    """Names, each with all names below it, and addresses that are reached directly all the same."""
    ca: str
    """PEM of the CAs that the server also trusts when it fetches; empty: only those of its system."""

    def reaches_directly(self, host: str) -> bool:
        """Return True if the server asks a host itself."""
        return not self.proxied or any(host == name or host.endswith(f".{name}") for name in self.exceptions)


def download_settings(problems: Problems, proxy: pulumi.Output[str], project_directory: Path) -> DownloadSettings:
    """Read and check them; `proxy` is the secret value of downloadProxy."""
    values = problems.values
    address = values["downloadProxy"]
    if address and address != ENCRYPTED:
        _address(problems, address)
    given = _exceptions(problems)
    if given and not address:
        problems.add("downloadNoProxy", "set, but there is no downloadProxy", "set downloadProxy, or remove it")
    return DownloadSettings(
        proxy=proxy,
        proxied=bool(address),
        exceptions=tuple(dict.fromkeys([*LOCAL, *filter(None, [values["host"]]), *given])),
        ca=pem.authorities(problems, "downloadCa", project_directory),
    )


def _address(problems: Problems, address: str) -> None:
    key = "downloadProxy"
    try:
        parts = urlsplit(address)
        port = parts.port
    except ValueError:
        problems.add(key, "not a URL with a port", ADDRESS_FIX)
        return
    user_info, at, _ = parts.netloc.rpartition("@")
    if "://" not in address:
        problems.add(key, "has no scheme", ADDRESS_FIX)
    elif parts.scheme != "http":  # curl and the hub's client know no further CA for the connection to a proxy
        problems.add(key, f"a proxy by {parts.scheme}, which not all programs know", "give the http:// address of one")
    elif at and not USER_INFO.fullmatch(user_info):
        problems.add(key, "its user or password has signs that a URL can't hold", "write each of them as %XX: @ as %40")
    elif not parts.hostname or not _is_host(parts.hostname):
        problems.add(key, "names no host", ADDRESS_FIX)
    elif not port:
        problems.add(key, "names no port", ADDRESS_FIX)
    elif parts.path.strip("/") or parts.query or parts.fragment:
        problems.add(key, "has something behind the port", "give a proxy's address, not that of a .pac file")


def _is_host(text: str) -> bool:
    try:
        return bool(ipaddress.ip_address(text))
    except ValueError:
        return bool(HOST_NAME.fullmatch(text))


def _exceptions(problems: Problems) -> list[str]:
    key = "downloadNoProxy"
    fix = 'write ["registry.example.com", "10.0.0.5"]: names, which count for all below them as well, and addresses'
    names = []
    for text in problems.texts(key, fix):
        name = text.strip().removeprefix("*.").removeprefix(".").lower()
        if "/" in name and _is_host(name.partition("/")[0]):
            problems.add(key, f"{text} is a range, which not all programs know", "name the hosts or their domain")
        elif not _is_host(name):
            problems.add(key, f"{text!r} is neither a name nor an address", fix)
        names.append(name)
    return names

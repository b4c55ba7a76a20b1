"""The endpoint to check, as an Elastic administrator receives it."""

import re
import ssl
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from urllib.parse import urlsplit

from components.tls import trust

CHAT_PATH = "/v1/chat/completions"
# A shorter key could match ordinary words when it is removed from messages.
SHORTEST_KEY = 16


class InvalidEndpointError(ValueError):
    """A field of an Endpoint that can't be right: `field` is its name, the text says what it must be."""

    def __init__(self, field: str, problem: str) -> None:
        super().__init__(problem)
        self.field = field


@dataclass(frozen=True, kw_only=True)
class Endpoint:
    """A connector's URL, key and model. Raises InvalidEndpointError for what no connector could use.

    `url` is https://HOST[:PORT]/v1/chat/completions, with or without a prefix before /v1; `ca_certificate` is the
    PEM text of the CA to trust instead of the system's store (None: the system's store).
    """

    url: str
    key: str = field(repr=False)
    model: str
    ca_certificate: str | None = field(default=None, repr=False)
    supports_tools: bool = True
    client_certificate: str | None = field(default=None, repr=False)
    """PEM of what to show as a client, with its private key behind it; None: nothing."""

    refuses: Mapping[str, str] | None = None
    """Requests that the model refuses, each with its consequence, as its stack says; None: as the catalogue does."""

    def __post_init__(self) -> None:
        try:
            parts = urlsplit(self.url)
            _ = parts.port
        except ValueError as error:
            raise InvalidEndpointError("url", f"is not a URL: {error}") from error
        bare = not (parts.query or parts.fragment or "@" in parts.netloc)
        if parts.scheme != "https" or not parts.hostname or not bare or not parts.path.endswith(CHAT_PATH):
            raise InvalidEndpointError("url", f"must be https://HOST[:PORT]{CHAT_PATH}")
        if not re.fullmatch(rf"[!-~]{{{SHORTEST_KEY},}}", self.key):
            raise InvalidEndpointError(
                "key", f"must be at least {SHORTEST_KEY} visible ASCII characters (a connector key has 64)"
            )
        if not self.model.strip():
            raise InvalidEndpointError("model", "must be the name of a served model")
        if self.ca_certificate is not None:
            try:
                # An empty string would silently mean the system's store.
                trust.context(self.ca_certificate or " ")
            except (ssl.SSLError, TypeError) as error:
                raise InvalidEndpointError("ca_certificate", "must be a certificate in PEM") from error
        if self.client_certificate is not None:
            try:
                self.tls_context()
            except ssl.SSLError as error:
                raise InvalidEndpointError(
                    "client_certificate", "must be a certificate and its private key, both in PEM"
                ) from error

    @property
    def host(self) -> str:
        """The URL's host name or address, without brackets."""
        return urlsplit(self.url).hostname or ""

    @property
    def port(self) -> int:
        """The URL's TCP port, 443 if it names none."""
        return urlsplit(self.url).port or 443

    @property
    def root(self) -> str:
        """The URL that the paths of the allow-list are appended to."""
        return self.url.removesuffix(CHAT_PATH)

    def redact(self, text: str) -> str:
        """The text on one line, without control characters, the key, and keys that differ in case or last digit."""
        line = re.sub(re.escape(self.key[:-1]) + ".?", "<key>", " ".join(text.split()), flags=re.IGNORECASE)
        return "".join(character for character in line if character.isprintable())

    def tls_context(self, *, with_client_certificate: bool = True) -> ssl.SSLContext:
        """A client context that trusts the CA given, or the system's store, and refuses TLS below 1.2."""
        context = trust.context(self.ca_certificate or "")
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        if self.client_certificate is not None and with_client_certificate:
            with tempfile.NamedTemporaryFile("w", suffix=".pem") as file:  # the module reads files only; mode 0600
                file.write(self.client_certificate)
                file.flush()
                context.load_cert_chain(file.name)
        return context

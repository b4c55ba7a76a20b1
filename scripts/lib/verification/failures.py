"""Conversion of a client library's exceptions into the cause and the fix for the report."""

import socket
import ssl
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from enum import Enum

import httpx2
import openai
from cryptography import x509

from scripts.lib.verification.endpoint import Endpoint

CONNECT_SECONDS = 10.0
ERROR_TEXT_CHARACTERS = 200
KEY_FIX = "pass the stack's connectorApiKey; has it been rotated"

# OpenSSL's X509_V_ERR_* numbers, which the ssl module passes on as `verify_code` without naming them.
_NOT_YET_VALID = 9
_EXPIRED = 10
_NAME_MISMATCHES = {62, 64}
_UNTRUSTED = {2, 7, 18, 19, 20, 21, 24}


class Blocks(Enum):
    """Which later checks are pointless after a failure."""

    NOTHING = "nothing"
    GENERATION = "generation"
    EVERYTHING = "everything"


class CheckFailedError(Exception):
    """The endpoint does not keep a promise: `cause` is the observation, `fix` the advice."""

    def __init__(self, cause: str, fix: str, *, blocks: Blocks = Blocks.NOTHING) -> None:
        super().__init__(f"{cause}: {fix}")
        self.cause = cause
        self.blocks = blocks


class KnownLimitError(Exception):
    """A limit of the model or of vLLM that is known and documented: the text names what it means for Elastic."""


def explain(error: Exception, endpoint: Endpoint, served: Sequence[str]) -> CheckFailedError:
    """Return the failure that `error` stands for. It never raises: an unknown error is reported by its type and text.

    `served` are the models that the endpoint listed, empty if it was not asked.
    """
    if isinstance(error, CheckFailedError):
        return error
    chain = list(_causes(error))
    if any(isinstance(cause, (httpx2.ConnectError, httpx2.ConnectTimeout)) for cause in chain):
        return explain_connection(chain[-1], endpoint)
    if isinstance(error, openai.APIStatusError):
        return explain_status(error.response, endpoint, served)
    blocks = Blocks.NOTHING
    match error:
        case openai.APITimeoutError() | httpx2.TimeoutException():
            cause, fix = "no answer within the time limit", "is vLLM overloaded or stuck; see its log"
            # The OpenAI client waits ten minutes for an answer: once is enough.
            blocks = Blocks.GENERATION if isinstance(error, openai.APITimeoutError) else blocks
        case openai.APIConnectionError() | httpx2.TransportError():
            cause = f"the connection broke off ({chain[-1]})"
            fix = "did Nginx or vLLM stop, or does something between cut connections; see their logs"
        case openai.APIError():
            cause, fix = f"the endpoint reported: {error.message}", "see vLLM's log"
        case _:
            cause = f"the answer is not in OpenAI's shape ({type(error).__name__}: {error})"
            fix = "is this the connector URL of a vLLM behind Nginx"
    return CheckFailedError(cause, fix, blocks=blocks)


def explain_status(response: httpx2.Response, endpoint: Endpoint, served: Sequence[str]) -> CheckFailedError:
    """Return the failure that an HTTP error stands for."""
    seen = f"HTTP {response.status_code}: {error_text(response, endpoint)}"
    match response.status_code:
        case 401 | 403:
            return CheckFailedError(f"the key was refused ({seen})", KEY_FIX)
        case 404 if served and endpoint.model not in served:
            return CheckFailedError(
                f"model {endpoint.model!r} is not served, only {', '.join(served)}", "pass one of these as the model"
            )
        case 502 | 503 | 504:
            return CheckFailedError(f"vLLM does not answer ({seen})", "is it still loading; see its log")
        case _:
            return CheckFailedError(f"the request was refused ({seen})", "see Nginx's and vLLM's logs")


def error_text(response: httpx2.Response, endpoint: Endpoint) -> str:
    """Return the message of an error in OpenAI's format, or the beginning of any other body."""
    try:
        text = str(response.json()["error"]["message"])
    except (ValueError, LookupError, TypeError):
        text = response.text
    return endpoint.redact(text)[:ERROR_TEXT_CHARACTERS] or "empty body"


def explain_connection(error: BaseException, endpoint: Endpoint) -> CheckFailedError:
    """Return the failure of a TCP connection or TLS handshake, which blocks every later check."""
    address = f"{endpoint.host}:{endpoint.port}"
    if isinstance(error, ssl.SSLCertVerificationError):
        cause, fix = _explain_certificate(error, endpoint)
    elif isinstance(error, ssl.SSLError):
        cause, fix = _explain_handshake(error, address)
    else:
        cause, fix = _explain_tcp(error)
        cause = f"cannot connect to {address}: {cause}"
    return CheckFailedError(cause, fix, blocks=Blocks.EVERYTHING)


def _explain_tcp(error: BaseException) -> tuple[str, str]:
    if isinstance(error, ConnectionRefusedError):
        return "connection refused", "is Nginx running and this its port; does a firewall reject it"
    if isinstance(error, socket.gaierror):
        return "the host name has no address", "check the URL's host name and DNS"
    if isinstance(error, (TimeoutError, httpx2.ConnectTimeout)):
        return (
            f"no answer within {CONNECT_SECONDS:.0f} s",
            "does a firewall drop it; is the machine on and is this its address",
        )
    reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    return reason, "check the network between here and the endpoint"


def _explain_handshake(error: ssl.SSLError, address: str) -> tuple[str, str]:
    reason = error.reason or str(error)
    if reason in {"WRONG_VERSION_NUMBER", "HTTP_REQUEST", "RECORD_LAYER_FAILURE"}:
        return f"{address} does not speak TLS", "check the URL's port: Nginx's TLS port is meant"
    if "PROTOCOL" in reason:
        return f"{address} offers no TLS 1.2 or newer", "set Nginx's ssl_protocols to TLSv1.2 TLSv1.3"
    return f"TLS handshake with {address} failed: {reason}", "see Nginx's error log"


def _explain_certificate(error: ssl.SSLCertVerificationError, endpoint: Endpoint) -> tuple[str, str]:
    code = error.verify_code
    if code in _UNTRUSTED and endpoint.ca_certificate is not None:
        return "certificate not signed by the given CA", "pass the stack's caCertificate"
    if code in _UNTRUSTED:
        return (
            "certificate not signed by a CA that this system trusts",
            "pass the stack's caCertificate with --ca",
        )
    if code == _NOT_YET_VALID:
        return "certificate not valid yet", "are the clocks of this machine and the endpoint right"
    if code != _EXPIRED and code not in _NAME_MISMATCHES:
        return f"certificate refused: {error.verify_message}", "issue a new certificate"
    presented = _presented_certificate(endpoint)
    if code in _NAME_MISMATCHES:
        names = f", only for {', '.join(_names(presented))}" if presented else ""
        return (
            f"certificate not valid for {endpoint.host}{names}",
            "use such a name in the URL or issue a new certificate",
        )
    # What expired may as well be the CA.
    mine = presented is not None and presented.not_valid_after_utc < datetime.now(UTC)
    when = f" on {presented.not_valid_after_utc:%Y-%m-%d}" if presented and mine else ""
    return f"certificate expired{when}", "renew it; and is this machine's clock right"


def _presented_certificate(endpoint: Endpoint) -> x509.Certificate | None:
    """Return the server's certificate, unverified, used only to describe what is wrong with it."""
    try:
        pem = ssl.get_server_certificate((endpoint.host, endpoint.port), timeout=CONNECT_SECONDS)
        return x509.load_pem_x509_certificate(pem.encode())
    except (OSError, ValueError):
        return None


def _names(certificate: x509.Certificate) -> list[str]:
    try:
        alternatives = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound:
        return ["no name at all"]
    return [str(name.value) for name in alternatives]


def _causes(error: BaseException) -> Iterator[BaseException]:
    """Yield the error, then its causes, down to the one of the operating system or OpenSSL."""
    cause: BaseException | None = error
    while cause is not None:
        yield cause
        cause = cause.__cause__ or cause.__context__

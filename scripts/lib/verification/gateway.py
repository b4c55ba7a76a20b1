"""Checks of Nginx's own promises: TLS, the key, the allow-list and the format of refusals."""

import socket
import ssl
import time
from collections.abc import Iterable, Mapping

import httpx2
import openai

from scripts.lib.verification.endpoint import CHAT_PATH, Endpoint
from scripts.lib.verification.failures import (
    CONNECT_SECONDS,
    KEY_FIX,
    CheckFailedError,
    error_text,
    explain_connection,
)
from scripts.lib.verification.probe import ANSWER_SECONDS, Probe

MODELS_PATH = "/v1/models"
HEALTH_PATH = "/healthz"
GUARDED = (("GET", MODELS_PATH), ("POST", CHAT_PATH))
# vLLM has all of these, and guards most of them with no key at all.
CLOSED = (
    ("GET", "/metrics"),
    ("POST", "/v1/completions"),
    ("POST", "/tokenize"),
    ("GET", "/docs"),
    ("POST", "/v1/embeddings"),
    ("POST", "/invocations"),
    ("GET", "/version"),
)
WRONG_METHODS = (("GET", CHAT_PATH), ("POST", MODELS_PATH), ("POST", HEALTH_PATH))
ERROR_FIELDS: Mapping[str, tuple[type, ...]] = {
    "message": (str,),
    "type": (str,),
    "param": (str, type(None)),
    "code": (str, int, type(None)),
}
EXPIRY_WARNING_DAYS = 30
# Those that are renewed by themselves are short-lived, and renewed when a third of their time is left.
EXPIRY_WARNING_SHARE = 0.25
SECONDS_A_DAY = 86_400
AUTH_FIX = "Nginx must let nothing but the exact connector key pass"


def certificate(probe: Probe) -> str:
    """TLS 1.2 or newer, the chain leads to the trusted CA, the name matches, nothing has expired."""
    endpoint = probe.endpoint
    try:
        with (
            socket.create_connection((endpoint.host, endpoint.port), CONNECT_SECONDS) as connection,
            endpoint.tls_context().wrap_socket(connection, server_hostname=endpoint.host) as tls,
        ):
            version, presented = tls.version(), tls.getpeercert() or {}
    except OSError as error:
        raise explain_connection(error, endpoint) from error
    begin, end = (ssl.cert_time_to_seconds(str(presented[name])) for name in ("notBefore", "notAfter"))
    days = int((end - time.time()) // SECONDS_A_DAY)
    near = days < min(EXPIRY_WARNING_DAYS, EXPIRY_WARNING_SHARE * (end - begin) / SECONDS_A_DAY)
    expiry = f"expires in {days} days: renew it" if near else f"{days} days left"
    return f"{version}, chain and name {endpoint.host} verified, {expiry}"


def health(probe: Probe) -> str:
    """The health path answers 200 without a key."""
    response = probe.request("GET", HEALTH_PATH, key=None)
    if response.status_code != httpx2.codes.OK:
        raise CheckFailedError(
            f"GET {HEALTH_PATH} answered {response.status_code} ({error_text(response, probe.endpoint)})",
            "it must answer 200 without a key; is Nginx up, and vLLM behind it",
        )
    return "200 without a key"


def missing_key(probe: Probe) -> str:
    """Every guarded path answers 401 without a key."""
    _require_status(probe, GUARDED, 401, key=None, sent="without a key", fix=AUTH_FIX)
    return "401 without a key"


def missing_client_certificate(probe: Probe) -> str:
    """Every guarded path answers 403 to the right key without a client certificate."""
    context = probe.endpoint.tls_context(with_client_certificate=False)
    fix = "Nginx must ask for a client certificate besides the key"
    with httpx2.Client(verify=context, trust_env=False, timeout=ANSWER_SECONDS) as bare:
        other = Probe(probe.endpoint, bare, probe.client)
        _require_status(other, GUARDED, 403, key=probe.endpoint.key, sent="without a client certificate", fix=fix)
    return "403 with the key but no client certificate"


def wrong_key(probe: Probe) -> str:
    """Every guarded path answers 401 to a key that is nearly right."""
    key = probe.endpoint.key
    near = {"with the last digit changed": _last_digit_changed(probe.endpoint), "in upper case": key.upper()}
    for how, other in near.items():
        if other != key:
            _require_status(probe, GUARDED, 401, key=other, sent=f"with the key {how}", fix=AUTH_FIX)
    return "401 with the key's last digit changed, and with the key in upper case"


def _last_digit_changed(endpoint: Endpoint) -> str:
    return endpoint.key[:-1] + ("1" if endpoint.key.endswith("0") else "0")


def error_shape(probe: Probe) -> str:
    """Refusals are JSON in OpenAI's error format, and OpenAI's client recognizes a wrong key."""
    key = probe.endpoint.key
    refusals = [
        probe.request("GET", MODELS_PATH, None),
        probe.request("GET", "/no-such-path", key),
        probe.request("GET", CHAT_PATH, key),
    ]
    for refusal in refusals:
        # A request that was not refused is another check's failure.
        flaw = _shape_flaw(refusal) if refusal.is_error else None
        if flaw:
            asked = f"{refusal.request.method} {refusal.request.url.path}"
            raise CheckFailedError(
                f"{asked} answered {refusal.status_code} with {flaw}", "refusals must have OpenAI's error shape"
            )
    other = probe.client.with_options(api_key=_last_digit_changed(probe.endpoint), timeout=ANSWER_SECONDS)
    try:
        other.models.list()
    except openai.AuthenticationError:
        return "refusals are JSON errors, and a wrong key raises AuthenticationError"
    raise CheckFailedError("a wrong key raises no AuthenticationError", AUTH_FIX)


def _shape_flaw(response: httpx2.Response) -> str | None:
    content_type = response.headers.get("content-type", "no content type")
    if content_type.partition(";")[0].strip() != "application/json":
        return f"{content_type}, not application/json"
    try:
        error = response.json()["error"]
        wrong = [name for name, types in ERROR_FIELDS.items() if not isinstance(error[name], types)]
    except (ValueError, LookupError, TypeError):
        return 'a body other than {"error": {"message", "type", "param", "code"}}'
    return f"a wrong {', '.join(wrong)} in its error" if wrong else None


def closed_paths(probe: Probe) -> str:
    """Paths that are not on the allow-list answer 404, even with the key."""
    fix = "Nginx must pass on nothing but its allow-list"
    _require_status(probe, CLOSED, 404, key=probe.endpoint.key, sent="with the key", fix=fix)
    return f"404 on {' '.join(path for _, path in CLOSED)}"


def methods(probe: Probe) -> str:
    """Another method on a path of the allow-list answers 405."""
    fix = "Nginx must allow one method for each path"
    _require_status(probe, WRONG_METHODS, 405, key=probe.endpoint.key, sent="with the key", fix=fix)
    return f"405 on {', '.join(f'{method} {path}' for method, path in WRONG_METHODS)}"


def _require_status(
    probe: Probe, requests: Iterable[tuple[str, str]], status: int, *, key: str | None, sent: str, fix: str
) -> None:
    seen = {f"{method} {path}": probe.request(method, path, key).status_code for method, path in requests}
    wrong = {request: answer for request, answer in seen.items() if answer != status}
    if wrong:
        listed = ", ".join(f"{request} answered {answer}" for request, answer in wrong.items())
        refused = set(wrong.values()) == {401}
        raise CheckFailedError(f"{listed} {sent}, not {status}", KEY_FIX if refused else fix)

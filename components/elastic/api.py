"""Requests to Kibana and Elasticsearch: retries, and one line with the cause and the fix for each refusal."""

import socket
import ssl
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import Any

import httpx2

from components.tls import trust

ANSWER_SECONDS = 150
"""Limit for one answer: longer than Elasticsearch waits for the endpoint (VALIDATION_SECONDS)."""
VALIDATION_SECONDS = 120
"""Time that Elasticsearch waits for the endpoint before it refuses to create an inference endpoint."""
PATIENCE_SECONDS = 60
"""Time during which requests to a product that is down or busy are retried."""
LONGEST_PAUSE_SECONDS = 15
AGAIN = frozenset({429, 500, 502, 503, 504})
ENDPOINT_WORKS = "Nothing else is wrong: put this right and run the same again"
REFUSALS = {
    # Kibana's actions/server/lib/license_state.ts, Elasticsearch's InferenceLicenceCheck
    "license": (
        "{name}'s license does not include AI connectors (403: {reason}): they need an Enterprise license or a trial, "
        "and on Serverless a Complete tier. Change the license"
    ),
    # Kibana's actions/server/actions_config.ts
    "enabledactiontypes": (
        "{name}'s setting xpack.actions.enabledActionTypes leaves out the OpenAI connector (403: {reason}): add "
        ".gen-ai to that list in kibana.yml and restart Kibana"
    ),
}
"""Refusals with 403 other than a missing privilege: word in the product's reason, in lower case -> cause and fix."""
NO_ENCRYPTION_KEY = "missing encryption key"
"""Text in Kibana's 500 for all requests about connectors if xpack.encryptedSavedObjects.encryptionKey is not set."""


class ElasticError(Exception):
    """Refusal by Kibana or Elasticsearch: cause and fix, never a key."""


class DownError(ElasticError):
    """The product does not answer or is too busy: a later try with the same settings may succeed."""


@dataclass(frozen=True, kw_only=True)
class Answer:
    """A response that is no error of the connection or the key."""

    status: int
    body: Any
    """Decoded JSON; None where there is none."""
    tries: int

    @property
    def reason(self) -> str:
        """Return the product's reason for a refusal."""
        if not isinstance(self.body, dict):
            return "without a reason"
        error = self.body.get("error")
        if isinstance(error, dict):  # Elasticsearch
            causes = [error, *[cause for cause in (error.get("root_cause") or []) if isinstance(cause, dict)]]
            caused_by = error.get("caused_by")
            causes += [caused_by] if isinstance(caused_by, dict) else []
            reasons = list(dict.fromkeys(str(cause.get("reason", "")) for cause in causes))
            return ": ".join(text for text in reasons if text) or "without a reason"
        return str(self.body.get("message") or error or "without a reason")


@dataclass(frozen=True, kw_only=True)
class Product:
    """Kibana or Elasticsearch, as the settings say how to reach it."""

    name: str
    url: str
    url_setting: str
    key: str = field(repr=False)
    key_setting: str
    privilege: str
    """Privilege that the key must have, in the product's own terms."""
    ca: str = ""
    """PEM of the CA of its certificate; empty: the system's."""
    headers: Mapping[str, str] = field(default_factory=dict)
    patience: float = PATIENCE_SECONDS
    answer_seconds: float = ANSWER_SECONDS

    def ask(self, method: str, path: str, body: object = None, hidden: tuple[str, ...] = ()) -> Answer:
        """Return the answer to a request: 2xx, 400, 404 or 409, which the caller must distinguish.

        Raises ElasticError for all others, DownError after `patience` seconds. `hidden` are secrets in the body, which
        no message may repeat.
        """
        headers = {**self.headers, "Authorization": f"ApiKey {self.key}"}
        end = time.monotonic() + self.patience
        pause, tries = 1.0, 0
        with httpx2.Client(verify=self._tls(), timeout=self.answer_seconds, headers=headers) as client:
            while True:
                tries += 1
                try:
                    response = client.request(method, self.url + path, json=body)
                except (httpx2.TransportError, OSError) as error:
                    if _is_final(error) or time.monotonic() + pause > end:
                        raise self._unreachable(error) from None
                    wait = pause
                else:
                    final = response.status_code not in AGAIN or NO_ENCRYPTION_KEY in response.text
                    if final or time.monotonic() + pause > end:
                        return self._told(response, tries, (self.key, *hidden))
                    wait = _asked_to_wait(response) or pause
                time.sleep(min(wait, LONGEST_PAUSE_SECONDS))
                pause = min(pause * 2, LONGEST_PAUSE_SECONDS)

    def _tls(self) -> ssl.SSLContext:
        context = trust.context(self.ca)
        # As curl does: the server's own certificate, or one between it and its CA, may stand in elasticCa.
        context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
        return context

    def _told(self, response: httpx2.Response, tries: int, hidden: tuple[str, ...]) -> Answer:
        status = response.status_code
        try:
            body = response.json()
        except ValueError:
            body = None
        reason = Answer(status=status, body=body, tries=tries).reason
        for secret in hidden:
            reason = reason.replace(secret, "<key>")
        reason = " ".join(reason.split())[:500]
        if status == HTTPStatus.UNAUTHORIZED:
            raise ElasticError(
                f"{self.name} at {self.url} refuses the API key (401: {reason}): set {self.key_setting} to one that "
                f"was made there and has not expired. {ENDPOINT_WORKS}"
            )
        if status == HTTPStatus.FORBIDDEN:
            for word, text in REFUSALS.items():
                if word in reason.lower():
                    raise ElasticError(f"{text.format(name=self.name, reason=reason)}. {ENDPOINT_WORKS}")
            raise ElasticError(
                f"the API key in {self.key_setting} lacks a privilege in {self.name} (403: {reason}): it needs "
                f"{self.privilege}. {ENDPOINT_WORKS}"
            )
        if NO_ENCRYPTION_KEY in reason:
            raise ElasticError(
                f"{self.name} at {self.url} can store no connector ({status}: {reason}): generate a key with "
                "bin/kibana-encryption-keys, set it as xpack.encryptedSavedObjects.encryptionKey in every kibana.yml, "
                f"and restart Kibana. {ENDPOINT_WORKS}"
            )
        if status in AGAIN:
            raise DownError(
                f"{self.name} at {self.url} still answers {status} ({reason}) after {tries} tries: see its own log, or "
                f"try later. {ENDPOINT_WORKS}"
            )
        known = (HTTPStatus.BAD_REQUEST, HTTPStatus.NOT_FOUND, HTTPStatus.CONFLICT)
        empty = status == HTTPStatus.NO_CONTENT
        if not (response.is_success or status in known) or (body is None and not empty):
            raise ElasticError(
                f"what answers at {self.url} is not {self.name} ({status}, "
                f"{response.headers.get('content-type', 'no content type')}): set {self.url_setting} to its address. "
                f"{ENDPOINT_WORKS}"
            )
        if isinstance(body, dict) and not response.is_success:
            body = {"message": reason}
        return Answer(status=status, body=body, tries=tries)

    def _mistrust(self, cause: str) -> str:
        """Return the fix for OpenSSL's reason to refuse a certificate."""
        if "mismatch" in cause:
            return f"set {self.url_setting} to a name in the certificate."
        if "expired" in cause or "not yet valid" in cause:
            return f"renew the certificate of {self.name}, or correct this machine's clock."
        if self.ca:
            return f"elasticCa is not the CA of this certificate: set it to the one that {self.name} was set up with."
        return "set elasticCa to the CA's certificate."

    def _unreachable(self, error: Exception) -> ElasticError:
        cause = " ".join(str(error).split()) or type(error).__name__
        fix = f"is it up, is {self.url_setting} right, and may this machine reach it?"
        if "CERTIFICATE_VERIFY_FAILED" in cause:
            fix = self._mistrust(cause)
        elif "SSL" in cause:
            fix = f"does it speak TLS there? {self.url_setting} may need another port, or http:// on this machine"
        elif _no_such_name(error):
            fix = f"there is no such name: correct {self.url_setting}"
        text = f"cannot reach {self.name} at {self.url}: {cause}: {fix} {ENDPOINT_WORKS}"
        return ElasticError(text) if _is_final(error) else DownError(text)


def _no_such_name(error: Exception) -> bool:
    """Return True if a name was not found, as opposed to a resolver that does not answer."""
    causes: list[BaseException | None] = [error]
    while causes[-1]:
        causes.append(causes[-1].__cause__ or causes[-1].__context__)
    return any(isinstance(cause, socket.gaierror) and cause.errno == socket.EAI_NONAME for cause in causes)


def _is_final(error: Exception) -> bool:
    """Return True if a retry is useless: a certificate does not become trusted by waiting."""
    words = ("CERTIFICATE_VERIFY_FAILED", "WRONG_VERSION_NUMBER")
    return any(word in str(error) for word in words) or _no_such_name(error)


def _asked_to_wait(response: httpx2.Response) -> float:
    """Return the seconds of a Retry-After; 0 without one (neither product sends a date)."""
    text = response.headers.get("retry-after", "")
    return float(text) if text.isdigit() else 0.0

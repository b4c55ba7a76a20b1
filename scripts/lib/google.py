"""Google Cloud's REST APIs, asked with the user's own credentials."""

import os
import shutil
import subprocess
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import Any

import google.auth
import requests
from google.auth.credentials import Credentials
from google.auth.exceptions import DefaultCredentialsError, GoogleAuthError, RefreshError
from google.auth.transport.requests import AuthorizedSession
from google.oauth2.credentials import Credentials as TokenCredentials
from requests.adapters import HTTPAdapter
from urllib3.exceptions import ProtocolError, ReadTimeoutError
from urllib3.util import Retry

from components.errors import UserError

COMPUTE = "compute.googleapis.com"
TOKEN_VARIABLE = "GOOGLE_OAUTH_ACCESS_TOKEN"  # noqa: S105 - a variable's name; Pulumi's gcp provider reads it first
SCOPE = "https://www.googleapis.com/auth/cloud-platform"
LOGIN = "gcloud auth application-default login"
GCLOUD_SECONDS = 60
CONNECT_SECONDS = 5.0
ANSWER_SECONDS = 30.0
BACKOFF_SECONDS = 0.5
LONGEST_PAUSE_SECONDS = 10
TRIES_AGAIN = 4
TRANSIENT = (429, 500, 502, 503, 504)
# Of these the next request to the host need not be the victim too.
PASSING = (ReadTimeoutError, ProtocolError)


class NoAnswerError(Exception):
    """No answer that can be used; the text says why."""


class RefusedError(Exception):
    """An answer that is an error: `status` is HTTP's, `reason` Google's code for it, the text Google's message."""

    def __init__(self, host: str, status: int, reason: str, message: str) -> None:
        super().__init__(message)
        self.host, self.status, self.reason = host, status, reason


@dataclass(frozen=True)
class Identity:
    """Credentials, with their `kind` of source, and their owner `who`, if known without asking Google."""

    credentials: Credentials = field(repr=False)
    kind: str
    who: str = ""
    renewal: str = LOGIN
    """Advice for the case that Google refuses them."""


def find_identity(scopes: Sequence[str] = (SCOPE,)) -> Identity:
    """Return the user's credentials, found as Pulumi does, or by gcloud if there are no others.

    `scopes` are asked of credentials that have none yet. Order: $GOOGLE_OAUTH_ACCESS_TOKEN, Application Default
    Credentials, gcloud's own login. Raises UserError if there are none.
    """
    if token := os.environ.get(TOKEN_VARIABLE, "").strip():
        return Identity(_static(token), f"token of ${TOKEN_VARIABLE}", renewal=f"renew or unset ${TOKEN_VARIABLE}")
    try:
        with warnings.catch_warnings(action="ignore"):
            credentials, _ = google.auth.default(scopes=[*scopes])
    except (GoogleAuthError, OSError, ValueError) as error:
        chosen = os.environ.get("GOOGLE_APPLICATION_CREDENTIALS")
        if chosen or not isinstance(error, DefaultCredentialsError):
            fix = "check $GOOGLE_APPLICATION_CREDENTIALS" if chosen else LOGIN
            raise UserError(f"Application Default Credentials are not usable ({error})", fix) from error
        return _of_gcloud()
    who = getattr(credentials, "service_account_email", "") or getattr(credentials, "account", "")
    # On a virtual machine it is the word `default` until it was asked for.
    return Identity(credentials, "Application Default Credentials", who if "@" in (who or "") else "")


def _of_gcloud() -> Identity:
    if not shutil.which("gcloud"):
        raise UserError("no credentials ($GOOGLE_OAUTH_ACCESS_TOKEN, Application Default, gcloud)", LOGIN)
    try:
        token, account = (
            subprocess.run(
                ["gcloud", *command, "--quiet"], capture_output=True, text=True, timeout=GCLOUD_SECONDS, check=True
            ).stdout.strip()
            for command in (["auth", "print-access-token"], ["config", "get", "account"])
        )
    except subprocess.TimeoutExpired as error:
        raise UserError(f"gcloud gave no token within {GCLOUD_SECONDS} s", LOGIN) from error
    except (OSError, subprocess.CalledProcessError) as error:
        # What it wrote to standard output may be a token.
        reason = " ".join(str(getattr(error, "stderr", None) or error).split())
        raise UserError(f"no Application Default Credentials, and gcloud gave no token ({reason})", LOGIN) from error
    return Identity(_static(token), "login of gcloud", account, renewal="gcloud auth login")


def _static(token: str) -> Credentials:
    return TokenCredentials(token=token).with_quota_project_from_environment()  # type: ignore[no-untyped-call,no-any-return]


class Google:
    """Google's APIs. Requests are repeated after 429, 5xx and lost connections; Compute Engine's answers are cached."""

    def __init__(self, identity: Identity, base: str = "", backoff: float = BACKOFF_SECONDS) -> None:
        """Set up the APIs; `base` (http://HOST:PORT) replaces all of them, with the paths /API-HOST/PATH."""
        self.identity = identity
        self._base = base
        self._session = AuthorizedSession(identity.credentials, refresh_status_codes=())  # type: ignore[no-untyped-call]
        retry = Retry(
            total=TRIES_AGAIN,
            connect=1,
            read=1,
            status_forcelist=TRANSIENT,
            allowed_methods=None,  # nothing that is sent here changes anything
            backoff_factor=backoff,
            retry_after_max=LONGEST_PAUSE_SECONDS,
            raise_on_status=False,
        )
        for scheme in ("https://", "http://"):
            self._session.mount(scheme, HTTPAdapter(max_retries=retry))
        self._answers: dict[str, dict[str, Any]] = {}
        self._silent: dict[str, str] = {}
        self._refused = ""

    def ask(
        self, host: str, path: str, body: dict[str, Any] | None = None, query: dict[str, str] | None = None
    ) -> dict[str, Any]:
        """Return the answer to a GET, or with a `body` to a POST.

        Raises RefusedError for an answer that is an error, NoAnswerError if there is none or after a 401.
        """
        if self._refused:
            raise NoAnswerError(self._refused)
        if host in self._silent:
            raise NoAnswerError(self._silent[host])
        url = f"{self._base}/{host}/{path}" if self._base else f"https://{host}/{path}"
        if url in self._answers:
            return self._answers[url]
        found = self._fetch(host, url, body, query)
        if host == COMPUTE:
            self._answers[url] = found
        return found

    def _fetch(self, host: str, url: str, body: dict[str, Any] | None, query: dict[str, str] | None) -> dict[str, Any]:
        try:
            answer = self._session.request(  # type: ignore[no-untyped-call]
                "GET" if body is None else "POST",
                url,
                params=query,
                json=body,
                timeout=(CONNECT_SECONDS, ANSWER_SECONDS),
            )
            refusal = None if answer.ok else _refusal(host, answer)
        except RefreshError as error:
            if error.retryable:
                raise NoAnswerError(f"Google gave no new token for now ({error.args[0]})") from error
            refusal = RefusedError(host, HTTPStatus.UNAUTHORIZED, "", str(error.args[0] if error.args else error))
        except (requests.RequestException, GoogleAuthError) as error:
            cause = _cause(error)
            reason = f"no answer from {host} ({str(cause).rsplit(': ', 1)[-1]})"
            if not isinstance(cause, PASSING):
                self._silent[host] = reason
            raise NoAnswerError(reason) from error
        if refusal:
            if refusal.status == HTTPStatus.UNAUTHORIZED:
                self._refused = "the credentials were refused"
            raise refusal
        found = answer.json()
        if not isinstance(found, dict):
            raise NoAnswerError(f"the answer of {host} is no JSON object")
        return found

    def find(self, project: str, path: str) -> dict[str, Any] | None:
        """Return an object of Compute Engine in `project`, or None if there is none of that name."""
        try:
            return self.ask(COMPUTE, f"compute/v1/projects/{project}/{path}")
        except RefusedError as error:
            # That there is no such project says nothing of what it would hold.
            if error.status != HTTPStatus.NOT_FOUND or f"'projects/{project}'" in str(error):
                raise
            return None

    def account(self) -> str:
        """Whose credentials these are, as far as Google says; empty where it does not."""
        if self.identity.who:
            return self.identity.who
        host = "www.googleapis.com"
        try:
            # In the body: addresses are logged.
            answer = requests.post(
                f"{self._base or 'https:/'}/{host}/oauth2/v1/tokeninfo",
                data={"access_token": self.identity.credentials.token},
                timeout=(CONNECT_SECONDS, ANSWER_SECONDS),
            )
            return str(answer.json().get("email", "")) if answer.ok else ""
        except (requests.RequestException, ValueError, AttributeError):
            return ""

    def redact(self, text: str) -> str:
        """Return the text on one line, without the token."""
        token = self.identity.credentials.token
        return " ".join((text.replace(token, "<token>") if token else text).split())


def _refusal(host: str, answer: requests.Response) -> RefusedError:
    """Return Google's message (google.rpc.Status), or the beginning of any other body."""
    reason, message = "", " ".join(answer.text.split())[:200] or answer.reason
    try:
        error = answer.json()["error"]
        message = str(error["message"])
        reasons = [detail["reason"] for detail in error.get("details", []) if detail.get("reason")]
        reason = str((reasons or [error.get("status", "")])[0])
    except (ValueError, LookupError, TypeError, AttributeError):
        pass
    return RefusedError(host, answer.status_code, reason, message)


def _cause(error: BaseException) -> BaseException:
    """Return the root cause of an error, without the layers of libraries around it."""
    while True:
        inner = getattr(error, "reason", None) or (error.args[0] if error.args else None)
        if not isinstance(inner, BaseException):
            return error
        error = inner

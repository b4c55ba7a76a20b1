"""The command that gives a client of a cluster its token: what it prints, and what it never does."""

import json
import re
from datetime import datetime
from typing import Any

import pytest
from google.auth.exceptions import RefreshError, TransportError

from components.errors import UserError
from scripts.cli import gke_credentials
from scripts.lib.google import Identity
from tests.support.commands import invoke

TOKEN = "ya29.TokenOfTheTests"


class Credentials:
    """Credentials that are renewed, or not."""

    def __init__(self, error: Exception | None = None) -> None:
        self.error, self.token, self.valid = error, "", False
        self.expiry: datetime | None = None

    def refresh(self, _request: object) -> None:
        if self.error:
            raise self.error
        self.token, self.valid = TOKEN, True
        self.expiry = datetime(2026, 11, 29, 13, 0, 7)  # google-auth's are naive, in UTC


@pytest.fixture
def with_credentials(monkeypatch: pytest.MonkeyPatch) -> Any:
    def use(credentials: Credentials) -> None:
        identity = Identity(credentials, "Application Default Credentials")  # type: ignore[arg-type]
        monkeypatch.setattr(gke_credentials, "find_identity", lambda _scopes: identity)

    return use


def test_a_client_gets_a_fresh_token_and_its_end(with_credentials: Any) -> None:
    with_credentials(Credentials())
    done = invoke("gke-credentials")
    assert done.exit_code == 0
    assert json.loads(done.stdout) == {
        "apiVersion": "client.authentication.k8s.io/v1",
        "kind": "ExecCredential",
        "status": {"token": TOKEN, "expirationTimestamp": "2026-11-29T13:00:07Z"},
    }


def test_a_given_token_has_no_known_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GOOGLE_OAUTH_ACCESS_TOKEN", TOKEN)
    assert json.loads(invoke("gke-credentials").stdout)["status"] == {"token": TOKEN}


@pytest.mark.parametrize(
    ("error", "message", "fix"),
    [
        (RefreshError, "Google refuses the Application Default Credentials: invalid_grant", "application-default"),
        (TransportError, "no answer from Google for the Application Default Credentials", "network"),
    ],
)
def test_an_error_says_what_to_do(error: type[Exception], message: str, fix: str, with_credentials: Any) -> None:
    with_credentials(Credentials(error("invalid_grant")))
    done = invoke("gke-credentials")
    assert done.exit_code == 1
    assert re.search(rf"{message}(.|\n)*fix: .*{fix}", done.output)
    assert TOKEN not in done.output


def test_no_token_is_shown_on_a_terminal(monkeypatch: pytest.MonkeyPatch, with_credentials: Any) -> None:
    with_credentials(Credentials())
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    with pytest.raises(UserError, match="would be shown on this terminal"):
        gke_credentials.main()


def test_a_service_account_is_known_by_its_address(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[list[str]] = []

    def default(scopes: list[str]) -> tuple[Any, str]:
        asked.append(scopes)
        return Credentials(), "acme"

    monkeypatch.delenv("GOOGLE_OAUTH_ACCESS_TOKEN", raising=False)
    monkeypatch.setattr("google.auth.default", default)
    assert invoke("gke-credentials").exit_code == 0
    assert asked == [
        ["https://www.googleapis.com/auth/cloud-platform", "https://www.googleapis.com/auth/userinfo.email"]
    ]

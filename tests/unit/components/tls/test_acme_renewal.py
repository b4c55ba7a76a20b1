"""`up` checks the certificate that the endpoint presents, and warns of one that should have been renewed by now."""

import socket
import threading
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pulumi
import pytest
from cryptography import x509

from components.tls import acme_certificate
from tests.support.program import run
from tests.support.verify_server import issue, new_authority, serving
from tests.unit.components.settings.test_acme_settings import NAMED

served_certificate = acme_certificate.served_certificate  # before conftest.py replaces it


def certificate(directory: Path, days: float) -> x509.Certificate:
    """Return a certificate that began 400 days ago and ends in `days`."""
    file = issue(new_authority(), directory / "server.pem", days=days)
    return x509.load_pem_x509_certificate(file.read_bytes())


@pytest.mark.parametrize(
    ("days", "words"),
    [(134, ""), (132.5, "expires in 132 days"), (0.5, "expires in 0 days"), (-1, "has expired")],
)
def test_a_late_renewal_is_reported(tmp_path: Path, days: float, words: str) -> None:
    ends = certificate(tmp_path, days)
    warning = acme_certificate.renewal_warning(ends, "elastic-vllm-x-acme", datetime.now(UTC))
    assert bool(warning) == bool(words)
    assert words in warning
    assert not warning or "journalctl -u elastic-vllm-x-acme" in warning


def test_short_ones_are_late_in_their_last_quarter(tmp_path: Path) -> None:
    ends = certificate(tmp_path, 10)
    begin, end = ends.not_valid_before_utc, ends.not_valid_after_utc
    quarter = begin + (end - begin) * 3 / 4
    assert not acme_certificate.renewal_warning(ends, "x", quarter - timedelta(seconds=1))
    assert acme_certificate.renewal_warning(ends, "x", quarter + timedelta(seconds=1))


def test_it_is_the_one_that_the_endpoint_shows(tmp_path: Path) -> None:
    file = issue(new_authority(), tmp_path / "server.pem")
    with serving(file) as gateway:
        shown = served_certificate("127.0.0.1", gateway.server_port)
    assert shown == x509.load_pem_x509_certificate(file.read_bytes())


def test_an_endpoint_that_is_not_there_is_nothing_to_warn_of() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    assert served_certificate("127.0.0.1", port) is None


def test_an_endpoint_that_speaks_no_tls_is_nothing_to_warn_of() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:

        def answer() -> None:
            connection, _ = server.accept()
            connection.sendall(b"SSH-2.0-x\r\n")
            connection.close()

        threading.Thread(target=answer, daemon=True).start()
        assert served_certificate("127.0.0.1", server.getsockname()[1]) is None


@pytest.mark.parametrize(("days", "warned"), [(300, False), (20, True)])
def test_up_warns(
    values_of: Callable[..., dict[str, str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, days: int, warned: bool
) -> None:
    looked_at: list[tuple[str, int]] = []
    warnings: list[str] = []

    def shown(host: str, port: int) -> x509.Certificate:
        looked_at.append((host, port))
        return certificate(tmp_path, days)

    def warn(message: str, *_: Any) -> None:
        warnings.append(message)

    monkeypatch.setattr(acme_certificate, "served_certificate", shown)
    monkeypatch.setattr(pulumi.log, "warn", warn)
    run(values_of("gpu", **NAMED, httpsPort=8443), stack="gpu")
    assert looked_at == [("llm.example.com", 8443)]
    assert [text.partition(": the certificate expires in ")[0] for text in warnings] == ["llm.example.com"] * warned

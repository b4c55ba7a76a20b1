"""Results of auditors' own tools: sslyze for TLS, compared with Mozilla's guideline, and gixy for nginx.conf."""

import json
import shutil
import subprocess
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

from components.render import FILES
from components.serving.nginx_config import nginx_conf
from tests.conftest import GOLDEN, LIMITS
from tests.integration.conftest import Deployment
from tests.integration.hostile import twin
from tests.support import tool_environment
from tests.support.made_stacks import NGINX_IMAGE

SUITES = {
    *("TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256", "TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384"),
    "TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305_SHA256",
}
"""Cipher suites of TLS 1.2 for an ECDSA key: only authenticated encryption with forward secrecy."""
OLD = ("ssl_2_0", "ssl_3_0", "tls_1_0", "tls_1_1")
YEAR_TWICE = 63_072_000


@pytest.fixture(scope="module")
def tools(machine: None) -> Path:
    return tool_environment.programs("audit")


def scanned(tools: Path, host: str, port: int, ca: Path, tmp: Path) -> tuple[int, str, dict[str, Any]]:
    """Return sslyze's exit status (0: as the guideline demands), its verdict, and all its findings."""
    command = [str(tools / "python"), "-m", "sslyze", "--mozilla_config=intermediate", "--http_headers"]
    command += [f"--certinfo_ca_file={ca}", f"--json_out={tmp / 'found.json'}", f"{host}:{port}"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    (found,) = json.loads((tmp / "found.json").read_text())["server_scan_results"]
    assert found["scan_status"] == "COMPLETED", done.stdout
    return done.returncode, done.stdout.partition("COMPLIANCE AGAINST")[2], found["scan_result"]


@pytest.fixture(scope="module")
def scan(
    tools: Path, deployed: Deployment, tmp_path_factory: pytest.TempPathFactory
) -> tuple[int, str, dict[str, Any]]:
    tmp = tmp_path_factory.mktemp("scan")
    (tmp / "ca.pem").write_text(deployed.ca_certificate)
    address = urlsplit(deployed.url)
    return scanned(tools, str(address.hostname), address.port or 443, tmp / "ca.pem", tmp)


def test_tls_complies_with_mozillas_guideline(scan: tuple[int, str, dict[str, Any]]) -> None:
    status, verdict, _ = scan
    assert status == 0, verdict
    assert "Compliant" in verdict


def test_only_tls_1_2_and_1_3_with_forward_secrecy(scan: tuple[int, str, dict[str, Any]]) -> None:
    _, _, found = scan
    accepted = {
        version: {
            suite["cipher_suite"]["name"]
            for suite in found[f"{version}_cipher_suites"]["result"]["accepted_cipher_suites"]
        }
        for version in (*OLD, "tls_1_2", "tls_1_3")
    }
    assert {version for version, suites in accepted.items() if suites} == {"tls_1_2", "tls_1_3"}
    assert accepted["tls_1_2"] == SUITES


def test_hsts_lasts_two_years(scan: tuple[int, str, dict[str, Any]]) -> None:
    headers = scan[2]["http_headers"]["result"]
    assert headers["strict_transport_security_header"]["max_age"] == YEAR_TWICE


def test_sslyze_finds_what_is_weakened(tools: Path, tmp_path: Path) -> None:
    def weaken(conf: str) -> str:
        assert "ssl_ciphers " in conf
        assert "max-age=63072000" in conf
        conf = conf.replace("ssl_ciphers ", "ssl_ciphers ECDHE-ECDSA-AES128-SHA256:")
        return conf.replace("max-age=63072000", "max-age=600")

    with twin.serving(NGINX_IMAGE, LIMITS, weaken) as weakened:
        (tmp_path / "ca.pem").write_text(weakened.certificate)
        status, verdict, found = scanned(
            tools, weakened.server.host, weakened.server.port, tmp_path / "ca.pem", tmp_path
        )
    assert (status, "ciphers" in verdict) == (1, True), verdict
    assert found["http_headers"]["result"]["strict_transport_security_header"]["max_age"] == 600


# --- nginx.conf


@pytest.fixture
def config(tmp_path: Path) -> Path:
    """Directory with the golden configuration, laid out as on a server."""
    for name in ("nginx.conf", "keys.conf"):
        shutil.copy(GOLDEN / name, tmp_path)
    shutil.copy(FILES / "nginx/nginx-metrics.conf", tmp_path / "metrics.conf")
    return tmp_path / "nginx.conf"


def gixy(tools: Path, config: Path) -> set[str]:
    """Return the rules that a configuration breaks."""
    done = subprocess.run(
        [str(tools / "gixy"), "--format=json", str(config)], capture_output=True, text=True, check=False
    )
    assert "not found" not in done.stderr, done.stderr
    return {each["plugin"] for each in json.loads(done.stdout)}


def test_gixy_finds_nothing(tools: Path, config: Path) -> None:
    assert gixy(tools, config) == set()
    config.write_text(nginx_conf(["unix:/x", "10.0.0.5:8000"], ["kibana"], limits=LIMITS, acme=True))
    assert gixy(tools, config) == set()


@pytest.mark.parametrize(
    ("before", "after", "rule"),
    [
        ("proxy_set_header Host vllm;", "proxy_set_header Host $http_host;", "host_spoofing"),
        ("proxy_pass http://vllm/v1/models;", "proxy_pass http://$arg_to/v1/models;", "ssrf"),
        ("server_tokens off;", "", "version_disclosure"),
        ("      proxy_pass http://vllm/health;", "      alias /health/;", "alias_traversal"),
    ],
)
def test_gixy_finds_what_is_wrong(tools: Path, config: Path, before: str, after: str, rule: str) -> None:
    text = config.read_text()
    assert before in text
    config.write_text(text.replace(before, after).replace("location = /healthz", "location /healthz"))
    assert rule in gixy(tools, config)

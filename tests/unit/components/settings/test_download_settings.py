"""Settings of a server's way out: proxies, exceptions and CAs as companies have them."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives import serialization

from components.machine.existing_host import registry
from components.settings.stack import Settings, SettingsError, parse_settings
from tests.support.program import Program
from tests.support.verify_server import issue, new_authority
from tests.unit.conftest import NO_SECRETS, found

PROXY = "http://proxy.example:3128"
ADDRESS_FIX = "write http://HOST:PORT, or http://USER:PASSWORD@HOST:PORT"
NAMES_FIX = 'write ["registry.example.com", "10.0.0.5"]'

# base, settings, the setting that is named, cause, fix
WRONG: list[Any] = [
    ("gpu", {"downloadProxy": "proxy.example:3128"}, "downloadProxy", "has no scheme", ADDRESS_FIX),
    ("gpu", {"downloadProxy": "http://proxy.example"}, "downloadProxy", "names no port", ADDRESS_FIX),
    ("gpu", {"downloadProxy": "http://:3128"}, "downloadProxy", "names no host", ADDRESS_FIX),
    ("gpu", {"downloadProxy": "http://proxy.example:port"}, "downloadProxy", "not a URL with a port", ADDRESS_FIX),
    ("gpu", {"downloadProxy": "http://proxy.example:99999"}, "downloadProxy", "not a URL with a port", ADDRESS_FIX),
    ("gpu", {"downloadProxy": "http://a b:3128"}, "downloadProxy", "names no host", ADDRESS_FIX),
    ("gpu", {"downloadProxy": "socks5://proxy:1080"}, "downloadProxy", "a proxy by socks5", "the http:// address"),
    ("gpu", {"downloadProxy": "https://proxy:8443"}, "downloadProxy", "a proxy by https, which not all", "the http://"),
    (
        "gpu",
        {"downloadProxy": "http://wpad:80/wpad.dat"},
        "downloadProxy",
        "something behind the port",
        "not that of a",
    ),
    ("gpu", {"downloadProxy": "http://ops:p@ss@proxy:1"}, "downloadProxy", "signs that a URL can't hold", "@ as %40"),
    ("gpu", {"downloadProxy": 'http://ops:p"s@proxy:1'}, "downloadProxy", "signs that a URL can't hold", "as %XX"),
    ("gpu", {"downloadProxy": "http://ops:p/s@proxy:1"}, "downloadProxy", "not a URL with a port", ADDRESS_FIX),
    ("gpu", {"downloadNoProxy": ["a.example"]}, "downloadNoProxy", "there is no downloadProxy", "set downloadProxy"),
    ("gpu", {"downloadProxy": PROXY, "downloadNoProxy": "a,b"}, "downloadNoProxy", "not a list of texts", NAMES_FIX),
    (
        "gpu",
        {"downloadProxy": PROXY, "downloadNoProxy": ["10.0.0.0/8"]},
        "downloadNoProxy",
        "10.0.0.0/8 is a range, which not all programs know",
        "name the hosts or their domain",
    ),
    (
        "gpu",
        {"downloadProxy": PROXY, "downloadNoProxy": ["https://a.example"]},
        "downloadNoProxy",
        "'https://a.example' is neither a name nor an address",
        NAMES_FIX,
    ),
    ("gpu", {"downloadProxy": PROXY, "downloadNoProxy": ["*"]}, "downloadNoProxy", "neither a name nor", NAMES_FIX),
    ("gpu", {"downloadCa": "/no/such.pem"}, "downloadCa", "neither PEM nor a file that can be read", "the file's path"),
    ("gpu", {"downloadCa": "@binary"}, "downloadCa", "is a binary file, not PEM", "give a file with"),
    ("gpu", {"downloadCa": "@plain"}, "downloadCa", "holds no certificate in PEM", "give -----BEGIN CERTIFICATE-----"),
    ("airgap", {"downloadProxy": PROXY}, "downloadProxy", "nothing is downloaded with a bundle", "remove it"),
    (
        "airgap",
        {"downloadProxy": PROXY, "downloadNoProxy": ["a"]},
        "downloadNoProxy",
        "nothing is downloaded with a bundle",
        "remove it",
    ),
    ("airgap", {"downloadCa": "x"}, "downloadCa", "nothing is downloaded with a bundle", "remove it"),
    ("prod", {"downloadProxy": PROXY}, "downloadProxy", "has no effect with target gcp", "remove it"),
]


@pytest.mark.parametrize(("base", "settings", "key", "cause", "fix"), WRONG)
def test_a_wrong_setting_is_named_with_cause_and_fix(
    base: str, settings: dict[str, Any], key: str, cause: str, fix: str, settle: Callable[..., Settings]
) -> None:
    problems = found(lambda: settle(base, settings))
    assert [line for line in problems if line.startswith(key) and cause in line and fix in line], problems


@pytest.mark.parametrize(
    "address",
    [
        PROXY,
        "http://proxy.example:8443/",
        "http://10.0.0.9:8080",
        "http://[2001:db8::9]:8080",
        "http://ops:p%40ss%22%25!$&'()*+,;=~@proxy.example:3128",
        "http://DOMAIN%5Cops:secret@proxy:80",
        "encrypted",
    ],
)
def test_a_proxy_that_companies_have_is_accepted(address: str, settle: Callable[..., Settings]) -> None:
    assert settle("gpu", {"downloadProxy": address}).downloads.proxied


def test_no_message_shows_the_password(settle: Callable[..., Settings]) -> None:
    for address in ("http://ops:hunter2@proxy", "http://ops:hunter2 @proxy:1", "ops:hunter2@proxy:3128"):
        problems = found(partial(settle, "gpu", {"downloadProxy": address}))
        assert problems
        assert "hunter2" not in "\n".join(problems)


def test_only_a_proxy_with_a_user_has_to_be_encrypted(values_of: Callable[..., dict[str, str]]) -> None:
    def plain(address: str) -> None:
        parse_settings(values_of("gpu", downloadProxy=address), "local", NO_SECRETS, plain=["downloadProxy"])

    plain(PROXY)
    with pytest.raises(SettingsError, match="downloadProxy: stored in plain text; encrypt it"):
        plain("http://ops:hunter2@proxy.example:3128")


@pytest.mark.parametrize("form", ["pem", "CRLF", "byte order mark", "with other text", "two"])
def test_a_ca_may_be_given_as_people_have_it(form: str, settle: Callable[..., Settings], tmp_path: Path) -> None:
    pem, second = new_authority().pem, new_authority("Another CA").pem
    given = {
        "pem": pem.encode(),
        "CRLF": pem.replace("\n", "\r\n").encode(),
        "byte order mark": b"\xef\xbb\xbf" + pem.encode(),
        "with other text": b"# exported by the proxy\nsubject=CN = Test CA\n" + pem.encode(),
        "two": (pem + second).encode(),
    }[form]
    (tmp_path / "ca").write_bytes(given)
    wanted = pem + second if form == "two" else pem
    assert settle("gpu", {"downloadCa": str(tmp_path / "ca")}).downloads.ca == wanted


def test_a_ca_in_binary_form_and_a_servers_certificate_are_refused(
    settle: Callable[..., Settings], tmp_path: Path
) -> None:
    authority = new_authority()
    (tmp_path / "der").write_bytes(authority.certificate.public_bytes(serialization.Encoding.DER))
    (problem,) = found(lambda: settle("gpu", {"downloadCa": str(tmp_path / "der")}))
    assert "is a certificate in DER, not in PEM; convert it: openssl x509 -inform DER" in problem
    leaf = issue(authority, tmp_path / "leaf")
    (problem,) = found(lambda: settle("gpu", {"downloadCa": str(leaf)}))
    assert "the certificate CN=server is no CA's; give the CA's own" in problem


def test_the_server_itself_and_loopback_are_never_reached_through_the_proxy(settle: Callable[..., Settings]) -> None:
    downloads = settle("gpu", {"downloadProxy": PROXY, "downloadNoProxy": [".corp.example"]}).downloads
    assert downloads.exceptions == ("localhost", "127.0.0.1", "::1", "llm.example", "corp.example")
    assert downloads.reaches_directly("registry.corp.example")
    assert downloads.reaches_directly("corp.example")
    assert not downloads.reaches_directly("notcorp.example")


@pytest.mark.parametrize(
    ("image", "host"),
    [
        ("vllm/vllm-openai:v0.32.0@sha256:0", "docker.io"),
        ("nginx:1.29@sha256:0", "docker.io"),
        ("docker.io/library/nginx:1.29", "docker.io"),
        ("nvcr.io/nvidia/k8s/dcgm-exporter:4", "nvcr.io"),
        ("registry:5000/nginx:1", "registry"),
        ("localhost/vllm:v1.0.0", "localhost"),
    ],
)
def test_an_images_registry_is_known(image: str, host: str) -> None:
    assert registry(image) == host


def test_the_password_is_only_in_a_commands_secret_input(program_of: Callable[..., Program]) -> None:
    program = program_of("gpu", downloadProxy="http://ops:hunter2@proxy.example:3128")
    holding = {each.name for each in program.resources.values() if "hunter2" in str(each.inputs)}
    assert holding <= {"host-downloads"}
    assert "hunter2" not in program.resources["host-downloads"].script


def test_what_fetches_waits_until_the_server_knows_how(program_of: Callable[..., Program]) -> None:
    program = program_of("gpu", downloadProxy="http://proxy.example:3128")
    fetching = {"runtime-docker", "gpus-install", "weights-download"}
    assert not [name for name in fetching if "host-downloads" not in program.waits_for(name)]

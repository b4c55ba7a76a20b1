"""Hostile requests: only the allow-list with a valid key reaches vLLM, and always by a fixed path.

A stack's Nginx runs in front of a recorder of what arrives. The oracle knows the endpoint's promises and nothing of
its configuration; the last tests prove that it finds the effects of a loosened configuration.
"""

from collections.abc import Iterator
from dataclasses import replace

import pytest
from hypothesis import HealthCheck, Phase, given, settings

from tests.conftest import LIMITS
from tests.integration.conftest import PROVE, log_once
from tests.integration.hostile import twin
from tests.integration.hostile.cases import KNOWN
from tests.integration.hostile.oracle import Violation, judge
from tests.integration.hostile.strategies import payloads
from tests.integration.hostile.twin import CURRENT, PREVIOUS, Twin
from tests.integration.hostile.wire import Answer, answers, exchange
from tests.support import newer_nginx
from tests.support.made_stacks import NGINX_IMAGE

CASES = 10_000 if PROVE else 300
BODY_MB = 1
WIDE = replace(LIMITS, requests_per_minute=600_000, body_mib=BODY_MB)
"""Limits that do not interfere: the rate limit would stop this many requests, and has its own tests."""


@pytest.fixture(scope="module", params=["the stack's", "a newer one"] if PROVE else ["the stack's"])
def nginx(machine: None, request: pytest.FixtureRequest) -> Iterator[Twin]:
    image = newer_nginx.image() if request.param == "a newer one" else ""
    with twin.serving(image or NGINX_IMAGE, WIDE) as serving:
        yield serving


def tried(nginx: Twin, payload: bytes) -> list[Answer]:
    """Send these bytes, check that the answers are as promised, and return them."""
    given = answers(exchange(nginx.server, payload))
    judge(payload, given, nginx.recorder.take(), (CURRENT, PREVIOUS), BODY_MB * 2**20)
    return given


@pytest.mark.parametrize("name", KNOWN)
def test_a_known_attack_gets_no_further_than_promised(nginx: Twin, name: str) -> None:
    tried(nginx, KNOWN[name])


@settings(
    max_examples=CASES,
    deadline=None,
    derandomize=not PROVE,
    suppress_health_check=[*HealthCheck],
    phases=[Phase.generate, Phase.shrink],
)
@given(payload=payloads())
def test_any_request_gets_no_further_than_promised(nginx: Twin, payload: bytes) -> None:
    tried(nginx, payload)


def test_no_key_was_written_to_nginxs_logs(nginx: Twin) -> None:
    tried(nginx, KNOWN["right, then wrong"])
    tried(nginx, KNOWN["a null byte behind the key"])
    log = log_once(nginx.container, lambda log: "/v1/models" in log)
    assert "/v1/models" in log
    assert not [key for key in (CURRENT, PREVIOUS) if key in log.lower()]


CHECK = """      if ($key_label = "-") {
        return 401;
      }
"""
# Mistake in nginx.conf -> (text to replace, replacement).
LOOSENED: dict[str, tuple[str, str]] = {
    "no key is asked for": (CHECK, ""),
    "a key in capitals will do": (
        "include keys.conf;",
        f'if ($http_authorization ~* "Bearer {CURRENT}") {{ set $key_label v2; }}',
    ),
    "the scheme in one case alone": ('~* "^Bearer', '~ "^Bearer'),
    "a key with something behind it will do": (
        "include keys.conf;",
        f'if ($http_authorization ~ "^Bearer {CURRENT}") {{ set $key_label v2; }}',
    ),
    "whatever begins like a path of the list": ("location = /v1/models", "location /v1/models"),
    "all paths with a key": ("      return 404;", "      proxy_pass http://vllm;"),
    "one path more": (
        "    location = /healthz",
        "    location = /metrics { proxy_pass http://vllm/metrics; }\n    location = /healthz",
    ),
    "the client's own path": ("proxy_pass http://vllm/v1/models;", "proxy_pass http://vllm$request_uri;"),
    "any method": ("      if ($request_method != POST) {\n        return 405;\n      }\n", ""),
    "the key is passed on to vLLM": ('    proxy_set_header Authorization "";\n', ""),
    "the client's Host is passed on to vLLM": ("proxy_set_header Host vllm;", "proxy_set_header Host $host;"),
    "Nginx reveals its version": ("server_tokens off;", "server_tokens on;"),
    "Nginx's own page for an error": ("    error_page 404 /_error/404;\n", ""),
    "no HSTS with an error": ('    add_header Strict-Transport-Security "max-age=63072000" always;\n', ""),
    "the key is in an answer": ("nosniff always;", '"nosniff $http_authorization" always;'),
}


QUICKLY = ("no key is asked for", "a key in capitals will do", "all paths with a key", "the client's own path")


@pytest.mark.parametrize("what", LOOSENED if PROVE else QUICKLY)
def test_the_oracle_finds_a_loosened_configuration(machine: None, what: str) -> None:
    before, after = LOOSENED[what]

    def loosen(conf: str) -> str:
        assert before in conf, "nginx.conf has changed: rewrite this case"
        return conf.replace(before, after)

    with twin.serving(NGINX_IMAGE, WIDE, loosen) as loosened:
        assert any(_violates(loosened, payload) for payload in KNOWN.values())


def _violates(loosened: Twin, payload: bytes) -> bool:
    try:
        tried(loosened, payload)
    except Violation:
        return True
    return False

"""Every route of the running vLLM, with every kind of key and method: only the allow-list answers.

The rehearsed stack accepts two versions of its key; vLLM's own log shows which requests reached it.
"""

import http.client
import itertools
import json
import re
import ssl
import threading
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from urllib.parse import urlsplit

import openai
import pytest

from tests.integration.conftest import Deployment, deployment, identity, rehearse_up, vllm_directly, vllm_log
from tests.integration.hostile.cases import KNOWN
from tests.integration.hostile.oracle import ALLOWED, BEHIND, HEALTH, REFUSALS, Plain, entitled
from tests.integration.hostile.twin import CURRENT, PREVIOUS
from tests.integration.hostile.wire import Server, answers, exchange

AT_A_TIME = 3
SETTINGS = {"keys": {"default": [2, 1]}, "maxRequestsPerMinute": 600_000, "maxConcurrentRequests": AT_A_TIME}
METHODS = ("GET", "POST", "PUT", "DELETE", "PATCH", "HEAD", "OPTIONS", "PROPFIND")
# Routes of a vLLM with other arguments or on GPUs, and Nginx's internal ones.
OTHERS = (
    *("/tokenize", "/detokenize", "/invocations", "/v1/completions", "/v1/responses", "/v1/messages", "/v1/embeddings"),
    *("/generative_scoring", "/scale_elastic_ep", "/inference/v1/generate", "/metrics", "/health", "/ping", "/version"),
    *("/load", "/docs", "/redoc", "/openapi.json", "/collective_rpc", "/sleep", "/wake_up", "/reset_prefix_cache"),
    *("/", "/stub_status", "/_error/401", "/_error/503", "/v1", "/v1/", "/v1/models/", "/v1/chat", "/healthz/"),
    *("/V1/models", "/v1/Chat/completions", "/HEALTHZ"),
)
# Docker's health check of vLLM (vllm_watch.py) sends requests too, and its lines look the same.
WATCH = Counter({("GET", "/metrics"): 6, ("POST", "/v1/chat/completions"): 3})
IN_VLLMS_LOG = re.compile(r'"([A-Z]+) (\S+) HTTP/[0-9.]+" (\d{3})')


@dataclass(frozen=True)
class Keyed:
    """A stack that accepts two keys, and all its keys."""

    deployed: Deployment
    keys: dict[str, str] = field(repr=False)
    """Kind of key -> the key; none: empty."""
    containers: tuple[tuple[str, str], tuple[str, str]]
    """Containers before the limits and keys were changed."""

    @property
    def accepted(self) -> list[str]:
        return [self.keys["right"], self.keys["previous"]]


@pytest.fixture(scope="module")
def keyed(deployed: Deployment) -> Iterator[Keyed]:
    model = ("--set", f"model={deployed.model}")  # keep the model that earlier tests left
    containers = identity(deployed.vllm), identity(deployed.nginx)
    try:
        rehearse_up(*model, *(part for name, value in SETTINGS.items() for part in ("--set", f"{name}={value}")))
        now = deployment()
        keys = {"right": now.key, "previous": deployed.key, "in capitals": now.key.upper()}
        yield Keyed(now, {**keys, "wrong": "0" * 64, "none": ""}, containers)
    finally:
        rehearse_up(*model)


def routes() -> list[str]:
    """Return the paths of vLLM's OpenAPI description, and the others."""
    with vllm_directly() as vllm:
        described = vllm.get("/openapi.json").json()["paths"]
    assert set(ALLOWED) <= set(described)
    assert len(described) > 10
    return list(dict.fromkeys([*(re.sub(r"\{.*?\}", "x", path) for path in described), *OTHERS, *ALLOWED, HEALTH]))


def server_of(deployed: Deployment) -> Server:
    address = urlsplit(deployed.url)
    context = ssl.create_default_context(cadata=deployed.ca_certificate)
    context.check_hostname = False
    return Server(str(address.hostname), address.port or 443, context)


def reached(deployed: Deployment, since: float) -> Counter[tuple[str, str]]:
    """Count the requests in vLLM's log, without the health checks of other clients."""
    found = Counter((match[1], match[2]) for match in IN_VLLMS_LOG.finditer(vllm_log(deployed, since)))
    del found["GET", "/health"]
    return found


def test_only_the_allow_list_with_a_right_key_answers(keyed: Keyed) -> None:
    server, wrong, answered = server_of(keyed.deployed), list[str](), Counter[tuple[str, str]]()
    request = {"model": keyed.deployed.model, "messages": [{"role": "user", "content": "Hi"}], "max_tokens": 1}
    body = json.dumps(request)
    paths = routes()
    vllm_log(keyed.deployed, time.time())  # wait until its log has the requests for the routes
    since = time.time()
    connection = http.client.HTTPSConnection(server.host, server.port, context=server.context, timeout=60)
    for path, method, (kind, key) in itertools.product(paths, METHODS, keyed.keys.items()):
        headers = {"Content-Type": "application/json", **({"Authorization": f"Bearer {key}"} if key else {})}
        connection.request(method, path, body if method in {"POST", "PUT", "PATCH"} else None, headers)
        answer = connection.getresponse()
        text = answer.read()
        expected = Plain(method, path, key in keyed.accepted, b"").status
        if answer.status != expected:
            wrong.append(f"{method} {path} with key {kind}: {answer.status}, not {expected}: {text[:100]!r}")
        if answer.status == 200 and path != HEALTH:
            answered[method, BEHIND[path]] += 1
    connection.close()
    assert not wrong
    assert answered == {("POST", "/v1/chat/completions"): 2, ("GET", "/v1/models"): 2}
    # Nothing else reached vLLM.
    found = reached(keyed.deployed, since)
    assert answered <= found
    assert found - answered <= WATCH


def test_known_attacks_get_no_further_than_promised(keyed: Keyed) -> None:
    server, allowed = server_of(keyed.deployed), Counter[tuple[str, str]]()
    since = time.time()
    for name, written in KNOWN.items():
        payload = written.replace(CURRENT.encode(), keyed.keys["right"].encode())
        payload = payload.replace(PREVIOUS.encode(), keyed.keys["previous"].encode())
        payload = payload.replace(CURRENT.upper().encode(), keyed.keys["in capitals"].encode())
        permitted = entitled(payload, keyed.accepted)
        given = answers(exchange(server, payload))
        assert {each.status for each in given} <= {0, 200, *REFUSALS}, name
        assert sum(each.status == 200 for each in given) <= permitted.total(), name
        allowed += permitted
    del allowed["GET", "/health"]
    found = reached(keyed.deployed, since)
    assert found - allowed <= WATCH
    assert found


def test_neither_keys_nor_limits_replace_a_container(keyed: Keyed) -> None:
    assert (identity(keyed.deployed.vllm), identity(keyed.deployed.nginx)) == keyed.containers


@pytest.mark.slow
def test_load_beyond_the_limit_is_429_at_once_and_streams_within_it_reach_their_end(keyed: Keyed) -> None:
    client, refused = keyed.deployed.openai(), keyed.deployed.openai()
    # Keep its connection: a new one takes CPU time, of which vLLM leaves little now.
    assert refused.models.list()

    flowing = threading.Barrier(AT_A_TIME + 1)

    def stream(words: int) -> str | None:
        chunks = client.chat.completions.create(
            model=keyed.deployed.alias,
            messages=[{"role": "user", "content": "Hello"}],
            max_tokens=words,
            stream=True,
            extra_body={"ignore_eos": True, "skip_special_tokens": False},
        )
        next(chunks)
        flowing.wait(60)
        return [chunk.choices[0].finish_reason for chunk in chunks if chunk.choices][-1]

    with ThreadPoolExecutor() as pool:
        streams = [pool.submit(stream, 3000) for _ in range(AT_A_TIME)]
        flowing.wait(60)
        for _ in range(3):
            begun = time.monotonic()
            with pytest.raises(openai.RateLimitError, match=f"{AT_A_TIME} requests at a time"):
                refused.models.list()
            assert time.monotonic() - begun < 10  # at once, as far as the load of vLLM permits
        assert not any(each.done() for each in streams), "the streams were over before: this proves nothing"
        assert [each.result(120) for each in streams] == ["length"] * AT_A_TIME
    assert client.models.list()


def test_http_2_is_not_negotiated(keyed: Keyed) -> None:
    server = server_of(keyed.deployed)
    server.context.set_alpn_protocols(["h2", "http/1.1"])
    with server.connect() as tls:
        assert tls.selected_alpn_protocol() in {None, "http/1.1"}

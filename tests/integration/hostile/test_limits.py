"""Limits: excess is refused at once and by name, the rest continues, connections of slow clients are closed.

A stack's Nginx runs with small limits in front of a recorder.
"""

import json
import socket
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import replace
from typing import Any

import httpx2
import openai
import pytest

from tests.conftest import LIMITS
from tests.integration.conftest import PROVE, log_once
from tests.integration.hostile import twin
from tests.integration.hostile.cases import MODELS, RIGHT, request, sized
from tests.integration.hostile.twin import CURRENT, PREVIOUS, Twin
from tests.integration.hostile.wire import answers, exchange
from tests.support.made_stacks import NGINX_IMAGE

SMALL = replace(
    LIMITS,
    concurrent_requests=3,
    requests_per_minute=60,
    body_mib=1,
    header_kib=2,
    header_seconds=1,
    body_seconds=1,
    reader_seconds=1,
)
AT_ONCE = 0.5
"""Seconds within which a refusal must arrive; a request that waited in a queue would take longer."""
HELD = 60
"""`max_tokens` of requests that last for more than a second."""
LET_IN = 1 + SMALL.burst
"""Requests of one key that may arrive at once."""


@pytest.fixture
def nginx(machine: None) -> Iterator[Twin]:
    """A separate Nginx for each test: earlier requests would count."""
    with twin.serving(NGINX_IMAGE, SMALL) as serving:
        yield serving


@pytest.fixture(scope="module")
def fast(machine: None) -> Iterator[Twin]:
    """One Nginx for all tests that do not depend on the rate."""
    with twin.serving(NGINX_IMAGE, replace(SMALL, requests_per_minute=60_000)) as serving:
        yield serving


def client(nginx: Twin, key: str = CURRENT, retries: int = 0) -> openai.OpenAI:
    http = httpx2.Client(verify=nginx.server.context, trust_env=False, timeout=30)
    base_url = f"https://{nginx.server.host}:{nginx.server.port}/v1"
    return openai.OpenAI(base_url=base_url, api_key=key, max_retries=retries, http_client=http)


def ask(client: openai.OpenAI, max_tokens: int = 0, **more: Any) -> object:
    return client.chat.completions.create(model="m", messages=[], max_tokens=max_tokens, **more)


def refused(error: openai.APIStatusError, code: str, *words: str) -> bool:
    """Return True if an error has this code, these words in its message, and Retry-After where that applies."""
    assert error.code == code, error
    assert all(word in str(error.message) for word in words), error
    assert error.response.headers["content-type"] == "application/json"
    assert "nginx/" not in error.response.headers["server"]
    assert error.response.headers["strict-transport-security"]
    return (error.response.headers.get("retry-after") == "5") == (error.status_code in {429, 503})


def held(nginx: Twin, client: openai.OpenAI, pool: ThreadPoolExecutor) -> list[Future[object]]:
    """Start as many requests as one key may have at a time, and wait until all are at vLLM."""
    futures = [pool.submit(ask, client, HELD) for _ in range(SMALL.concurrent_requests)]
    end = time.monotonic() + 10
    while nginx.recorder.under_way < SMALL.concurrent_requests:
        assert time.monotonic() < end, "they do not get to vLLM"
        time.sleep(0.01)
    return futures


def test_one_request_too_many_is_refused_at_once_and_the_others_continue(fast: Twin) -> None:
    ours = client(fast)
    with ThreadPoolExecutor() as pool:
        futures = held(fast, ours, pool)
        for _ in range(3):
            begun = time.monotonic()
            with pytest.raises(openai.RateLimitError) as raised:
                ask(ours)
            assert time.monotonic() - begun < AT_ONCE
            assert refused(raised.value, "too_many_concurrent_requests", "3 requests at a time")
        assert ask(client(fast, PREVIOUS)), "another key has its own"
        assert all(future.result(30) for future in futures)
    assert ask(ours), "once they have ended, the next one is accepted"
    assert fast.recorder.most_under_way == SMALL.concurrent_requests + 1


def test_requests_that_come_too_fast_are_refused_at_once(nginx: Twin) -> None:
    ours = client(nginx)
    begun = time.monotonic()
    outcomes = [_refusal(ours) for _ in range(3 * LET_IN)]
    took = time.monotonic() - begun
    assert took < LET_IN / 2, "requests wait: so many evenly spread would take twice as long"
    assert outcomes[:LET_IN] == [None] * LET_IN
    assert outcomes.count(None) <= LET_IN + took * SMALL.requests_per_minute / 60 + 1
    assert all(refused(error, "too_many_requests", "60 requests a minute") for error in outcomes if error)
    assert client(nginx, PREVIOUS).models.list(), "another key has its own"
    time.sleep(60 / SMALL.requests_per_minute)
    assert ours.models.list(), "a second later there is room for one more"


def _refusal(client: openai.OpenAI) -> openai.RateLimitError | None:
    try:
        client.models.list()
    except openai.RateLimitError as error:
        return error
    return None


@pytest.mark.slow
def test_the_official_clients_own_retry_gets_through(nginx: Twin) -> None:
    """The retry waits as long as Retry-After demands."""
    for _ in range(LET_IN):
        client(nginx).models.list()
    with pytest.raises(openai.RateLimitError):
        client(nginx).models.list()
    assert client(nginx, retries=1).models.list()


def test_requests_with_a_wrong_key_use_up_no_keys_limit(nginx: Twin) -> None:
    for wrong in ["0" * 64, CURRENT.upper()] * (2 * LET_IN):
        with pytest.raises(openai.AuthenticationError):
            client(nginx, wrong).models.list()
    for _ in range(LET_IN):
        client(nginx).models.list()


def test_health_checks_cannot_flood_vllm_and_use_up_no_keys_limit(nginx: Twin) -> None:
    with httpx2.Client(verify=nginx.server.context, trust_env=False) as http:
        url = f"https://{nginx.server.host}:{nginx.server.port}/healthz"
        found = Counter(http.get(url).status_code for _ in range(300))
    assert set(found) == {200, 429}
    assert sum(each.path == "/health" for each in nginx.recorder.take()) == found[200] < 200
    assert client(nginx).models.list()


def test_a_body_over_the_limit_is_refused_by_name(fast: Twin) -> None:
    with pytest.raises(openai.APIStatusError) as raised:
        ask(client(fast), user="x" * 2**20)
    assert raised.value.status_code == 413
    assert refused(raised.value, "request_too_large", "1 MB")
    assert ask(client(fast), user="x" * (2**20 - 1000))


@pytest.mark.parametrize(
    ("payload", "status", "code", "words"),
    [
        (request(b"GET", MODELS + b"?" + b"x" * 2100), 414, "uri_too_long", "2 kB"),
        (request(b"GET", MODELS, headers=b"X: " + b"x" * 2100 + b"\r\n"), 431, "headers_too_large", "2 kB"),
        (request(b"GET", MODELS, headers=(b"X: " + b"x" * 1900 + b"\r\n") * 5), 431, "headers_too_large", "8 kB"),
    ],
)
def test_a_head_over_the_limit_is_refused_by_name(
    fast: Twin, payload: bytes, status: int, code: str, words: str
) -> None:
    answer = answers(exchange(fast.server, payload))[0]
    assert (answer.status, answer.error["code"]) == (status, code)
    assert words in str(answer.error["message"])


def test_a_head_within_the_limit_passes(fast: Twin) -> None:
    payload = request(b"GET", MODELS, headers=(b"X: " + b"x" * 1800 + b"\r\n") * 3)
    assert [each.status for each in answers(exchange(fast.server, payload))] == [200, 401]


# --- Slow clients

SLOW = {
    "nothing at all": (b"", b""),
    "half a line": (b"GET /v1/mo", b""),
    "a header without an end": (request(b"GET", MODELS)[:-2], b""),
    "a header that comes byte by byte": (b"GET /v1/models HTTP/1.1\r\nX: ", b"x"),
    "a body that stops": (sized(b"{", b"400"), b""),
    "a body that stops, in chunks": (request(headers=b"Transfer-Encoding: chunked\r\n", body=b"2\r\n{"), b""),
}


SHORT = ("half a line", "a header that comes byte by byte", "a body that stops")


@pytest.mark.parametrize("name", SLOW if PROVE else SHORT)
def test_a_slow_client_finds_a_clean_close(fast: Twin, name: str) -> None:
    begin, more = SLOW[name]
    with fast.server.connect() as tls:
        tls.sendall(begin)
        tls.settimeout(0.2)
        begun = time.monotonic()
        while True:
            try:
                # A reset would raise an error here.
                received = tls.recv(1000)
                break
            except TimeoutError:
                assert time.monotonic() - begun < 4, "it is not closed"
                tls.sendall(more)
    assert received == b""
    assert time.monotonic() - begun > 0.7, "that was no limit of time"


def test_a_slow_but_steady_body_is_accepted(fast: Twin) -> None:
    with fast.server.connect() as tls:
        tls.sendall(request(headers=b"Content-Length: 6\r\nConnection: close\r\n"))
        for _ in range(6):
            time.sleep(0.4)
            tls.sendall(b" ")
        assert tls.recv(100).startswith(b"HTTP/1.1 200 ")


def test_a_client_that_reads_nothing_is_dropped_and_one_that_waits_is_not(fast: Twin) -> None:
    body = json.dumps({"seed": 30_000_000}).encode()
    with fast.server.connect() as stuck:
        stuck.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        stuck.sendall(sized(body))
        end = time.monotonic() + 2
        while fast.recorder.under_way == 0:
            assert time.monotonic() < end
        end = time.monotonic() + 6
        while fast.recorder.under_way:
            assert time.monotonic() < end, "vLLM is held up by a client that does not read"
            time.sleep(0.05)
    fast.recorder.silent_seconds = 2.5  # longer than a reader may pause
    assert ask(client(fast))


def test_the_log_of_refused_requests_has_no_key(nginx: Twin) -> None:
    ours = client(nginx)
    for _ in range(2 * LET_IN):
        with suppress(openai.RateLimitError):
            ours.models.list(extra_query={"q": "the-query"})
    log = log_once(nginx.container, lambda log: log.count(" /v1/models") == 2 * LET_IN)
    assert "- v2 [" in log
    assert " 429 " in log
    assert CURRENT not in log
    assert RIGHT[:20].decode() not in log
    assert "the-query" not in log

"""Behaviour of the running endpoint towards clients: refusals, limits, streams, the alias."""

import json
import re
import socket
import ssl
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple
from urllib.parse import urlsplit

import httpx2
import openai
import pytest

from tests.integration.conftest import Deployment, rehearse, vllm_directly

MIB = 2**20
CHAT = "/v1/chat/completions"


def chat_request(model: str, prompt: str = "Hello", **more: Any) -> dict[str, Any]:
    return {"model": model, "messages": [{"role": "user", "content": prompt}], "max_tokens": 5, **more}


def test_verify_finds_nothing_wrong(deployed: Deployment) -> None:
    done = rehearse("verify")
    assert (done.returncode, "FAIL" in done.stdout) == (0, False), f"{done.stdout}\n{done.stderr}"


# --- Refusals


class Refusal(NamedTuple):
    """A request that must be refused, made with the official client, and the exception that it must raise."""

    request: Callable[[openai.OpenAI, Deployment], object]
    error: type[openai.APIStatusError]
    status: int
    code: str


def _pieces(size: int) -> Iterator[bytes]:
    for _ in range(size // MIB):
        yield b" " * MIB


def _post(content: bytes | Iterator[bytes]) -> Callable[[openai.OpenAI, Deployment], object]:
    json_type: Any = {"headers": {"Content-Type": "application/json"}}
    return lambda client, _: client.post("/chat/completions", content=content, cast_to=object, options=json_type)


def _get(path: str, **headers: str | openai.Omit) -> Callable[[openai.OpenAI, Deployment], object]:
    given = {name.replace("_", "-"): value for name, value in headers.items()}
    return lambda client, _: client.get(path, cast_to=object, options={"headers": given})


REFUSALS = {
    "no key": Refusal(_get("/models", Authorization=openai.Omit()), openai.AuthenticationError, 401, "invalid_api_key"),
    "wrong key": Refusal(
        lambda _, it: it.openai("0" * 64).models.list(), openai.AuthenticationError, 401, "invalid_api_key"
    ),
    "upper-cased key": Refusal(
        lambda _, it: it.openai(it.key.upper()).models.list(), openai.AuthenticationError, 401, "invalid_api_key"
    ),
    "unknown path": Refusal(_get("/files"), openai.NotFoundError, 404, "not_found"),
    "wrong method": Refusal(_get("/chat/completions"), openai.APIStatusError, 405, "method_not_allowed"),
    "over 32 MB, as Content-Length says": Refusal(
        _post(b" " * 33 * MIB), openai.APIStatusError, 413, "request_too_large"
    ),
    "over 32 MB, in chunks": Refusal(_post(_pieces(33 * MIB)), openai.APIStatusError, 413, "request_too_large"),
    "long address": Refusal(_get("/models?" + "x" * 9000), openai.APIStatusError, 414, "uri_too_long"),
    "long header": Refusal(_get("/models", X_Long="x" * 9000), openai.APIStatusError, 431, "headers_too_large"),
    "no host name": Refusal(_get("/models", Host="a b"), openai.BadRequestError, 400, "bad_request"),
    "no TLS": Refusal(
        lambda client, it: client.with_options(base_url=it.base_url.replace("https:", "http:")).models.list(),
        openai.BadRequestError,
        400,
        "bad_request",
    ),
    "no JSON": Refusal(_post(b"{garbage"), openai.BadRequestError, 400, "400"),
}


@pytest.mark.parametrize("refusal", REFUSALS.values(), ids=REFUSALS)
def test_refusal_raises_the_official_clients_own_error(refusal: Refusal, deployed: Deployment) -> None:
    with pytest.raises(openai.APIStatusError) as raised:
        refusal.request(deployed.openai(), deployed)
    assert (type(raised.value), raised.value.status_code) == (refusal.error, refusal.status)
    assert raised.value.response.headers["content-type"] == "application/json"
    error = raised.value.response.json()["error"]
    assert error.keys() == {"message", "type", "param", "code"}
    assert isinstance(error["message"], str)
    assert isinstance(error["type"], str)
    assert isinstance(error["param"], str | None)
    assert raised.value.code == refusal.code


@contextmanager
def sent(deployed: Deployment, request: bytes) -> Iterator[ssl.SSLSocket]:
    """Yield a new connection on which these bytes were sent; it is closed at the end, whatever was read."""
    address = urlsplit(deployed.url)
    context = ssl.create_default_context(cadata=deployed.ca_certificate)
    with (
        socket.create_connection((str(address.hostname), address.port), 30) as plain,
        context.wrap_socket(plain, server_hostname=address.hostname) as tls,
    ):
        tls.sendall(request)
        yield tls


def chat_bytes(deployed: Deployment, **more: Any) -> bytes:
    """Return a chat request as it goes over the wire."""
    body = json.dumps(chat_request(deployed.model, **more))
    head = f"POST {CHAT} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {deployed.key}\r\nConnection: close\r\n"
    return f"{head}Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n{body}".encode()


def test_bytes_that_are_no_http_are_refused_as_json(deployed: Deployment) -> None:
    with sent(deployed, b"\x00\xff garbage\r\n\r\n") as connection:
        answer = b"".join(iter(lambda: connection.recv(65536), b""))
    assert json.loads(answer[answer.index(b"{") :])["error"]["code"] == "bad_request"


def test_body_of_30_mb_passes(deployed: Deployment) -> None:
    with deployed.http(deployed.key) as client:
        answer = client.post(CHAT, json=chat_request(deployed.model, user="x" * (30 * MIB)))
    assert (answer.status_code, answer.json().get("object")) == (200, "chat.completion"), answer.text[:500]


# --- Generation


def test_stable_alias_is_a_model_name(deployed: Deployment) -> None:
    client = deployed.openai()
    assert {deployed.model, deployed.alias} == {model.id for model in client.models.list()}
    assert client.chat.completions.create(**chat_request(deployed.alias)).choices


def events_a_piece(deployed: Deployment) -> float:
    """Return the average number of a stream's events that Nginx sent in one piece."""
    request = chat_bytes(deployed, max_tokens=300, stream=True, ignore_eos=True, skip_special_tokens=False)
    with sent(deployed, request) as connection:
        # One `recv` returns one TLS record: events that were sent together, however slowly they are read here.
        events = [piece.count(b"data: ") for piece in iter(lambda: connection.recv(65536), b"")]
    assert sum(events) > 100
    return sum(events) / len(events)


def test_stream_is_not_buffered(deployed: Deployment) -> None:
    # Nginx's smallest buffer holds about 17 events. Lumps of that size also occur on a machine too busy to run Nginx
    # between two events, but smaller ones never come from a buffer: one good stream is proof.
    assert any(events_a_piece(deployed) < 8 for _ in range(5))


def running(vllm: httpx2.Client) -> int:
    """Return the number of requests that vLLM is working on, by its own metrics."""
    metrics = vllm.get("/metrics").text
    return round(sum(float(value) for value in re.findall(r"^vllm:num_requests_running\S* (\S+)", metrics, re.M)))


def becomes(vllm: httpx2.Client, number: int, seconds: float) -> bool:
    """Return True if vLLM works on this number of requests at some moment within the given seconds."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if running(vllm) == number:
            return True
        time.sleep(0.05)  # asking for metrics more often would slow vLLM down
    return False


@pytest.mark.parametrize("stream", [True, False], ids=["stream", "plain"])
def test_client_that_goes_away_ends_its_generation(stream: bool, deployed: Deployment) -> None:
    request = chat_bytes(deployed, max_tokens=12_000, stream=stream, ignore_eos=True)  # for a minute or so
    with vllm_directly() as vllm:
        assert becomes(vllm, 0, 60)
        with sent(deployed, request):
            assert becomes(vllm, 1, 10)
            time.sleep(1)
            assert running(vllm) == 1
        # 0.05 s on an idle machine, with or without Nginx; on an overloaded one vLLM is late to cancel and to update
        # its metrics (docs/benchmarks.md). Without cancelling, the generation would run for a minute.
        assert becomes(vllm, 0, 30)

"""Contents of the containers' logs for a request, and what they must never contain."""

import re
import time
from dataclasses import dataclass
from secrets import token_hex

import pytest

from tests.integration.conftest import Deployment, log_once, vllm_log

CHAT, MODELS = "/v1/chat/completions", "/v1/models"
AUDIT_LINE = re.compile(
    r'\S+ - (?P<label>\S+) \[\S+ \+0000\] "(?P<asked>\S+ \S+) HTTP/1\.1" (?P<status>\d{3}) \d+ [\d.]+ "-" "-" '
    r"(?P<request_id>[0-9a-f]{32})"
)


@dataclass(frozen=True)
class Asked:
    """Requests that were made, and the logs since then."""

    expected: dict[str, str]
    """Request id -> key's label, method and path, status."""
    nginx: str
    vllm: str


@dataclass(frozen=True)
class Canaries:
    """Words that occur nowhere else, sent in places that no log may repeat."""

    prompt: str
    query: str
    wrong_key: str
    header: str


@pytest.fixture(scope="module")
def canaries() -> Canaries:
    return Canaries(*(f"canary{token_hex(12)}" for _ in range(4)))


@pytest.fixture(scope="module")
def asked(deployed: Deployment, canaries: Canaries) -> Asked:
    start = int(time.time())
    query = f"?word={canaries.query}&api_key={deployed.key}"
    wrong = {"Authorization": f"Bearer {canaries.wrong_key}"}
    chat = {
        "model": deployed.model,
        "messages": [{"role": "user", "content": f"Say {canaries.prompt}"}],
        "max_tokens": 5,
    }
    too_long = {**chat, "max_tokens": 10**9}
    with deployed.http(deployed.key) as client:
        client.headers["X-Word"] = canaries.header
        answers = {
            f"v1 POST {CHAT} 200": client.post(CHAT + query, json=chat),
            f"v1 POST {CHAT} 400": client.post(CHAT + query, json=too_long),
            f"v1 POST {CHAT} 404": client.post(CHAT, json={**chat, "model": "no-such-model"}),
            f"v1 GET {MODELS} 200": client.get(MODELS + query),
            "v1 GET /v1/files 404": client.get("/v1/files" + query),
            f"v1 DELETE {MODELS} 405": client.delete(MODELS + query),
            f"- POST {CHAT} 401": client.post(CHAT + query, json=chat, headers=wrong),
            f"- GET {MODELS} 401": client.get(MODELS, headers={"Authorization": f"Basic {deployed.key}"}),
            "v1 GET /healthz 200": client.get("/healthz" + query),
        }
        # Refused before the path is known to the log, so only what it must not contain is of interest.
        client.get(MODELS, headers=[("Authorization", f"Bearer {deployed.key}")] * 2)
        client.get(MODELS, headers={"X-Long": canaries.header * 500})
        client.get(MODELS + query + "x" * 9000)
        client.post(CHAT, content=f'{{"messages": "{canaries.prompt}"', headers={"Content-Type": "application/json"})
    expected = {answer.headers["x-request-id"]: line for line, answer in answers.items()}
    nginx = log_once(deployed.nginx, lambda log: all(request in log for request in expected), start)
    return Asked(expected, nginx, vllm_log(deployed, start))


def test_each_request_has_one_line_with_label_path_and_status(asked: Asked) -> None:
    lines = [match for line in asked.nginx.splitlines() if (match := AUDIT_LINE.fullmatch(line))]
    logged = [(line["request_id"], f"{line['label']} {line['asked']} {line['status']}") for line in lines]
    assert sorted(line for line in logged if line[0] in asked.expected) == sorted(asked.expected.items())


@pytest.mark.parametrize("container", ["nginx", "vllm"])
def test_no_log_repeats_what_was_sent(container: str, asked: Asked, canaries: Canaries, deployed: Deployment) -> None:
    log: str = getattr(asked, container)
    assert log.count("\n") > 3
    words = {**vars(canaries), "key": deployed.key}
    assert [name for name, word in words.items() if word in log] == []

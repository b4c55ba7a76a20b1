"""`scripts/elastic-vllm load`, against a stand-in whose latencies are known (tests/support/paced_endpoint.py)."""

import asyncio
import json
import math
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from secrets import token_hex
from typing import Any

import httpx2
import pytest

from scripts.cli.load.drive import Client, Step, connect, run_step
from scripts.cli.load.figures import Limits, figures
from scripts.cli.load.profiles import PROFILES, WORDS, Sizes
from scripts.lib.verification.endpoint import Endpoint
from tests.integration.conftest import STACK
from tests.support.paced_endpoint import KEY, MODEL, paced
from tests.support.verify_server import issue, new_authority

ROOT = Path(__file__).resolve().parents[2]
ASSISTANT = PROFILES["assistant"].scaled(0.005)


class Site:
    """A directory with the CA, the key, and a certificate for the endpoint."""

    def __init__(self, directory: Path) -> None:
        authority = new_authority()
        self.directory = directory
        self.certificate = issue(authority, directory / "server.pem")
        self.ca = directory / "ca.pem"
        self.ca.write_text(authority.pem)
        self.key = directory / "key"
        self.key.write_text(KEY)

    def arguments(self, url: str) -> list[str]:
        files = ["--ca", str(self.ca), "--key-file", str(self.key)]
        return ["--url", url, "--model", MODEL, "--permitted", "--scale", "0.005", *files]


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Site:
    return Site(tmp_path_factory.mktemp("site"))


def loaded(site: Site, url: str, per_hour: float, seconds: float) -> Step:
    """One step of questions to an assistant, sent to its end."""
    endpoint = Endpoint(url=url, key=KEY, model=MODEL, ca_certificate=site.ca.read_text())

    async def run() -> Step:
        async with connect(endpoint, 60) as http:
            client = Client(endpoint, Sizes(1.0), http)
            await client.work(ASSISTANT, time.monotonic(), -1)
            return await run_step(client, lambda _number: ASSISTANT, per_hour, seconds, enough=lambda _answers: "")

    return asyncio.run(run())


def load(*arguments: str, scratch: Path | None = None) -> subprocess.CompletedProcess[str]:
    """Run the command, which may leave no process; `scratch` is its working, home and temporary directory."""
    mark = token_hex(8)
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "LOAD_TEST": mark}
    if scratch:
        environment |= {"TMPDIR": str(scratch), "HOME": str(scratch)}
    done = subprocess.run(
        command(*arguments), capture_output=True, text=True, cwd=scratch, timeout=600, check=False, env=environment
    )
    assert not [file for file in Path("/proc").glob("[0-9]*/environ") if mark.encode() in _content(file)]
    return done


def _content(file: Path) -> bytes:
    try:
        return file.read_bytes()
    except OSError:  # it ended meanwhile, or is another user's
        return b""


def command(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "scripts.cli.app", "load", *arguments]


@pytest.mark.usefixtures("ahead_of_other_tests")
def test_percentiles_are_right_within_two_percent(site: Site) -> None:
    with paced(site.certificate, first_token=(1.0, 3.0)) as url:
        step = loaded(site, url, 36_000, 8)
        endpoint = Endpoint(url=url, key=KEY, model=MODEL, ca_certificate=site.ca.read_text())
        with httpx2.Client(verify=endpoint.tls_context(), trust_env=False) as http:
            seen = url.replace("/v1/chat/completions", "/seen")
            _, *known = http.get(seen, headers={"Authorization": f"Bearer {KEY}"}).json()
    found = figures(step, Limits(first_token_seconds=10))
    assert len(known) == found.requests > 60
    ranked = sorted(known)
    for percent, measured in ((50, found.first_token_p50), (95, found.first_token_p95), (99, found.first_token_p99)):
        assert measured == pytest.approx(ranked[math.ceil(percent * len(ranked) / 100) - 1], rel=0.02)
    assert found.between_tokens_p50 == pytest.approx(0.002, rel=0.5)
    assert found.client_cpu_share < 0.7


@pytest.mark.usefixtures("ahead_of_other_tests")
def test_a_stall_shows_in_the_tail_although_few_requests_were_sent_before_it_was_noticed(site: Site) -> None:
    with paced(site.certificate, stall=(2.0, 5.0)) as url:
        step = loaded(site, url, 36_000, 8)
    found = figures(step, Limits(first_token_seconds=10))
    assert found.first_token_p50 is not None
    assert found.first_token_p50 < 1.0
    # Of eight seconds three were a stall: a request that was due in its first tenth waited for almost all of it.
    assert found.first_token_p99 is not None
    assert found.first_token_p95 is not None
    assert found.first_token_p99 > 2.6
    assert found.first_token_p95 > 2.0


@pytest.mark.usefixtures("ahead_of_other_tests")
def test_the_knee_is_where_the_stand_in_has_no_room_left(site: Site, tmp_path: Path) -> None:
    page = tmp_path / "page.html"
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    # Four at a time, 0.138 s each: 104,000 an hour.
    with paced(site.certificate, slots=4, first_token=(0.127, 0.127), between_tokens=0.001) as url:
        arguments = ["--profile", "assistant", "--from", "65536", "--step-seconds", "6", "--first-token-seconds", "0.5"]
        done = load(
            *site.arguments(url), *arguments, "--page", str(page), "--json", "--hourly-cost", "2", scratch=scratch
        )
    assert done.returncode == 0, done.stderr
    document = json.loads(done.stdout)
    [run] = document["runs"]
    assert 104_000 / 1.6 < run["carries"] < 104_000 * 1.6  # the step below its room, or one beside it
    assert run["steps"][-1]["past"]
    assert all(step["client_cpu_share"] < 0.7 for step in run["steps"])
    shown = page.read_text()
    assert shown.count("<svg") == 3
    for text in (done.stdout, shown):
        assert KEY not in text
        assert not re.search(rf"\b({'|'.join(WORDS[5:15])}) ({'|'.join(WORDS)})\b", text)
    assert not re.search(r"(src|href)=|https?:|@import", shown)
    assert not list(scratch.iterdir())


@pytest.mark.parametrize(
    ("behaviour", "past", "advice"),
    [
        ({"refuse_after": 8}, "the gateway's own limit refused ", "raise maxRequestsPerMinute"),
        ({"status_after": {"requests": 8, "status": 429}}, "failed (HTTP 429)", "not even the least load"),
        ({"cut_after": 8}, "requests failed (cut", "connections broke"),
    ],
)
def test_the_gateways_own_refusals_are_told_from_failures_of_the_model(
    site: Site, behaviour: dict[str, Any], past: str, advice: str
) -> None:
    with paced(site.certificate, **behaviour) as url:
        done = load(*site.arguments(url), "--profile", "assistant", "--from", "36000", "--step-seconds", "3", "--json")
    assert done.returncode == 1, done.stderr
    [run] = json.loads(done.stdout)["runs"]
    assert past in run["steps"][0]["past"]
    assert advice in run["advice"]


def test_ctrl_c_ends_it_with_what_is_known(site: Site) -> None:
    arguments = ["--profile", "assistant", "--from", "36000", "--step-seconds", "6"]
    with (
        paced(site.certificate) as url,
        subprocess.Popen(
            command(*site.arguments(url), *arguments),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            cwd=ROOT,
        ) as process,
    ):
        assert process.stderr
        assert any("an hour for" in line and "36,000" not in line for line in process.stderr)  # the first step is over
        process.send_signal(signal.SIGINT)
        interrupted = time.monotonic()
        output, errors = process.communicate(timeout=30)
        assert time.monotonic() - interrupted < 10
    assert process.returncode == 130, errors
    assert "interrupted: these are the figures so far" in output
    assert re.search(r"assistant: carries (36|72),000 questions an hour", output)
    assert "Traceback" not in errors


def test_it_stops_when_the_tokens_are_used_up(site: Site) -> None:
    with paced(site.certificate) as url:
        arguments = ["--profile", "assistant", "--from", "36000", "--step-seconds", "5", "--tokens", "300", "--json"]
        done = load(*site.arguments(url), *arguments)
    document = json.loads(done.stdout)
    assert document["runs"][0]["ended"] == "the tokens were used up (--tokens)"
    assert 300 < document["tokens"] < 2000


ON_THE_REHEARSAL = ("--stack", STACK, "--rehearsal", "--scale", "0.02", "--first-token-seconds", "1", "--json")
"""The tiny model on the CPU: small sizes, and little patience, so that it is soon past its limit."""


@pytest.mark.usefixtures("deployed")
def test_a_stacks_own_endpoint_is_loaded_with_every_profile() -> None:
    done = load(*ON_THE_REHEARSAL, "--from", "720", "--step-seconds", "4", "--minutes", "0.6")
    document = json.loads(done.stdout)
    [run] = document["runs"]
    assert set(run["profiles"]) == set(PROFILES)
    assert run["steps"] or run["ended"] == "the time was up (--minutes)", done.stderr
    assert all(not step["errors"].keys() - {"unfinished"} for step in run["steps"])
    assert document["tokens"] > 1000
    assert "Elastic's own key: add load: [1] to the setting keys" in document["key"]

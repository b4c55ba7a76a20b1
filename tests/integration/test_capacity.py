"""`scripts/elastic-vllm load` at full size, on a stack of its own: the real Nginx, and a real vLLM with a long context.

The model (rehearsal/long-context) is a tiny network with random weights: its figures say nothing about another one.
"""

import json
import math
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from scripts.cli.load.profiles import PROFILES
from scripts.maintain.price.real import AHEAD, renice
from tests.integration.conftest import ROOT, Deployment, deployment, log_once, rehearse_up
from tests.integration.test_audit_log import AUDIT_LINE, CHAT
from tests.integration.test_load import load
from tests.support import local_sshd
from tests.support.made_stacks import stack_file

pytestmark = pytest.mark.slow  # the quick run has test_load.py

STACK = "capacity"
ENDPOINT = ("--stack", STACK, "--rehearsal", "--json")
OWN = {
    "model": "rehearsal/long-context",
    "keys": {"default": [1], "load": [1]},
    # Requests wait at vLLM before this machine is short of time for its client: so small a model writes thousands of
    # tokens a second.
    "vllmExtraArgs": ["--enable-prompt-tokens-details", "--max-num-seqs", "4"],
    # vLLM's limit is looked for, not the gateway's.
    "maxRequestsPerMinute": 600_000,
    "maxConcurrentRequests": 10_000,
}
SERIES = math.sqrt(2)
"""Factor between two rates of the series."""


@pytest.fixture(scope="module")
def up(machine: None) -> Iterator[Deployment]:
    config = yaml.safe_load((ROOT / "stacks" / "Pulumi.test.yaml").read_text())["config"]
    settings = {key.removeprefix("elastic-vllm:"): value for key, value in config.items()}
    with stack_file(STACK, settings | OWN | {"httpsPort": local_sshd.free_port()}):
        rehearse_up(stack=STACK)
        found = deployment(STACK)
        for role in ("vllm", "nginx"):  # other work on this machine would change what vLLM can do from step to step
            renice(found.docker.containers.get(f"elastic-vllm-{STACK}-{role}"), AHEAD)
        yield found


def shown(run: dict[str, Any]) -> list[str]:
    """A line for each step, for the log of the proof."""
    return [
        f"{step['per_hour']:,.0f} an hour: {step['requests']} requests, first token p95 {step['first_token_p95']:.3f}, "
        f"client {step['client_cpu_share']:.0%} and {step['client_late_p95']:.3f} late; {step['past'] or 'kept'}"
        for step in run["steps"]
    ]


def test_every_profile_is_answered_at_full_size(up: Deployment) -> None:
    since = int(time.time())
    done = load(*ENDPOINT, "--minutes", "3.5", "--step-seconds", "60")
    document = json.loads(done.stdout)
    [run] = document["runs"]
    print("\n".join([*(f"{name}: {alone}" for name, alone in run["alone"].items()), *shown(run)]))
    assert document["scale"] == 1
    assert set(run["alone"]) == set(PROFILES)
    for name, profile in PROFILES.items():
        alone = run["alone"][name]
        # The chat template and the fields of the tools come on top of the texts.
        assert alone["prompt_tokens"] == pytest.approx(profile.prompt_tokens, rel=0.05), name
        assert alone["answer_tokens"] == profile.answer_tokens, name
        assert alone["seconds"] < profile.limit_seconds * len(profile.turns), name
    # The prompts of a profile begin the same: after the warm-up they come from the cache.
    assert run["steps"]
    assert run["steps"][0]["cached_share"] > 0.5
    assert not run["steps"][0]["failed"]

    expected = sum(step["requests"] for step in run["steps"])
    nginx = up.docker.containers.get(f"elastic-vllm-{STACK}-nginx")
    log = log_once(nginx, lambda log: log.count(CHAT) > expected, since)
    labels = Counter(found["label"] for line in log.splitlines() if (found := AUDIT_LINE.fullmatch(line)))
    assert set(labels) == {"load-v1"}
    assert labels["load-v1"] > expected


@pytest.mark.usefixtures("ahead_of_other_tests")
def test_the_knee_is_the_same_step_or_the_next_in_three_runs(up: Deployment, tmp_path: Path) -> None:
    carries = []
    for seed in ("1", "2", "3"):
        options = ["--profile", "assistant", "--first-token-seconds", "1", "--step-seconds", "20", "--minutes", "6"]
        done = load(*ENDPOINT, *options, "--seed", seed, scratch=tmp_path)
        [run] = json.loads(done.stdout)["runs"]
        print("\n".join([f"seed {seed}: {run['carries']:,.0f} an hour", *shown(run)]))
        assert run["steps"][-1]["past"], run["ended"]
        assert not any(step["own_limit"] or step["client_busy"] for step in run["steps"])
        carries.append(run["carries"])
    assert max(carries) / min(carries) < SERIES * 1.05, carries
    assert not list(tmp_path.iterdir())

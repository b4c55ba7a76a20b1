"""Target kubernetes with the real Pulumi and its provider, on the laboratory's cluster of two nodes."""

import json
from collections.abc import Iterator

import pytest
import yaml

from scripts.lab import pulumi_engine
from scripts.lab.kubernetes import cluster
from tests.integration.conftest import ROOT, rehearse
from tests.integration.engine.conftest import ON_PULUMI, counts
from tests.support.made_stacks import stack_file

STACK = NAMESPACE = "engine-cluster"
PORT = 30444
SECONDS = 5400
"""Limit for an `up`; the first builds Kubernetes and vLLM's image."""

pytestmark = [pytest.mark.slow, pytest.mark.timeout(2 * SECONDS)]


@pytest.fixture
def stack() -> Iterator[None]:
    """The stack's file: that of `make kubernetes`, with one replica in a namespace of its own."""
    pulumi_engine.find("kubernetes")
    config = yaml.safe_load((ROOT / "stacks" / "Pulumi.k8s.yaml").read_text())["config"]
    settings = {key.removeprefix("elastic-vllm:"): value for key, value in config.items()}
    with stack_file(STACK, settings | {"namespace": NAMESPACE, "httpsPort": PORT, "replicas": 1}):
        yield


def up(*arguments: str) -> dict[str, int]:
    done = rehearse(*ON_PULUMI, *arguments, stack=STACK, timeout=SECONDS)
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
    return counts(done.stdout)


@pytest.mark.usefixtures("stack")
def test_a_stack_comes_up_stays_unchanged_is_repaired_and_leaves_nothing() -> None:
    first = up("--verify")
    assert set(first) == {"created"}
    everything = first["created"]
    assert up() == {"unchanged": everything}
    cluster.kubectl("delete", "service", f"elastic-vllm-{STACK}", f"--namespace={NAMESPACE}")
    assert up() == {"created": 1, "unchanged": everything - 1}
    rotated = up("--set", f"keys={json.dumps({'default': [2, 1]})}")
    # The second key; the gateway's Secret, and the wait for its pods.
    assert rotated == {"created": 1, "updated": 2, "unchanged": everything - 2}
    done = rehearse("down", stack=STACK)
    assert done.returncode == 0, done.stderr
    assert not cluster.kubectl("get", "namespace", NAMESPACE, "--ignore-not-found", "--output=name")

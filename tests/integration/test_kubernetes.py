"""Target kubernetes on the laboratory's cluster of two nodes: from nothing to a verified endpoint, and back."""

import json
import subprocess
from collections.abc import Iterator
from typing import Any

import httpx2
import pytest

from scripts.lab.emulator import engine
from scripts.lab.kubernetes import cluster
from scripts.lib.verification.endpoint import CHAT_PATH, Endpoint
from tests.integration.conftest import ROOT

pytestmark = pytest.mark.slow

NAMESPACE = "elastic-vllm"
SECONDS = 5400
"""Limit for an `up`; the first builds Kubernetes and vLLM's image."""


def rehearse(*arguments: str) -> str:
    command = [str(ROOT / "scripts" / "rehearse"), *arguments, "--stack", "k8s"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=SECONDS, check=False)
    assert done.returncode == 0, f"{done.stdout[-5000:]}\n{done.stderr}"
    return done.stdout


@pytest.fixture(scope="module")
def stack() -> Iterator[str]:
    """Output of the first `up`; the stack is taken down at the end, whatever happens."""
    yield rehearse("up", "--engine", "embedded", "--verify")
    rehearse("down")


def outputs() -> dict[str, Any]:
    return {name: each["value"] for name, each in engine.outputs("k8s").items()}


def pods(component: str) -> dict[str, Any]:
    selector = f"--selector=app.kubernetes.io/component={component}"
    listed = cluster.kubectl("get", "pods", f"--namespace={NAMESPACE}", selector, "--output=json")
    return {pod["metadata"]["name"]: pod for pod in json.loads(listed)["items"]}


def status_with(key: str) -> int:
    values = outputs()
    endpoint = Endpoint(
        url=values["connectorUrl"], key=key, model=values["model"], ca_certificate=values["caCertificate"]
    )
    with httpx2.Client(verify=endpoint.tls_context(), trust_env=False, timeout=60) as client:
        url = endpoint.url.removesuffix(CHAT_PATH) + "/v1/models"
        return int(client.get(url, headers={"Authorization": f"Bearer {key}"}).status_code)


def test_the_endpoint_is_verified_with_two_replicas(stack: str) -> None:
    assert " checks failed" not in stack
    assert len(pods("vllm")) == 2
    assert len(pods("gateway")) == 2


@pytest.mark.usefixtures("stack")
def test_a_second_update_changes_nothing() -> None:
    before = {**pods("vllm"), **pods("gateway")}.keys()
    printed = rehearse("up")
    assert " unchanged" in printed
    assert not [word for word in ("created  ", "updated  ", "replaced  ") if f"\n{word}" in printed]
    assert {**pods("vllm"), **pods("gateway")}.keys() == before


@pytest.mark.usefixtures("stack")
def test_a_rotated_key_is_loaded_by_the_pods_that_run() -> None:
    old, before = outputs()["connectorApiKey"], pods("gateway").keys()
    rehearse("up", "--set", "keys={default: [2, 1]}")
    new = outputs()["connectorApiKey"]
    assert (status_with(old), status_with(new)) == (200, 200)
    rehearse("up", "--set", "keys={default: [2]}")
    assert (status_with(old), status_with(new)) == (401, 200)
    assert pods("gateway").keys() == before


@pytest.mark.usefixtures("stack")
def test_a_door_lets_nobody_in_without_the_gateways_certificate() -> None:
    node, address = next((pod["spec"]["nodeName"], pod["status"]["podIP"]) for pod in pods("vllm").values())
    url = f"https://{address}:8443/v1/models"
    ask = ["curl", "--silent", "--insecure", "--max-time", "10", "--output", "/dev/null", "--write-out", "%{http_code}"]
    command = [str(ROOT / "scripts" / "rehearse"), "cluster", "run", node, "--", *ask, url]
    printed = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False).stdout
    assert printed == "400"  # Nginx's answer to a client without a certificate


def test_what_is_taken_down_leaves_nothing(stack: str) -> None:
    assert stack
    rehearse("down")
    assert not cluster.kubectl("get", "namespace", NAMESPACE, "--ignore-not-found", "--output=name")

"""The stack gke, rehearsed: Google is simulated, the laboratory's cluster stands for GKE's, all in it is real.

Access to the cluster is that of the program: its kubeconfig, its command for credentials, Google's own library, and a
token that the API server checks.
"""

import json
import re
import subprocess
from collections.abc import Iterator
from http import HTTPStatus
from typing import Any

import pytest

from components.settings.gke import ACCELERATORS, GPU_RESOURCE, GPU_TOLERATION, POOL_LABEL
from scripts.lab import simulated_gke
from scripts.lab.in_place_of_gke import project_of
from scripts.lab.kubernetes import cluster
from scripts.lab.kubernetes.layout import CONTROL, HERE, NODES
from tests.integration.conftest import Deployment, deployment, outputs_of, rehearse, rehearse_cluster, rehearse_up
from tests.support.made_stacks import stack_file
from tests.support.netns_machine import outcomes
from tests.support.program import written

SECONDS = 5400
"""Limit for an `up`; the first builds Kubernetes and vLLM's image."""
pytestmark = [pytest.mark.slow, pytest.mark.timeout(2 * SECONDS)]

STACK = "gke-lab"
NAMESPACE = "elastic-vllm"
ACCELERATOR = ACCELERATORS["a2-ultragpu"]
UNPROTECTED = ("--set", "protectCluster=false")
NO_ANSWER = 28
"""Exit status of curl when nothing answers in time."""


@pytest.fixture(scope="module")
def stack() -> Iterator[str]:
    """Output of the first `up`; the stack is taken down at the end, whatever happens."""
    with stack_file(STACK, written("gke")):
        try:
            done = rehearse("up", "--verify", stack=STACK, timeout=SECONDS)
            assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
            yield done.stdout
        finally:
            if rehearse("down", stack=STACK).returncode:
                rehearse("up", *UNPROTECTED, stack=STACK)


@pytest.fixture(scope="module")
def first(stack: str) -> Deployment:
    return deployment(STACK)


def pods(component: str) -> list[dict[str, Any]]:
    selector = f"--selector=app.kubernetes.io/component={component}"
    listed = cluster.kubectl("get", "pods", f"--namespace={NAMESPACE}", selector, "--output=json")
    found: list[dict[str, Any]] = json.loads(listed)["items"]
    return found


def nodes(selector: str = "") -> dict[str, dict[str, Any]]:
    listed = cluster.kubectl("get", "nodes", f"--selector={selector}", "--output=json")
    return {node["metadata"]["name"]: node for node in json.loads(listed)["items"]}


def reached_from(machine: str, url: str) -> int:
    """Return curl's exit status for a URL, asked for on one of the cluster's machines."""
    ask = ["curl", "--silent", "--insecure", "--max-time", "5", "--output", "/dev/null", url]
    return rehearse_cluster("run", machine, "--", *ask).returncode


def test_the_endpoint_keeps_its_promises_at_the_reserved_address(stack: str) -> None:
    assert f"rehearsing {STACK}: Google Cloud is simulated, the laboratory's cluster stands for GKE's" in stack
    assert re.search(r"^all \d+ checks passed", stack, re.M)
    address = project_of(STACK).resources[f"regions/us-central1/addresses/elastic-vllm-{STACK}"]["outputs"]["address"]
    assert f"https://{address}/v1/chat/completions" in stack


def test_a_second_up_changes_nothing(stack: str) -> None:
    assert set(outcomes(rehearse_up(stack=STACK)).values()) == {"unchanged"}


@pytest.mark.usefixtures("stack")
def test_vllm_has_a_node_with_gpus_that_came_for_it_and_all_else_is_beside() -> None:
    (gpu,) = nodes(f"{POOL_LABEL}=gpu").values()
    (system,) = nodes(f"{POOL_LABEL}=system").values()
    assert gpu["metadata"]["labels"][simulated_gke.ACCELERATOR_LABEL] == ACCELERATOR
    assert gpu["status"]["allocatable"][GPU_RESOURCE] == "2"
    assert [taint["key"] for taint in gpu["spec"]["taints"]] == [GPU_RESOURCE]
    pool = project_of(STACK).resources[f"locations/us-central1-a/clusters/elastic-vllm-{STACK}/nodePools/gpu"]
    assert pool["initialNodeCount"] == 0
    assert {pod["spec"]["nodeName"] for pod in pods("vllm")} == {gpu["metadata"]["name"]}
    for component in ("gateway", "weights"):
        found = {pod["spec"]["nodeName"] for pod in pods(component)}
        assert found == {system["metadata"]["name"]}, component


@pytest.mark.usefixtures("stack")
def test_a_replica_takes_all_gpus_of_its_node_and_a_pool_that_has_its_most_nodes_gives_no_more() -> None:
    (vllm,) = pods("vllm")
    container = vllm["spec"]["containers"][0]
    assert container["resources"]["limits"] == {GPU_RESOURCE: "2"}
    one_more = {"name": "gpu", "image": container["image"], "resources": {"limits": {GPU_RESOURCE: "1"}}}
    where = {"nodeSelector": vllm["spec"]["nodeSelector"], "tolerations": [GPU_TOLERATION]}
    metadata = {"name": "asks-for-a-gpu", "namespace": "default"}
    pod = {"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": {**where, "containers": [one_more]}}
    cluster.kubectl("apply", "--filename=-", data=json.dumps(pod))
    try:
        unschedulable = "--for=jsonpath={.status.conditions[0].reason}=Unschedulable"
        cluster.kubectl("wait", f"pod/{metadata['name']}", "--namespace=default", unschedulable, "--timeout=60s")
        status = json.loads(cluster.kubectl("get", "pod", metadata["name"], "--namespace=default", "--output=json"))
        assert f"Insufficient {GPU_RESOURCE}" in status["status"]["conditions"][0]["message"]
    finally:
        cluster.kubectl("delete", "pod", metadata["name"], "--namespace=default", "--grace-period=0")


@pytest.mark.usefixtures("stack")
def test_access_is_by_a_token_that_is_kept_nowhere() -> None:
    access = outputs_of(STACK)["_internal"]["kubernetes"]["kubeconfig"]
    assert f"server: https://{CONTROL.address}\n" in access
    assert "gke-credentials" in access
    state = (project_of(STACK).file.parent / "state.json").read_text()
    assert "eyJhbGciOi" not in state + project_of(STACK).file.read_text()  # how each token begins


@pytest.mark.usefixtures("stack")
def test_the_control_plane_answers_to_the_authorized_ranges_alone() -> None:
    url = f"https://{CONTROL.address}/version"
    asked = ["curl", "--silent", "--insecure", "--max-time", "5", "--output", "/dev/null", url]
    assert subprocess.run(asked, check=False).returncode == 0
    assert reached_from(NODES[0].name, url) == NO_ANSWER
    assert reached_from(NODES[0].name, f"https://{CONTROL.address}:6443/version") == 0  # nodes have a way of their own


def test_the_endpoint_answers_to_the_ranges_of_its_clients_alone(first: Deployment) -> None:
    address = re.match(r"https://([\d.]+)", first.url)
    assert address
    route = ("ip", "route", "replace", address[1], "via", NODES[0].address)
    assert rehearse_cluster("run", CONTROL.name, "--", *route).returncode == 0
    url = f"{first.base_url}/healthz"
    try:
        assert reached_from(CONTROL.name, url) == NO_ANSWER
        wider = ("--set", f"httpsSourceRanges=[{HERE}/32, {CONTROL.address}/32]")
        changed = {name: how for name, how in outcomes(rehearse_up(*wider, stack=STACK)).items() if how != "unchanged"}
        assert changed == {"gateway-service": "updated"}
        assert reached_from(CONTROL.name, url) == 0
        rehearse_up(stack=STACK)
        assert reached_from(CONTROL.name, url) == NO_ANSWER
    finally:
        rehearse_cluster("run", CONTROL.name, "--", "ip", "route", "delete", address[1])


def test_parked_there_is_no_node_with_gpus_and_it_comes_back_as_it_was(first: Deployment) -> None:
    parked = outcomes(rehearse_up("--set", "parked=true", stack=STACK))
    assert {name: how for name, how in parked.items() if how != "unchanged"} == {
        "cluster-check": "updated",
        "vllm-pods": "updated",
        "gke-gpu": "deleted",
    }
    assert not nodes(f"{POOL_LABEL}=gpu")
    assert not [node for node in nodes().values() if GPU_RESOURCE in node["status"]["capacity"]]
    assert pods("vllm") == []
    with first.http(first.key) as client:
        assert client.get("/v1/models").status_code == HTTPStatus.SERVICE_UNAVAILABLE
    back = outcomes(rehearse_up("--verify", stack=STACK))
    assert {name: how for name, how in back.items() if how != "unchanged"} == {
        "cluster-check": "updated",
        "vllm-pods": "updated",
        "gke-gpu": "created",
    }
    again = deployment(STACK)
    assert (again.url, again.key, again.ca_certificate) == (first.url, first.key, first.ca_certificate)
    with first.http(first.key) as client:
        assert client.get("/v1/models").status_code == HTTPStatus.OK


def test_what_is_protected_stays_and_what_is_taken_down_leaves_nothing(first: Deployment) -> None:
    refused = rehearse("down", stack=STACK)
    assert refused.returncode == 1
    assert "gke-cluster (gcp:Cluster[simulated]): it is protected and can't be deleted" in refused.stderr
    with first.http() as client:
        assert client.get("/healthz").status_code == HTTPStatus.OK
    lifted = outcomes(rehearse_up(*UNPROTECTED, stack=STACK))
    assert {name: how for name, how in lifted.items() if how != "unchanged"} == {"gke-cluster": "updated"}
    project = project_of(STACK).file
    done = rehearse("down", stack=STACK)
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
    assert not project.exists()
    assert not cluster.kubectl("get", "namespace", NAMESPACE, "--ignore-not-found", "--output=name")
    made = "serviceaccount,persistentvolume,storageclass,clusterrolebinding"
    mark = f"--selector={simulated_gke.MARK}"
    assert not cluster.kubectl("get", made, "--all-namespaces", mark, "--output=name")
    for node in nodes().values():
        assert POOL_LABEL not in node["metadata"]["labels"]
        assert not node["spec"].get("taints")
    routes = subprocess.run(["ip", "route"], capture_output=True, text=True, check=True).stdout
    assert re.search(r"https://([\d.]+)", first.url)[1] not in routes  # type: ignore[index]
    for machine in (CONTROL, *NODES):
        tables = rehearse_cluster("run", machine.name, "--", "nft", "list", "tables").stdout
        assert simulated_gke.TABLE not in tables

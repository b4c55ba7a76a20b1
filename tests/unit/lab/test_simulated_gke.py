"""The simulated Google around a cluster of GKE's: nodes, load balancers, disks and access tokens, with a small API."""

import json
import os
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa

from components.errors import UserError
from components.kubernetes.api import CREDENTIALS_COMMAND
from scripts.lab import simulated_gke
from scripts.lab.emulator.gke_adapters import Project
from scripts.lab.kubernetes import cluster, machines
from scripts.lab.kubernetes.layout import Machine
from scripts.lab.simulated_gke import ACCELERATOR_LABEL, CLEANUP, MARK, SimulatedGke
from tests.support.program import ROOT

TOKEN = "eyJhbGciOiJSUzI1NiJ9.a-token-of-the-cluster"
CLUSTER = "locations/us-central1-a/clusters/elastic-vllm-gke"
ADDRESS = "regions/us-central1/addresses/elastic-vllm-gke"
IP = "198.51.100.7"
CPUS = 2
SYSTEM = {
    "name": "system",
    "nodeLocations": ["us-central1-a"],
    "initialNodeCount": 1,
    "autoscaling": {"totalMinNodeCount": 1, "totalMaxNodeCount": 3},
    "nodeConfig": {"machineType": "e2-standard-4"},
}
GPU = {
    "name": "gpu",
    "nodeLocations": ["us-central1-a"],
    "initialNodeCount": 0,
    "autoscaling": {"totalMinNodeCount": 0, "totalMaxNodeCount": 1},
    "nodeConfig": {
        "machineType": "a2-ultragpu-2g",
        "guestAccelerators": [{"type": "nvidia-a100-80gb", "count": 2}],
        "taints": [{"key": "nvidia.com/gpu", "value": "present", "effect": "NO_SCHEDULE"}],
    },
}
PODS_SPEC = {
    "nodeSelector": {"cloud.google.com/gke-nodepool": "gpu"},
    "tolerations": [{"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"}],
    "containers": [{"resources": {"requests": {"nvidia.com/gpu": "2", "cpu": "4"}}}],
}
KINDS = {f"{each}s": each for each in ("persistentvolume", "service", "pod", "node", "namespace")}


class Api:
    """As much of kubectl as the simulation uses, with the objects of a cluster."""

    def __init__(self, *, nodes: int = 2) -> None:
        self.objects: dict[tuple[str, str], dict[str, Any]] = {}
        for number in range(1, nodes + 1):
            status = {"capacity": {"cpu": str(CPUS)}}
            self.add("node", f"node-{number}", spec={}, status=status)
        self.add("namespace", "kube-system")
        self.add("namespace", "default")

    def add(self, kind: str, name: str, namespace: str = "", **content: Any) -> dict[str, Any]:
        metadata = {"name": name, "namespace": namespace, "labels": {}, "uid": name, **content.pop("metadata", {})}
        self.objects[kind, name] = {"metadata": metadata, **content}
        return self.objects[kind, name]

    def of(self, kind: str) -> list[dict[str, Any]]:
        return [each for (found, _), each in self.objects.items() if found == KINDS.get(kind, kind)]

    def __call__(self, verb: str, kind: str, *rest: str, data: str | None = None) -> str:
        options = dict(each.removeprefix("--").partition("=")[::2] for each in rest if each.startswith("--"))
        names = [each for each in rest if not each.startswith("--")]
        if verb == "get":
            return self.get(kind, names, options)
        if verb == "patch":
            merge(self.objects[kind, names[0]], json.loads(options["patch"]))
        elif verb == "label":
            labels = self.objects[kind, names[0]]["metadata"]["labels"]
            merge(labels, {each.rstrip("-"): None for each in names[1:] if each.endswith("-")})
            merge(labels, dict(each.split("=") for each in names[1:] if "=" in each))
        elif verb == "taint":
            spec = self.objects[kind, names[0]]["spec"]
            spec["taints"] = [each for each in spec["taints"] if each["key"] != names[1].rstrip("-")]
        elif verb == "apply":
            for item in json.loads(data or "")["items"]:
                self.objects[item["kind"].lower(), item["metadata"]["name"]] = item
        elif verb == "delete":
            wanted = options.get("selector")
            for key in [*self.objects]:
                marked = wanted and wanted in self.objects[key]["metadata"]["labels"]
                if key[0] in kind.split(",") and (marked or key[1] in names):
                    del self.objects[key]
        else:
            raise AssertionError(verb)
        return ""

    def get(self, kind: str, names: list[str], options: dict[str, str]) -> str:
        found = [each for each in self.of(kind) if not names or each["metadata"]["name"] in names]
        for condition in filter(None, options.get("selector", "").split(",")):
            key, equal, value = condition.lstrip("!").partition("=")
            found = [
                each
                for each in found
                if (key in each["metadata"]["labels"]) != condition.startswith("!")
                and (not equal or each["metadata"]["labels"][key] == value)
            ]
        if options["output"] == "json":
            return json.dumps(found[0] if names else {"items": found})
        path = re.fullmatch(r"jsonpath=\{(\.items\[\*\])?\.([\w.]+)\}", options["output"])
        assert path
        return " ".join(str(at(each, path[2])) for each in found)


def at(value: Any, path: str) -> Any:
    for part in path.split("."):
        value = value[part]
    return value


def merge(old: dict[str, Any], patch: dict[str, Any]) -> None:
    """Merge a patch as RFC 7386 says."""
    for key, value in patch.items():
        if value is None:
            old.pop(key, None)
        elif isinstance(value, dict) and isinstance(old.get(key), dict):
            merge(old[key], value)
        else:
            old[key] = value


@pytest.fixture
def api(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Api:
    """A cluster of two nodes; `ip` and `nft` do nothing."""
    api = Api()

    def set_cpus(node: Machine, number: int) -> None:
        api.objects["node", node.name]["status"]["capacity"]["cpu"] = str(number or CPUS)

    monkeypatch.setattr(cluster, "kubectl", api)
    monkeypatch.setattr(cluster, "set_cpus", set_cpus)
    monkeypatch.setattr(os, "cpu_count", lambda: CPUS)
    monkeypatch.setattr(machines, "run", lambda *_arguments, **_options: "")
    monkeypatch.setattr(subprocess, "run", lambda *_arguments, **_options: None)
    monkeypatch.setattr(simulated_gke, "SHARED", tmp_path)
    monkeypatch.setattr(cluster, "PKI", tmp_path)
    (tmp_path / "ca.crt").write_text("CA")
    return api


@pytest.fixture
def project(tmp_path: Path) -> Project:
    pools = {f"{CLUSTER}/nodePools/{pool['name']}": pool for pool in (SYSTEM, GPU)}
    address = {"name": "elastic-vllm-gke", "addressType": "INTERNAL", "outputs": {"address": IP}}
    return Project(tmp_path / "google.json", resources={CLUSTER: {}, ADDRESS: address, **pools})


def pools(api: Api) -> dict[str, str]:
    """Map each node to its pool."""
    key = "cloud.google.com/gke-nodepool"
    return {node["metadata"]["name"]: node["metadata"]["labels"].get(key, "") for node in api.of("node")}


def taints(api: Api, name: str) -> list[str]:
    return [each["key"] for each in api.objects["node", name]["spec"].get("taints", [])]


def waits(api: Api, spec: dict[str, Any]) -> None:
    api.add("pod", "waits", "llm", spec=spec, status={"conditions": [{"reason": "Unschedulable"}]})


# Nodes


def test_no_node_takes_pods_before_it_is_in_a_pool(api: Api) -> None:
    SimulatedGke().create_cluster()
    assert pools(api) == {"node-1": "", "node-2": ""}
    assert taints(api, "node-1") == taints(api, "node-2") == [MARK]


def test_a_pool_has_its_fewest_nodes_at_once(api: Api) -> None:
    laboratory = SimulatedGke()
    laboratory.create_cluster()
    laboratory.set_pool("system", SYSTEM)
    laboratory.set_pool("gpu", GPU)
    assert pools(api) == {"node-1": "system", "node-2": ""}
    assert taints(api, "node-1") == []
    assert api.objects["node", "node-1"]["status"]["capacity"] == {"cpu": "4"}


def test_a_pod_that_waits_gets_a_node_of_the_pool_that_it_fits(api: Api, project: Project) -> None:
    laboratory = SimulatedGke()
    laboratory.create_cluster()
    laboratory.set_pool("system", SYSTEM)
    waits(api, PODS_SPEC)
    simulated_gke.scale(project)
    assert pools(api) == {"node-1": "system", "node-2": "gpu"}
    node = api.objects["node", "node-2"]
    assert taints(api, "node-2") == ["nvidia.com/gpu"]
    assert node["status"]["capacity"] == {"cpu": "24", "nvidia.com/gpu": "2"}
    assert node["metadata"]["labels"][ACCELERATOR_LABEL] == "nvidia-a100-80gb"


@pytest.mark.parametrize("why", ["selector", "quota", "largest", "capacity"])
def test_a_pod_gets_no_node_that_google_would_not_give(why: str, api: Api, project: Project) -> None:
    laboratory = SimulatedGke()
    laboratory.create_cluster()
    laboratory.set_pool("system", SYSTEM)
    waits(api, PODS_SPEC if why != "selector" else {**PODS_SPEC, "nodeSelector": {"pool": "gpu"}})
    if why == "quota":
        project.quotas = {"nvidia-a100-80gb": 1}
    elif why == "largest":
        project.resources[f"{CLUSTER}/nodePools/gpu"] = {
            **GPU,
            "autoscaling": {"totalMinNodeCount": 0, "totalMaxNodeCount": 0},
        }
    elif why == "capacity":
        laboratory.set_pool("other", {**SYSTEM, "name": "other"})
    before = pools(api)
    simulated_gke.scale(project)
    assert pools(api) == before


def test_a_pool_that_goes_takes_its_nodes_and_their_pods_but_not_the_systems_own(api: Api, project: Project) -> None:
    test_a_pod_that_waits_gets_a_node_of_the_pool_that_it_fits(api, project)
    api.add("pod", "coredns", "kube-system", spec={}, status={})
    SimulatedGke().delete_pool("gpu")
    assert pools(api) == {"node-1": "system", "node-2": ""}
    assert api.objects["node", "node-2"]["status"]["capacity"] == {"cpu": str(CPUS)}
    assert ACCELERATOR_LABEL not in api.objects["node", "node-2"]["metadata"]["labels"]
    assert [pod["metadata"]["name"] for pod in api.of("pod")] == ["coredns"]


def test_a_deleted_cluster_leaves_the_laboratorys_as_it_was(api: Api, project: Project) -> None:
    before = json.dumps(sorted((*key, each) for key, each in api.objects.items()))
    test_a_pod_that_waits_gets_a_node_of_the_pool_that_it_fits(api, project)
    del api.objects["pod", "waits"]
    SimulatedGke().delete_pool("gpu")
    SimulatedGke().delete_pool("system")
    SimulatedGke().delete_cluster()
    after = json.loads(json.dumps(sorted((*key, each) for key, each in api.objects.items())))
    for _, _, each in after:
        assert each.get("spec", {}).pop("taints", []) == []
    assert after == json.loads(before)


def test_a_cluster_with_other_work_is_not_taken(api: Api) -> None:
    api.add("namespace", "elastic-vllm")
    with pytest.raises(UserError, match="the laboratory's cluster has other work"):
        SimulatedGke().create_cluster()
    assert taints(api, "node-1") == []


def pod(**spec: Any) -> dict[str, Any]:
    requests = {"resources": {"requests": {"cpu": "4", "memory": "60Gi", "nvidia.com/gpu": "2"}}}
    return {
        "spec": {
            "nodeSelector": {"cloud.google.com/gke-nodepool": "gpu"},
            "tolerations": [{"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"}],
            "containers": [requests],
            **spec,
        }
    }


@pytest.mark.parametrize(
    ("changed", "fitting"),
    [
        ({}, True),
        ({"nodeSelector": {"cloud.google.com/gke-nodepool": "system"}}, False),
        ({"nodeSelector": {"cloud.google.com/gke-accelerator": "nvidia-h100-80gb"}}, False),
        ({"nodeSelector": {}}, True),
        ({"tolerations": []}, False),
        ({"tolerations": [{"key": "nvidia.com/gpu", "value": "absent"}]}, False),
        ({"tolerations": [{"operator": "Exists"}]}, True),
        ({"containers": [{"resources": {"requests": {"nvidia.com/gpu": "4"}}}]}, False),
        ({"containers": [{"resources": {"requests": {"memory": "1Ti"}}}]}, False),
        ({"containers": [{"resources": {"requests": {"amd.com/gpu": "1"}}}]}, False),
        ({"containers": [{}]}, True),
    ],
)
def test_a_pool_grows_only_for_a_pod_that_fits_its_nodes(changed: dict[str, Any], fitting: bool) -> None:
    assert simulated_gke.fits(pod(**changed), GPU) == fitting


# Load balancers


def service(api: Api, **metadata: Any) -> dict[str, Any]:
    internal = {"annotations": {"networking.gke.io/load-balancer-type": "Internal"}}
    spec = {"type": "LoadBalancer", "loadBalancerIP": IP, "selector": {"app": "gateway"}}
    api.add("pod", "gateway", "llm", metadata={"labels": {"app": "gateway"}}, status={"hostIP": "198.18.0.11"})
    return api.add("service", "llm", "llm", metadata={**internal, **metadata}, spec=spec, status={})


def test_a_service_gets_the_address_that_is_reserved_for_it(api: Api, project: Project) -> None:
    found = service(api)
    simulated_gke.balance(project)
    assert found["status"]["loadBalancer"]["ingress"] == [{"ip": IP}]
    assert found["metadata"]["finalizers"] == [CLEANUP]
    assert project.users_of(ADDRESS) == ["forwardingRules/llm"]


@pytest.mark.parametrize(
    "metadata", [{"annotations": {}}, {"annotations": {"cloud.google.com/l4-rbs": "enabled"}}], ids=str
)
def test_an_internal_address_is_for_internal_load_balancers(
    metadata: dict[str, Any], api: Api, project: Project
) -> None:
    found = service(api, **metadata)
    simulated_gke.balance(project)
    assert found["status"] == {}


def test_a_service_without_an_address_that_is_reserved_waits(api: Api, project: Project) -> None:
    found = service(api)
    found["spec"]["loadBalancerIP"] = "198.51.100.8"
    simulated_gke.balance(project)
    assert found["status"] == {}


def test_a_service_that_goes_gives_its_address_back(api: Api, project: Project) -> None:
    found = service(api)
    simulated_gke.balance(project)
    found["metadata"]["deletionTimestamp"] = "now"
    simulated_gke.balance(project)
    assert "finalizers" not in found["metadata"]
    assert project.users_of(ADDRESS) == []


# Disks


def test_a_disk_goes_with_its_claim_and_an_empty_one_is_in_its_place(api: Api, tmp_path: Path) -> None:
    SimulatedGke().create_cluster()
    volumes = {volume["metadata"]["name"]: volume for volume in api.of("persistentvolume")}
    assert {volume["spec"]["accessModes"][0] for volume in volumes.values()} == {"ReadWriteOnce", "ReadWriteMany"}
    for name, volume in volumes.items():
        (tmp_path / name / "weights").mkdir()
        released = name == "gke-standard-rwo-1"
        volume |= {"status": {"phase": "Released" if released else "Bound"}}
        volume["spec"]["claimRef"] = {"name": "claim"}
    simulated_gke.renew_disks()
    assert [name for name, volume in volumes.items() if "claimRef" not in volume["spec"]] == ["gke-standard-rwo-1"]
    assert [name for name in volumes if not [*(tmp_path / name).iterdir()]] == ["gke-standard-rwo-1"]


# Access


@pytest.fixture
def owners_key(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.setattr(simulated_gke, "_token", lambda: TOKEN)
    monkeypatch.setenv("GOOGLE_OAUTH_ACCESS_TOKEN", "of somebody else")
    with simulated_gke.giving_tokens(tmp_path):
        yield tmp_path / "owner.json"


def ask() -> subprocess.CompletedProcess[str]:
    return subprocess.run(CREDENTIALS_COMMAND, cwd=ROOT, capture_output=True, text=True, check=False, timeout=60)


@pytest.mark.usefixtures("owners_key")
def test_the_programs_command_gets_the_owners_token() -> None:
    done = ask()
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["status"]["token"] == TOKEN


def test_nobody_elses_key_gets_a_token(owners_key: Path) -> None:
    account = json.loads(owners_key.read_text())
    other = rsa.generate_private_key(public_exponent=65537, key_size=2048).private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    owners_key.write_text(json.dumps(account | {"private_key": other.decode()}))
    done = ask()
    assert done.returncode == 1
    assert "Google refuses the Application Default Credentials: invalid_grant" in done.stderr
    assert TOKEN not in done.stdout + done.stderr

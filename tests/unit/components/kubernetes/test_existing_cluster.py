"""Needs of a stack that a cluster may lack: nodes, a claim, an API server that answers."""

import socket
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml
from kubernetes.client import (
    V1ObjectMeta,
    V1PersistentVolumeClaim,
    V1PersistentVolumeClaimSpec,
    V1PersistentVolumeClaimStatus,
    V1Taint,
)

from components.kubernetes import api, existing_cluster
from components.kubernetes.api import ClusterError
from components.kubernetes.existing_cluster import Needs, claim_flaws, node_flaws

NEEDS = Needs(
    creates_namespace=False,
    claim="models",
    image_volume=False,
    storage_class="",
    runtime_class="",
    pull_secret="",
    gpu_resource="nvidia.com/gpu",
    gpus=2,
    replicas=2,
    node_selector={},
    tolerations=[],
    requests={"cpu": "4", "memory": "64Gi"},
    pods=7,
)
GPU_TAINT = V1Taint(key="nvidia.com/gpu", value="present", effect="NoSchedule")
CORDONED = V1Taint(key="node.kubernetes.io/unschedulable", effect="NoSchedule")
SOFT = V1Taint(key="nvidia.com/gpu", effect="PreferNoSchedule")


def node(gpus: int, *taints: V1Taint, runtime: str = "containerd://2.2.0") -> Any:
    info = SimpleNamespace(container_runtime_version=runtime)
    status = SimpleNamespace(allocatable={"nvidia.com/gpu": str(gpus)} if gpus else {}, node_info=info)
    return SimpleNamespace(spec=SimpleNamespace(taints=list(taints) or None), status=status)


def flaws(*nodes: Any, **needs: Any) -> str:
    return "\n".join(node_flaws(nodes, replace(NEEDS, **needs), "nodes"))


@pytest.mark.parametrize(
    ("nodes", "needs"),
    [
        ((node(2), node(2)), {}),
        ((node(4),), {}),
        ((node(8), node(0)), {"replicas": 4}),
        ((node(0),), {"gpus": 0}),
        ((node(0),), {"replicas": 0}),
        ((node(4, SOFT),), {}),
        ((node(4, GPU_TAINT),), {"tolerations": [{"key": "nvidia.com/gpu", "operator": "Exists"}]}),
        ((node(4, GPU_TAINT),), {"tolerations": [{"key": "nvidia.com/gpu", "value": "present"}]}),
        ((node(4, GPU_TAINT, CORDONED),), {"tolerations": [{"operator": "Exists", "effect": "NoSchedule"}]}),
        ((node(4, runtime="cri-o://1.30.0"),), {"image_volume": True}),
        ((node(4, runtime="containerd://2.1.0"),), {"image_volume": True}),
        ((node(4, runtime="containerd://1.7.2"),), {}),
    ],
)
def test_nodes_that_suffice(nodes: tuple[Any, ...], needs: dict[str, Any]) -> None:
    assert flaws(*nodes, **needs) == ""


@pytest.mark.parametrize(
    ("nodes", "needs", "words"),
    [
        ((), {}, "none of the 0 nodes offers nvidia.com/gpu"),
        ((node(0), node(0)), {}, "install the GPUs' device plugin"),
        ((node(1), node(1)), {}, "room for 0 replicas of 2 nvidia.com/gpu (the most on one node: 1)"),
        ((node(2),), {}, "room for 1 replicas"),
        ((node(4, GPU_TAINT),), {}, "tainted with nvidia.com/gpu=present:NoSchedule; fix: tolerate the taint"),
        (
            (node(4, GPU_TAINT),),
            {"tolerations": [{"key": "nvidia.com/gpu", "value": "absent"}]},
            "room for 0 replicas",
        ),
        (
            (node(4, GPU_TAINT),),
            {"tolerations": [{"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoExecute"}]},
            "room for 0 replicas",
        ),
        ((node(2), node(2, CORDONED)), {}, "room for 1 replicas of 2 nvidia.com/gpu; others with it are cordoned"),
        (
            (node(4, runtime="containerd://1.7.24"), node(0)),
            {"image_volume": True},
            "some nodes have containerd://1.7.24, which mounts no images (weightsImage); fix: bring it to 2.1 or newer",
        ),
        ((node(4, runtime="containerd://2.0.4"),), {"image_volume": True}, "mounts no images"),
    ],
)
def test_nodes_that_do_not_suffice(nodes: tuple[Any, ...], needs: dict[str, Any], words: str) -> None:
    assert words in flaws(*nodes, **needs)


def claim(*modes: str, phase: str = "Bound", volume_mode: str = "Filesystem", going: bool = False) -> Any:
    return V1PersistentVolumeClaim(
        metadata=V1ObjectMeta(deletion_timestamp="2026-11-30T00:00:00Z" if going else None),
        spec=V1PersistentVolumeClaimSpec(access_modes=list(modes), volume_mode=volume_mode),
        status=V1PersistentVolumeClaimStatus(phase=phase, access_modes=list(modes) if phase == "Bound" else None),
    )


@pytest.mark.parametrize(
    ("found", "replicas"),
    [
        (claim("ReadWriteOnce"), 1),
        (claim("ReadWriteOnce", "ReadOnlyMany"), 2),
        (claim("ReadWriteMany"), 2),
        (claim("ReadOnlyMany", phase="Pending"), 2),
    ],
)
def test_claims_that_suffice(found: Any, replicas: int) -> None:
    assert list(claim_flaws(found, replace(NEEDS, replicas=replicas))) == []


@pytest.mark.parametrize(
    ("found", "words"),
    [
        (claim("ReadWriteOnce"), "serves the pods of one node (ReadWriteOnce), and replicas is 2; fix: use one with"),
        (claim("ReadWriteOncePod"), "serves one pod at a time"),
        (claim("ReadWriteMany", volume_mode="Block"), "is a block device; fix: use one with volumeMode Filesystem"),
        (claim("ReadWriteMany", phase="Lost"), "is lost; fix: restore it"),
        (claim("ReadWriteMany", going=True), "is being deleted"),
    ],
)
def test_claims_that_do_not_suffice(found: Any, words: str) -> None:
    (flaw,) = claim_flaws(found, NEEDS)
    assert words in flaw


@pytest.mark.parametrize(
    ("text", "number"), [("500m", 0.5), ("1Gi", 2**30), ("1G", 10**9), ("2", 2), ("1.5Ti", 1.5 * 2**40), ("1e3", 1000)]
)
def test_quantities(text: str, number: float) -> None:
    assert existing_cluster.quantity(text) == number


def kubeconfig(path: Path, server: str) -> str:
    document = {
        "clusters": [{"name": "lab", "cluster": {"server": server}}],
        "users": [{"name": "lab", "user": {"token": "x"}}],
        "contexts": [{"name": "lab", "context": {"cluster": "lab", "user": "lab"}}],
    }
    path.write_text(yaml.safe_dump(document))
    return str(path)


def props(path: Path, server: str) -> dict[str, Any]:
    return {
        "kubeconfig": kubeconfig(path, server),
        "context": "lab",
        "namespace": "llm",
        "needs": NEEDS.as_text(),
    }


def test_a_cluster_that_is_not_there(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        address = f"https://127.0.0.1:{closed.getsockname()[1]}"
        with pytest.raises(ClusterError, match=r"no answer from the cluster .*fix: is the cluster up"):
            existing_cluster.require(props(tmp_path / "kubeconfig", address), in_use=False)
    assert caplog.text == ""


def test_a_cluster_that_does_not_answer_is_not_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(api, "SECONDS", 0.2)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        began = time.monotonic()
        with pytest.raises(ClusterError, match=r"no answer from the cluster"):
            existing_cluster.require(
                props(tmp_path / "kubeconfig", f"https://127.0.0.1:{silent.getsockname()[1]}"), in_use=False
            )
    assert time.monotonic() - began < 10

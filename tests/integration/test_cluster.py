"""The laboratory's Kubernetes, real: admission, DNS, Services, policies, a drained node, an interrupted start, its end.

The cluster that runs here, if one does, is taken over and taken down.
"""

import json
import subprocess
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import yaml

from components.errors import UserError
from scripts.lab.kubernetes import cluster, images, machines
from scripts.lab.kubernetes.configuration import CGROUP, IMAGES
from scripts.lab.kubernetes.layout import KUBECONFIG, LINK, MACHINES, METADATA_ADDRESS, NODES, PROGRAMS, SHARED, STATE
from tests.integration.conftest import installed, rehearse_cluster

pytestmark = pytest.mark.slow

NAMESPACE = "tried"
BUSYBOX = f"{IMAGES}/busybox:debian"
PROJECT = "/computeMetadata/v1/project/project-id"
SECONDS = 120


def up(*arguments: str) -> str:
    done = rehearse_cluster("up", *arguments)
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
    return done.stdout


@pytest.fixture(scope="module")
def two_nodes() -> Iterator[None]:
    """Two nodes with policies enforced, a namespace that enforces `restricted`, and an image with a shell."""
    up("--nodes", "2")
    installed("busybox", "busybox-static")
    for node in NODES:
        images.import_program(node, BUSYBOX, Path("/bin/busybox"))
    labels = {"pod-security.kubernetes.io/enforce": "restricted"}
    apply({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": NAMESPACE, "labels": labels}})
    yield
    assert rehearse_cluster("down").returncode == 0


def apply(*objects: dict[str, Any]) -> None:
    cluster.kubectl("apply", "--filename=-", data=yaml.safe_dump_all(objects))


def pod_spec(script: str, **more: object) -> dict[str, Any]:
    security = {
        "allowPrivilegeEscalation": False,
        "capabilities": {"drop": ["ALL"]},
        "runAsNonRoot": True,
        "runAsUser": 10001,
        "seccompProfile": {"type": "RuntimeDefault"},
    }
    command = ["/busybox", "sh", "-c", script]
    container = {"name": "main", "image": BUSYBOX, "command": command, "securityContext": security}
    return {"containers": [container], "terminationGracePeriodSeconds": 1, **more}


def deployment(name: str, script: str, replicas: int = 1, **more: object) -> dict[str, Any]:
    template = {"metadata": {"labels": {"app": name}}, "spec": pod_spec(script, **more)}
    return {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": {"name": name, "namespace": NAMESPACE},
        "spec": {"replicas": replicas, "selector": {"matchLabels": {"app": name}}, "template": template},
    }


def service(name: str, **more: object) -> dict[str, Any]:
    spec = {"selector": {"app": name}, "ports": [{"port": 80, "targetPort": 8080}], **more}
    return {"apiVersion": "v1", "kind": "Service", "metadata": {"name": name, "namespace": NAMESPACE}, "spec": spec}


def wait_for_rollout(name: str) -> None:
    cluster.kubectl("rollout", "status", f"deployment/{name}", f"--namespace={NAMESPACE}", f"--timeout={SECONDS}s")


def nodes_of(app: str) -> set[str]:
    found = json.loads(
        cluster.kubectl("get", "pods", f"--namespace={NAMESPACE}", f"--selector=app={app}", "--output=json")
    )
    return {pod["spec"]["nodeName"] for pod in found["items"] if "deletionTimestamp" not in pod["metadata"]}


def in_pod(app: str, script: str) -> tuple[int, str]:
    """Run a script in a pod of a Deployment, and return its exit status and output."""
    command = [str(PROGRAMS / "kubectl"), f"--kubeconfig={KUBECONFIG}", "exec", f"--namespace={NAMESPACE}"]
    command += [f"deployment/{app}", "--", "/busybox", "sh", "-c", script]
    done = subprocess.run(command, capture_output=True, text=True, timeout=SECONDS, check=False)
    return done.returncode, done.stdout + done.stderr


def asked(app: str, host: str, path: str = "/") -> str:
    """Return the last line of what a web server answers to a pod, or nothing."""
    request = f"printf 'GET {path} HTTP/1.0\\r\\nMetadata-Flavor: Google\\r\\n\\r\\n'"
    code, output = in_pod(app, f"{request} | /busybox nc -w 3 {host} 80")
    return output.rstrip("\n").rpartition("\n")[2] if code == 0 else ""


def eventually(holds: Callable[[], bool]) -> None:
    limit = time.monotonic() + SECONDS
    while not holds():
        assert time.monotonic() < limit
        time.sleep(0.5)


SERVE = "mkdir /tmp/site; echo answer >/tmp/site/index.html; exec /busybox httpd -f -p 8080 -h /tmp/site"
WAIT = "while :; do /busybox sleep 3600; done"


@pytest.fixture(scope="module")
def server(two_nodes: None) -> None:
    """A server of two replicas, one on each node, behind a Service, and a pod that can ask it."""
    volumes = {"volumes": [{"name": "tmp", "emptyDir": {}}]}
    spread = {
        "topologySpreadConstraints": [
            {
                "maxSkew": 1,
                "topologyKey": "kubernetes.io/hostname",
                "whenUnsatisfiable": "DoNotSchedule",
                "labelSelector": {"matchLabels": {"app": "server"}},
            }
        ]
    }
    serving = deployment("server", SERVE, 2, **volumes, **spread)
    serving["spec"]["template"]["spec"]["containers"][0]["volumeMounts"] = [{"name": "tmp", "mountPath": "/tmp"}]
    apply(serving, service("server", type="NodePort"), deployment("client", WAIT))
    for name in ("server", "client"):
        wait_for_rollout(name)


def test_pods_of_a_deployment_run_on_both_nodes(server: None) -> None:
    assert nodes_of("server") == {node.name for node in NODES}


def test_a_pod_with_more_rights_than_restricted_gives_is_refused(two_nodes: None) -> None:
    spec = {"containers": [{"name": "main", "image": BUSYBOX, "securityContext": {"privileged": True}}]}
    pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "rights", "namespace": NAMESPACE}, "spec": spec}
    with pytest.raises(UserError, match='violates PodSecurity "restricted'):
        apply(pod)


def test_a_pod_reaches_a_service_by_its_name_and_the_api_server(server: None) -> None:
    assert asked("client", "server") == "answer"
    code, output = in_pod("client", "/busybox nc -w 3 kubernetes.default.svc.cluster.local 443 </dev/null")
    assert code == 0, output


def test_a_pod_reaches_the_stand_in_for_the_metadata_server(server: None) -> None:
    for host in (METADATA_ADDRESS, "metadata.google.internal"):
        assert asked("client", host, PROJECT) == "stand-in"


def test_this_machine_reaches_a_service_by_its_address_and_by_a_port_of_each_node(server: None) -> None:
    spec = json.loads(cluster.kubectl("get", "service", "server", f"--namespace={NAMESPACE}", "--output=json"))["spec"]
    port = spec["ports"][0]["nodePort"]
    for place in (spec["clusterIP"], *(f"{node.address}:{port}" for node in NODES)):
        got = subprocess.run(["curl", "-sS", "-m", "5", f"http://{place}/"], capture_output=True, text=True, check=True)
        assert got.stdout == "answer\n"


def test_a_policy_shuts_what_it_does_not_name_and_nothing_once_it_is_gone(server: None) -> None:
    policy = {
        "apiVersion": "networking.k8s.io/v1",
        "kind": "NetworkPolicy",
        "metadata": {"name": "shut", "namespace": NAMESPACE},
        "spec": {"podSelector": {"matchLabels": {"app": "client"}}, "policyTypes": ["Egress"]},
    }
    apply(policy)
    for host, path in (("server", "/"), (METADATA_ADDRESS, PROJECT)):
        eventually(partial(lambda host, path: not asked("client", host, path), host, path))
    apply(deployment("control", WAIT))
    wait_for_rollout("control")
    assert asked("control", "server") == "answer"
    cluster.kubectl("delete", "networkpolicy", "shut", f"--namespace={NAMESPACE}")
    eventually(lambda: asked("client", "server") == "answer")


def test_pods_of_both_nodes_share_a_volume(server: None) -> None:
    claim = {
        "apiVersion": "v1",
        "kind": "PersistentVolumeClaim",
        "metadata": {"name": "files", "namespace": NAMESPACE},
        "spec": {
            "storageClassName": "shared",
            "accessModes": ["ReadOnlyMany"],
            "resources": {"requests": {"storage": "1Gi"}},
        },
    }
    volumes = [{"name": "files", "persistentVolumeClaim": {"claimName": "files", "readOnly": True}}]
    readers = []
    for node in NODES:
        reader = deployment(f"reader-{node.name}", WAIT, volumes=volumes, nodeName=node.name)
        reader["spec"]["template"]["spec"]["containers"][0]["volumeMounts"] = [{"name": "files", "mountPath": "/files"}]
        readers.append(reader)
    apply(claim, *readers)
    for node in NODES:
        wait_for_rollout(f"reader-{node.name}")
    for number in range(1, cluster.VOLUMES + 1):
        (SHARED / f"volume-{number}" / "file").write_text("shared\n")
    for node in NODES:
        assert in_pod(f"reader-{node.name}", "/busybox cat /files/file") == (0, "shared\n")


def test_an_image_is_a_volume_that_nobody_can_write_to(two_nodes: None) -> None:
    volumes = [{"name": "files", "image": {"reference": BUSYBOX, "pullPolicy": "Never"}}]
    reader = deployment("image-reader", WAIT, volumes=volumes)
    reader["spec"]["template"]["spec"]["containers"][0]["volumeMounts"] = [{"name": "files", "mountPath": "/files"}]
    apply(reader)
    wait_for_rollout("image-reader")
    assert in_pod("image-reader", "/busybox ls /files") == (0, "busybox\n")
    code, output = in_pod("image-reader", "/busybox touch /files/new")
    assert code != 0
    assert "Read-only file system" in output


def test_a_drained_node_gives_its_pods_to_the_other(server: None) -> None:
    apply(deployment("moved", WAIT, 2))
    wait_for_rollout("moved")
    gone, stays = (node.name for node in NODES)
    cluster.kubectl("drain", gone, "--ignore-daemonsets", "--delete-emptydir-data", f"--timeout={SECONDS}s")
    wait_for_rollout("moved")
    assert nodes_of("moved") == {stays}
    cluster.kubectl("uncordon", gone)


def test_up_again_changes_nothing(server: None) -> None:
    before = {machine.name: machines.first_process(machine) for machine in MACHINES}
    up("--nodes", "2")
    assert {machine.name: machines.first_process(machine) for machine in MACHINES} == before


def test_without_an_enforcer_a_policy_shuts_nothing(server: None) -> None:
    up("--nodes", "2", "--no-enforce")
    apply(
        {
            "apiVersion": "networking.k8s.io/v1",
            "kind": "NetworkPolicy",
            "metadata": {"name": "shut", "namespace": NAMESPACE},
            "spec": {"podSelector": {}, "policyTypes": ["Egress"]},
        }
    )
    eventually(lambda: asked("client", METADATA_ADDRESS, PROJECT) == "stand-in")
    cluster.kubectl("delete", "networkpolicy", "shut", f"--namespace={NAMESPACE}")
    up("--nodes", "2")


def test_after_a_killed_node_up_brings_it_back_with_its_pods(server: None) -> None:
    machines.end(NODES[1])
    up("--nodes", "2")
    eventually(lambda: asked("client", "server") == "answer")


def test_down_leaves_nothing(two_nodes: None) -> None:
    assert rehearse_cluster("down").returncode == 0
    assert not STATE.exists()
    assert not [machine for machine in MACHINES if machines.first_process(machine)]
    assert not Path(f"/sys/class/net/{LINK}").exists()
    assert not list(Path("/sys/fs/cgroup").glob(f"*{CGROUP}"))
    assert str(STATE) not in Path("/proc/mounts").read_text()
    assert rehearse_cluster("down").stdout == "there is no cluster\n"

"""The laboratory's cluster as a cluster of GKE's: control plane, pools, load balancers, disks and access tokens.

Kubernetes is real, and so are its nodes. Simulated is what Google adds to it:

- the control plane's address answers on port 443, to the authorized ranges alone
- a node belongs to a pool, and has its labels, taints and GPUs, or takes no pods. A pod that waits for a node gets one
  if its selector, tolerations and requests fit a pool (cluster autoscaler)
- a Service of type LoadBalancer gets the address that is reserved for it. Kubernetes' own kube-proxy lets in the
  Service's source ranges
- GKE's storage classes have disks
- Google gives a token to whoever signs with the owner's key; the API server knows it as one of its own
- without Cloud NAT, pods reach nothing outside of the cluster
"""

import base64
import ipaddress
import json
import os
import shutil
import subprocess
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs

import google.auth.exceptions
import google.auth.jwt
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa

from components.catalogue.machine_types import load_machine_types
from components.errors import UserError
from components.kubernetes.existing_cluster import quantity
from components.kubernetes.gke_nodes import SYSTEM_MEMORY_GIB, SYSTEM_VCPUS
from components.settings.gke import GPU_RESOURCE, POOL_LABEL
from scripts.lab.emulator.gke_adapters import Project
from scripts.lab.kubernetes import cluster, machines
from scripts.lab.kubernetes.layout import CONTROL, HERE, KUBECONFIG, LINK, NODES, PODS, SHARED, Machine
from scripts.lib.google import SCOPE, TOKEN_VARIABLE
from scripts.lib.private_files import write_private

MARK = "elastic-vllm/simulated-gke"
"""Label of what Google makes in the cluster, and key of the taint of nodes that belong to no pool."""
OWNER = "gke-owner"
SYSTEM_NAMESPACE = "kube-system"
ACCELERATOR_LABEL = "cloud.google.com/gke-accelerator"
CLEANUP = "service.kubernetes.io/load-balancer-cleanup"
CLASSES = {"standard-rwo": "ReadWriteOnce", "standard-rwx": "ReadWriteMany"}
"""Storage class -> access mode of its disks."""
DISKS = 2
"""Disks of each class: a model, and its successor."""
CREDENTIALS_VARIABLE = "GOOGLE_APPLICATION_CREDENTIALS"
AUDIENCE = "https://oauth2.googleapis.com/token"
"""The address that Google's libraries sign for, wherever the key says that they ask."""
TOKEN_SECONDS = 3600
POLL_SECONDS = 1
TABLE = "elastic_vllm_gke"


class SimulatedGke:
    """The laboratory's cluster, for the adapters (gke_adapters.Laboratory)."""

    def is_there(self) -> bool:
        """Return True if the cluster runs and is one of GKE's."""
        if not cluster.status():
            return False
        where = (f"--namespace={SYSTEM_NAMESPACE}", "--ignore-not-found", "--output=name")
        return bool(cluster.kubectl("get", "serviceaccount", OWNER, *where))

    def create_cluster(self) -> tuple[str, str]:
        """Begin to be a cluster of GKE's: no node belongs to a pool."""
        others = _namespaces_in_use()
        if others:
            raise UserError(
                f"the laboratory's cluster has other work, which would lose its nodes (namespace {', '.join(others)})",
                "take it down: scripts/rehearse down --stack STACK",
            )
        for node in NODES:
            _take_out(node)
        _apply(*_storage(), *_owner())
        ca = (cluster.PKI / "ca.crt").read_bytes()
        return CONTROL.address, base64.b64encode(ca).decode()

    def open_control_plane(self, ranges: list[str]) -> None:
        """Let these ranges alone reach port 443 of the control plane."""
        networks = ipaddress.collapse_addresses(map(ipaddress.IPv4Network, ranges))
        allowed = ", ".join(map(str, networks))
        to_it = f"ip daddr {CONTROL.address} tcp dport 443"
        _filter(
            CONTROL,
            f"""
  chain authorized {{
    type nat hook prerouting priority dstnat;
    ip saddr {{ {allowed} }} {to_it} redirect to :6443
  }}
  chain others {{
    type filter hook input priority filter;
    {to_it} drop
  }}
""",
        )

    def delete_cluster(self) -> None:
        """Remove what create_cluster and the pools have made; the laboratory's cluster stays."""
        _filter(CONTROL, "")
        for node in NODES:
            _take_out(node)
            cluster.kubectl("taint", "node", node.name, f"{MARK}-")
        kinds = "persistentvolume,storageclass,clusterrolebinding"
        cluster.kubectl("delete", kinds, f"--selector={MARK}")
        cluster.kubectl("delete", "serviceaccount", OWNER, f"--namespace={SYSTEM_NAMESPACE}", "--ignore-not-found")
        for path in SHARED.glob("gke-*"):
            shutil.rmtree(path)

    def set_pool(self, name: str, pool: Mapping[str, Any]) -> None:
        """Have the pool's nodes as it is declared, and the fewest of them."""
        having = [node for node in NODES if node.name in _nodes(f"{POOL_LABEL}={name}")]
        for node in having:
            _put_in(node, name, pool)
        for _ in range(max(pool["autoscaling"]["totalMinNodeCount"], pool["initialNodeCount"]) - len(having)):
            if not add_node(name, pool):
                raise UserError(
                    f"the laboratory has no node for the pool {name}: it has {len(NODES)} of them",
                    "rehearse with fewer pools and replicas",
                )

    def delete_pool(self, name: str) -> None:
        """Drain the pool's nodes; they belong to none then."""
        for node in NODES:
            if node.name in _nodes(f"{POOL_LABEL}={name}"):
                _take_out(node)

    def set_nat(self, *, on: bool) -> None:
        """Give pods a way to this machine, which is all that there is outside of the cluster."""
        way_out = f"""
  chain way_out {{
    type nat hook postrouting priority srcnat;
    ip saddr {PODS} ip daddr {HERE} masquerade
  }}
"""
        for node in NODES:
            _filter(node, way_out if on else "")


# --- Nodes


def template(pool: Mapping[str, Any]) -> tuple[dict[str, str], list[dict[str, str]], dict[str, float]]:
    """Return labels, taints and resources of a pool's nodes."""
    config = pool["nodeConfig"]
    labels = {POOL_LABEL: pool["name"], "node.kubernetes.io/instance-type": config["machineType"]}
    labels["topology.kubernetes.io/zone"] = pool["nodeLocations"][0]
    taints = [
        {"key": each["key"], "value": each["value"], "effect": TAINT_EFFECTS[each["effect"]]}
        for each in config.get("taints", ())
    ]
    kind = load_machine_types().get(config["machineType"])
    resources = {
        "cpu": float(kind.vcpus if kind else SYSTEM_VCPUS),
        "memory": float((kind.memory_gib if kind else SYSTEM_MEMORY_GIB) * 2**30),
    }
    for gpus in config.get("guestAccelerators", ()):
        labels[ACCELERATOR_LABEL] = gpus["type"]
        resources[GPU_RESOURCE] = float(gpus["count"])
    return labels, taints, resources


TAINT_EFFECTS = {"NO_SCHEDULE": "NoSchedule", "PREFER_NO_SCHEDULE": "PreferNoSchedule", "NO_EXECUTE": "NoExecute"}
"""Effect of a taint in Google's API -> in Kubernetes."""


def fits(pod: Mapping[str, Any], pool: Mapping[str, Any]) -> bool:
    """Return True if a node of the pool would take the pod, were it empty."""
    labels, taints, resources = template(pool)
    spec = pod["spec"]
    if any(labels.get(key) != value for key, value in spec.get("nodeSelector", {}).items()):
        return False
    tolerations = spec.get("tolerations", ())
    if not all(any(_tolerates(each, taint) for each in tolerations) for taint in taints):
        return False
    requests = dict.fromkeys(resources, 0.0)
    for container in [*spec.get("initContainers", ()), *spec["containers"]]:
        for name, amount in container.get("resources", {}).get("requests", {}).items():
            requests[name] = requests.get(name, 0.0) + quantity(amount)
    return all(amount <= resources.get(name, 0.0) for name, amount in requests.items())


def _tolerates(toleration: Mapping[str, str], taint: Mapping[str, str]) -> bool:
    return (
        toleration.get("key") in {None, taint["key"]}
        and toleration.get("effect") in {None, taint["effect"]}
        and (toleration.get("operator") == "Exists" or toleration.get("value", "") == taint["value"])
    )


def add_node(name: str, pool: Mapping[str, Any]) -> bool:
    """Put a free node into the pool; return False if there is none, as where Google has no capacity left."""
    free = _nodes(f"!{POOL_LABEL}")
    for node in NODES:
        if node.name in free:
            _put_in(node, name, pool)
            return True
    return False


def _put_in(node: Machine, name: str, pool: Mapping[str, Any]) -> None:
    labels, taints, resources = template({**pool, "name": name})
    _set_cpus(node, int(resources["cpu"]))
    _patch_gpus(node, resources.get(GPU_RESOURCE))
    _replace_taints(node, taints)
    cluster.kubectl("label", "node", node.name, "--overwrite", *(f"{key}={value}" for key, value in labels.items()))


def _take_out(node: Machine) -> None:
    """Let a node belong to no pool: no pod but the system's own stays on it."""
    _replace_taints(node, [{"key": MARK, "value": "no-pool", "effect": "NoSchedule"}])
    selector = f"--field-selector=spec.nodeName={node.name}"
    found = json.loads(cluster.kubectl("get", "pods", "--all-namespaces", selector, "--output=json"))["items"]
    for pod in found:
        metadata = pod["metadata"]
        if metadata["namespace"] != SYSTEM_NAMESPACE:
            cluster.kubectl(
                "delete", "pod", metadata["name"], f"--namespace={metadata['namespace']}", "--ignore-not-found"
            )
    keys = (POOL_LABEL, ACCELERATOR_LABEL, "node.kubernetes.io/instance-type", "topology.kubernetes.io/zone")
    cluster.kubectl("label", "node", node.name, *(f"{key}-" for key in keys))
    _patch_gpus(node, None)
    _set_cpus(node, 0)


def _set_cpus(node: Machine, number: int) -> None:
    has = int(cluster.kubectl("get", "node", node.name, "--output=jsonpath={.status.capacity.cpu}"))
    if has != (number or os.cpu_count()):
        cluster.set_cpus(node, number)


def _replace_taints(node: Machine, taints: list[dict[str, str]]) -> None:
    """Set a node's taints, besides those of Kubernetes' own."""
    found = json.loads(cluster.kubectl("get", "node", node.name, "--output=json"))["spec"].get("taints", [])
    own = [each for each in found if each["key"].startswith("node.kubernetes.io/")]
    patch = {"spec": {"taints": [*own, *taints]}}
    cluster.kubectl("patch", "node", node.name, "--type=merge", f"--patch={json.dumps(patch)}")


def _patch_gpus(node: Machine, gpus: float | None) -> None:
    """Have kubelet report GPUs, in the place of a device plugin."""
    patch = {"status": {"capacity": {GPU_RESOURCE: None if gpus is None else str(int(gpus))}}}
    cluster.kubectl("patch", "node", node.name, "--subresource=status", "--type=merge", f"--patch={json.dumps(patch)}")


def _nodes(selector: str) -> list[str]:
    """Return the names of the nodes with these labels."""
    names = "--output=jsonpath={.items[*].metadata.name}"
    return cluster.kubectl("get", "nodes", f"--selector={selector}", names).split()


# --- What runs in Google


@contextmanager
def running(project: Project) -> Iterator[None]:
    """Run autoscaler, load balancers, disks and access tokens of a project until the block ends."""
    ended = threading.Event()
    worker = threading.Thread(target=_reconcile_until, args=(ended, project), daemon=True)
    worker.start()
    try:
        with giving_tokens(project.file.parent):
            yield
    finally:
        ended.set()
        worker.join()


def _reconcile_until(ended: threading.Event, project: Project) -> None:
    while not ended.wait(POLL_SECONDS):
        # The cluster may not be there yet, or be busy: a later round does it.
        with suppress(UserError):
            if KUBECONFIG.exists() and _clusters(project):
                scale(project)
                balance(project)
                renew_disks()


def _clusters(project: Project) -> list[str]:
    return [path for path in project.resources if "/clusters/" in path and "/nodePools/" not in path]


def scale(project: Project) -> None:
    """Add a node for a pod that waits for one, if it fits a pool that has not the most of its nodes."""
    found = json.loads(
        cluster.kubectl("get", "pods", "--all-namespaces", "--field-selector=status.phase=Pending", "--output=json")
    )
    waiting = [pod for pod in found["items"] if _is_unschedulable(pod)]
    with project.lock:
        pools = {p.rpartition("/")[2]: pool for p, pool in project.resources.items() if "/nodePools/" in p}
    for name, pool in pools.items():
        there = len(_nodes(f"{POOL_LABEL}={name}"))
        gpus = pool["nodeConfig"].get("guestAccelerators", ())
        short = any((there + 1) * each["count"] > project.quotas.get(each["type"], 10**6) for each in gpus)
        if there < pool["autoscaling"]["totalMaxNodeCount"] and not short and any(fits(pod, pool) for pod in waiting):
            add_node(name, pool)


def _is_unschedulable(pod: Mapping[str, Any]) -> bool:
    return any(each.get("reason") == "Unschedulable" for each in pod["status"].get("conditions", ()))


def balance(project: Project) -> None:
    """Give each Service of type LoadBalancer its address, and take away those of Services that go."""
    for service in json.loads(cluster.kubectl("get", "services", "--all-namespaces", "--output=json"))["items"]:
        metadata, spec = service["metadata"], service["spec"]
        if spec["type"] != "LoadBalancer":
            continue
        where = (metadata["name"], f"--namespace={metadata['namespace']}")
        rule = f"forwardingRules/{metadata['uid']}"
        address = spec.get("loadBalancerIP", "")
        if metadata.get("deletionTimestamp"):
            subprocess.run(["ip", "route", "delete", f"{address}/32"], capture_output=True, check=False)
            project.remove(rule)
            cluster.kubectl("patch", "service", *where, "--type=merge", '--patch={"metadata": {"finalizers": null}}')
            continue
        node = _node_of(spec["selector"], metadata["namespace"])
        reserved = _reserved(project, address, metadata.get("annotations", {}))
        if not node or not reserved:
            continue
        subprocess.run(["ip", "route", "replace", f"{address}/32", "via", node, "dev", LINK], check=True)
        if not service["status"].get("loadBalancer", {}).get("ingress"):
            project.insert(rule, {"name": metadata["uid"], "refersTo": [reserved]})
            finalizers = json.dumps({"metadata": {"finalizers": [CLEANUP]}})
            cluster.kubectl("patch", "service", *where, "--type=merge", f"--patch={finalizers}")
            status = json.dumps({"status": {"loadBalancer": {"ingress": [{"ip": address}]}}})
            cluster.kubectl("patch", "service", *where, "--subresource=status", "--type=merge", f"--patch={status}")


def _reserved(project: Project, address: str, annotations: Mapping[str, str]) -> str:
    """Return the path of a reserved address that a Service may have; empty if it may not."""
    internal = annotations.get("networking.gke.io/load-balancer-type") == "Internal"
    for path, inputs in project.resources.items():
        is_address = "/addresses/" in path and inputs["addressType"] == ("INTERNAL" if internal else "EXTERNAL")
        if is_address and inputs["outputs"]["address"] == address:
            return path
    return ""


def _node_of(selector: Mapping[str, str], namespace: str) -> str:
    """Return the address of a node with one of the pods: no other takes connections (externalTrafficPolicy Local)."""
    labels = ",".join(f"{key}={value}" for key, value in selector.items())
    path = "--output=jsonpath={.items[*].status.hostIP}"
    found = cluster.kubectl("get", "pods", f"--namespace={namespace}", f"--selector={labels}", path).split()
    return found[0] if found else ""


def renew_disks() -> None:
    """Delete disks whose claims are gone, and have empty ones in their place."""
    volumes = json.loads(cluster.kubectl("get", "persistentvolumes", f"--selector={MARK}", "--output=json"))["items"]
    for volume in volumes:
        if volume["status"]["phase"] == "Released":
            name = volume["metadata"]["name"]
            for path in (SHARED / name).iterdir():
                shutil.rmtree(path) if path.is_dir() else path.unlink()
            cluster.kubectl("patch", "persistentvolume", name, "--type=merge", '--patch={"spec": {"claimRef": null}}')


# --- Access


@contextmanager
def giving_tokens(directory: Path) -> Iterator[None]:
    """Let Google's libraries find the owner's key, and a server that gives tokens for it, until the block ends."""
    key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    public = key.public_key().public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_TokenHandler,), {"public_key": public}))
    endpoint = f"http://127.0.0.1:{server.server_port}/token"
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
    private = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    file = directory / "owner.json"
    directory.mkdir(parents=True, exist_ok=True, mode=0o700)
    account = {
        "type": "service_account",
        "project_id": "rehearsal",
        "private_key_id": "1",
        "private_key": private.decode(),
        "client_email": f"{OWNER}@rehearsal.iam.gserviceaccount.com",
        "client_id": "1",
        "token_uri": endpoint,
    }
    write_private(file, json.dumps(account))
    before = {name: os.environ.pop(name, None) for name in (CREDENTIALS_VARIABLE, TOKEN_VARIABLE)}
    os.environ[CREDENTIALS_VARIABLE] = str(file)
    try:
        yield
    finally:
        del os.environ[CREDENTIALS_VARIABLE]
        os.environ.update({name: value for name, value in before.items() if value is not None})
        file.unlink(missing_ok=True)
        server.shutdown()
        server.server_close()


class _TokenHandler(BaseHTTPRequestHandler):
    """Google's token endpoint: a token for a request that is signed with the owner's key (RFC 7523)."""

    protocol_version = "HTTP/1.1"
    public_key: bytes

    def log_message(self, format: str, *args: object) -> None:
        """Log nothing."""

    def do_POST(self) -> None:
        form = parse_qs(self.rfile.read(int(self.headers["Content-Length"])).decode())
        try:
            claims = google.auth.jwt.decode(  # type: ignore[no-untyped-call]
                form["assertion"][0], certs=self.public_key, audience=AUDIENCE
            )
            if SCOPE not in claims["scope"].split():
                raise KeyError(SCOPE)
        except (LookupError, ValueError, google.auth.exceptions.GoogleAuthError) as error:
            self._answer(400, {"error": "invalid_grant", "error_description": f"Invalid JWT: {error}"})
            return
        self._answer(200, {"access_token": _token(), "expires_in": TOKEN_SECONDS, "token_type": "Bearer"})

    def _answer(self, status: int, document: dict[str, Any]) -> None:
        content = json.dumps(document).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)


def _token() -> str:
    """Return a token of the owner's, which the API server knows."""
    duration = f"--duration={TOKEN_SECONDS}s"
    return cluster.kubectl("create", "token", OWNER, f"--namespace={SYSTEM_NAMESPACE}", duration).strip()


def _owner() -> list[dict[str, Any]]:
    """Return the account whose tokens Google gives, with all rights: IAM's roles/container.admin."""
    rbac = "rbac.authorization.k8s.io"
    return [
        {
            "apiVersion": "v1",
            "kind": "ServiceAccount",
            "metadata": {"name": OWNER, "namespace": SYSTEM_NAMESPACE, "labels": {MARK: ""}},
        },
        {
            "apiVersion": f"{rbac}/v1",
            "kind": "ClusterRoleBinding",
            "metadata": {"name": OWNER, "labels": {MARK: ""}},
            "roleRef": {"apiGroup": rbac, "kind": "ClusterRole", "name": "cluster-admin"},
            "subjects": [{"kind": "ServiceAccount", "name": OWNER, "namespace": SYSTEM_NAMESPACE}],
        },
    ]


# --- Disks


def _storage() -> Iterator[dict[str, Any]]:
    """Yield GKE's storage classes, with disks that are directories of this machine."""
    everywhere = {"matchExpressions": [{"key": "kubernetes.io/hostname", "operator": "Exists"}]}
    for name, mode in CLASSES.items():
        yield {
            "apiVersion": "storage.k8s.io/v1",
            "kind": "StorageClass",
            "metadata": {"name": name, "labels": {MARK: ""}},
            "provisioner": "kubernetes.io/no-provisioner",
            "volumeBindingMode": "WaitForFirstConsumer",
        }
        for number in range(1, DISKS + 1):
            directory = SHARED / f"gke-{name}-{number}"
            directory.mkdir(parents=True, exist_ok=True)
            yield {
                "apiVersion": "v1",
                "kind": "PersistentVolume",
                "metadata": {"name": directory.name, "labels": {MARK: ""}},
                "spec": {
                    "storageClassName": name,
                    "capacity": {"storage": "20Gi"},
                    "accessModes": [mode],
                    "persistentVolumeReclaimPolicy": "Retain",
                    "local": {"path": str(directory)},
                    "nodeAffinity": {"required": {"nodeSelectorTerms": [everywhere]}},
                },
            }


# --- The laboratory


def _namespaces_in_use() -> list[str]:
    """Return the namespaces that are not Kubernetes' own."""
    found = cluster.kubectl("get", "namespaces", "--output=jsonpath={.items[*].metadata.name}").split()
    return [name for name in found if name != "default" and not name.startswith("kube-")]


def _apply(*manifests: dict[str, Any]) -> None:
    items = {"apiVersion": "v1", "kind": "List", "items": list(manifests)}
    cluster.kubectl("apply", "--server-side", "--filename=-", data=json.dumps(items))


def _filter(machine: Machine, chains: str) -> None:
    """Replace this simulation's part of a machine's packet filter; without chains there is none."""
    text = f"table ip {TABLE}\ndelete table ip {TABLE}\n"
    if chains:
        text += f"table ip {TABLE} {{{chains}}}\n"
    machines.run(machine, "nft", "--file", "-", data=text)

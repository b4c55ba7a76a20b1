"""The cluster: bring it up, or up to date, and take it down."""

import fcntl
import ipaddress
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml

from components.errors import UserError
from scripts.lab.kubernetes import configuration, images, machines, metadata, programs
from scripts.lab.kubernetes.layout import (
    CACHE,
    CONTROL,
    KUBECONFIG,
    LINK,
    MACHINES,
    METADATA_ADDRESS,
    NODES,
    PODS,
    PROGRAMS,
    SHARED,
    STATE,
    Machine,
)
from scripts.lab.packages import install_missing
from scripts.lib.private_files import write_private
from scripts.lib.progress import Display

PACKAGES = {
    f"{configuration.CNI_PROGRAMS}/ptp": "containernetworking-plugins",
    "runc": "runc",
    "conntrack": "conntrack",
    "ipset": "ipset",
    "ip": "iproute2",
}
KUBEADM = CONTROL.file("kubeadm.yaml")
PKI = CONTROL.file("etc") / "kubernetes" / "pki"
API_SECONDS = 300
NODE_SECONDS = 300
POD_SECONDS = 300
ENFORCER = "kube-router"
# The program's own --cleanup-config (2.1.0) removes no rules of policies, and ends with a panic.
_WITHOUT_RULES = (
    "iptables-save -t filter | grep -Ev 'KUBE-(ROUTER|NWPLCY|POD-FW)-' | iptables-restore -T filter && ipset destroy"
)
# Where kubelet looks: without directories of memory nodes, it counts those of CPUs.
_CPUS = """
set -e
for directory in /sys/devices/system/cpu /sys/devices/system/node; do
  while mountpoint -q "$directory"; do umount "$directory"; done
done
[ "$1" -gt 0 ] || exit 0
mount -t tmpfs node /sys/devices/system/node
mount -t tmpfs cpu /sys/devices/system/cpu
for number in $(seq 0 $(($1 - 1))); do
  topology=/sys/devices/system/cpu/cpu$number/topology
  mkdir -p "$topology"
  echo 0 >"$topology/physical_package_id"
  echo "$number" >"$topology/core_id"
done
"""
_POLL_SECONDS = 0.5
VOLUMES = 4
"""Volumes of shared storage, each for one claim."""


def up(nodes: int, image_names: Sequence[str], display: Display, *, enforce: bool) -> None:
    """Bring up a cluster with this number of nodes, or bring the running one up to date; raises UserError.

    `image_names` are images of this machine's Docker for all nodes. With `enforce`, kube-router enforces
    NetworkPolicies; without, nothing does.
    """
    with _locked():
        with display.task("packages", "cluster") as task:
            install_missing(task.say, need_docker=False, log=CACHE / "apt.log", also=PACKAGES)
        with display.task("programs", "cluster") as task:
            task.outcome = "built" if programs.build(task.say) else "unchanged"
        _link_programs()
        with display.task("control plane", "cluster") as task:
            task.outcome = "started" if _start_control(task.say) else "unchanged"
        wanted = NODES[:nodes]
        with ThreadPoolExecutor(len(wanted)) as pool:
            list(pool.map(lambda node: _start_node(node, display), wanted))
        with display.task("pod network", "cluster") as task:
            _connect_pods(wanted)
            _wait_for("both nodes" if nodes > 1 else "the node", NODE_SECONDS, task.say, lambda: _not_ready(wanted))
        for node in wanted:
            _set_enforcer(node, enforce, display)
        with display.task("cluster DNS", "cluster") as task:
            task.outcome = "created" if _start_dns() else "unchanged"
            kubectl(
                "apply",
                "--server-side",
                "--filename=-",
                data=yaml.safe_dump_all([_administrators(), *_shared_storage()]),
            )
            _wait_for("the cluster's DNS", POD_SECONDS, task.say, _dns_not_ready)
        for name in image_names:
            with display.task(f"image {name.rpartition('/')[2]}", "cluster") as task:
                task.outcome = "imported" if images.import_from_docker(wanted, name, task.say) else "unchanged"


def down(display: Display) -> bool:
    """End everything in order and remove all files but the programs; return False if there was nothing."""
    if not STATE.exists():
        return False
    with _locked():
        for node in NODES:
            if machines.first_process(node):
                with display.task(node.name, "cluster") as task:
                    task.outcome = "ended"
                    # Kubelet first: it would start the pods' containers again.
                    for service in (ENFORCER, "kube-proxy", "kubelet", "containerd"):
                        machines.stop(node, service)
        for machine in reversed(MACHINES):
            machines.end(machine)
        machines.remove_cgroups()
        subprocess.run(["ip", "link", "delete", LINK], capture_output=True, check=False)
        shutil.rmtree(STATE)
    return True


def kubectl(*arguments: str, data: str | None = None) -> str:
    """Run kubectl with the administrator's rights, and return its output. Raises UserError."""
    done = subprocess.run(
        [str(PROGRAMS / "kubectl"), f"--kubeconfig={KUBECONFIG}", *arguments],
        input=data,
        stdin=None if data is not None else subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise UserError(
            f"kubectl {' '.join(arguments[:3])}: {done.stderr.strip()[-2000:]}", "see `scripts/rehearse cluster status`"
        )
    return done.stdout


def status() -> dict[str, dict[str, bool]]:
    """Return machine -> service -> True if it runs; machines that are off are left out."""
    on_nodes = ["containerd", "kubelet", "kube-proxy", ENFORCER]
    services = {CONTROL: _control_services()} | dict.fromkeys(NODES, on_nodes)
    return {
        machine.name: {name: bool(machines.service(machine, name)) for name in services[machine]}
        for machine in MACHINES
        if machines.first_process(machine)
    }


@contextmanager
def _locked() -> Iterator[None]:
    """Keep other runs from changing the cluster. Raises UserError at once if one does."""
    CACHE.mkdir(parents=True, exist_ok=True)
    with (CACHE / "cluster.lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError("another run is changing the cluster", "wait for it") from None
        yield


def _link_programs() -> None:
    STATE.mkdir(mode=0o700, parents=True, exist_ok=True)
    target = programs.directory()
    if PROGRAMS.is_symlink() and PROGRAMS.readlink() != target:
        if any(machines.first_process(machine) for machine in MACHINES):
            raise UserError("the cluster runs other versions of its programs", "scripts/rehearse cluster down, then up")
        PROGRAMS.unlink()
    if not PROGRAMS.is_symlink():
        PROGRAMS.symlink_to(target)


def _start_control(say: Callable[[str], None]) -> bool:
    started = machines.switch_on(CONTROL)
    if not KUBECONFIG.exists():
        _make_credentials(say)
    _write(CONTROL.file("Corefile"), configuration.resolver())
    commands = {
        **configuration.control_plane(CONTROL.file("etc") / "kubernetes" / "manifests"),
        "resolver": ["coredns", "-conf", str(CONTROL.file("Corefile"))],
        "metadata": [sys.executable, "-P", str(Path(metadata.__file__)), METADATA_ADDRESS],
    }
    for name, command in commands.items():
        started |= machines.start(CONTROL, name, command)
    _wait_for("the API server", API_SECONDS, say, _api_not_ready)
    return started


def _control_services() -> list[str]:
    return [*configuration.control_plane(CONTROL.file("etc") / "kubernetes" / "manifests"), "resolver", "metadata"]


def _make_credentials(say: Callable[[str], None]) -> None:
    """Let kubeadm make the certificates, the control plane's command lines, and the administrator's kubeconfig."""
    _write(KUBEADM, configuration.kubeadm(_coredns_version()))
    for phase in ("certs all", "kubeconfig all", "etcd local", "control-plane all"):
        say(f"kubeadm init phase {phase}")
        machines.run(CONTROL, "kubeadm", "init", "phase", *phase.split(), f"--config={KUBEADM}")
    write_private(KUBECONFIG, _kubeconfig("admin", "system:masters"))


def _kubeconfig(user: str, group: str = "") -> str:
    """Return a kubeconfig with a certificate for a user."""
    organization = [f"--org={group}"] if group else []
    return machines.run(
        CONTROL, "kubeadm", "kubeconfig", "user", f"--config={KUBEADM}", f"--client-name={user}", *organization
    )


def _start_node(node: Machine, display: Display) -> None:
    with display.task(node.name, "cluster") as task:
        started = machines.switch_on(node)
        for user, group, name in (
            (f"system:node:{node.name}", "system:nodes", "kubelet"),
            ("system:kube-proxy", "", "kube-proxy"),
            (ENFORCER, "system:masters", ENFORCER),
        ):
            path = node.file(f"{name}.kubeconfig")
            if not path.exists():
                write_private(path, _kubeconfig(user, group))
        _write(node.file("ca.crt"), (PKI / "ca.crt").read_text())
        _write(node.file("resolv.conf"), f"nameserver {CONTROL.address}\n")
        _write(node.file("kubelet.yaml"), configuration.kubelet(node))
        _write(node.file("containerd.toml"), configuration.containerd())
        _write(node.file("kube-proxy.yaml"), configuration.kube_proxy(node))
        (node.library / "cni" / "net.d").mkdir(parents=True, exist_ok=True)
        machines.make_cgroups(node)
        started |= machines.start(node, "containerd", ["containerd", f"--config={node.file('containerd.toml')}"])
        _wait_for("containerd", NODE_SECONDS, task.say, lambda: _containerd_not_ready(node))
        images.import_program(node, configuration.PAUSE_IMAGE, PROGRAMS / "pause")
        images.import_program(node, f"{configuration.IMAGES}/coredns:{_coredns_version()}", PROGRAMS / "coredns")
        started |= _start_kubelet(node)
        machines.start(node, "kube-proxy", ["kube-proxy", f"--config={node.file('kube-proxy.yaml')}"])
        task.outcome = "started" if started else "unchanged"


def _start_kubelet(node: Machine) -> bool:
    files = [f"--config={node.file('kubelet.yaml')}", f"--kubeconfig={node.file('kubelet.kubeconfig')}"]
    names = [f"--node-ip={node.address}", f"--hostname-override={node.name}"]
    return machines.start(node, "kubelet", ["kubelet", *files, *names])


def set_cpus(node: Machine, number: int) -> None:
    """Let a node have this number of CPUs as far as its kubelet knows, or those that it has (0). Raises UserError.

    Its pods go on, and share the CPUs of this machine as before.
    """
    machines.run(node, "sh", "-c", _CPUS, "sh", str(number))
    machines.stop(node, "kubelet")
    _start_kubelet(node)
    wanted = str(number or os.cpu_count())

    def problem() -> str:
        found = kubectl("get", "node", node.name, "--output=jsonpath={.status.capacity.cpu}")
        return "" if found == wanted else f"it has {found} CPUs in place of {wanted}"

    _wait_for(node.name, NODE_SECONDS, lambda _line: None, problem)


def _connect_pods(nodes: Sequence[Machine]) -> None:
    """Give each node the pods' addresses that the controller manager chose for it, and the routes to the others'."""
    subnets: dict[Machine, str] = {}
    for node in nodes:
        limit = time.monotonic() + NODE_SECONDS
        while not (subnet := _pod_subnet(node)):
            if time.monotonic() > limit:
                raise UserError(
                    f"{node.name} has not registered within {NODE_SECONDS} s", f"see {node.logs}/kubelet.log"
                )
            time.sleep(_POLL_SECONDS)
        subnets[node] = subnet
        _write(node.library / "cni" / "net.d" / "10-pods.conflist", configuration.pod_network(subnet))
    machines.route_to_pods(subnets)


def _pod_subnet(node: Machine) -> str:
    found = kubectl("get", "node", node.name, "--ignore-not-found", "--output=jsonpath={.spec.podCIDR}")
    if found and not ipaddress.IPv4Network(found).subnet_of(ipaddress.IPv4Network(PODS)):
        raise UserError(
            f"{node.name} has the pods' network {found}, which is not of {PODS}",
            "scripts/rehearse cluster down, then up",
        )
    return found


def _set_enforcer(node: Machine, wanted: bool, display: Display) -> None:
    """Start or stop the program that enforces NetworkPolicies on a node."""
    with display.task(f"{ENFORCER} on {node.name}", "cluster") as task:
        if wanted:
            command = [ENFORCER, "--run-router=false", "--run-service-proxy=false", "--run-firewall=true"]
            command += [f"--kubeconfig={node.file(f'{ENFORCER}.kubeconfig')}", f"--hostname-override={node.name}"]
            task.outcome = "started" if machines.start(node, ENFORCER, command) else "unchanged"
        else:
            runs = bool(machines.service(node, ENFORCER))
            if runs:
                machines.stop(node, ENFORCER)
            machines.run(node, "sh", "-c", _WITHOUT_RULES)
            task.outcome = "ended" if runs else "left out"


def _start_dns() -> bool:
    """Let kubeadm create the cluster's DNS, once: it would refuse to update a version that it does not know."""
    if kubectl("get", "deployment", "coredns", "--namespace=kube-system", "--ignore-not-found", "--output=name"):
        return False
    machines.run(
        CONTROL,
        "kubeadm",
        "init",
        "phase",
        "addon",
        "coredns",
        f"--config={KUBEADM}",
        "--kubeconfig=/etc/kubernetes/super-admin.conf",
    )
    return True


def _administrators() -> dict[str, Any]:
    """Return the rights that `kubeadm init` gives its administrators, of whom the API server is one at the kubelets."""
    group = "kubeadm:cluster-admins"
    kind = {"apiGroup": "rbac.authorization.k8s.io"}
    return {
        "apiVersion": "rbac.authorization.k8s.io/v1",
        "kind": "ClusterRoleBinding",
        "metadata": {"name": group},
        "roleRef": {**kind, "kind": "ClusterRole", "name": "cluster-admin"},
        "subjects": [{**kind, "kind": "Group", "name": group}],
    }


def _shared_storage() -> list[dict[str, Any]]:
    """Return a storage class and its volumes, which are directories of this machine, the same for all nodes."""
    storage_class = {
        "apiVersion": "storage.k8s.io/v1",
        "kind": "StorageClass",
        "metadata": {"name": "shared"},
        "provisioner": "kubernetes.io/no-provisioner",
    }
    return [storage_class, *(_volume(number) for number in range(1, VOLUMES + 1))]


def _volume(number: int) -> dict[str, Any]:
    directory = SHARED / f"volume-{number}"
    directory.mkdir(parents=True, exist_ok=True)
    everywhere = {"matchExpressions": [{"key": "kubernetes.io/hostname", "operator": "Exists"}]}
    return {
        "apiVersion": "v1",
        "kind": "PersistentVolume",
        "metadata": {"name": f"shared-{number}"},
        "spec": {
            "storageClassName": "shared",
            "capacity": {"storage": "20Gi"},
            "accessModes": ["ReadWriteOnce", "ReadOnlyMany", "ReadWriteMany"],
            "persistentVolumeReclaimPolicy": "Retain",
            "local": {"path": str(directory)},
            "nodeAffinity": {"required": {"nodeSelectorTerms": [everywhere]}},
        },
    }


def _coredns_version() -> str:
    return programs.module_version("github.com/coredns/coredns")


def _wait_for(what: str, seconds: float, say: Callable[[str], None], problem: Callable[[], str]) -> None:
    """Wait until there is no problem any more. Raises UserError with the last one."""
    limit = time.monotonic() + seconds
    while found := problem():
        say(f"waiting for {what}: {found}")
        if time.monotonic() > limit:
            raise UserError(f"{what} can't be used after {seconds:.0f} s: {found}", f"see {STATE}/*/log/*.log")
        time.sleep(_POLL_SECONDS)


def _api_not_ready() -> str:
    try:
        return "" if kubectl("get", "--raw=/readyz") == "ok" else "not ready"
    except UserError as error:
        return error.cause


def _containerd_not_ready(node: Machine) -> str:
    command = [*machines.enter(node), str(PROGRAMS / "ctr"), "--connect-timeout=2s", "version"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return "" if done.returncode == 0 else done.stderr.strip()[-200:] or "no answer"


def _not_ready(nodes: Sequence[Machine]) -> str:
    found = {each["metadata"]["name"]: each for each in json.loads(kubectl("get", "nodes", "--output=json"))["items"]}
    reasons = []
    for node in nodes:
        conditions = found.get(node.name, {}).get("status", {}).get("conditions", [])
        ready = next(
            (each for each in conditions if each["type"] == "Ready"), {"status": "", "message": "not registered"}
        )
        if ready["status"] != "True":
            reasons.append(f"{node.name}: {ready['message']}")
    return "; ".join(reasons)


def _dns_not_ready() -> str:
    deployment = json.loads(kubectl("get", "deployment", "coredns", "--namespace=kube-system", "--output=json"))
    return "" if deployment["status"].get("readyReplicas") else "no pod of it is ready"


def _write(path: Path, text: str) -> None:
    path.write_text(text)

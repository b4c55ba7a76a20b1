"""The machine: which one, how it is reached, and its GPUs."""

import re
from dataclasses import dataclass, replace
from pathlib import Path

from components.catalogue.machine_types import MachineType
from components.containers.podman import PODMAN
from components.machine.host import Host
from components.machine.ssh import SshKey
from components.settings import gcp as gcp_settings
from components.settings import gke as gke_settings
from components.settings import kubernetes as kubernetes_settings
from components.settings import problems as check
from components.settings import ssh, targets
from components.settings.gcp import EVERYONE, GcpSettings
from components.settings.gke import GkeSettings
from components.settings.kubernetes import KubernetesSettings
from components.settings.problems import Problems

STATE_DIRECTORY = "/var/lib/elastic-vllm"
"""On the server; one directory a stack."""
LEAST_UTILIZATION, MOST_UTILIZATION = 0.1, 0.99


@dataclass(frozen=True)
class Gpus:
    """The GPUs of the machine, or those of each replica on Kubernetes."""

    count: int
    """0 without GPUs."""
    memory_gib: int
    """Memory of one GPU, in GiB."""
    memory_utilization: float
    """Share of it that vLLM may use."""


@dataclass(frozen=True, kw_only=True)
class MachineSettings:
    """The machine or cluster that the endpoint runs on."""

    target: Host | GcpSettings | KubernetesSettings | GkeSettings
    """A server that exists, the VM to create, a cluster's namespace, or the cluster to create."""
    ssh_user: str
    ssh_key: SshKey
    container_runtime: str
    """`docker` or `podman`."""
    gpus: Gpus


def machine_settings(problems: Problems, stack: str, project_directory: Path) -> MachineSettings:
    """Read and check them; a relative path counts from `project_directory`."""
    target = problems.choice("target", targets.TARGETS)
    accelerator = problems.choice("accelerator", ("nvidia", "none"))
    runtime = problems.choice("containerRuntime", ("docker", PODMAN))
    if target in {targets.KUBERNETES, targets.GKE}:
        cluster: KubernetesSettings | GkeSettings
        if target == targets.GKE:
            cluster = gke_settings.gke_settings(problems, stack)
            gpus = _gpus(problems, cluster.machine_type)
        else:
            ranges = gcp_settings.sources(problems, "httpsSourceRanges", f"for everyone write {EVERYONE}")
            cluster = kubernetes_settings.kubernetes_settings(problems, ranges, project_directory)
            gpus = _gpus(problems, None)
        return MachineSettings(
            target=cluster,
            ssh_user="",
            ssh_key=SshKey(path=None),
            container_runtime=runtime,
            gpus=gpus if accelerator == "nvidia" else replace(gpus, count=0),
        )
    user = problems.text("sshUser", check.USER, "use a Linux user name")
    ssh_key = ssh.ssh_key(problems, stack, project_directory)
    machine: Host | GcpSettings
    if target == targets.GCP:
        machine = gcp_settings.gcp_settings(problems, stack, ssh_key, project_directory)
        gpus = _gpus(problems, machine.machine_type)
    else:
        address = problems.address("host")
        port = problems.integer("sshPort", 1, 65535)
        host_key = ssh.host_key(problems, project_directory, "sshHostKey", address, port)
        machine = Host(
            address=address,
            port=port,
            user=user,
            ssh_key=ssh_key,
            host_key=host_key,
            identity=host_key,
            prefix=f"elastic-vllm-{stack}",
            directory=f"{STATE_DIRECTORY}/{stack}",
            cleans_up=True,
            engine=runtime,
        )
        gpus = _gpus(problems, None)
    return MachineSettings(
        target=machine,
        ssh_user=user,
        ssh_key=ssh_key,
        container_runtime=runtime,
        gpus=gpus if accelerator == "nvidia" else replace(gpus, count=0),
    )


def _gpus(problems: Problems, machine_type: MachineType | None) -> Gpus:
    """GPUs of the machine type, or those in the settings, which are checked without GPUs as well."""
    utilization = _memory_utilization(problems)
    if machine_type:
        return Gpus(machine_type.gpus, machine_type.gpu_memory_gib, utilization)
    count = problems.integer("gpuCount", 1, 16)
    if count & (count - 1):
        problems.add("gpuCount", "does not divide a model's attention heads", "use 1, 2, 4, 8 or 16")
    return Gpus(count, problems.integer("gpuMemoryGib", 1, 1024), utilization)


def _memory_utilization(problems: Problems) -> float:
    key, fix = "gpuMemoryUtilization", f"use {LEAST_UTILIZATION} to {MOST_UTILIZATION}"
    text = problems.values[key]
    if not re.fullmatch(r"\d(\.\d{1,3})?", text):
        problems.add(key, "not a decimal fraction", fix)
    elif not LEAST_UTILIZATION <= float(text) <= MOST_UTILIZATION:
        problems.add(key, "out of range", fix)
    else:
        return float(text)
    return LEAST_UTILIZATION

"""The laboratory's cluster as the target: images on its nodes, a namespace, and a claim with the tiny model."""

import json
import shutil
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from components.kubernetes.existing_cluster import RESTRICTED
from scripts.lab import machine
from scripts.lab.emulator.state import Record, State
from scripts.lab.kubernetes import cluster
from scripts.lab.kubernetes.layout import CACHE, KUBECONFIG, MOST_NODES, SHARED
from scripts.lab.tiny_models import MODELS
from scripts.lib.progress import Display
from scripts.lib.stack_config import StackConfig

PROVIDER = "pulumi:providers:kubernetes"
VOLUME = 1
"""Number of the shared volume that holds the models."""


def is_wanted(config: StackConfig) -> bool:
    """Return True if the stack's cluster is the laboratory's."""
    return str(config.get("target")) == "kubernetes" and str(config.get("kubeconfig")) == str(KUBECONFIG)


def without_cluster(config: StackConfig) -> StackConfig:
    """Return the same settings with an empty kubeconfig, to be checked before there is a cluster."""
    return replace(config, values={**config.values, f"{config.project}:kubeconfig": "/dev/null"})


def set_up(config: StackConfig, state: State, display: Display) -> None:
    """Bring up the cluster, with everything that must be there before the stack. Raises UserError."""
    machine.set_up(config, state, display)
    images = [str(config.get(key)) for key in ("nginxImage", "vllmImage")]
    cluster.up(MOST_NODES, [image for image in images if image.startswith("localhost/")], display, enforce=True)
    state.kept["the cluster"] = "scripts/rehearse cluster down"
    state.kept[f"Kubernetes' programs in {CACHE}"] = f"rm -r {CACHE}"
    state.save()
    namespace, claim = str(config.get("namespace")), str(config.get("weightsClaim"))
    with display.task("namespace", "cluster"):
        cluster.kubectl("apply", "--server-side", "--filename=-", data=json.dumps(_objects(namespace, claim)))
    model = str(config.get("model")).replace("/", "--")
    if (MODELS / model).exists():
        with display.task(f"{model} in the claim", "cluster"):
            shutil.copytree(MODELS / model, _volume() / model, dirs_exist_ok=True)
            _readable(_volume())


def namespaces(resources: Mapping[str, Record]) -> list[str]:
    """Return the stack's namespaces in the laboratory's cluster: one, or none."""
    return [
        record.inputs["namespace"]
        for record in resources.values()
        if record.type == PROVIDER and record.inputs["kubeconfig"] == str(KUBECONFIG)
    ]


def forget_if_gone(state: State) -> None:
    """Forget the stack's resources if the laboratory's cluster is off: it has taken them along."""
    if namespaces(state.resources) and not cluster.status():
        state.resources.clear()
        state.save()


def tear_down(namespace: str, display: Display) -> None:
    """Delete the namespace with its claim, if the cluster runs; the cluster stays."""
    if cluster.status():
        with display.task("namespace", "cluster") as task:
            cluster.kubectl("delete", "namespace", namespace, "--ignore-not-found", "--wait")
            # The volume serves the next claim again.
            patch = '{"spec": {"claimRef": null}}'
            cluster.kubectl("patch", "persistentvolume", f"shared-{VOLUME}", "--type=merge", f"--patch={patch}")
            task.outcome = "deleted"


def _volume() -> Path:
    return SHARED / f"volume-{VOLUME}"


def _readable(directory: Path) -> None:
    for path in (directory, *directory.rglob("*")):
        path.chmod(0o755 if path.is_dir() else 0o644)


def _objects(namespace: str, claim: str) -> dict[str, Any]:
    items: list[dict[str, Any]] = [
        {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": namespace, "labels": {RESTRICTED: "restricted"}}}
    ]
    if claim:
        items.append(
            {
                "apiVersion": "v1",
                "kind": "PersistentVolumeClaim",
                "metadata": {"name": claim, "namespace": namespace},
                "spec": {
                    "storageClassName": "shared",
                    "volumeName": f"shared-{VOLUME}",
                    "accessModes": ["ReadOnlyMany"],
                    "resources": {"requests": {"storage": "1Gi"}},
                },
            }
        )
    return {"apiVersion": "v1", "kind": "List", "items": items}

"""Stacks on the laboratory's cluster: namespaces with weights, and users with few rights."""

import json
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml

from components.kubernetes.existing_cluster import RESTRICTED
from scripts.lab.kubernetes import cluster
from scripts.lab.kubernetes.layout import KUBECONFIG, SHARED
from scripts.lab.tiny_models import MODELS
from tests.integration.conftest import ROOT, rehearse_cluster

CLAIM = "models"


def written(name: str) -> dict[str, Any]:
    """Return the settings of one of the repository's stacks."""
    config = yaml.safe_load((ROOT / "stacks" / f"Pulumi.{name}.yaml").read_text())["config"]
    return {key.removeprefix("elastic-vllm:"): value for key, value in config.items()}


def two_nodes() -> None:
    """Bring up the cluster, with the images of the stack k8s on its nodes."""
    images = [written("k8s")[key] for key in ("nginxImage", "vllmImage")]
    done = rehearse_cluster("up", "--nodes", "2", *(part for image in images for part in ("--image", image)))
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"


def apply(manifest: Mapping[str, Any]) -> None:
    """Create an object, or change it."""
    cluster.kubectl("apply", "--server-side", "--filename=-", data=json.dumps(manifest))


def claim(namespace: str, volume: int, mode: str = "ReadOnlyMany") -> dict[str, Any]:
    """Return a claim on one of the cluster's shared volumes."""
    spec = {
        "storageClassName": "shared",
        "volumeName": f"shared-{volume}",
        "accessModes": [mode],
        "resources": {"requests": {"storage": "1Gi"}},
    }
    named = {"name": CLAIM, "namespace": namespace}
    return {"apiVersion": "v1", "kind": "PersistentVolumeClaim", "metadata": named, "spec": spec}


def free(volume: int) -> None:
    """Let a shared volume serve the next claim."""
    patch = '--patch={"spec": {"claimRef": null}}'
    cluster.kubectl("patch", "persistentvolume", f"shared-{volume}", "--type=merge", patch)


@contextmanager
def namespace(name: str, volume: int) -> Iterator[Path]:
    """Make a namespace with the tiny model in a claim; yield the volume's directory, and leave nothing."""
    labels = {RESTRICTED: "restricted"}
    apply({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name, "labels": labels}})
    apply(claim(name, volume))
    directory, model = SHARED / f"volume-{volume}", written("k8s")["model"].replace("/", "--")
    shutil.copytree(MODELS / model, directory / model, dirs_exist_ok=True)
    try:
        yield directory
    finally:
        cluster.kubectl("delete", "namespace", name, "--ignore-not-found", "--wait")
        free(volume)
        shutil.rmtree(directory / model)


def left(name: str) -> set[str]:
    """Return what is in a namespace, but events and endpoints."""
    kinds = cluster.kubectl("api-resources", "--namespaced", "--verbs=list", "--output=name").split()
    wanted = ",".join(kind for kind in kinds if not kind.startswith(("events", "endpoint")))
    return set(cluster.kubectl("get", wanted, f"--namespace={name}", "--output=name").split())


def bind_role(name: str, user: str) -> None:
    """Give a new user of a namespace the Role of docs/reference."""
    role = (ROOT / "docs/reference/kubernetes-role.yaml").read_text().replace("NAMESPACE", name)
    cluster.kubectl("apply", "--filename=-", data=role)
    cluster.kubectl("create", "serviceaccount", user, f"--namespace={name}")
    subject = f"--serviceaccount={name}:{user}"
    role_name = yaml.safe_load(role)["metadata"]["name"]
    cluster.kubectl("create", "rolebinding", user, f"--role={role_name}", subject, f"--namespace={name}")


def context_of(user: str) -> str:
    """Return the context in the kubeconfig of a user."""
    return f"{user}@lab"


def kubeconfig_of(user: str, name: str, path: Path, **cluster_fields: str) -> Path:
    """Write the kubeconfig of a namespace's user; `cluster_fields` are others than those of the cluster."""
    token = cluster.kubectl("create", "token", user, f"--namespace={name}", "--duration=2h").strip()
    config = yaml.safe_load(KUBECONFIG.read_text())
    config["clusters"][0]["cluster"] |= cluster_fields
    config["users"] = [{"name": user, "user": {"token": token}}]
    config["contexts"] = [
        {"name": context_of(user), "context": {"cluster": config["clusters"][0]["name"], "user": user}}
    ]
    config["current-context"] = context_of(user)
    path.touch(0o600)
    path.write_text(yaml.safe_dump(config))
    return path

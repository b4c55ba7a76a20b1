"""Objects of Kubernetes as the program declares them: manifests in, resources of Pulumi's provider out."""

import base64
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import pulumi
import pulumi_kubernetes as kubernetes

from components.serving.vllm_process import SOCKET_GID

Manifest = Mapping[str, Any]

INSTANCE = "app.kubernetes.io/instance"
COMPONENT = "app.kubernetes.io/component"
NETWORK = "elastic-vllm/network"
"""Label by which NetworkPolicies select pods. Services and budgets go by the component, which a probe pod lacks."""
GATEWAY, VLLM, WEIGHTS = "gateway", "vllm", "weights"
DNS_SECONDS = 15
"""Time in which the gateways have forgotten a pod, with some to spare: CoreDNS keeps an answer for 5 s, and so does
Nginx."""


@dataclass(frozen=True, kw_only=True)
class Cluster:
    """A namespace of a cluster, and how it is reached."""

    provider: kubernetes.Provider
    kubeconfig: pulumi.Input[str]
    """Path of the file, or its content."""
    context: pulumi.Input[str]
    namespace: str
    stack: str
    fixed_users: bool
    """False where the namespace gives each pod its user (OpenShift)."""
    pull_secret: str
    """Name of a Secret with a registry's credentials; empty for none."""
    ready: Sequence[pulumi.Resource] = ()
    """Resources that must exist before anything is created in the namespace."""

    @property
    def prefix(self) -> str:
        """Name of this stack's objects, or its beginning."""
        return f"elastic-vllm-{self.stack}"

    def after(self, *resources: pulumi.Resource) -> "Cluster":
        """Return the same, where everything is created after these."""
        return replace(self, ready=[*self.ready, *resources])

    def access(self) -> dict[str, pulumi.Input[str]]:
        """Inputs by which a resource of the program's own reaches the namespace."""
        return {"kubeconfig": self.kubeconfig, "context": self.context, "namespace": self.namespace}

    def labels(self, component: str) -> dict[str, str]:
        """Labels of every object of a component."""
        return {
            "app.kubernetes.io/name": "elastic-vllm",
            INSTANCE: self.stack,
            COMPONENT: component,
            "app.kubernetes.io/managed-by": "pulumi",
        }

    def selector(self, component: str) -> dict[str, str]:
        """Labels that select a component's pods."""
        return {INSTANCE: self.stack, COMPONENT: component}

    def object(
        self, api_version: str, kind: str, component: str, name: str = "", *, annotations: Manifest | None = None
    ) -> dict[str, Any]:
        """Return the beginning of a manifest, whose name is that of the component unless given."""
        metadata = {
            "name": name or f"{self.prefix}-{component}",
            "namespace": self.namespace,
            "labels": self.labels(component),
            **({"annotations": dict(annotations)} if annotations else {}),
        }
        return {"apiVersion": api_version, "kind": kind, "metadata": metadata}

    def declare(
        self,
        name: str,
        manifest: Manifest,
        *,
        parent: pulumi.Resource,
        depends_on: Sequence[pulumi.Resource] = (),
        **options: Any,
    ) -> pulumi.CustomResource:
        """Register the resource of a manifest. The SDK's classes would take seconds to import, and add nothing to it:
        tests hold the manifests against Kubernetes' own schemas.
        """
        group = manifest["apiVersion"] if "/" in manifest["apiVersion"] else f"core/{manifest['apiVersion']}"
        return pulumi.CustomResource(
            f"kubernetes:{group}:{manifest['kind']}",
            name,
            dict(manifest),
            pulumi.ResourceOptions(
                parent=parent, provider=self.provider, depends_on=[*self.ready, *depends_on], **options
            ),
        )


def pod_security(cluster: Cluster, user: int) -> dict[str, Any]:
    """Security context of a pod; it meets the Pod Security Standard restricted together with its containers' own."""
    fixed = {"runAsUser": user, "runAsGroup": SOCKET_GID, "fsGroup": SOCKET_GID} if cluster.fixed_users else {}
    return {"runAsNonRoot": True, "seccompProfile": {"type": "RuntimeDefault"}, **fixed}


def container_security(cluster: Cluster, user: int) -> dict[str, Any]:
    """Security context of a container."""
    return {
        "allowPrivilegeEscalation": False,
        "capabilities": {"drop": ["ALL"]},
        "readOnlyRootFilesystem": True,
        **({"runAsUser": user} if cluster.fixed_users else {}),
    }


def pod(cluster: Cluster, user: int) -> dict[str, Any]:
    """Return what the specifications of all pods have in common."""
    return {
        "automountServiceAccountToken": False,
        "enableServiceLinks": False,
        "securityContext": pod_security(cluster, user),
        **({"imagePullSecrets": [{"name": cluster.pull_secret}]} if cluster.pull_secret else {}),
    }


def image_pull_policy(image: str) -> str:
    """`localhost/...` names an image that is on the nodes already: no registry can answer for it."""
    return "Never" if image.startswith("localhost/") else "IfNotPresent"


def memory(size: str) -> dict[str, Any]:
    """Return a volume in memory of at most `size`."""
    return {"emptyDir": {"medium": "Memory", "sizeLimit": size}}


def shell(command: str) -> list[str]:
    """Return a command for a shell."""
    return ["/bin/sh", "-c", command]


def spread(cluster: Cluster, component: str) -> dict[str, Any]:
    """Spread a component's pods over the nodes, as far as there is room."""
    return {
        "maxSkew": 1,
        "topologyKey": "kubernetes.io/hostname",
        "whenUnsatisfiable": "ScheduleAnyway",
        "labelSelector": {"matchLabels": cluster.selector(component)},
        # Pods of an earlier version are about to end.
        "matchLabelKeys": ["pod-template-hash"],
    }


def files_volume(cluster: Cluster, component: str) -> dict[str, Any]:
    """The volume with the files of an Nginx, for it alone."""
    mode = 0o440 if cluster.fixed_users else 0o444  # without a group, only the mode lets the pod's user read
    return {"name": "files", "secret": {"secretName": f"{cluster.prefix}-{component}", "defaultMode": mode}}


def secret(cluster: Cluster, component: str, files: pulumi.Output[dict[str, str]]) -> dict[str, Any]:
    """A Secret with these files, which changes in place.

    In base64, as the API server keeps them: of texts (stringData), one that is left out later would stay.
    """

    def encoded(texts: Mapping[str, str]) -> dict[str, str]:
        return {name: base64.b64encode(text.encode()).decode() for name, text in texts.items()}

    return {**cluster.object("v1", "Secret", component), "type": "Opaque", "data": files.apply(encoded)}

"""The settings of target kubernetes: a namespace in a cluster that exists, and the endpoint in it."""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from components.settings.problems import PINNED_IMAGE, Problems

LABEL = re.compile(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?")
"""A DNS label: what namespaces are named by."""
SUBDOMAIN = re.compile(r"[a-z0-9]([a-z0-9.-]{0,251}[a-z0-9])?")
"""A DNS subdomain: what claims, classes and Secrets are named by."""
CONTEXT = re.compile(r"\S(.*\S)?")
RESOURCE = re.compile(r"([a-z0-9]([a-z0-9.-]*[a-z0-9])?/)?[A-Za-z0-9]([A-Za-z0-9._-]*[A-Za-z0-9])?")
"""A qualified name: of an extended resource, or of a node's label."""
LABEL_VALUE = re.compile(r"([A-Za-z0-9]([A-Za-z0-9._-]{0,61}[A-Za-z0-9])?)?")
SERVICE_TYPES = ("ClusterIP", "LoadBalancer", "NodePort")
POD_SECURITY = ("restricted", "openshift")
NODE_PORTS = range(30000, 32768)
"""Ports that a cluster gives Services of type NodePort unless it is set up otherwise."""
MOST_REPLICAS = 64
TOLERATION = {"key", "operator", "value", "effect", "tolerationSeconds"}
WEIGHTS = ("weightsClaim", "weightsImage", "weightsStorageClass")
METRICS_FIX = "name the namespace of the agents' pods"
NAMESPACE_FIX = "use up to 63 of a-z, 0-9 and '-'"
PINNED_FIX = "pin it as name:tag@sha256:digest"
NODE_SELECTOR_FIX = "write the stack's file as in nodeSelector: {node.example.com/gpu: h100}"
TOLERATIONS_FIX = "write the stack's file as in tolerations: [{key: nvidia.com/gpu, operator: Exists}]"

KEYS = frozenset(
    {
        "kubeconfig",
        "kubeContext",
        "namespace",
        "createNamespace",
        "replicas",
        "gatewayReplicas",
        "maxSurge",
        *WEIGHTS,
        "serviceType",
        "podSecurity",
        "gpuResource",
        "nodeSelector",
        "tolerations",
        "runtimeClass",
        "imagePullSecret",
        "metricsNamespace",
        "unenforcedNetworkPolicies",
    }
)
"""Settings that only Kubernetes has."""


@dataclass(frozen=True, kw_only=True)
class KubernetesSettings:
    """The cluster, and how the endpoint is spread over it. Pulumi.yaml describes each setting."""

    kubeconfig: str
    """Path of the file."""
    context: str
    namespace: str
    create_namespace: bool
    replicas: int
    """Pods of vLLM, each with the whole model; 0 while parked."""
    gateway_replicas: int
    max_surge: int
    """Pods of vLLM that a rolling change may start before it ends an old one."""
    weights_claim: str
    weights_image: str
    weights_storage_class: str
    """One of the three is set."""
    service_type: str
    source_ranges: Sequence[str]
    """CIDR ranges that a load balancer lets in."""
    pod_security: str
    gpu_resource: str
    node_selector: Mapping[str, str]
    tolerations: Sequence[Mapping[str, Any]]
    runtime_class: str
    image_pull_secret: str
    metrics_namespace: str
    """Namespace whose pods may read metrics; empty for none."""
    accepts_unenforced_policies: bool
    parked: bool

    def as_output(self) -> dict[str, str]:
        """Return how commands reach the namespace."""
        return {"kubeconfig": self.kubeconfig, "context": self.context, "namespace": self.namespace}


def endpoint_name(values: Mapping[str, str], stack: str) -> str:
    """Name by which the cluster's own pods reach the endpoint."""
    return f"elastic-vllm-{stack}.{values['namespace']}.svc"


def kubernetes_settings(
    problems: Problems, source_ranges: Sequence[str], project_directory: Path
) -> KubernetesSettings:
    """Read and check them; a relative path counts from `project_directory`."""
    text, integer = problems.text, problems.integer
    require_weights(problems, WEIGHTS)
    return KubernetesSettings(
        kubeconfig=_kubeconfig(problems, project_directory),
        context=text("kubeContext", CONTEXT, "name a context of the kubeconfig: kubectl config get-contexts"),
        namespace=text("namespace", LABEL, NAMESPACE_FIX),
        create_namespace=problems.boolean("createNamespace"),
        replicas=integer("replicas", 1, MOST_REPLICAS),
        gateway_replicas=integer("gatewayReplicas", 1, MOST_REPLICAS),
        max_surge=integer("maxSurge", 0, MOST_REPLICAS),
        weights_claim=problems.optional("weightsClaim", SUBDOMAIN, "name a PersistentVolumeClaim of the namespace"),
        weights_image=problems.optional("weightsImage", PINNED_IMAGE, PINNED_FIX),
        weights_storage_class=problems.optional(
            "weightsStorageClass", SUBDOMAIN, "name a StorageClass: kubectl get storageclass"
        ),
        service_type=problems.choice("serviceType", SERVICE_TYPES),
        source_ranges=source_ranges,
        pod_security=problems.choice("podSecurity", POD_SECURITY),
        gpu_resource=text("gpuResource", RESOURCE, "name the resource that the nodes offer, such as nvidia.com/gpu"),
        node_selector=_node_selector(problems),
        tolerations=_tolerations(problems),
        runtime_class=problems.optional("runtimeClass", SUBDOMAIN, "name a RuntimeClass: kubectl get runtimeclass"),
        image_pull_secret=problems.optional(
            "imagePullSecret", SUBDOMAIN, "name a Secret of type kubernetes.io/dockerconfigjson"
        ),
        metrics_namespace=problems.optional("metricsNamespace", LABEL, METRICS_FIX),
        accepts_unenforced_policies=problems.choice("unenforcedNetworkPolicies", ("refuse", "accept")) == "accept",
        parked=problems.boolean("parked"),
    )


def _kubeconfig(problems: Problems, project_directory: Path) -> str:
    key, fix = "kubeconfig", "give the file that `kubectl config view` reads"
    value = problems.values[key]
    if not value:
        problems.add(key, "not set", fix)
        return ""
    try:
        path = project_directory / Path(value).expanduser()
        path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError, RuntimeError) as error:  # RuntimeError: no such user
        problems.add(key, f"cannot be read ({getattr(error, 'strerror', None) or 'not a text file'})", fix)
        return value
    return str(path)


def require_weights(problems: Problems, keys: Sequence[str]) -> None:
    """Refuse all but one of the settings that say where the model's weights are."""
    first, *others = keys
    given = [key for key in keys if problems.values[key]]
    if not given:
        problems.add(
            first,
            f"not set, and neither {'is' if len(others) == 1 else 'are'} {' and '.join(others)}",
            "set the one that says where the model's weights are",
        )
    for key in given[1:]:
        problems.add(key, f"set, but {given[0]} is as well", "set only one of the two")


def _node_selector(problems: Problems) -> Mapping[str, str]:
    key = "nodeSelector"
    selector = problems.mapping(key, NODE_SELECTOR_FIX)
    for name, value in selector.items():
        if not RESOURCE.fullmatch(name) or not isinstance(value, str) or not LABEL_VALUE.fullmatch(value):
            problems.add(key, f"{name}: {json.dumps(value)} is no label of a node", NODE_SELECTOR_FIX)
            return {}
    return selector


def _tolerations(problems: Problems) -> Sequence[Mapping[str, Any]]:
    key = "tolerations"
    tolerations = problems.objects(key, TOLERATIONS_FIX)
    for toleration in tolerations:
        if unknown := sorted(toleration.keys() - TOLERATION):
            problems.add(key, f"a toleration has no {unknown[0]}", TOLERATIONS_FIX)
            return []
    return tolerations

"""The settings of target gke: the cluster that Google Cloud provisions, checked before anything is."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from components.settings import gcp
from components.settings import kubernetes as kubernetes_settings
from components.settings.gcp import GoogleSettings
from components.settings.kubernetes import LABEL, MOST_REPLICAS, SUBDOMAIN, KubernetesSettings
from components.settings.problems import PINNED_IMAGE, Problems

ACCELERATORS = {"a2-ultragpu": "nvidia-a100-80gb", "a3-highgpu": "nvidia-h100-80gb"}
"""Family of machine types for the GPU pool -> its GPU, by the name that Compute Engine has for it as well."""
POOL_LABEL = "cloud.google.com/gke-nodepool"
SYSTEM, GPU = "system", "gpu"
"""Names of the node pools."""
GPU_RESOURCE = "nvidia.com/gpu"
GPU_TOLERATION = {"key": GPU_RESOURCE, "operator": "Exists", "effect": "NoSchedule"}
"""For the taint of nodes with GPUs."""
PROVISIONING_MODELS = ("STANDARD", "SPOT", "FLEX_START")
"""Models of Compute Engine that a node pool has as well."""
MOST_NAME = 40
"""Longest name of a cluster."""
KMS_KEY = re.compile(
    rf"projects/{gcp.PROJECT_ID}/locations/(?P<location>[a-z0-9-]+)/keyRings/[\w-]{{1,63}}/cryptoKeys/[\w-]{{1,63}}"
)
KMS_FIX = "use projects/PROJECT/locations/REGION/keyRings/RING/cryptoKeys/KEY"
RANGE_FIX = "use the name of a secondary range of subnetwork"
DISK_CLASSES = ("standard-rwo", "premium-rwo", "standard")
"""Classes of GKE's own whose volumes only one node can write."""
SHARED_CLASSES = "-rwx"
"""End of the names of GKE's classes for Filestore, which many nodes can write."""
DEFAULT_NAMESPACE = "elastic-vllm"

SHARED_WITH_KUBERNETES = frozenset(
    {"namespace", "replicas", "gatewayReplicas", "maxSurge", "weightsImage", "weightsStorageClass", "metricsNamespace"}
)
KEYS = frozenset(
    {
        "regionalControlPlane",
        "controlPlaneSourceRanges",
        "podRange",
        "serviceRange",
        "loadBalancer",
        "secretsKmsKey",
        "protectCluster",
    }
)
"""Settings that only target gke has."""


@dataclass(frozen=True, kw_only=True)
class GkeSettings(GoogleSettings):
    """The cluster, and the endpoint in it."""

    kubernetes: KubernetesSettings
    """The endpoint. The kubeconfig is known once the cluster is there, and empty here."""
    regional: bool
    """True for a control plane in several zones. All nodes are in `zone`."""
    control_plane_source_ranges: Sequence[str]
    """CIDR ranges that reach the control plane's address; empty: it has none but Google's DNS endpoint."""
    pod_range: str
    service_range: str
    """Names of secondary ranges; empty: GKE makes them."""
    kms_key: str
    """Empty: Google's own keys alone encrypt Secrets at rest."""
    protect: bool

    @property
    def location(self) -> str:
        """Location of the control plane: a region, or a zone."""
        return self.region if self.regional else self.zone

    @property
    def machines(self) -> int:
        """Nodes for all replicas, and those that a rolling change adds."""
        return self.kubernetes.replicas + self.kubernetes.max_surge

    @property
    def accelerator(self) -> str:
        """GKE's name for the GPU; empty for a machine type that the GPU pool can't have."""
        return ACCELERATORS.get(self.machine_type.name.rpartition("-")[0], "")


def gke_settings(problems: Problems, stack: str) -> GkeSettings:
    """Read and check the settings of target gke."""
    external = problems.choice("loadBalancer", ("internal", "external")) == "external"
    google = gcp.google_settings(problems, stack, external_address=external)
    if len(google.name) > MOST_NAME:
        longest = MOST_NAME - len(google.name) + len(stack)
        problems.found.append(f"stack name {stack!r}: too long for a cluster's name; use up to {longest} characters")
    return GkeSettings(
        **vars(google),
        kubernetes=_endpoint(problems, google),
        regional=problems.boolean("regionalControlPlane"),
        control_plane_source_ranges=gcp.sources(
            problems, "controlPlaneSourceRanges", "leave it empty: then IAM alone decides who connects"
        ),
        pod_range=problems.optional("podRange", gcp.RESOURCE, RANGE_FIX),
        service_range=problems.optional("serviceRange", gcp.RESOURCE, RANGE_FIX),
        kms_key=problems.optional("secretsKmsKey", KMS_KEY, KMS_FIX),
        protect=problems.boolean("protectCluster"),
    )


def namespace_of(values: Mapping[str, str]) -> str:
    """The namespace in a cluster that has no other use."""
    return values["namespace"] or DEFAULT_NAMESPACE


def _endpoint(problems: Problems, google: GoogleSettings) -> KubernetesSettings:
    """The endpoint: what is a setting with target kubernetes follows here from the cluster."""
    kubernetes_settings.require_weights(problems, ("weightsStorageClass", "weightsImage"))
    integer = problems.integer
    problems.optional("namespace", LABEL, kubernetes_settings.NAMESPACE_FIX)
    return KubernetesSettings(
        kubeconfig="",
        context=google.name,
        namespace=namespace_of(problems.values),
        create_namespace=True,
        replicas=integer("replicas", 1, MOST_REPLICAS),
        gateway_replicas=integer("gatewayReplicas", 1, MOST_REPLICAS),
        max_surge=integer("maxSurge", 0, MOST_REPLICAS),
        weights_claim="",
        weights_image=problems.optional("weightsImage", PINNED_IMAGE, kubernetes_settings.PINNED_FIX),
        weights_storage_class=problems.optional(
            "weightsStorageClass", SUBDOMAIN, f"use a class of GKE's, such as {DISK_CLASSES[0]}"
        ),
        service_type="LoadBalancer",
        source_ranges=google.https_source_ranges,
        pod_security="restricted",
        gpu_resource=GPU_RESOURCE,
        node_selector={POOL_LABEL: GPU},
        tolerations=[GPU_TOLERATION],
        runtime_class="",
        image_pull_secret="",
        metrics_namespace=problems.optional("metricsNamespace", LABEL, kubernetes_settings.METRICS_FIX),
        accepts_unenforced_policies=False,
        parked=google.parked,
    )

"""Settings of target gke: a wrong one is refused before anything exists, with its key, its value and the fix."""

from collections.abc import Callable
from typing import Any

import pytest

from components.settings.stack import Settings
from tests.unit.conftest import found

Settle = Callable[..., Settings]
PINNED = f"us-docker.pkg.dev/acme/llm/weights:1@sha256:{'d' * 64}"
OF_GOOGLE = {
    "vllmImage": f"us-docker.pkg.dev/acme/llm/vllm-openai:v0.32.0@sha256:{'a' * 64}",
    "nginxImage": f"us-docker.pkg.dev/acme/llm/nginx:1.30.2@sha256:{'b' * 64}",
}
WEIGHTS_IMAGE = {"weightsStorageClass": "", "modelRevision": "", "weightsImage": PINNED, "bootDiskGb": 300}
NETWORK = {"network": "shared", "subnetwork": "llm", "cloudNat": False}
OTHER_PROJECT = {
    "network": "projects/acme-host/global/networks/shared",
    "subnetwork": "projects/acme-host/regions/us-central1/subnetworks/llm",
    "cloudNat": False,
}
KEY = "projects/acme-search/locations/{}/keyRings/llm/cryptoKeys/etcd"

# base, the setting, its value, the cause, the fix
WRONG: list[Any] = [
    ("gke", "gcpProject", "", "not set", "set it to the project's id"),
    ("gke", "zone", "us-west1-a", "has no a2-ultragpu-2g", "asia-southeast1-c, europe-west4-a, us-central1-a"),
    ("gke", "machineType", "g2-standard-4", "not a size that the GPU pool can have", "use a2-ultragpu-1g, -2g"),
    ("gke", "machineType", "a3-megagpu-8g", "not a size that the GPU pool can have", "or a3-highgpu-1g, -2g"),
    ("gke", "machineType", "a3-highgpu-1g", "a3-highgpu-1g is not sold so", "use SPOT or FLEX_START"),
    ("gke", "provisioningModel", "RESERVATION_BOUND", "a node pool has no such model", "use STANDARD, which takes"),
    ("gke", "accelerator", "none", "every machine type here has GPUs", "remove it"),
    ("gke", "network", "shared", "set, but subnetwork is not", "name the subnetwork in the zone's region"),
    ("gke", "cloudNat", "false", "could not fetch: the model's weights, docker.io/", "copy images to Artifact Reg"),
    ("gke", "httpsSourceRanges", "[]", "empty: nobody could use the endpoint", "give the CIDR ranges that Elastic"),
    ("gke", "httpsSourceRanges", '["128.0.0.0/1"]', "lets in addresses that are not yours", "for everyone write"),
    ("gke", "controlPlaneSourceRanges", '["0.0.0.0/0"]', "lets in addresses that are not yours", "IAM alone decides"),
    ("gke", "controlPlaneSourceRanges", '["everyone"]', "not an IPv4 CIDR range", 'write ["203.0.113.0/24"]'),
    ("gke", "regionalControlPlane", "yes", "neither true nor false", "use true or false"),
    ("gke", "protectCluster", "no", "neither true nor false", "use true or false"),
    ("gke", "loadBalancer", "public", "unknown value", "use internal or external"),
    ("gke", "namespace", "Search", "invalid format", "use up to 63 of a-z"),
    ("gke", "replicas", "0", "out of range", "use 1 to 64"),
    ("gke", "replicas", "2", "a disk, which one node alone can use", "standard-rwx, or weightsImage"),
    ("gke", "maxSurge", "2", "more than replicas", "use 1 or less"),
    ("gke", "weightsStorageClass", "", "not set, and neither is weightsImage", "says where the model's weights are"),
    ("gke", "weightsStorageClass", "Fast Disk", "invalid format", "use a class of GKE's, such as standard-rwo"),
    ("gke", "podRange", "pods", "set, but subnetwork is not", "the stack's own subnetwork has its ranges"),
    ("gke", "serviceRange", "Services", "invalid format", "use the name of a secondary range"),
    ("gke", "secretsKmsKey", "etcd", "invalid format", "use projects/PROJECT/locations/REGION/keyRings"),
    ("gke", "secretsKmsKey", KEY.format("europe-west4"), "of another location than the cluster's", "in us-central1"),
    ("gke", "serviceAccount", "1-compute@developer.gserviceaccount.com", "is a default account", "or leave it empty"),
    ("gke", "vllmImage", "localhost/vllm:v0.32.0", "on no node of a pool whose nodes come and go", "push it to a reg"),
    ("gke", "nginxImage", "localhost/nginx:1.30.2", "on no node of a pool whose nodes come and go", "push it to a"),
    ("gke", "tls", "letsencrypt", "no ACME client runs in the cluster", "use private-ca or provided"),
    ("gke", "ipv6", "true", "the cluster decides which addresses", "remove it"),
    ("gke", "endpointHost", "2001:db8::1", "an IPv6 address, but the load balancer has an IPv4 one", "remove it"),
    ("gke", "kubeContext", "production", "has no effect with target gke", "or set target to kubernetes"),
    ("gke", "weightsClaim", "models", "has no effect with target gke", "or set target to kubernetes"),
    ("gke", "vmImage", "projects/p/global/images/x", "has no effect with target gke", "or set target to gcp"),
    ("gke", "externalAddress", "false", "has no effect with target gke", "or set target to gcp"),
    ("gke", "gpuCount", "4", "has no effect with target gke", "remove it"),
    ("gke", "sshUser", "ops", "has no effect with target gke", "remove it"),
    ("k8s", "loadBalancer", "external", "has no effect with target kubernetes", "or set target to gke"),
    ("prod", "protectCluster", "false", "has no effect with target gcp", "or set target to gke"),
    ("prod", "replicas", "2", "has no effect with target gcp", "or set target to kubernetes or gke"),
]
# base, the settings, the one that the message names, the cause, the fix
CONTRADICTIONS: list[Any] = [
    ("gke", {"maxSurge": 1}, "weightsStorageClass", "replicas and maxSurge make 2", "use a class of Filestore"),
    ("gke", {**WEIGHTS_IMAGE, "weightsStorageClass": "standard-rwo"}, "weightsImage", "is as well", "only one of the"),
    ("gke", {**WEIGHTS_IMAGE, "bootDiskGb": 150}, "bootDiskGb", "too small for vLLM's image", "or more"),
    ("gke", {**WEIGHTS_IMAGE, "hfToken": "hf_x"}, "hfToken", "nothing is downloaded with weightsImage", "remove it"),
    (
        "gke",
        {**NETWORK, "podRange": "pods"},
        "podRange",
        "one of podRange and serviceRange is set",
        "set both, or none",
    ),
    ("gke", OTHER_PROJECT, "podRange", "GKE makes no ranges in the subnetwork of another", "that its owner has made"),
    ("gke", {**NETWORK, "cloudNat": True}, "cloudNat", "the network is not the stack's own", "set up Cloud NAT there"),
    ("gke", {"provisioningModel": "SPOT", "reservation": "llm"}, "reservation", "provisioningModel is SPOT", "remove"),
    (
        *("gke", {"machineType": "a2-ultragpu-1g", "model": "meta-llama/Llama-3.3-70B-Instruct"}, "model"),
        *("1 x 80 GiB", "machineType: each replica has the whole model on one node"),
    ),
    ("gke", {"bundle": "/nowhere"}, "bundle", "set, but target is gke", "bundle push` sends its images to a registry"),
    ("gke", {"containerRuntime": "podman"}, "containerRuntime", "the cluster's nodes have their own", "remove it"),
]


@pytest.mark.parametrize(("base", "key", "value", "cause", "fix"), WRONG)
def test_a_wrong_setting_is_refused(base: str, key: str, value: str, cause: str, fix: str, settle: Settle) -> None:
    problems = found(lambda: settle(base, {key: value}))
    assert any(cause in problem and fix in problem for problem in problems), problems


@pytest.mark.parametrize(("base", "overrides", "key", "cause", "fix"), CONTRADICTIONS)
def test_settings_that_contradict_each_other_are_refused(
    base: str, overrides: dict[str, Any], key: str, cause: str, fix: str, settle: Settle
) -> None:
    problems = [problem for problem in found(lambda: settle(base, overrides)) if problem.startswith(key)]
    assert any(cause in problem and fix in problem for problem in problems), problems


@pytest.mark.parametrize(
    "overrides",
    [
        {},
        {"loadBalancer": "external", "controlPlaneSourceRanges": ["203.0.113.7/32"], "regionalControlPlane": True},
        {"replicas": 3, "maxSurge": 1, "weightsStorageClass": "standard-rwx", "namespace": "llm"},
        {**OF_GOOGLE, **WEIGHTS_IMAGE, "cloudNat": False},
        {**NETWORK, "podRange": "pods", "serviceRange": "services"},
        {**OTHER_PROJECT, "podRange": "pods", "serviceRange": "services"},
        {"secretsKmsKey": KEY.format("us-central1"), "protectCluster": False, "parked": True},
        {"machineType": "a3-highgpu-1g", "provisioningModel": "FLEX_START", "model": "Qwen/Qwen3.6-27B"},
        {"reservation": "llm", "serviceAccount": "nodes@acme-search.iam.gserviceaccount.com"},
    ],
    ids=str,
)
def test_settings_that_fit_are_accepted(overrides: dict[str, Any], settle: Settle) -> None:
    settings = settle("gke", overrides)
    assert settings.gke
    assert settings.kubernetes is settings.gke.kubernetes
    assert not settings.gcp


def test_the_namespace_has_a_default(settle: Settle) -> None:
    settings = settle("gke", {})
    assert settings.kubernetes
    assert settings.kubernetes.namespace == "elastic-vllm"
    assert settings.kubernetes.create_namespace


def test_gpus_are_those_of_the_machine_type(settle: Settle) -> None:
    gpus = settle("gke", {"machineType": "a2-ultragpu-4g"}).gpus
    assert (gpus.count, gpus.memory_gib) == (4, 80)


@pytest.mark.parametrize(("stack", "cause"), [("s" * 28, "use up to 27 characters"), ("prod-", "ends in '-'")])
def test_a_stack_name_fits_into_the_clusters(stack: str, cause: str, settle: Settle) -> None:
    assert any(cause in problem for problem in found(lambda: settle("gke", {}, stack=stack)))
    assert settle("gke", {}, stack="s" * 27)

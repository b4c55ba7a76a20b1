"""Settings of target kubernetes: a wrong one is refused before anything exists, with its key, its value and the fix."""

from collections.abc import Callable
from typing import Any

import pytest

from components.settings.stack import Settings
from tests.unit.conftest import found

Settle = Callable[..., Settings]
PINNED = f"registry.example/models/tiny:1@sha256:{'d' * 64}"
OUTSIDE = {"serviceType": "LoadBalancer", "endpointHost": "llm.example.com", "httpsSourceRanges": ["198.51.100.0/24"]}
CLAIM = {"weightsClaim": ""}

# base, the setting, its value, the cause, the fix
WRONG: list[Any] = [
    ("k8s", "kubeconfig", "", "not set", "give the file that `kubectl config view` reads"),
    ("k8s", "kubeconfig", "/nowhere/kubeconfig", "cannot be read (No such file", "give the file"),
    ("k8s", "kubeContext", "", "not set", "kubectl config get-contexts"),
    ("k8s", "namespace", "", "not set", "use up to 63 of a-z"),
    ("k8s", "namespace", "Search", "invalid format", "use up to 63 of a-z"),
    ("k8s", "createNamespace", "yes", "neither true nor false", "use true or false"),
    ("k8s", "replicas", "0", "out of range", "use 1 to 64"),
    ("k8s", "gatewayReplicas", "0", "out of range", "use 1 to 64"),
    ("k8s", "maxSurge", "-1", "out of range", "use 0 to 64"),
    ("k8s", "maxSurge", "3", "more than replicas", "use 2 or less"),
    ("k8s", "weightsClaim", "", "not set, and neither are weightsImage and", "says where the model's weights are"),
    ("k8s", "weightsClaim", "My Claim", "invalid format", "name a PersistentVolumeClaim"),
    ("k8s", "serviceType", "Ingress", "unknown value", "use ClusterIP or LoadBalancer or NodePort"),
    ("k8s", "podSecurity", "privileged", "unknown value", "use restricted or openshift"),
    ("k8s", "gpuResource", "nvidia gpu", "invalid format", "such as nvidia.com/gpu"),
    ("k8s", "nodeSelector", '["gpu"]', "not an object", "write the stack's file as in nodeSelector"),
    ("k8s", "nodeSelector", '{"gpu": true}', "gpu: true is no label", "write the stack's file as in nodeSelector"),
    ("k8s", "tolerations", "{}", "not a list of objects", "write the stack's file as in tolerations"),
    ("k8s", "tolerations", '[{"taint": "x"}]', "a toleration has no taint", "write the stack's file as in toler"),
    ("k8s", "runtimeClass", "NVIDIA", "invalid format", "kubectl get runtimeclass"),
    ("k8s", "imagePullSecret", "a b", "invalid format", "kubernetes.io/dockerconfigjson"),
    ("k8s", "metricsNamespace", "Monitoring", "invalid format", "name the namespace of the agents' pods"),
    ("k8s", "unenforcedNetworkPolicies", "ignore", "unknown value", "use refuse or accept"),
    ("k8s", "containerRuntime", "podman", "the cluster's nodes have their own", "remove it"),
    ("k8s", "ipv6", "true", "the cluster decides which addresses", "remove it"),
    ("k8s", "httpsPort", "443", "no port that a node may open", "use 30000 to 32767"),
    ("k8s", "endpointHost", "", "clients connect from outside the cluster", "point that at the load balancer"),
    ("k8s", "host", "llm.example", "has no effect with target kubernetes", "remove it"),
    ("k8s", "zone", "us-central1-c", "has no effect with target kubernetes", "remove it, or set target to gcp"),
    ("k8s", "nginxImage", "localhost/nginx:1.26.3", "can't follow pods that come and go", "use 1.27.4 or newer"),
    ("k8s", "nginxImage", f"a/nginx:stable@sha256:{'a' * 64}", "does not say the version of Nginx", "like 1.30.2"),
    ("k8s", "tls", "letsencrypt", "no ACME client runs in the cluster", "use private-ca or provided"),
    ("local", "replicas", "2", "has no effect with target existing", "or set target to kubernetes"),
]
# base, the settings, the one that the message names, the cause, the fix
CONTRADICTIONS: list[Any] = [
    ("k8s", {"weightsImage": PINNED}, "weightsImage", "weightsClaim is as well", "only one of the two"),
    ("k8s", {**OUTSIDE, "httpsSourceRanges": []}, "httpsSourceRanges", "would let nobody in", "that Elastic connects"),
    (
        "k8s",
        {"httpsSourceRanges": ["198.51.100.0/24"]},
        "httpsSourceRanges",
        "serviceType is NodePort",
        "NetworkPolicy",
    ),
    (
        *("k8s", {**CLAIM, "weightsStorageClass": "shared", "modelRevision": "main"}, "modelRevision"),
        *("not a commit of 40", "scripts/elastic-vllm pin"),
    ),
    ("k8s", {"hfToken": "hf_x"}, "hfToken", "nothing is downloaded with weightsClaim", "remove it"),
    (
        *("k8s", {"accelerator": "nvidia", "model": "openai/gpt-oss-120b", "gpuCount": 1, "gpuMemoryGib": 40}, "model"),
        *("1 x 40 GiB", "each replica has the whole model on one node"),
    ),
    ("k8s", {"bundle": "/nowhere"}, "bundle", "set, but target is kubernetes", "bundle push` sends its images to a"),
    (
        *("k8s", {**CLAIM, "weightsImage": "registry.example/models/tiny:1"}, "weightsImage"),
        *("invalid format", "pin it as name:tag@sha256:digest"),
    ),
]


@pytest.mark.parametrize(("base", "key", "value", "cause", "fix"), WRONG)
def test_a_wrong_setting_is_refused(base: str, key: str, value: str, cause: str, fix: str, settle: Settle) -> None:
    problems = [problem for problem in found(lambda: settle(base, {key: value})) if problem.startswith(f"{key}")]
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
        {"serviceType": "ClusterIP", "endpointHost": "", "httpsPort": 443},
        {**OUTSIDE, "httpsPort": 443},
        {**CLAIM, "weightsImage": PINNED},
        {**CLAIM, "weightsStorageClass": "shared", "modelRevision": "a" * 40},
        {"parked": True, "podSecurity": "openshift", "unenforcedNetworkPolicies": "accept"},
        {"nodeSelector": {"node.example.com/gpu": "h100"}, "tolerations": [{"key": "gpu", "operator": "Exists"}]},
    ],
    ids=str,
)
def test_settings_that_fit_are_accepted(overrides: dict[str, Any], settle: Settle) -> None:
    settings = settle("k8s", overrides)
    assert settings.kubernetes
    assert not settings.gcp


def test_the_endpoint_is_named_as_its_service_unless_it_is_reached_from_outside(settle: Settle) -> None:
    inside = {"serviceType": "ClusterIP", "endpointHost": "", "httpsPort": 443}
    assert settle("k8s", inside, stack="k8s").endpoint_host == "elastic-vllm-k8s.elastic-vllm.svc"
    assert settle("k8s", OUTSIDE | {"httpsPort": 443}).endpoint_host == "llm.example.com"


def test_each_replica_of_the_gateway_counts_its_share_of_the_limits(settle: Settle) -> None:
    limits = settle("k8s", {"maxConcurrentRequests": 5, "maxRequestsPerMinute": 60}).limits.shared_by(2)
    assert (limits.concurrent_requests, limits.requests_per_minute, limits.burst) == (3, 30, 5)

"""Rules for every cluster that the program creates in Google Cloud: each yields the resources that break it."""

import ipaddress
import re
from collections.abc import Callable, Iterator
from typing import Any

import yaml

from components.kubernetes.gke_cluster import ROLES
from components.settings.gcp import EVERYONE
from tests.support.google_rules import googles_services_without_an_address, names_fit, one_project
from tests.support.program import Program
from tests.support.registered import CLUSTER, NODE_POOL, Registered, texts

Rule = Callable[[Program], Iterator[str]]
ADDRESS = "gcp:compute/address:Address"
SERVICE = "kubernetes:core/v1:Service"
DEPLOYMENT = "kubernetes:apps/v1:Deployment"
LEAST_VERSION = (1, 34)
WIDEST = 8
"""Shortest prefix of a range for the control plane, in bits."""


def _at(value: Any, path: str) -> Any:
    for part in path.split("."):
        value = value.get(part) if isinstance(value, dict) else None
    return value


def _pools(program: Program) -> Iterator[tuple[Registered, dict[str, Any]]]:
    for pool in program.of_type(NODE_POOL):
        yield pool, pool.inputs["nodeConfig"]


def nodes_are_private(program: Program) -> Iterator[str]:
    for resource, path in [
        *((cluster, "privateClusterConfig.enablePrivateNodes") for cluster in program.of_type(CLUSTER)),
        *((pool, "networkConfig.enablePrivateNodes") for pool in program.of_type(NODE_POOL)),
    ]:
        if _at(resource.inputs, path) is not True:
            yield resource.name


def the_control_plane_is_open_to_nobody_by_address_alone(program: Program) -> Iterator[str]:
    for cluster in program.of_type(CLUSTER):
        networks = _at(cluster.inputs, "masterAuthorizedNetworksConfig.cidrBlocks") or []
        ranges = [ipaddress.ip_network(each["cidrBlock"]) for each in networks]
        by_address = _at(cluster.inputs, "controlPlaneEndpointsConfig.ipEndpointsConfig.enabled") is not False
        if by_address and (not ranges or min(each.prefixlen for each in ranges) < WIDEST):
            yield cluster.name
        if (
            by_address
            and _at(cluster.inputs, "masterAuthorizedNetworksConfig.gcpPublicCidrsAccessEnabled") is not False
        ):
            yield cluster.name


def the_network_enforces_policies(program: Program) -> Iterator[str]:
    yield from (c.name for c in program.of_type(CLUSTER) if c.inputs.get("datapathProvider") != "ADVANCED_DATAPATH")


def pods_see_no_credentials_of_nodes(program: Program) -> Iterator[str]:
    for cluster in program.of_type(CLUSTER):
        if not str(_at(cluster.inputs, "workloadIdentityConfig.workloadPool")).endswith(".svc.id.goog"):
            yield cluster.name
    for pool, config in _pools(program):
        legacy = _at(config, "metadata.disable-legacy-endpoints")
        if _at(config, "workloadMetadataConfig.mode") != "GKE_METADATA" or legacy != "true":
            yield pool.name


def nobody_gets_a_certificate_of_a_client(program: Program) -> Iterator[str]:
    for cluster in program.of_type(CLUSTER):
        if _at(cluster.inputs, "masterAuth.clientCertificateConfig.issueClientCertificate") is not False:
            yield cluster.name


def nodes_verify_their_boot(program: Program) -> Iterator[str]:
    yield from (cluster.name for cluster in program.of_type(CLUSTER) if not cluster.inputs.get("enableShieldedNodes"))
    for pool, config in _pools(program):
        shielded = config.get("shieldedInstanceConfig", {})
        if not (shielded.get("enableSecureBoot") and shielded.get("enableIntegrityMonitoring")):
            yield pool.name


def kubelets_answer_nobody_unknown(program: Program) -> Iterator[str]:
    for pool, config in _pools(program):
        if _at(config, "kubeletConfig.insecureKubeletReadonlyPortEnabled") != "FALSE":
            yield pool.name


def no_default_service_account(program: Program) -> Iterator[str]:
    configs = [*_pools(program), *((c, c.inputs["nodeConfig"]) for c in program.of_type(CLUSTER))]
    for resource, config in configs:
        if not re.search(r"@.+\.iam\.gserviceaccount\.com$", config.get("serviceAccount") or ""):
            yield resource.name


def nodes_have_the_least_rights(program: Program) -> Iterator[str]:
    for grant in program.of_type("gcp:projects/iAMMember:IAMMember"):
        if grant.inputs["role"] not in ROLES.values() or not grant.inputs["member"].startswith("serviceAccount:"):
            yield grant.name


def the_cluster_is_protected(program: Program) -> Iterator[str]:
    for cluster in program.of_type(CLUSTER):
        if not (cluster.protect and cluster.inputs.get("deletionProtection")):
            yield cluster.name


def versions_are_kept_up(program: Program) -> Iterator[str]:
    for cluster in program.of_type(CLUSTER):
        least = tuple(map(int, cluster.inputs["minMasterVersion"].split(".")))
        if _at(cluster.inputs, "releaseChannel.channel") != "REGULAR" or least < LEAST_VERSION:
            yield cluster.name
    for pool in program.of_type(NODE_POOL):
        if not _at(pool.inputs, "management.autoUpgrade"):
            yield pool.name


def the_endpoint_is_internal_and_has_the_reserved_address(program: Program) -> Iterator[str]:
    for address in program.of_type(ADDRESS):
        if address.inputs["addressType"] != "INTERNAL" or not address.inputs.get("subnetwork"):
            yield address.name
    for service in _outside(program):
        annotations = service.inputs["metadata"].get("annotations", {})
        if annotations.get("networking.gke.io/load-balancer-type") != "Internal":
            yield service.name
        host = re.match(r"https://([^/:]+)", program.outputs["connectorUrl"])
        if not host or service.inputs["spec"].get("loadBalancerIP") != host[1]:
            yield service.name


def clients_come_from_given_ranges_alone(program: Program) -> Iterator[str]:
    for service in _outside(program):
        ranges = service.inputs["spec"].get("loadBalancerSourceRanges") or [EVERYONE]
        if EVERYONE in ranges:
            yield service.name


def _outside(program: Program) -> Iterator[Registered]:
    for service in program.of_type(SERVICE):
        if service.inputs["spec"].get("type", "ClusterIP") != "ClusterIP":
            yield service


def gpus_cost_nothing_without_pods(program: Program) -> Iterator[str]:
    for pool, config in _pools(program):
        scaling = pool.inputs["autoscaling"]
        if config.get("guestAccelerators") and (scaling["totalMinNodeCount"], pool.inputs["initialNodeCount"]) != (
            0,
            0,
        ):
            yield pool.name


def there_is_a_node_for_each_replica_and_no_more(program: Program) -> Iterator[str]:
    spec = program.resources["vllm-pods"].inputs["spec"]
    wanted = spec["replicas"] + spec["strategy"]["rollingUpdate"]["maxSurge"]
    for pool, config in _pools(program):
        if config.get("guestAccelerators") and pool.inputs["autoscaling"]["totalMaxNodeCount"] != wanted:
            yield pool.name


def gpus_have_their_driver(program: Program) -> Iterator[str]:
    for pool, config in _pools(program):
        for gpu in config.get("guestAccelerators", []):
            if _at(gpu, "gpuDriverInstallationConfig.gpuDriverVersion") != "DEFAULT":
                yield pool.name


def only_vllm_runs_beside_gpus(program: Program) -> Iterator[str]:
    for pool, config in _pools(program):
        taints = [(taint["key"], taint["effect"]) for taint in config.get("taints", [])]
        if config.get("guestAccelerators") and ("nvidia.com/gpu", "NO_SCHEDULE") not in taints:
            yield pool.name
    for name, pod in _pods(program):
        tolerates = any(each["key"] == "nvidia.com/gpu" for each in pod.get("tolerations", []))
        if tolerates != (name == "vllm-pods"):
            yield name
        if tolerates and pod.get("nodeSelector") != {"cloud.google.com/gke-nodepool": "gpu"}:
            yield name


def _pods(program: Program) -> Iterator[tuple[str, dict[str, Any]]]:
    for resource in program.resources.values():
        if resource.is_kubernetes and "template" in resource.inputs.get("spec", {}):
            yield resource.name, resource.inputs["spec"]["template"]["spec"]
    for probe in yaml.safe_load(program.resources["isolation-check"].inputs["pods"]):
        yield probe["metadata"]["name"], probe["spec"]


def nothing_is_made_in_the_cluster_before_it_has_nodes(program: Program) -> Iterator[str]:
    before = {cluster.name for cluster in program.of_type(CLUSTER)} | {p.name for p in program.of_type(NODE_POOL)}
    for resource in program.resources.values():
        inside = resource.is_kubernetes or ":dynamic/kubernetes:" in resource.type
        if inside and not before <= program.waits_for(resource.name):
            yield resource.name


def nodes_have_a_way_out_and_their_rights_from_the_start(program: Program) -> Iterator[str]:
    needed = {r.name for r in program.leaves if r.type.endswith((":RouterNat", ":IAMMember"))}
    for pool in program.of_type(NODE_POOL):
        if not needed <= program.waits_for(pool.name):
            yield pool.name


def access_holds_no_credentials(program: Program) -> Iterator[str]:
    """Whoever reads the state learns where the cluster is, and no more."""
    for resource in program.resources.values():
        shown = "\n".join([*texts(resource.inputs.get("kubeconfig", ""))])
        if shown and not re.search(r"command: scripts/elastic-vllm\n +args:\n +- gke-credentials", shown):
            yield resource.name
        if re.search(r"(?m)^ *(token|password|client-key-data|client-certificate-data|auth-provider):", shown):
            yield resource.name


def images_pinned(program: Program) -> Iterator[str]:
    for name, pod in _pods(program):
        for container in [*pod.get("initContainers", []), *pod["containers"]]:
            if not re.search(r":[\w.-]+@sha256:[0-9a-f]{64}$", container["image"]):
                yield name


RULES: list[Rule] = [
    nodes_are_private,
    the_control_plane_is_open_to_nobody_by_address_alone,
    the_network_enforces_policies,
    pods_see_no_credentials_of_nodes,
    nobody_gets_a_certificate_of_a_client,
    nodes_verify_their_boot,
    kubelets_answer_nobody_unknown,
    no_default_service_account,
    nodes_have_the_least_rights,
    the_cluster_is_protected,
    versions_are_kept_up,
    the_endpoint_is_internal_and_has_the_reserved_address,
    clients_come_from_given_ranges_alone,
    gpus_cost_nothing_without_pods,
    there_is_a_node_for_each_replica_and_no_more,
    gpus_have_their_driver,
    only_vllm_runs_beside_gpus,
    nothing_is_made_in_the_cluster_before_it_has_nodes,
    nodes_have_a_way_out_and_their_rights_from_the_start,
    access_holds_no_credentials,
    images_pinned,
    names_fit,
    one_project,
    googles_services_without_an_address,
]

CONTROL_PLANE = "controlPlaneEndpointsConfig.ipEndpointsConfig.enabled"
# Rule, and a change that breaks it: an input (or, with a leading dot, an option) of a resource, and its value.
EXAMPLES: list[tuple[Rule, str, str, Any]] = [
    (nodes_are_private, "gke-cluster", "privateClusterConfig", None),
    (nodes_are_private, "gke-gpu", "networkConfig.enablePrivateNodes", False),
    (the_control_plane_is_open_to_nobody_by_address_alone, "gke-cluster", CONTROL_PLANE, True),
    (the_control_plane_is_open_to_nobody_by_address_alone, "gke-cluster", "controlPlaneEndpointsConfig", None),
    (the_network_enforces_policies, "gke-cluster", "datapathProvider", None),
    (pods_see_no_credentials_of_nodes, "gke-cluster", "workloadIdentityConfig", None),
    (pods_see_no_credentials_of_nodes, "gke-gpu", "nodeConfig.workloadMetadataConfig.mode", "GCE_METADATA"),
    (nobody_gets_a_certificate_of_a_client, "gke-cluster", "masterAuth", None),
    (nodes_verify_their_boot, "gke-gpu", "nodeConfig.shieldedInstanceConfig.enableSecureBoot", False),
    (nodes_verify_their_boot, "gke-cluster", "enableShieldedNodes", False),
    (kubelets_answer_nobody_unknown, "gke-system", "nodeConfig.kubeletConfig", {}),
    (no_default_service_account, "gke-gpu", "nodeConfig.serviceAccount", None),
    (no_default_service_account, "gke-cluster", "nodeConfig.serviceAccount", "1-compute@developer.gserviceaccount.com"),
    (nodes_have_the_least_rights, "gke-account-node", "role", "roles/editor"),
    (nodes_have_the_least_rights, "gke-account-images", "member", "allAuthenticatedUsers"),
    (the_cluster_is_protected, "gke-cluster", ".protect", False),
    (the_cluster_is_protected, "gke-cluster", "deletionProtection", False),
    (versions_are_kept_up, "gke-cluster", "minMasterVersion", "1.33"),
    (versions_are_kept_up, "gke-cluster", "releaseChannel.channel", "UNSPECIFIED"),
    (versions_are_kept_up, "gke-gpu", "management.autoUpgrade", False),
    (the_endpoint_is_internal_and_has_the_reserved_address, "gke-address", "addressType", "EXTERNAL"),
    (the_endpoint_is_internal_and_has_the_reserved_address, "gateway-service", "metadata.annotations", {}),
    (the_endpoint_is_internal_and_has_the_reserved_address, "gateway-service", "spec.loadBalancerIP", "10.10.0.200"),
    (clients_come_from_given_ranges_alone, "gateway-service", "spec.loadBalancerSourceRanges", []),
    (clients_come_from_given_ranges_alone, "gateway-service", "spec.loadBalancerSourceRanges", [EVERYONE]),
    (gpus_cost_nothing_without_pods, "gke-gpu", "autoscaling.totalMinNodeCount", 1),
    (gpus_cost_nothing_without_pods, "gke-gpu", "initialNodeCount", 1),
    (there_is_a_node_for_each_replica_and_no_more, "gke-gpu", "autoscaling.totalMaxNodeCount", 2),
    (gpus_have_their_driver, "gke-gpu", "nodeConfig.guestAccelerators", [{"type": "nvidia-a100-80gb", "count": 2}]),
    (only_vllm_runs_beside_gpus, "gke-gpu", "nodeConfig.taints", []),
    (only_vllm_runs_beside_gpus, "gateway-pods", "spec.template.spec.tolerations", [{"key": "nvidia.com/gpu"}]),
    (only_vllm_runs_beside_gpus, "vllm-pods", "spec.template.spec.nodeSelector", {}),
    (nothing_is_made_in_the_cluster_before_it_has_nodes, "cluster-check", ".depends_on", ["gke-cluster"]),
    (nodes_have_a_way_out_and_their_rights_from_the_start, "gke-cluster", ".depends_on", ["gke-nat"]),
    (access_holds_no_credentials, "cluster-provider", "kubeconfig", "users:\n- user:\n    token: ya29\n"),
    (images_pinned, "gateway-pods", "spec.template.spec.containers", [{"image": "docker.io/library/nginx:1.30.2"}]),
    (names_fit, "gke-cluster", "name", "n" * 64),
    (one_project, "gke-gpu", "project", None),
    (googles_services_without_an_address, "gke-subnetwork", "privateIpGoogleAccess", False),
]

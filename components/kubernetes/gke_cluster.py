"""A Kubernetes cluster in Google Cloud."""

from __future__ import annotations  # so that only what makes a cluster loads pulumi_gcp.container

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pulumi
import yaml
from pulumi_gcp import compute, container, projects, serviceaccount
from pulumi_gcp.provider import Provider

from components.kubernetes.api import CREDENTIALS_COMMAND
from components.kubernetes.existing_cluster import LEAST_FOR_IMAGES
from components.kubernetes.gateway import LoadBalancer
from components.kubernetes.gke_nodes import SCOPE, Nodes, gpu_pool, system_pool
from components.machine.network import cloud_nat, own_network
from components.settings.gke import SHARED_CLASSES, GkeSettings

LEAST_VERSION = (1, 34)
POD_RANGE = ("pods", "10.12.0.0/16")
SERVICE_RANGE = ("services", "10.11.0.0/22")
"""Names and ranges of the stack's own subnetwork."""
ROLES = {"node": "roles/container.defaultNodeServiceAccount", "images": "roles/artifactregistry.reader"}
"""Roles of the nodes' account: to write logs and metrics, and to read images."""
LONGEST_ACCOUNT = 30


@dataclass(frozen=True, kw_only=True)
class GkeClusterArgs:
    """The cluster, and what must succeed before it costs money."""

    settings: GkeSettings
    after: Sequence[pulumi.Resource] = ()


class GkeCluster(pulumi.ComponentResource):
    """A cluster runs with private nodes and a network that enforces NetworkPolicies, and an address is reserved.

    No node has an external address. The control plane answers only to whom IAM lets in, or has an address for the given
    ranges alone. Nodes with GPUs come as vLLM's pods need them, and go again. Google and Pulumi refuse to delete the
    cluster until its protection is lifted. Everything in the cluster is left to other components.
    """

    kubeconfig: pulumi.Output[str]
    """Access to the cluster with the credentials of the user who runs the program; it holds none itself."""
    address: pulumi.Output[str]
    """Address that clients connect to; it outlives the load balancer."""
    load_balancer: LoadBalancer
    resources: list[pulumi.Resource]
    """Resources that must exist before anything can run in the cluster."""

    def __init__(self, name: str, args: GkeClusterArgs, opts: pulumi.ResourceOptions | None = None) -> None:
        super().__init__("elastic-vllm:index:GkeCluster", name, None, opts)
        settings = args.settings
        provider = Provider(
            f"{name}-provider",
            project=settings.project,
            region=settings.region,
            zone=settings.zone,
            opts=pulumi.ResourceOptions(parent=self),
        )
        child = pulumi.ResourceOptions(parent=self, provider=provider)
        nat: list[pulumi.Resource] = []
        if settings.network:
            network: pulumi.Input[str] = settings.network
            subnetwork: pulumi.Input[str] = settings.subnetwork
        else:
            network, subnetwork = own_network(name, settings, child, (POD_RANGE, SERVICE_RANGE))
            if settings.cloud_nat:
                nat = cloud_nat(name, settings, network, subnetwork, child)
        self.address = compute.Address(
            f"{name}-address",
            name=settings.name,
            project=settings.project,
            region=settings.region,
            address_type="EXTERNAL" if settings.external_address else "INTERNAL",
            subnetwork=None if settings.external_address else subnetwork,
            opts=child,
        ).address
        self.load_balancer = LoadBalancer(address=self.address, internal=not settings.external_address)
        account, granted = _account(name, settings, child)
        cluster = container.Cluster(
            f"{name}-cluster",
            **_cluster(settings, network, subnetwork, account),
            opts=pulumi.ResourceOptions.merge(
                child,
                pulumi.ResourceOptions(
                    depends_on=[*nat, *granted, *args.after],
                    protect=settings.protect,
                    # The name is taken while the old one is there.
                    delete_before_replace=True,
                    # Of the pool that Google makes with a cluster, and that is removed at once.
                    ignore_changes=["initialNodeCount", "nodeConfig"],
                ),
            ),
        )
        nodes = Nodes(settings=settings, cluster=cluster, account=account, options=child)
        # A parked stack has no pool with GPUs, and so no node that costs: it is deleted after vLLM's pods have ended.
        pools = [system_pool(name, nodes), *([] if settings.parked else [gpu_pool(name, nodes)])]
        self.resources = [cluster, *pools]
        self.kubeconfig = _kubeconfig(settings, cluster)
        self.register_outputs({"address": self.address})


def _account(
    name: str, settings: GkeSettings, child: pulumi.ResourceOptions
) -> tuple[pulumi.Input[str], list[pulumi.Resource]]:
    """The nodes' service account, and its roles: Google's default account may do almost anything."""
    if settings.service_account:
        return settings.service_account, []
    account = serviceaccount.Account(
        f"{name}-account",
        account_id=account_id(settings.name),
        project=settings.project,
        display_name=f"Nodes of {settings.name}",
        opts=child,
    )
    roles: list[pulumi.Resource] = [
        projects.IAMMember(
            f"{name}-account-{label}",
            project=settings.project,
            role=role,
            member=account.email.apply(lambda email: f"serviceAccount:{email}"),
            opts=child,
        )
        for label, role in ROLES.items()
    ]
    return account.email, roles


def account_id(name: str) -> str:
    """Return the name of a service account, which may have 30 characters."""
    if len(name) <= LONGEST_ACCOUNT:
        return name
    return f"{name[: LONGEST_ACCOUNT - 9]}-{hashlib.sha256(name.encode()).hexdigest()[:8]}"


def _cluster(
    settings: GkeSettings, network: pulumi.Input[str], subnetwork: pulumi.Input[str], account: pulumi.Input[str]
) -> dict[str, Any]:
    """Return the inputs of the cluster."""
    if settings.network:
        pods, services = settings.pod_range or None, settings.service_range or None
    else:
        pods, services = POD_RANGE[0], SERVICE_RANGE[0]
    ranges = settings.control_plane_source_ranges
    shared_files = settings.kubernetes.weights_storage_class.endswith(SHARED_CLASSES)
    return {
        "name": settings.name,
        "project": settings.project,
        "location": settings.location,
        "node_locations": [settings.zone] if settings.regional else None,
        "network": network,
        "subnetwork": subnetwork,
        "networking_mode": "VPC_NATIVE",
        "ip_allocation_policy": container.ClusterIpAllocationPolicyArgs(
            cluster_secondary_range_name=pods, services_secondary_range_name=services
        ),
        "datapath_provider": "ADVANCED_DATAPATH",  # Dataplane V2, which enforces NetworkPolicies
        "private_cluster_config": container.ClusterPrivateClusterConfigArgs(enable_private_nodes=True),
        "control_plane_endpoints_config": container.ClusterControlPlaneEndpointsConfigArgs(
            dns_endpoint_config=container.ClusterControlPlaneEndpointsConfigDnsEndpointConfigArgs(
                allow_external_traffic=not ranges
            ),
            ip_endpoints_config=container.ClusterControlPlaneEndpointsConfigIpEndpointsConfigArgs(enabled=bool(ranges)),
        ),
        "master_authorized_networks_config": container.ClusterMasterAuthorizedNetworksConfigArgs(
            cidr_blocks=[
                container.ClusterMasterAuthorizedNetworksConfigCidrBlockArgs(cidr_block=each) for each in ranges
            ],
            gcp_public_cidrs_access_enabled=False,
        )
        if ranges
        else None,
        "master_auth": container.ClusterMasterAuthArgs(
            client_certificate_config=container.ClusterMasterAuthClientCertificateConfigArgs(
                issue_client_certificate=False
            )
        ),
        "workload_identity_config": container.ClusterWorkloadIdentityConfigArgs(
            workload_pool=f"{settings.project}.svc.id.goog"
        ),
        "release_channel": container.ClusterReleaseChannelArgs(channel="REGULAR"),
        "min_master_version": ".".join(
            map(str, LEAST_FOR_IMAGES if settings.kubernetes.weights_image else LEAST_VERSION)
        ),
        "enable_shielded_nodes": True,
        "enable_l4_ilb_subsetting": True,  # Google's advice for internal load balancers; it can't be turned off again
        "database_encryption": container.ClusterDatabaseEncryptionArgs(state="ENCRYPTED", key_name=settings.kms_key)
        if settings.kms_key
        else None,
        "addons_config": container.ClusterAddonsConfigArgs(
            gcp_filestore_csi_driver_config=container.ClusterAddonsConfigGcpFilestoreCsiDriverConfigArgs(
                enabled=shared_files
            )
        ),
        # A pool of its own can be changed without the cluster; the one that comes with it is removed.
        "remove_default_node_pool": True,
        "initial_node_count": 1,
        "node_config": container.ClusterNodeConfigArgs(
            service_account=account,
            oauth_scopes=[SCOPE],
            shielded_instance_config=container.ClusterNodeConfigShieldedInstanceConfigArgs(
                enable_secure_boot=True, enable_integrity_monitoring=True
            ),
            workload_metadata_config=container.ClusterNodeConfigWorkloadMetadataConfigArgs(mode="GKE_METADATA"),
        ),
        "resource_labels": dict(settings.labels),
        "deletion_protection": settings.protect,
    }


def _kubeconfig(settings: GkeSettings, cluster: container.Cluster) -> pulumi.Output[str]:
    if not settings.control_plane_source_ranges:
        # Its certificate is of a public CA.
        host = cluster.control_plane_endpoints_config["dns_endpoint_config"]["endpoint"]
        return host.apply(lambda found: kubeconfig(settings.name, str(found)))
    # Beside the CA's certificate there are secrets, which this cluster has none of.
    ca: pulumi.Output[str | None] = pulumi.Output.unsecret(cluster.master_auth["cluster_ca_certificate"])
    return pulumi.Output.all(cluster.endpoint, ca).apply(lambda found: kubeconfig(settings.name, *found))


def kubeconfig(name: str, host: str, ca: str = "") -> str:
    """Return a kubeconfig with the context `name`; `ca` is in base64, and empty for a public one.

    A command of this project asks Google for a token, whoever runs it: no token is in here.
    """
    server = {"server": f"https://{host}", **({"certificate-authority-data": ca} if ca else {})}
    command, *arguments = CREDENTIALS_COMMAND
    credentials = {
        "apiVersion": "client.authentication.k8s.io/v1",
        "command": command,
        "args": arguments,
        "interactiveMode": "Never",
        "provideClusterInfo": False,
        "installHint": "run Pulumi in the directory of this project, after scripts/setup",
    }
    document = {
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [{"name": name, "cluster": server}],
        "users": [{"name": name, "user": {"exec": credentials}}],
        "contexts": [{"name": name, "context": {"cluster": name, "user": name}}],
        "current-context": name,
    }
    return yaml.safe_dump(document, sort_keys=False)

"""The nodes of a cluster in Google Cloud."""

from __future__ import annotations  # so that only what makes a cluster loads pulumi_gcp.container

from dataclasses import dataclass
from typing import Any

import pulumi
from pulumi_gcp import container

from components.settings.gke import GPU, GPU_RESOURCE, SYSTEM, GkeSettings

SYSTEM_MACHINE = "e2-standard-4"
SYSTEM_VCPUS, SYSTEM_MEMORY_GIB = 4, 16
SYSTEM_NODES = (1, 3)
"""The fewest and the most nodes for all but vLLM."""
SYSTEM_DISK_GB = 100
SCOPE = "https://www.googleapis.com/auth/cloud-platform"
"""Access scope of the nodes, whose rights are those of their account's roles."""
FLEX_START_SECONDS = 7 * 24 * 3600
"""Google's limit (cloud.google.com/kubernetes-engine/docs/concepts/dws)."""


@dataclass(frozen=True, kw_only=True)
class Nodes:
    """Inputs that all node pools have in common."""

    settings: GkeSettings
    cluster: container.Cluster
    account: pulumi.Input[str]
    """Email of the nodes' service account."""
    options: pulumi.ResourceOptions

    def pool(self, resource: str, name: str, config: dict[str, Any], **inputs: Any) -> container.NodePool:
        """Declare a pool in the stack's zone: private nodes with a verified boot, whose pods see no metadata of theirs.

        What it grows or shrinks to is not the program's business.
        """
        settings = self.settings
        shielded = container.NodePoolNodeConfigShieldedInstanceConfigArgs(
            enable_secure_boot=True, enable_integrity_monitoring=True
        )
        return container.NodePool(
            resource,
            name=name,
            project=settings.project,
            location=settings.location,
            cluster=self.cluster.name,
            node_locations=[settings.zone],
            network_config=container.NodePoolNetworkConfigArgs(enable_private_nodes=True),
            node_config=container.NodePoolNodeConfigArgs(
                image_type="COS_CONTAINERD",
                service_account=self.account,
                oauth_scopes=[SCOPE],
                metadata={"disable-legacy-endpoints": "true"},
                resource_labels=dict(settings.labels),
                tags=[settings.name],
                shielded_instance_config=shielded,
                workload_metadata_config=container.NodePoolNodeConfigWorkloadMetadataConfigArgs(mode="GKE_METADATA"),
                kubelet_config=container.NodePoolNodeConfigKubeletConfigArgs(
                    insecure_kubelet_readonly_port_enabled="FALSE"
                ),
                gvnic=container.NodePoolNodeConfigGvnicArgs(enabled=True),
                **config,
            ),
            **inputs,
            opts=pulumi.ResourceOptions.merge(
                self.options,
                pulumi.ResourceOptions(
                    # Its name and its quota are exclusive.
                    delete_before_replace=True,
                    # Bundled Local SSDs: nobody asked for them, and to the provider that is a difference.
                    ignore_changes=[
                        "initialNodeCount",
                        "nodeConfig.ephemeralStorageLocalSsdConfig",
                        "nodeConfig.localNvmeSsdBlockConfig",
                    ],
                ),
            ),
        )


def system_pool(name: str, nodes: Nodes) -> container.NodePool:
    """The nodes for all but vLLM: the gateway, Kubernetes' own pods, and the download of weights."""
    least, most = SYSTEM_NODES
    return nodes.pool(
        f"{name}-{SYSTEM}",
        SYSTEM,
        {"machine_type": SYSTEM_MACHINE, "disk_size_gb": SYSTEM_DISK_GB, "disk_type": "pd-balanced"},
        initial_node_count=least,
        autoscaling=container.NodePoolAutoscalingArgs(
            total_min_node_count=least, total_max_node_count=most, location_policy="ANY"
        ),
        management=container.NodePoolManagementArgs(auto_repair=True, auto_upgrade=True),
    )


def gpu_pool(name: str, nodes: Nodes) -> container.NodePool:
    """The nodes for vLLM, with GPUs and their driver: one for each pod, and none without pods."""
    settings = nodes.settings
    spare = settings.kubernetes.max_surge
    gpus = container.NodePoolNodeConfigGuestAcceleratorArgs(
        type=settings.accelerator,
        count=settings.machine_type.gpus,
        gpu_driver_installation_config=container.NodePoolNodeConfigGuestAcceleratorGpuDriverInstallationConfigArgs(
            gpu_driver_version="DEFAULT"
        ),
    )
    taint = container.NodePoolNodeConfigTaintArgs(key=GPU_RESOURCE, value="present", effect="NO_SCHEDULE")
    return nodes.pool(
        f"{name}-{GPU}",
        GPU,
        {
            "machine_type": settings.machine_type.name,
            "disk_size_gb": settings.boot_disk_gb,
            "disk_type": settings.machine_type.disk_type,
            "guest_accelerators": [gpus],
            "taints": [taint],
            **provisioning(settings),
        },
        initial_node_count=0,
        autoscaling=container.NodePoolAutoscalingArgs(
            total_min_node_count=0, total_max_node_count=settings.machines, location_policy="ANY"
        ),
        # Google repairs no flex-start nodes: each has an end.
        management=container.NodePoolManagementArgs(
            auto_repair=settings.provisioning_model != "FLEX_START", auto_upgrade=True
        ),
        # Without spare GPUs, a node has to go before its successor comes.
        upgrade_settings=container.NodePoolUpgradeSettingsArgs(
            strategy="SURGE", max_surge=spare, max_unavailable=0 if spare else 1
        ),
    )


def provisioning(settings: GkeSettings) -> dict[str, Any]:
    """Return how Google provides the nodes."""
    if settings.provisioning_model == "SPOT":
        return {"spot": True}
    affinity = container.NodePoolNodeConfigReservationAffinityArgs
    if settings.provisioning_model == "FLEX_START":
        return {
            "flex_start": True,
            "max_run_duration": f"{FLEX_START_SECONDS}s",
            "reservation_affinity": affinity(consume_reservation_type="NO_RESERVATION"),
        }
    if settings.reservation:
        return {
            "reservation_affinity": affinity(
                consume_reservation_type="SPECIFIC_RESERVATION",
                key="compute.googleapis.com/reservation-name",
                values=[settings.reservation],
            )
        }
    return {}

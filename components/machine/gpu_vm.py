"""A VM with GPUs in Google Cloud, and the disk for weights that outlives it."""

from __future__ import annotations  # so that only what makes a VM loads pulumi_gcp.compute, which takes a second

from collections.abc import Sequence
from dataclasses import dataclass, replace

import pulumi
import pulumi_tls as tls
from pulumi_gcp import compute

from components import render
from components.machine.gpu_driver import kernel_script
from components.machine.host import Host
from components.machine.network import Network
from components.machine.packet_filter import PacketFilter
from components.machine.ssh import STANDARD_SSH_PORT, SshKey
from components.serving.model_weights import DOWNLOAD_UID
from components.serving.vllm_process import NGINX_UID, VLLM_UID
from components.settings.gcp import GcpSettings

# How long the provider waits for a flex-start VM, where Google waits for capacity; its own time-out is 20 minutes.
FLEX_START_WAIT = "120m"
FLEX_START_HOURS = 168
"""Google's limit: seven days (cloud.google.com/compute/docs/instances/about-flex-start-vms)."""
# A VM takes minutes to boot, and again when it gets another kernel. pulumi-command waits up to 5 s between its tries,
# and each takes up to 10 s: 5 to 15 minutes.
DIAL_ERRORS = 60
METADATA = "http://metadata.google.internal/computeMetadata/v1/instance"
DRAIN_SECONDS = 50
"""Seconds to drain, of the 60 that Google gives before host maintenance; a preemption gives at most 30."""


@dataclass(frozen=True, kw_only=True)
class GpuVmArgs:
    """The VM, its disks, and how it is reached."""

    settings: GcpSettings
    network: Network
    weights_directory: str
    """Directory where the VM mounts the disk for weights."""
    ssh_user: str
    ssh_key: SshKey
    prefix: str
    directory: str
    after: Sequence[pulumi.Resource] = ()
    """Checks that must succeed before a VM costs money."""


class GpuVm(pulumi.ComponentResource):
    """A VM with GPUs runs, reached over SSH with a host key that was set at its creation, weights disk mounted.

    No container reaches the cloud's metadata. Before Google stops the VM, Nginx finishes its requests. The disk for
    weights stays when the VM is replaced or parked, and by default when the stack is destroyed. A change that Google
    can't make in place replaces the VM. Other components install GPU drivers and containers.
    """

    host: Host
    """The VM as a host; not set while parked."""
    address: pulumi.Output[str]
    """Address that clients connect to; it outlives the VM."""

    def __init__(self, name: str, args: GpuVmArgs, opts: pulumi.ResourceOptions | None = None) -> None:
        super().__init__("elastic-vllm:index:GpuVm", name, None, opts)
        settings = args.settings
        self.address = args.network.address
        child = pulumi.ResourceOptions(parent=self, provider=args.network.provider)
        host_key = tls.PrivateKey(f"{name}-host-key", algorithm="ED25519", opts=pulumi.ResourceOptions(parent=self))
        weights: pulumi.Input[str] = settings.weights_disk
        if not settings.weights_disk:
            weights = compute.Disk(
                f"{name}-weights",
                name=f"{settings.name}-weights",
                project=settings.project,
                zone=settings.zone,
                type=settings.machine_type.disk_type,
                size=settings.weights_disk_gb,
                labels=dict(settings.labels),
                opts=pulumi.ResourceOptions.merge(
                    child,
                    pulumi.ResourceOptions(
                        retain_on_delete=settings.keep_weights_disk,
                        # The name is taken while the old disk is there. So a change that only another disk can bring
                        # fails before the VM is touched.
                        delete_before_replace=False,
                    ),
                ),
            ).name
        if not settings.parked:
            instance = self._instance(name, args, host_key, weights, child)
            self.host = self._host(name, args, host_key, instance)
        self.register_outputs({"address": self.address})

    def _instance(
        self,
        name: str,
        args: GpuVmArgs,
        host_key: tls.PrivateKey,
        weights: pulumi.Input[str],
        child: pulumi.ResourceOptions,
    ) -> compute.Instance:
        settings = args.settings
        keys = pulumi.Output.all(host_key.private_key_openssh, host_key.public_key_openssh)
        start: pulumi.Output[str] = pulumi.Output.secret(
            keys.apply(lambda pair: user_data(args.ssh_user, settings.ssh_public_key, pair[0], pair[1].strip()))
        )
        external = [compute.InstanceNetworkInterfaceAccessConfigArgs(nat_ip=self.address)]
        return compute.Instance(
            f"{name}-instance",
            name=settings.name,
            project=settings.project,
            zone=settings.zone,
            machine_type=settings.machine_type.name,
            boot_disk=compute.InstanceBootDiskArgs(
                initialize_params=compute.InstanceBootDiskInitializeParamsArgs(
                    image=settings.image,
                    size=settings.boot_disk_gb,
                    type=settings.machine_type.disk_type,
                    labels=dict(settings.labels),
                ),
            ),
            attached_disks=[compute.InstanceAttachedDiskArgs(source=weights, device_name=weights_device(settings))],
            network_interfaces=[
                compute.InstanceNetworkInterfaceArgs(
                    subnetwork=args.network.subnetwork,
                    nic_type="GVNIC",
                    network_ip=None if settings.external_address else self.address,
                    access_configs=external if settings.external_address else [],
                )
            ],
            scheduling=scheduling(settings.provisioning_model),
            reservation_affinity=_reservation_affinity(settings.reservation) if settings.reservation else None,
            shielded_instance_config=compute.InstanceShieldedInstanceConfigArgs(
                enable_secure_boot=True, enable_vtpm=True, enable_integrity_monitoring=True
            ),
            service_account=compute.InstanceServiceAccountArgs(
                email=settings.service_account, scopes=["https://www.googleapis.com/auth/cloud-platform"]
            )
            if settings.service_account
            else None,
            metadata={
                # The host's private key is in it: anyone with read access to the VM's metadata can read it.
                "user-data": start,
                "block-project-ssh-keys": "TRUE",
                "enable-oslogin": "FALSE",
                "serial-port-enable": "FALSE",
            },
            labels=dict(settings.labels),
            tags=[settings.name],
            deletion_protection=settings.deletion_protection,
            allow_stopping_for_update=False,
            opts=pulumi.ResourceOptions.merge(
                child,
                pulumi.ResourceOptions(
                    depends_on=[*args.network.resources, *args.after],
                    # Name, address, disk and quota are exclusive: the old VM must go first.
                    delete_before_replace=True,
                    # Google changes these only while the VM is stopped, which Local SSD forbids; and a changed
                    # user-data would not be run again.
                    replace_on_changes=[
                        "machineType",
                        "scheduling",
                        "shieldedInstanceConfig",
                        "serviceAccount",
                        'metadata["user-data"]',
                        "attachedDisks",
                        "networkInterfaces",
                        "reservationAffinity",
                    ],
                    # Bundled Local SSDs: nobody asked for them, and to the provider that is a difference.
                    ignore_changes=["scratchDisks"],
                    custom_timeouts=pulumi.CustomTimeouts(create=FLEX_START_WAIT)
                    if settings.provisioning_model == "FLEX_START"
                    else None,
                ),
            ),
        )

    def _host(self, name: str, args: GpuVmArgs, host_key: tls.PrivateKey, instance: compute.Instance) -> Host:
        """The VM as a host, once it has booted, guards its metadata and has its weights disk."""
        through_tunnel = args.settings.ssh_via == "iap"
        host = Host(
            address="127.0.0.1" if through_tunnel else self.address,
            port=args.settings.tunnel_port if through_tunnel else STANDARD_SSH_PORT,
            user=args.ssh_user,
            ssh_key=args.ssh_key,
            host_key=host_key.public_key_openssh.apply(str.strip),
            identity=instance.instance_id,
            prefix=args.prefix,
            directory=args.directory,
            cleans_up=False,
            machine=instance,
            bastion=args.settings.bastion,
            dial_errors=DIAL_ERRORS,
            ready=[instance],
        )
        booted = host.command(
            f"{name}-booted",
            render.script(
                "host/wait-for-cloud-init.sh",
                "host/install-drain.sh",
                "host/mount-weights-disk.sh",
                prefix=args.prefix,
                metadata=METADATA,
                drain_seconds=DRAIN_SECONDS,
                device=f"/dev/disk/by-id/google-{weights_device(args.settings)}",
                directory=args.weights_directory,
                # It runs again once the disk has grown.
                disk_gb=args.settings.weights_disk_gb,
            ),
            parent=self,
        )
        guard = PacketFilter(
            f"{name}-metadata-guard",
            host,
            ["host/guard-metadata.sh"],
            parent=self,
            depends_on=[booted],
            users=f"{VLLM_UID} {NGINX_UID} {DOWNLOAD_UID}",
        )
        kernel = host.command(f"{name}-kernel", kernel_script(), parent=self, depends_on=[booted, guard])
        return replace(host, ready=[kernel])


def user_data(user: str, authorized_key: str, host_key: str, host_public_key: str) -> str:
    """Return cloud-init's work at the VM's first boot: the user, the host's key, and never another key."""
    return render.template(
        "host/cloud-config.yaml.j2",
        user=user,
        authorized_key=authorized_key,
        host_key=host_key,
        host_public_key=host_public_key,
    )


def weights_device(settings: GcpSettings) -> str:
    """Return the VM's name for the disk for weights: /dev/disk/by-id/google-NAME."""
    return f"{settings.name}-weights"


def scheduling(provisioning_model: str) -> compute.InstanceSchedulingArgs:
    """Return the VM's provisioning, and its maintenance behaviour: VMs with GPUs can't be moved while they run."""
    if provisioning_model == "SPOT":
        return compute.InstanceSchedulingArgs(
            provisioning_model="SPOT",
            preemptible=True,
            automatic_restart=False,
            on_host_maintenance="TERMINATE",
            # Stopped, it would still cost its disks, and with Local SSD never start again.
            instance_termination_action="DELETE",
        )
    if provisioning_model == "FLEX_START":
        return compute.InstanceSchedulingArgs(
            provisioning_model="FLEX_START",
            automatic_restart=False,
            on_host_maintenance="TERMINATE",
            instance_termination_action="DELETE",
            max_run_duration=compute.InstanceSchedulingMaxRunDurationArgs(seconds=FLEX_START_HOURS * 3600),
        )
    if provisioning_model == "RESERVATION_BOUND":
        # Google ends the VM with its reservation.
        return compute.InstanceSchedulingArgs(
            provisioning_model="RESERVATION_BOUND",
            automatic_restart=True,
            on_host_maintenance="TERMINATE",
            instance_termination_action="DELETE",
        )
    return compute.InstanceSchedulingArgs(
        # An ordinary reservation is used by affinity.
        provisioning_model="STANDARD",
        automatic_restart=True,
        on_host_maintenance="TERMINATE",
    )


def _reservation_affinity(reservation: str) -> compute.InstanceReservationAffinityArgs:
    return compute.InstanceReservationAffinityArgs(
        type="SPECIFIC_RESERVATION",
        specific_reservation=compute.InstanceReservationAffinitySpecificReservationArgs(
            key="compute.googleapis.com/reservation-name", values=[reservation]
        ),
    )

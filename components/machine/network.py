"""Networks in Google Cloud: access to the VM, and its own access to others."""

from collections.abc import Sequence
from dataclasses import dataclass

import pulumi
from pulumi_gcp import compute
from pulumi_gcp.provider import Provider

from components.machine.ssh import STANDARD_SSH_PORT
from components.settings.acme import HTTP_PORT
from components.settings.gcp import IAP_SOURCES, GcpSettings, GoogleSettings

SUBNET_RANGE = "10.10.0.0/24"
"""Range of the stack's own subnetwork; for another range, use an existing network."""
# Lower numbers win; rules without a priority have 1000.
ALLOW_PRIORITY = 900
DENY_PRIORITY = 950


@dataclass(frozen=True, kw_only=True)
class NetworkArgs:
    """The network, and the port that is open besides SSH."""

    settings: GcpSettings
    https_port: int
    acme: bool
    """True if an ACME server connects to port 80, from an unknown address."""


class Network(pulumi.ComponentResource):
    """The VM has a subnetwork and an address that stays, and accepts HTTPS and SSH only from the given ranges.

    The subnetwork reaches Google's services without an external address, and others only with Cloud NAT. In an existing
    VPC this program manages only the firewall rules for the VM's tag, and the address. DNS is left to others.
    """

    subnetwork: pulumi.Output[str]
    """Self link of the subnetwork."""
    address: pulumi.Output[str]
    """Address that clients connect to: static, external or internal."""
    provider: Provider
    """Provider for all of the stack's resources in Google Cloud."""
    resources: list[pulumi.Resource]
    """Resources that must exist before the VM, so that it can be reached."""

    def __init__(self, name: str, args: NetworkArgs, opts: pulumi.ResourceOptions | None = None) -> None:
        super().__init__("elastic-vllm:index:Network", name, None, opts)
        settings = args.settings
        # Each resource sets its project too: a change of the provider's project alone would replace nothing.
        self.provider = Provider(
            f"{name}-provider",
            project=settings.project,
            region=settings.region,
            zone=settings.zone,
            opts=pulumi.ResourceOptions(parent=self),
        )
        child = pulumi.ResourceOptions(parent=self, provider=self.provider)
        if settings.network:
            network: pulumi.Input[str] = settings.network
            self.subnetwork = pulumi.Output.from_input(settings.subnetwork)
        else:
            network, self.subnetwork = own_network(name, settings, child)
        ssh_source_ranges = IAP_SOURCES if settings.ssh_via == "iap" else settings.ssh_source_ranges
        rules = {
            "https": (args.https_port, settings.https_source_ranges),
            "ssh": (STANDARD_SSH_PORT, ssh_source_ranges),
        }
        if args.acme:
            rules["acme"] = (HTTP_PORT, ("0.0.0.0/0",))
        # The provider would try to move a rule to another network; its name is taken while it exists.
        moved = pulumi.ResourceOptions(replace_on_changes=["network"], delete_before_replace=True)
        rule = pulumi.ResourceOptions.merge(child, moved)
        firewalls = [
            compute.Firewall(
                f"{name}-{role}",
                name=f"{settings.name}-{role}",
                project=settings.network_project,
                network=network,
                direction="INGRESS",
                source_ranges=list(sources),
                target_tags=[settings.name],
                allows=[compute.FirewallAllowArgs(protocol="tcp", ports=[str(port)])],
                priority=ALLOW_PRIORITY,
                opts=rule,
            )
            for role, (port, sources) in rules.items()
        ]
        if settings.network:
            # Other rules of that network, such as default-allow-ssh, could permit more than these.
            firewalls.append(
                compute.Firewall(
                    f"{name}-no-others",
                    name=f"{settings.name}-no-others",
                    project=settings.network_project,
                    network=network,
                    direction="INGRESS",
                    source_ranges=["0.0.0.0/0"],
                    target_tags=[settings.name],
                    denies=[compute.FirewallDenyArgs(protocol="all")],
                    priority=DENY_PRIORITY,
                    opts=rule,
                )
            )
        address = compute.Address(
            f"{name}-address",
            name=settings.name,
            project=settings.project,
            region=settings.region,
            address_type="EXTERNAL" if settings.external_address else "INTERNAL",
            subnetwork=None if settings.external_address else self.subnetwork,
            opts=child,
        )
        self.address = address.address
        nat = cloud_nat(name, settings, network, self.subnetwork, child) if settings.cloud_nat else []
        self.resources = [*firewalls, *nat]
        self.register_outputs({"address": self.address, "subnetwork": self.subnetwork})


def own_network(
    name: str,
    settings: GoogleSettings,
    child: pulumi.ResourceOptions,
    secondary_ranges: Sequence[tuple[str, str]] = (),
) -> tuple[pulumi.Output[str], pulumi.Output[str]]:
    """Create a VPC with one subnetwork, and return their self links; `secondary_ranges` are its names and ranges."""
    network = compute.Network(
        f"{name}-vpc", name=settings.name, project=settings.project, auto_create_subnetworks=False, opts=child
    )
    subnetwork = compute.Subnetwork(
        f"{name}-subnetwork",
        name=settings.name,
        project=settings.project,
        region=settings.region,
        network=network.self_link,
        ip_cidr_range=SUBNET_RANGE,
        secondary_ip_ranges=[
            compute.SubnetworkSecondaryIpRangeArgs(range_name=range_name, ip_cidr_range=range_)
            for range_name, range_ in secondary_ranges
        ]
        or None,
        private_ip_google_access=True,
        opts=child,
    )
    return network.self_link, subnetwork.self_link


def cloud_nat(
    name: str,
    settings: GoogleSettings,
    network: pulumi.Input[str],
    subnetwork: pulumi.Input[str],
    child: pulumi.ResourceOptions,
) -> list[pulumi.Resource]:
    """Create a way out for machines of the subnetwork that have no external address."""
    router = compute.Router(
        f"{name}-router",
        name=settings.name,
        project=settings.project,
        region=settings.region,
        network=network,
        opts=child,
    )
    nat = compute.RouterNat(
        f"{name}-nat",
        name=settings.name,
        project=settings.project,
        region=settings.region,
        router=router.name,
        nat_ip_allocate_option="AUTO_ONLY",
        source_subnetwork_ip_ranges_to_nat="LIST_OF_SUBNETWORKS",
        subnetworks=[compute.RouterNatSubnetworkArgs(name=subnetwork, source_ip_ranges_to_nats=["ALL_IP_RANGES"])],
        opts=child,
    )
    return [router, nat]

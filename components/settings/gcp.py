"""The settings of target gcp: what Google Cloud provisions, checked before anything is."""

import ipaddress
import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from components.catalogue.machine_types import MachineType, load_machine_types
from components.catalogue.models import Model
from components.machine.host import STANDARD_SSH_PORT, Bastion
from components.settings import ssh
from components.settings.problems import Problems

PROJECT = re.compile(r"[a-z][a-z0-9-]{4,28}[a-z0-9]")
RESOURCE = re.compile(r"[a-z]([a-z0-9-]{0,61}[a-z0-9])?")
SERVICE_ACCOUNT = re.compile(r"[a-z0-9-]+@[a-z0-9.-]+\.iam\.gserviceaccount\.com")
LABEL = re.compile(r"(?P<key>[a-z][a-z0-9_-]{0,62})=(?P<value>[a-z0-9_-]{0,63})")
BASTION_ADDRESS = re.compile(r"(?P<user>[a-z_][a-z0-9_-]*)@(?P<host>[A-Za-z0-9][A-Za-z0-9.-]*)(:(?P<port>\d{1,5}))?")
# Google's Identity-Aware Proxy forwards TCP from these addresses (cloud.google.com/iap/docs/using-tcp-forwarding).
IAP_SOURCES = ("35.235.240.0/20",)
# A VM of flex-start lives at most seven days (cloud.google.com/compute/docs/instances/about-flex-start-vms).
MOST_RUN_HOURS = 168
# Wider ranges are nobody's own.
LEAST_PREFIX = 8
EVERYONE = "0.0.0.0/0"
MOST_PORT = 65535

# Only the capacities named here offer the machine type (note in Google's table of A3 High machine types).
CAPACITY_OF = dict.fromkeys(("a3-highgpu-1g", "a3-highgpu-2g", "a3-highgpu-4g"), ("spot", "flex-start"))

IMAGE = re.compile(r"projects/[a-z][a-z0-9.:-]+/global/images/[a-z][a-z0-9-]+")

KEYS = frozenset(
    {
        "gcpProject",
        "zone",
        "machineType",
        "capacity",
        "reservation",
        "maxRunHours",
        "osImage",
        "vmImage",
        "network",
        "subnetwork",
        "subnetCidr",
        "externalAddress",
        "httpsSources",
        "sshVia",
        "sshSources",
        "bastion",
        "bastionHostKey",
        "tunnelPort",
        "cloudNat",
        "bootDiskGb",
        "weightsDiskGb",
        "weightsDisk",
        "keepWeightsDisk",
        "labels",
        "deletionProtection",
        "serviceAccount",
        "parked",
    }
)
"""Settings that only target gcp has."""
OTHERS = frozenset({"host", "sshPort", "sshHostKey", "gpuCount", "gpuMemoryGib"})
"""Settings that target gcp decides itself."""


@dataclass(frozen=True, kw_only=True)
class GcpSettings:
    """What is provisioned, and where. Pulumi.yaml describes each setting."""

    name: str
    """Of the VM; every other name in Google Cloud begins with it."""
    project: str
    zone: str
    machine_type: MachineType
    capacity: str
    reservation: str
    max_run_hours: int
    """Hours that a flex-start VM lives; 0 for other capacities."""
    image: str
    """Of the boot disk: projects/PROJECT/global/images/NAME."""
    network: str
    """Name of an existing VPC; empty: one of the stack's own."""
    subnetwork: str
    subnet_cidr: str
    external_address: bool
    https_sources: Sequence[str]
    ssh_via: str
    ssh_sources: Sequence[str]
    bastion: Bastion | None
    tunnel_port: int
    cloud_nat: bool
    boot_disk_gb: int
    weights_disk_gb: int
    weights_disk: str
    """Name of a disk that exists and is not managed here; empty: one of the stack's own."""
    keep_weights_disk: bool
    labels: Mapping[str, str]
    deletion_protection: bool
    service_account: str
    """Email; empty: none."""
    parked: bool
    ssh_public_key: str
    """Of sshPrivateKeyPath."""

    @property
    def region(self) -> str:
        """The zone's region."""
        return self.zone.rpartition("-")[0]


def gcp_settings(problems: Problems, stack: str, private_key: Path, project_directory: Path) -> GcpSettings:
    """Read and check the settings of target gcp; a relative path counts from `project_directory`."""
    text, integer, boolean = problems.text, problems.integer, problems.boolean
    values = problems.values
    name = f"elastic-vllm-{stack}"
    if stack.endswith("-"):
        problems.found.append(f"stack name {stack!r}: ends in '-', as no name in Google Cloud may; use another")
    own_subnet = not values["network"] and not values["subnetwork"]
    settings = GcpSettings(
        name=name,
        project=text("gcpProject", PROJECT, "set it to the project's id (6 to 30 of a-z, 0-9 and '-')"),
        zone=text("zone", re.compile(r"[a-z]+-[a-z]+\d+-[a-z0-9]+"), "use a zone's name, e.g. us-central1-a"),
        machine_type=_machine_type(problems),
        capacity=problems.choice("capacity", ("standard", "spot", "flex-start", "reservation")),
        reservation=_optional(problems, "reservation", RESOURCE, "use the reservation's name"),
        max_run_hours=integer("maxRunHours", 1, MOST_RUN_HOURS) if values["capacity"] == "flex-start" else 0,
        image=_image(problems),
        network=_optional(problems, "network", RESOURCE, "use the name of a VPC in gcpProject"),
        subnetwork=_optional(problems, "subnetwork", RESOURCE, "use the name of a subnetwork in the zone's region"),
        subnet_cidr=_subnet(problems) if own_subnet else "",
        external_address=boolean("externalAddress"),
        https_sources=_sources(problems, "httpsSources", f"for everyone write {EVERYONE}"),
        ssh_via=problems.choice("sshVia", ("address", "bastion", "iap")),
        ssh_sources=_sources(problems, "sshSources", "take a bastion, or sshVia: iap"),
        bastion=_bastion(problems, project_directory),
        tunnel_port=integer("tunnelPort", 1024, 65535),
        cloud_nat=boolean("cloudNat"),
        boot_disk_gb=integer("bootDiskGb", 80, 65536),
        weights_disk_gb=integer("weightsDiskGb", 10, 65536),
        weights_disk=_optional(problems, "weightsDisk", RESOURCE, "use the name of a disk in the zone"),
        keep_weights_disk=boolean("keepWeightsDisk"),
        labels=_labels(problems),
        deletion_protection=boolean("deletionProtection"),
        service_account=_optional(
            problems, "serviceAccount", SERVICE_ACCOUNT, "use NAME@PROJECT.iam.gserviceaccount.com"
        ),
        parked=boolean("parked"),
        ssh_public_key=ssh.public_key(problems, private_key),
    )
    _contradictions(problems, settings)
    return settings


def _machine_type(problems: Problems) -> MachineType:
    types = load_machine_types()
    value = problems.values["machineType"]
    if value in types:
        return types[value]
    family = [name for name in types if name.split("-")[:2] == value.split("-")[:2]]
    problems.add(
        "machineType", "no machine type with GPUs that this program knows", f"use {', '.join(family or types)}"
    )
    return types["a2-ultragpu-2g"]


def _image(problems: Problems) -> str:
    """One image, not a family: the provider takes every image of most families for a change, which replaces the VM."""
    problems.choice("osImage", ("accelerator", "plain"))
    fix = "run `scripts/elastic-vllm pin --stack STACK`: it records the newest of osImage's family"
    return problems.text("vmImage", IMAGE, fix)


def _optional(problems: Problems, key: str, pattern: re.Pattern[str], fix: str) -> str:
    return problems.text(key, pattern, fix) if problems.values[key] else ""


def _sources(problems: Problems, key: str, instead: str) -> tuple[str, ...]:
    """CIDR ranges of IPv4, none of them too wide; for HTTPS also everyone, in these words only."""
    fix = 'write ["203.0.113.0/24"]'
    ranges = []
    for entry in _texts(problems, key, fix):
        try:
            network = ipaddress.IPv4Network(entry)
        except ValueError as error:
            problems.add(key, f"{entry!r} is no CIDR range of IPv4 ({error})", fix)
            continue
        if network.prefixlen < LEAST_PREFIX and (key != "httpsSources" or entry != EVERYONE):
            wide = f"{entry} lets in addresses that are not yours"
            problems.add(key, wide, f"use ranges of /{LEAST_PREFIX} or narrower; or {instead}")
        ranges.append(str(network))
    return tuple(ranges)


def _texts(problems: Problems, key: str, fix: str) -> list[str]:
    try:
        value = json.loads(problems.values[key])
    except json.JSONDecodeError:
        value = None
    if not isinstance(value, list) or not all(isinstance(entry, str) for entry in value):
        problems.add(key, "not a list of texts", fix)
        return []
    return value


def _subnet(problems: Problems) -> str:
    value = problems.values["subnetCidr"]
    fix = "use a private IPv4 range of /29 to /8, e.g. 10.10.0.0/24"
    try:
        network = ipaddress.IPv4Network(value)
    except ValueError as error:
        problems.add("subnetCidr", f"no CIDR range ({error})", fix)
        return value
    if not network.is_private or not 8 <= network.prefixlen <= 29:  # noqa: PLR2004 - Google's own bounds
        problems.add("subnetCidr", "not usable for a subnetwork", fix)
    return value


def _bastion(problems: Problems, project_directory: Path) -> Bastion | None:
    value = problems.values["bastion"]
    if not value:
        return None
    match = BASTION_ADDRESS.fullmatch(value)
    if not match or not 1 <= int(match["port"] or STANDARD_SSH_PORT) <= MOST_PORT:
        problems.add("bastion", "not of the form USER@HOST:PORT", "write e.g. ops@bastion.example.com:22")
        return None
    return Bastion(
        user=match["user"],
        host=match["host"],
        port=int(match["port"] or STANDARD_SSH_PORT),
        host_key=ssh.host_key(problems, project_directory, "bastionHostKey"),
    )


def _labels(problems: Problems) -> dict[str, str]:
    labels = {}
    for entry in _texts(problems, "labels", 'write ["team=search"]'):
        match = LABEL.fullmatch(entry)
        if match and match["key"] in labels:
            problems.add("labels", f"{match['key']} has two values", "leave one of them")
        elif match:
            labels[match["key"]] = match["value"]
        else:
            fix = "write NAME=VALUE with lower-case letters, digits, '_' and '-', at most 63 of them each"
            problems.add("labels", f"{entry!r} is no label of Google Cloud", fix)
    return labels


def _contradictions(problems: Problems, s: GcpSettings) -> None:
    add = problems.add
    if problems.values["accelerator"] == "none":
        add("accelerator", "none, but every machine type here has GPUs", "remove it")
    if not {"zone", "machineType"} & problems.keys and s.zone not in s.machine_type.zones:
        add("zone", f"has no {s.machine_type.name}", f"use {', '.join(s.machine_type.zones)}")
    _capacity_contradictions(problems, s)
    _network_contradictions(problems, s)
    _ssh_contradictions(problems, s)
    _fetch_contradictions(problems, s)
    for key in ("weightsDiskGb", "keepWeightsDisk"):
        if s.weights_disk and problems.given(key):
            add(key, "set, but weightsDisk is not managed", "remove it")


def _capacity_contradictions(problems: Problems, s: GcpSettings) -> None:
    add = problems.add
    only = CAPACITY_OF.get(s.machine_type.name)
    if only and "machineType" not in problems.keys and s.capacity not in only:
        add("capacity", f"{s.machine_type.name} is not sold so", f"use {' or '.join(only)}")
    if s.capacity == "reservation" and not s.reservation:
        add("reservation", "not set, but capacity is reservation", "set it to the reservation's name")
    if s.capacity != "reservation" and s.reservation:
        add("reservation", f"set, but capacity is {s.capacity}", "remove it, or set capacity to reservation")
    if s.capacity != "flex-start" and problems.given("maxRunHours"):
        add("maxRunHours", f"set, but capacity is {s.capacity}", "remove it, or set capacity to flex-start")
    if s.capacity in {"spot", "flex-start"} and s.deletion_protection:
        add("deletionProtection", f"true, but Google itself deletes a VM of capacity {s.capacity}", "set it to false")
    if s.parked and s.deletion_protection:
        add("deletionProtection", "true, but parked deletes the VM", "set one of them to false")


def _network_contradictions(problems: Problems, s: GcpSettings) -> None:
    add = problems.add
    if s.subnetwork and not s.network:
        add("subnetwork", "set, but network is not", "name the VPC that it is in")
    if s.network and not s.subnetwork:
        add("network", "set, but subnetwork is not", "name the subnetwork in the zone's region")
    if s.network and problems.given("subnetCidr"):
        add("subnetCidr", "set, but the subnetwork exists already", "remove it")
    if s.network and s.cloud_nat:
        add("cloudNat", "true, but the network is not the stack's own", "set up Cloud NAT there, and set it to false")
    if not s.https_sources and "httpsSources" not in problems.keys:
        add("httpsSources", "empty: nobody could use the endpoint", "give the CIDR ranges that Elastic connects from")
    if problems.values["httpsPort"] == str(STANDARD_SSH_PORT):
        add("httpsPort", "the port of SSH, which would be open to httpsSources", "use another, e.g. 443")


def _ssh_contradictions(problems: Problems, s: GcpSettings) -> None:
    add = problems.add
    # A rehearsal's machine is no such image, and has root.
    if problems.values["sshUser"] == "root" and not s.image.startswith("projects/rehearsal/"):
        add("sshUser", "Ubuntu's images do not let root in", "name the user to make, e.g. elastic-vllm")
    if s.ssh_via == "bastion" and not problems.values["bastion"]:
        add("bastion", "not set, but sshVia is bastion", "write USER@HOST:PORT")
    for key in ("bastion", "bastionHostKey"):
        if s.ssh_via != "bastion" and problems.values[key]:
            add(key, f"set, but sshVia is {s.ssh_via}", "remove it, or set sshVia to bastion")
    if s.ssh_via == "iap" and s.ssh_sources:
        add("sshSources", "set, but with sshVia iap only Google's proxy connects", "remove it")
    if s.ssh_via != "iap" and not s.ssh_sources and "sshSources" not in problems.keys:
        who = "the bastion" if s.ssh_via == "bastion" else "this machine"
        add("sshSources", "empty: the VM could not be set up", f"give the CIDR range that {who} connects from")
    if s.ssh_via != "iap" and problems.given("tunnelPort"):
        add("tunnelPort", f"set, but sshVia is {s.ssh_via}", "remove it, or set sshVia to iap")


def _fetch_contradictions(problems: Problems, s: GcpSettings) -> None:
    """A VM without an external address and without Cloud NAT reaches Google's own services only."""
    if s.external_address or s.cloud_nat or s.network or {"externalAddress", "cloudNat"} & problems.keys:
        return
    problems.add(
        "cloudNat",
        "the VM could fetch neither packages nor images nor weights: externalAddress is false as well",
        "set it to true, or use a network of yours that has a way out (network, subnetwork)",
    )


def room_for_weights(problems: Problems, settings: GcpSettings, model: Model) -> None:
    """Refuse a disk that can't hold the model's weights."""
    if not settings.weights_disk and not {"weightsDiskGb", "weightsGb", "model"} & problems.keys:
        # ext4 takes some for itself.
        least = math.ceil(model.weights_gb * 1.05)
        if settings.weights_disk_gb < least:
            why = f"too small for {model.name}, whose weights take {model.weights_gb:g} GB"
            problems.add("weightsDiskGb", why, f"use {least} or more")


def unused(problems: Problems, target: str) -> None:
    """Refuse settings that belong to the other target: they would silently do nothing."""
    for key in sorted(OTHERS if target == "gcp" else KEYS):
        if problems.given(key):
            why = "has no effect with target " + target
            problems.add(key, why, "remove it" if target == "gcp" else "remove it, or set target to gcp")

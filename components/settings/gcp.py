"""The settings of the targets in Google Cloud: what it provisions, checked before anything is."""

import ipaddress
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from components.catalogue.machine_types import MachineType, load_machine_types
from components.machine.host import Bastion
from components.machine.ssh import STANDARD_SSH_PORT, SshKey
from components.settings import ssh
from components.settings.problems import USER, Problems

# Older projects of a domain have it in front: example.com:llm.
PROJECT_ID = r"([a-z0-9][a-z0-9.-]*:)?[a-z][a-z0-9-]{4,28}[a-z0-9]"
PROJECT = re.compile(PROJECT_ID)
LINKS = {
    key: re.compile(
        rf"(https://(www|compute)\.googleapis\.com/compute/\w+/)?"
        rf"(?P<link>projects/(?P<project>{PROJECT_ID})/{place}/(?P<name>[a-z][a-z0-9-]*))"
    )
    for key, place in {
        "network": "global/networks",
        "subnetwork": r"regions/(?P<region>[a-z0-9-]+)/subnetworks",
    }.items()
}
"""Self links of a VPC and a subnetwork, such as those of a Shared VPC's host project."""
DEFAULT_SERVICE_ACCOUNT = re.compile(r"(\d+-compute@developer|[a-z][a-z0-9.:-]*@appspot)\.gserviceaccount\.com")
RESOURCE = re.compile(r"[a-z]([a-z0-9-]{0,61}[a-z0-9])?")
SERVICE_ACCOUNT = re.compile(r"[a-z0-9-]+@[a-z0-9.-]+\.iam\.gserviceaccount\.com")
LABEL_KEY = re.compile(r"[a-z][a-z0-9_-]{0,62}")
LABEL_VALUE = re.compile(r"[a-z0-9_-]{0,63}")
BASTION_ADDRESS = re.compile(rf"(?P<user>{USER.pattern})@(?P<host>[A-Za-z0-9][A-Za-z0-9.-]*)(:(?P<port>\d{{1,5}}))?")
# Google's Identity-Aware Proxy forwards TCP from these addresses (cloud.google.com/iap/docs/using-tcp-forwarding).
IAP_SOURCES = ("35.235.240.0/20",)
PROVISIONING_MODELS = ("STANDARD", "SPOT", "FLEX_START", "RESERVATION_BOUND")
DELETED_BY_GOOGLE = PROVISIONING_MODELS[1:]
"""Provisioning models whose VMs Google stops by itself."""
# A wider range can't belong to one user.
LEAST_PREFIX = 8
EVERYONE = "0.0.0.0/0"
LABELS_FIX = "write the stack's file as in labels: {team: search}"
MOST_PORT = 65535
LEAST_BOOT_DISK_GB = 80

# Only these provisioning models offer the machine type (note in Google's table of A3 High machine types).
PROVISIONING_OF = dict.fromkeys(("a3-highgpu-1g", "a3-highgpu-2g", "a3-highgpu-4g"), ("SPOT", "FLEX_START"))

IMAGE = re.compile(r"projects/[a-z][a-z0-9.:-]+/global/images/[a-z][a-z0-9-]+")

SHARED_KEYS = frozenset(
    {
        "gcpProject",
        "zone",
        "machineType",
        "provisioningModel",
        "reservation",
        "network",
        "subnetwork",
        "cloudNat",
        "bootDiskGb",
        "labels",
        "serviceAccount",
    }
)
"""Settings of every target in Google Cloud."""
KEYS = SHARED_KEYS | {
    "vmImage",
    "externalAddress",
    "sshVia",
    "sshSourceRanges",
    "bastion",
    "bastionHostKey",
    "tunnelPort",
    "weightsDiskGb",
    "weightsDisk",
    "keepWeightsDisk",
    "deletionProtection",
}
"""Settings that target gcp has."""


@dataclass(frozen=True, kw_only=True)
class GoogleSettings:
    """A stack's place in Google Cloud, and the machines with GPUs there. Pulumi.yaml describes each setting."""

    name: str
    """Name of the VM or cluster, and prefix of every other resource in Google Cloud."""
    project: str
    zone: str
    machine_type: MachineType
    provisioning_model: str
    reservation: str
    network: str
    """Name of an existing VPC, or projects/PROJECT/global/networks/NAME; empty: the stack creates one."""
    subnetwork: str
    """Name, or projects/PROJECT/regions/REGION/subnetworks/NAME."""
    external_address: bool
    """True if clients connect to an external address."""
    https_source_ranges: Sequence[str]
    cloud_nat: bool
    boot_disk_gb: int
    labels: Mapping[str, str]
    service_account: str
    """Email; empty for none of the user's."""
    parked: bool

    @property
    def network_project(self) -> str:
        """The project with the VPC and its firewall rules: the host project of a Shared VPC, or `project`."""
        match = LINKS["network"].fullmatch(self.network)
        return match["project"] if match else self.project

    @property
    def region(self) -> str:
        """The zone's region."""
        return self.zone.rpartition("-")[0]

    @property
    def machines(self) -> int:
        """The most machines with GPUs that run at once, unless parked."""
        return 1


@dataclass(frozen=True, kw_only=True)
class GcpSettings(GoogleSettings):
    """The VM and its surroundings."""

    image: str
    """Image of the boot disk: projects/PROJECT/global/images/NAME."""
    ssh_via: str
    ssh_source_ranges: Sequence[str]
    bastion: Bastion | None
    tunnel_port: int
    weights_disk_gb: int
    weights_disk: str
    """Name of an existing disk, which is not managed here; empty to create one."""
    keep_weights_disk: bool
    deletion_protection: bool
    ssh_public_key: str
    """Public half of `sshPrivateKeyPath`."""


def google_settings(problems: Problems, stack: str, *, external_address: bool) -> GoogleSettings:
    """Read and check what every target in Google Cloud has."""
    text, integer, boolean = problems.text, problems.integer, problems.boolean
    if stack.endswith("-"):
        problems.found.append(f"stack name {stack!r}: ends in '-', as no name in Google Cloud may; use another")
    return GoogleSettings(
        name=f"elastic-vllm-{stack}",
        project=text("gcpProject", PROJECT, "set it to the project's id (6 to 30 of a-z, 0-9 and '-')"),
        zone=text("zone", re.compile(r"[a-z]+-[a-z]+\d+-[a-z0-9]+"), "use a zone's name, e.g. us-central1-a"),
        machine_type=_machine_type(problems),
        provisioning_model=problems.choice("provisioningModel", PROVISIONING_MODELS),
        reservation=problems.optional("reservation", RESOURCE, "use the reservation's name"),
        network=_name_or_link(problems, "network", "use the name of a VPC in gcpProject, or its self link"),
        subnetwork=_subnetwork(problems),
        external_address=external_address,
        https_source_ranges=sources(problems, "httpsSourceRanges", f"for everyone write {EVERYONE}"),
        cloud_nat=boolean("cloudNat"),
        boot_disk_gb=integer("bootDiskGb", LEAST_BOOT_DISK_GB, 65536),
        labels=_labels(problems),
        service_account=_service_account(problems),
        parked=boolean("parked"),
    )


def gcp_settings(problems: Problems, stack: str, ssh_key: SshKey, project_directory: Path) -> GcpSettings:
    """Read and check the settings of target gcp; a relative path counts from `project_directory`."""
    integer, boolean = problems.integer, problems.boolean
    return GcpSettings(
        **vars(google_settings(problems, stack, external_address=boolean("externalAddress"))),
        image=_image(problems),
        ssh_via=problems.choice("sshVia", ("address", "bastion", "iap")),
        ssh_source_ranges=sources(problems, "sshSourceRanges", "use a bastion, or sshVia: iap"),
        bastion=_bastion(problems, project_directory),
        tunnel_port=integer("tunnelPort", 1024, 65535),
        weights_disk_gb=integer("weightsDiskGb", 10, 65536),
        weights_disk=problems.optional("weightsDisk", RESOURCE, "use the name of a disk in the zone"),
        keep_weights_disk=boolean("keepWeightsDisk"),
        deletion_protection=boolean("deletionProtection"),
        ssh_public_key=ssh.public_key(problems, ssh_key),
    )


def _machine_type(problems: Problems) -> MachineType:
    types = load_machine_types()
    value = problems.values["machineType"]
    if value in types:
        return types[value]
    family = [name for name in types if name.split("-")[:2] == value.split("-")[:2]]
    problems.add("machineType", "unknown GPU machine type", f"use {', '.join(family or types)}")
    return types["a2-ultragpu-2g"]


def _image(problems: Problems) -> str:
    """One image, not a family: the provider takes every image of most families for a change, which replaces the VM."""
    return problems.text("vmImage", IMAGE, "run `scripts/elastic-vllm pin --stack STACK`: it records the newest image")


def _name_or_link(problems: Problems, key: str, fix: str) -> str:
    """A name, or a self link without the address of the API."""
    value = problems.values[key]
    if match := LINKS[key].fullmatch(value):
        return match["link"]
    return problems.optional(key, RESOURCE, fix)


def _subnetwork(problems: Problems) -> str:
    fix = "use the name of a subnetwork in the zone's region, or its self link"
    value = _name_or_link(problems, "subnetwork", fix)
    match, network = LINKS["subnetwork"].fullmatch(value), LINKS["network"].fullmatch(problems.values["network"])
    region = problems.values["zone"].rpartition("-")[0]
    if match and match["region"] != region:
        problems.add("subnetwork", f"is in {match['region']}, but the zone is in {region}", fix)
    if bool(match) != bool(network) and value and problems.values["network"]:
        problems.add("subnetwork", "one of network and subnetwork is a self link, the other a name", "write both alike")
    elif match and network and match["project"] != network["project"]:
        problems.add("subnetwork", f"is in {match['project']}, but network is in {network['project']}", fix)
    return value


def _service_account(problems: Problems) -> str:
    """An account for this VM alone: what Google creates by default may do almost everything in the project."""
    fix = "use NAME@PROJECT.iam.gserviceaccount.com, or leave it empty for none"
    if DEFAULT_SERVICE_ACCOUNT.fullmatch(problems.values["serviceAccount"]):
        problems.add("serviceAccount", "is a default account, which has far more rights than a model needs", fix)
        return ""
    return problems.optional("serviceAccount", SERVICE_ACCOUNT, fix)


def sources(problems: Problems, key: str, instead: str) -> tuple[str, ...]:
    """CIDR ranges of IPv4, none of them too wide; for HTTPS also everyone, in these words only."""
    fix = 'write ["203.0.113.0/24"]'
    ranges = []
    for entry in problems.texts(key, fix):
        try:
            network = ipaddress.IPv4Network(entry)
        except ValueError as error:
            problems.add(key, f"{entry!r} is not an IPv4 CIDR range ({error})", fix)
            continue
        if network.prefixlen < LEAST_PREFIX and (key != "httpsSourceRanges" or entry != EVERYONE):
            wide = f"{entry} lets in addresses that are not yours"
            problems.add(key, wide, f"use ranges of /{LEAST_PREFIX} or narrower; or {instead}")
        ranges.append(str(network))
    return tuple(ranges)


def _bastion(problems: Problems, project_directory: Path) -> Bastion | None:
    value = problems.values["bastion"]
    if not value:
        return None
    match = BASTION_ADDRESS.fullmatch(value)
    if not match or not 1 <= int(match["port"] or STANDARD_SSH_PORT) <= MOST_PORT:
        problems.add("bastion", "not of the form USER@HOST:PORT", "write e.g. ops@bastion.example.com:22")
        return None
    port = int(match["port"] or STANDARD_SSH_PORT)
    return Bastion(
        user=match["user"],
        host=match["host"],
        port=port,
        host_key=ssh.host_key(problems, project_directory, "bastionHostKey", match["host"], port),
    )


def _labels(problems: Problems) -> dict[str, str]:
    labels = problems.mapping("labels", LABELS_FIX)
    for name, value in labels.items():
        if not isinstance(value, str):
            problems.add("labels", f"the value of {name} is not text", f'quote it: {name}: "{json.dumps(value)}"')
        elif not LABEL_KEY.fullmatch(name) or not LABEL_VALUE.fullmatch(value):
            fix = "use lower-case letters, digits, '_' and '-', at most 63 each, and a letter first in the name"
            problems.add("labels", f"Google Cloud allows no label {name}: {value}", fix)
    return labels

"""Rules for everything that the program creates in Google Cloud: each yields the resources that break it."""

import ipaddress
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from components.settings.gcp import IAP_SOURCES
from tests.support.program import Program
from tests.support.registered import INSTANCE, Registered, Secret

FIREWALL = "gcp:compute/firewall:Firewall"
DISK = "gcp:compute/disk:Disk"
# RFC 1035, which Google demands of names: cloud.google.com/compute/docs/naming-resources
NAME = re.compile(r"[a-z]([a-z0-9-]{0,61}[a-z0-9])?")
# Inputs that Google changes only while the VM is stopped, which Local SSD forbids, or that cloud-init reads only once.
NEEDS_ANOTHER_VM = {
    *("machineType", "scheduling", "shieldedInstanceConfig", "serviceAccount", 'metadata["user-data"]'),
    *("attachedDisks", "networkInterfaces", "reservationAffinity"),
}
SSH = "22"
WIDEST_SSH = 8
"""Shortest prefix of a range for SSH, in bits."""

Rule = Callable[[Program], Iterator[str]]


def content(value: Any) -> Any:
    """Return a value, secret or not."""
    return value.value if isinstance(value, Secret) else value


def ports(firewall: Registered) -> set[str]:
    return {port for allowed in firewall.inputs.get("allows", []) for port in allowed.get("ports", ["0-65535"])}


def https_port(program: Program) -> str:
    port = re.match(r"https://[^/]+?(?::(\d+))?/", program.outputs["connectorUrl"])
    assert port
    return port[1] or "443"


def metadata(instance: Registered) -> Mapping[str, Any]:
    found: Mapping[str, Any] = content(instance.inputs.get("metadata", {}))
    return found


def no_public_ssh(program: Program) -> Iterator[str]:
    for firewall in program.of_type(FIREWALL):
        widest = min(ipaddress.ip_network(source).prefixlen for source in firewall.inputs["sourceRanges"])
        if ports(firewall) != {https_port(program)} and widest < WIDEST_SSH:
            yield firewall.name


def ssh_through_googles_proxy_is_from_there_only(program: Program) -> Iterator[str]:
    through = {content(command.inputs["connection"])["host"] for command in program.commands}
    for firewall in program.of_type(FIREWALL):
        if through == {"127.0.0.1"} and SSH in ports(firewall) and firewall.inputs["sourceRanges"] != [*IAP_SOURCES]:
            yield firewall.name


def only_https_and_ssh_are_let_in(program: Program) -> Iterator[str]:
    for firewall in program.of_type(FIREWALL):
        protocols = {allowed["protocol"] for allowed in firewall.inputs["allows"]}
        if protocols != {"tcp"} or not ports(firewall) <= {SSH, https_port(program)}:
            yield firewall.name
        if firewall.inputs["direction"] != "INGRESS":
            yield firewall.name


def nothing_is_open_to_everyone(program: Program) -> Iterator[str]:
    for firewall in program.of_type(FIREWALL):
        if {"0.0.0.0/0", "::/0"} & set(firewall.inputs.get("sourceRanges") or ["0.0.0.0/0"]):
            yield firewall.name


def rules_are_for_this_vm_only(program: Program) -> Iterator[str]:
    for firewall in program.of_type(FIREWALL):
        tags = firewall.inputs.get("targetTags") or [""]
        if [instance for instance in program.of_type(INSTANCE) if instance.inputs["tags"] != tags] or "" in tags:
            yield firewall.name


def no_default_service_account(program: Program) -> Iterator[str]:
    for instance in program.of_type(INSTANCE):
        account = instance.inputs.get("serviceAccount")
        if account is not None and not re.search(r"@.+\.iam\.gserviceaccount\.com$", account.get("email", "")):
            yield instance.name


def secure_boot_on(program: Program) -> Iterator[str]:
    for instance in program.of_type(INSTANCE):
        shielded = instance.inputs.get("shieldedInstanceConfig", {})
        if not all(shielded.get(part) for part in ("enableSecureBoot", "enableVtpm", "enableIntegrityMonitoring")):
            yield instance.name


def project_keys_blocked(program: Program) -> Iterator[str]:
    for instance in program.of_type(INSTANCE):
        if metadata(instance).get("block-project-ssh-keys") != "TRUE" or "ssh-keys" in metadata(instance):
            yield instance.name


def serial_port_off(program: Program) -> Iterator[str]:
    for instance in program.of_type(INSTANCE):
        if metadata(instance).get("serial-port-enable") != "FALSE":
            yield instance.name


def no_startup_script(program: Program) -> Iterator[str]:
    """Everything on the VM is installed over SSH, where failures show."""
    for instance in program.of_type(INSTANCE):
        if "startup-script" in metadata(instance) or instance.inputs.get("metadataStartupScript"):
            yield instance.name


def terminated_in_maintenance(program: Program) -> Iterator[str]:
    for instance in program.of_type(INSTANCE):
        if instance.inputs["scheduling"].get("onHostMaintenance") != "TERMINATE":
            yield instance.name


def forwards_nothing(program: Program) -> Iterator[str]:
    for instance in program.of_type(INSTANCE):
        if instance.inputs.get("canIpForward"):
            yield instance.name


def images_pinned(program: Program) -> Iterator[str]:
    for image in program.of_type("docker:index/remoteImage:RemoteImage"):
        if not re.search(r":[\w.-]+@sha256:[0-9a-f]{64}$", image.inputs["name"]):
            yield image.name
    for instance in program.of_type(INSTANCE):
        if not re.search(r"/global/images/[a-z0-9-]+$", instance.inputs["bootDisk"]["initializeParams"]["image"]):
            yield instance.name


def secrets_marked(program: Program) -> Iterator[str]:
    for instance in program.of_type(INSTANCE):
        given = instance.inputs["metadata"]
        if not isinstance(given, Secret) and not isinstance(given.get("user-data"), Secret):
            yield instance.name
    if "connectorApiKey" not in program.secret_outputs:
        yield "connectorApiKey"


def redone_with_the_vm(program: Program) -> Iterator[str]:
    for resource in program.leaves if program.of_type(INSTANCE) else []:
        if resource.is_command and program.machine not in (resource.inputs.get("triggers") or []):
            yield resource.name
        if resource.is_docker and resource.replacement_trigger != program.machine:
            yield resource.name


def nothing_asks_a_vm_that_may_be_gone(program: Program) -> Iterator[str]:
    """No delete of a command or of Docker contacts a lost VM: everything on it is gone with it."""
    for resource in program.leaves:
        if resource.is_command and resource.inputs.get("delete"):
            yield resource.name
        if resource.is_docker and resource.deleted_with != "vm-instance":
            yield resource.name


def what_needs_another_vm_replaces_it(program: Program) -> Iterator[str]:
    """Name, address, disk and quota are exclusive, so the old VM is deleted first."""
    for instance in program.of_type(INSTANCE):
        if not instance.delete_before_replace or set(instance.replace_on_changes) != NEEDS_ANOTHER_VM:
            yield instance.name
        if instance.inputs.get("allowStoppingForUpdate"):
            yield instance.name


def names_fit(program: Program) -> Iterator[str]:
    for resource in program.leaves:
        names = [resource.inputs.get("name"), *resource.inputs.get("tags", []), *resource.inputs.get("targetTags", [])]
        names += [disk.get("deviceName") for disk in resource.inputs.get("attachedDisks", [])]
        if resource.is_google and not all(NAME.fullmatch(name) for name in names if name is not None):
            yield resource.name


def one_project(program: Program) -> Iterator[str]:
    """Each resource sets the project: with the provider's alone, a changed setting would leave them where they are."""
    for resource in program.leaves:
        (provider,) = program.of_type("pulumi:providers:gcp")
        if resource.is_google and (resource.inputs.get("project"), resource.provider) != (
            provider.inputs["project"],
            provider.name,
        ):
            yield resource.name


def googles_services_without_an_address(program: Program) -> Iterator[str]:
    for subnetwork in program.of_type("gcp:compute/subnetwork:Subnetwork"):
        if not subnetwork.inputs.get("privateIpGoogleAccess"):
            yield subnetwork.name


RULES: list[Rule] = [
    no_public_ssh,
    ssh_through_googles_proxy_is_from_there_only,
    only_https_and_ssh_are_let_in,
    nothing_is_open_to_everyone,
    rules_are_for_this_vm_only,
    no_default_service_account,
    secure_boot_on,
    project_keys_blocked,
    serial_port_off,
    no_startup_script,
    terminated_in_maintenance,
    forwards_nothing,
    images_pinned,
    secrets_marked,
    redone_with_the_vm,
    nothing_asks_a_vm_that_may_be_gone,
    what_needs_another_vm_replaces_it,
    names_fit,
    one_project,
    googles_services_without_an_address,
]

# Rule, base, and a change that breaks it: an input (or, with a leading dot, an option) of a resource, and its value.
EXAMPLES: list[tuple[Rule, str, str, str, Any]] = [
    (no_public_ssh, "prod", "network-ssh", "sourceRanges", ["0.0.0.0/0"]),
    (no_public_ssh, "prod", "network-ssh", "sourceRanges", ["203.0.113.7/32", "128.0.0.0/1"]),
    (ssh_through_googles_proxy_is_from_there_only, "prod-private", "network-ssh", "sourceRanges", ["203.0.113.7/32"]),
    (only_https_and_ssh_are_let_in, "prod", "network-https", "allows", [{"protocol": "tcp", "ports": ["80", "443"]}]),
    (only_https_and_ssh_are_let_in, "prod", "network-https", "allows", [{"protocol": "tcp"}]),
    (only_https_and_ssh_are_let_in, "prod", "network-https", "allows", [{"protocol": "udp", "ports": ["443"]}]),
    (only_https_and_ssh_are_let_in, "prod", "network-https", "direction", "EGRESS"),
    (nothing_is_open_to_everyone, "prod", "network-https", "sourceRanges", ["198.51.100.0/24", "0.0.0.0/0"]),
    (nothing_is_open_to_everyone, "prod", "network-https", "sourceRanges", None),
    (rules_are_for_this_vm_only, "prod", "network-ssh", "targetTags", None),
    (rules_are_for_this_vm_only, "prod", "vm-instance", "tags", ["other"]),
    (
        *(no_default_service_account, "prod", "vm-instance", "serviceAccount"),
        {"email": "1-compute@developer.gserviceaccount.com"},
    ),
    (no_default_service_account, "prod", "vm-instance", "serviceAccount", {"scopes": ["cloud-platform"]}),
    (secure_boot_on, "prod", "vm-instance", "shieldedInstanceConfig.enableSecureBoot", False),
    (secure_boot_on, "prod", "vm-instance", "shieldedInstanceConfig", {}),
    (project_keys_blocked, "prod", "vm-instance", "metadata.block-project-ssh-keys", "FALSE"),
    (project_keys_blocked, "prod", "vm-instance", "metadata.ssh-keys", "root:ssh-ed25519 AAAA"),
    (serial_port_off, "prod", "vm-instance", "metadata.serial-port-enable", "TRUE"),
    (no_startup_script, "prod", "vm-instance", "metadata.startup-script", "true"),
    (terminated_in_maintenance, "prod", "vm-instance", "scheduling.onHostMaintenance", "MIGRATE"),
    (forwards_nothing, "prod", "vm-instance", "canIpForward", True),
    (images_pinned, "prod", "runtime-vllm-image", "name", "docker.io/vllm/vllm-openai:v0.32.0"),
    (
        images_pinned,
        "prod",
        "vm-instance",
        "bootDisk.initializeParams.image",
        "projects/ubuntu-os-cloud/global/images/family/ubuntu-2404-lts-amd64",
    ),
    (secrets_marked, "prod", "vm-instance", "metadata", {"user-data": "#cloud-config"}),
    (redone_with_the_vm, "prod", "vm-booted", "triggers", ["another"]),
    (redone_with_the_vm, "prod", "nginx-config", "triggers", None),
    (redone_with_the_vm, "prod", "vllm-container", ".replacement_trigger", None),
    (nothing_asks_a_vm_that_may_be_gone, "prod", "nginx-config", "delete", "bash -c true"),
    (nothing_asks_a_vm_that_may_be_gone, "prod", "nginx-network", ".deleted_with", ""),
    (what_needs_another_vm_replaces_it, "prod", "vm-instance", ".delete_before_replace", False),
    (what_needs_another_vm_replaces_it, "prod", "vm-instance", ".replace_on_changes", ["machineType"]),
    (what_needs_another_vm_replaces_it, "prod", "vm-instance", "allowStoppingForUpdate", True),
    (names_fit, "prod", "network-https", "name", "n" * 64),
    (names_fit, "prod", "vm-instance", "name", "vm-"),
    (one_project, "prod", "network-address", "project", None),
    (one_project, "prod", "vm-instance", ".provider", ""),
    (googles_services_without_an_address, "prod", "network-subnetwork", "privateIpGoogleAccess", False),
]

"""Adapters for gcp:*, the only simulation in a rehearsal: marked resources with the outputs of real ones.

The address belongs to this machine and to the ranges for documentation (RFC 5737); the VM and its disk are in
simulated_vm.py.
"""

import hashlib
import secrets
from collections.abc import Mapping
from typing import Any

from components.catalogue.machine_types import MachineType, load_machine_types
from scripts.lab import simulated_vm
from scripts.lab.emulator.resource import Adapter, Resource, Seen
from scripts.lab.simulated_vm import Vm
from scripts.lib.stack_config import StackConfig

API = "https://www.googleapis.com/compute/v1"
EXTERNAL, INTERNAL = "203.0.113", "198.51.100"


def adapters(config: StackConfig) -> Mapping[str, Adapter]:
    """Return the adapters for the stack's resources in Google Cloud."""
    stack, project = config.stack, str(config.get("gcpProject"))

    def simulated(kind: str, *inputs: str, in_place: tuple[str, ...] = ()) -> Adapter:
        """Return the adapter of a resource that has only outputs; changes of inputs not `in_place` replace it."""

        def create(resource: Resource) -> tuple[str, dict[str, Any]]:
            resource.say("simulated")
            return _outputs(kind, project, resource)

        return Adapter(
            inputs=frozenset({*inputs, "project"}),
            create=create,
            update=lambda resource: resource.outputs,
            replaces=lambda changed: bool(changed - set(in_place)),
        )

    return {
        "pulumi:providers:gcp": simulated("provider", "project", "region", "zone", in_place=("region", "zone")),
        "gcp:compute/network:Network": simulated("networks", "name", "autoCreateSubnetworks"),
        "gcp:compute/subnetwork:Subnetwork": simulated(
            "subnetworks",
            "name",
            "region",
            "network",
            "ipCidrRange",
            "privateIpGoogleAccess",
            in_place=("privateIpGoogleAccess",),
        ),
        "gcp:compute/firewall:Firewall": simulated(
            "firewalls",
            "name",
            "network",
            "direction",
            "sourceRanges",
            "targetTags",
            "allows",
            "denies",
            "priority",
            in_place=("sourceRanges", "targetTags", "allows", "denies", "priority"),
        ),
        "gcp:compute/router:Router": simulated("routers", "name", "region", "network"),
        "gcp:compute/routerNat:RouterNat": simulated(
            "nats",
            "name",
            "region",
            "router",
            "natIpAllocateOption",
            "sourceSubnetworkIpRangesToNat",
            "subnetworks",
            in_place=("natIpAllocateOption", "sourceSubnetworkIpRangesToNat", "subnetworks"),
        ),
        "gcp:compute/address:Address": _address(stack, project),
        "gcp:compute/disk:Disk": _disk(project),
        "gcp:compute/instance:Instance": _instance(config, project),
    }


def _outputs(kind: str, project: str, resource: Resource) -> tuple[str, dict[str, Any]]:
    inputs = resource.inputs
    if kind == "provider":
        return resource.name, {}
    place = next((f"{key}s/{inputs[key]}" for key in ("zone", "region") if key in inputs), "global")
    path = f"projects/{project}/{place}/{kind}/{inputs['name']}"
    return path, {"selfLink": f"{API}/{path}"}


def address(stack: str, kind: str) -> str:
    """Return the stack's address, EXTERNAL or INTERNAL, which never changes."""
    network = EXTERNAL if kind == "EXTERNAL" else INTERNAL
    return f"{network}.{hashlib.sha256(stack.encode()).digest()[0] % 254 + 1}"


def _address(stack: str, project: str) -> Adapter:
    def create(resource: Resource) -> tuple[str, dict[str, Any]]:
        resource.say("simulated")
        id_, outputs = _outputs("addresses", project, resource)
        return id_, {**outputs, "address": address(stack, resource.inputs["addressType"])}

    return Adapter(inputs=frozenset({"project", "name", "region", "addressType", "subnetwork"}), create=create)


def _disk(project: str) -> Adapter:
    def create(resource: Resource) -> tuple[str, dict[str, Any]]:
        resource.say(f"simulated by {simulated_vm.disk_file(resource.inputs['name'])}")
        simulated_vm.create_disk(resource.inputs["name"])
        return _outputs("disks", project, resource)

    def read(resource: Resource) -> Seen:
        return "same" if simulated_vm.disk_file(resource.inputs["name"]).exists() else "gone"

    def delete(resource: Resource) -> None:
        simulated_vm.disk_file(resource.inputs["name"]).unlink(missing_ok=True)

    return Adapter(
        inputs=frozenset({"project", "name", "zone", "type", "size", "labels"}),
        create=create,
        update=lambda resource: resource.outputs,
        read=read,
        delete=delete,
        replaces=lambda changed: bool(changed - {"size", "labels"}),
    )


INSTANCE_INPUTS = (
    "project",
    "name",
    "zone",
    "machineType",
    "bootDisk",
    "attachedDisks",
    "networkInterfaces",
    "scheduling",
    "reservationAffinity",
    "shieldedInstanceConfig",
    "serviceAccount",
    "metadata",
    "labels",
    "tags",
    "deletionProtection",
    "allowStoppingForUpdate",
)
IN_PLACE = {"labels", "tags", "deletionProtection", "allowStoppingForUpdate"}


def stand_in_values(machine_type: MachineType) -> dict[str, object]:
    """Return the values that the stand-in nvidia-smi reports for the machine type's GPUs; memory in MiB."""
    return {
        "GPUS": machine_type.gpus,
        "NAME": machine_type.gpu.replace("A100", "A100-SXM4"),
        "MEMORY": machine_type.gpu_memory_gib * 1024,
    }


def _instance(config: StackConfig, project: str) -> Adapter:
    stack = config.stack

    def create(resource: Resource) -> tuple[str, dict[str, Any]]:
        inputs = resource.inputs
        (interface,), (disk,) = inputs["networkInterfaces"], inputs["attachedDisks"]
        external = [each["natIp"] for each in interface.get("accessConfigs", [])]
        vm = Vm(
            instance_id=str(secrets.randbelow(10**18) + 10**18),
            address=external[0] if external else interface["networkIp"],
            ssh_port=int(config.get("tunnelPort")) if config.get("sshVia") == "iap" else simulated_vm.free_port(),
            disk=disk["source"],
            device=disk["deviceName"],
        )
        gpus = stand_in_values(load_machine_types()[inputs["machineType"]])
        resource.say(f"simulated by this machine, sshd on port {vm.ssh_port}")
        simulated_vm.create(stack, vm, inputs["metadata"]["user-data"], gpus)
        id_, outputs = _outputs("instances", project, resource)
        return id_, {**outputs, "instanceId": vm.instance_id, "currentStatus": "RUNNING"}

    def read(resource: Resource) -> Seen:
        vm = simulated_vm.find(stack)
        if not vm or vm.instance_id != resource.outputs["instanceId"]:
            return "gone"
        simulated_vm.start(stack, vm)
        return "same"

    return Adapter(
        inputs=frozenset(INSTANCE_INPUTS),
        create=create,
        update=lambda resource: resource.outputs,
        read=read,
        delete=lambda _resource: simulated_vm.destroy(stack),
        replaces=lambda changed: bool(changed - IN_PLACE),
    )

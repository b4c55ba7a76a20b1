"""A program's resources in Google Cloud in the format of Terraform's plans, for tools that check these."""

import re
from typing import Any

from tests.support.program import Program
from tests.support.registered import Secret

# Blocks whose name in Pulumi differs by more than case and plural.
BLOCKS = {
    "access_configs": "access_config",
    "allows": "allow",
    "attached_disks": "attached_disk",
    "guest_accelerators": "guest_accelerator",
    "network_interfaces": "network_interface",
    "secondary_ip_ranges": "secondary_ip_range",
    "source_ip_ranges_to_nats": "source_ip_ranges_to_nat",
    "subnetworks": "subnetwork",
    "taints": "taint",
}
MAPS = {"labels", "metadata", "resource_labels"}
TYPES = {
    "gcp:projects/iAMMember:IAMMember": "google_project_iam_member",
    "gcp:serviceaccount/account:Account": "google_service_account",
}
"""Types that are not called after their module in Terraform."""


def terraform_plan(program: Program) -> dict[str, Any]:
    """Return what `terraform show -json` would print for a plan that creates these resources."""
    resources = []
    for resource in program.leaves:
        if resource.is_google:
            _, module, pulumi_name = resource.type.split(":")
            kind = TYPES.get(resource.type, f"google_{module.split('/')[0]}_{_snake(pulumi_name)}")
            name = resource.name.replace("-", "_")
            values = _blocks(resource.inputs)
            resources.append(
                {"address": f"{kind}.{name}", "mode": "managed", "type": kind, "name": name, "values": values}
            )
    changes = [
        {key: r[key] for key in ("address", "mode", "type", "name")}
        | {"change": {"actions": ["create"], "before": None, "after": r["values"], "after_unknown": {}}}
        for r in resources
    ]
    return {
        "format_version": "1.2",
        "terraform_version": "1.9.0",
        "planned_values": {"root_module": {"resources": resources}},
        "resource_changes": changes,
        "configuration": {"root_module": {}},
    }


def _snake(name: str) -> str:
    return re.sub(r"(?<=[a-z0-9])([A-Z])", r"_\1", name).lower()


def _blocks(inputs: dict[str, Any]) -> dict[str, Any]:
    values: dict[str, Any] = {}
    for key, value in inputs.items():
        snake = _snake(key)
        name = BLOCKS.get(snake, snake) if isinstance(value, list) else snake
        values[name] = _value(snake, value)
    return values


def _value(name: str, value: Any) -> Any:
    """Convert a value: nested objects are blocks, which a plan has as lists, but maps are not."""
    if isinstance(value, Secret):
        return _value(name, value.value)
    if isinstance(value, dict):
        if name in MAPS:
            return {key: _value(key, item) for key, item in value.items()}
        return [_blocks(value)]
    if isinstance(value, list):
        return [_blocks(item) if isinstance(item, dict) else item for item in value]
    return value

"""Google's names for the hardware of a machine type: its accelerator, its quotas, its parts on the bill."""

from dataclasses import dataclass

from components.catalogue.machine_types import MachineType


@dataclass(frozen=True)
class Family:
    """Google's names for a family of machine types; empty if no source was found."""

    accelerator: str
    """guestAcceleratorType of machineTypes.get."""
    gpu_quota: str = ""
    gpu_sku: str = ""
    """Beginning of its GPU's description in the Cloud Billing Catalog."""
    series: str = ""
    """Beginning of the description of its cores and memory there."""
    cpu_quota: str = ""


# Quotas: users' quota listings, which name those of A2 and G2; those of A3 from GoogleCloudPlatform's and SkyPilot's
# tables (regions.get lists none of them today: they are only on the page of quotas). SKUs: descriptions in copies of
# the catalog of 2025 and 2026 in public repositories.
_A100 = Family("nvidia-tesla-a100", "NVIDIA_A100_GPUS", "Nvidia Tesla A100 GPU", "A2", "A2_CPUS")
FAMILIES = {
    "a2-ultragpu": Family("nvidia-a100-80gb", "NVIDIA_A100_80GB_GPUS", "Nvidia Tesla A100 80GB GPU", "A2", "A2_CPUS"),
    "a2-highgpu": _A100,
    "a2-megagpu": _A100,
    "a3-highgpu": Family("nvidia-h100-80gb", "NVIDIA_H100_GPUS", "Nvidia H100 80GB GPU", "A3"),
    "a3-megagpu": Family("nvidia-h100-mega-80gb", "NVIDIA_H100_MEGA_GPUS"),
    "a3-ultragpu": Family("nvidia-h200-141gb", "NVIDIA_H200_GPUS"),
    "g2-standard": Family("nvidia-l4", "NVIDIA_L4_GPUS", "Nvidia L4 GPU", "G2"),
}


def family_of(machine_type: MachineType) -> Family:
    """Return the family's names, which are all empty for an unknown family."""
    return FAMILIES.get(machine_type.name.rpartition("-")[0], Family(""))

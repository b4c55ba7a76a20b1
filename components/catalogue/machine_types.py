"""Google Cloud's GPU machine types (machine_types.yaml), with their GPUs and zones."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import yaml


@dataclass(frozen=True, kw_only=True)
class MachineType:
    """One size of VM with GPUs."""

    name: str
    gpu: str
    """Short name of the GPU, e.g. A100-80GB."""
    gpus: int
    gpu_memory_gib: int
    """Memory of one GPU."""
    vcpus: int
    memory_gib: int
    local_ssd_bundled: bool
    """True if every VM of this type has Local SSD: Google can neither stop such a VM nor change it in place."""
    zones: Sequence[str]

    @property
    def disk_type(self) -> str:
        """Disk type that it supports: A3 Ultra has Hyperdisk only (cloud.google.com/compute/docs/disks)."""
        return "hyperdisk-balanced" if self.name.startswith("a3-ultragpu") else "pd-balanced"


@cache
def load_machine_types() -> Mapping[str, MachineType]:
    """Read machine_types.yaml beside this file."""
    document = yaml.safe_load(Path(__file__).with_name("machine_types.yaml").read_text(encoding="utf-8"))
    return {name: MachineType(name=name, **entry) for name, entry in document["machine_types"].items()}

"""Names, addresses and directories of the cluster.

Addresses are of 198.18.0.0/15, the range for tests of networks (RFC 2544): no network that this machine reaches has
them.
"""

from dataclasses import dataclass
from pathlib import Path

VERSION = "1.35.4"
CLUSTER = "elastic-vllm-lab"
STATE = Path("/var/lib/elastic-vllm-kubernetes")
PROGRAMS = STATE / "programs"
"""Link to the programs that the cluster was brought up with."""
SHARED = STATE / "shared"
"""The nodes' shared storage: each directory in it is a volume."""
KUBECONFIG = STATE / "kubeconfig"
CONTEXT = f"admin@{CLUSTER}"
CACHE = Path("/var/cache/elastic-vllm/kubernetes")

LAN, LAN_BITS = "198.18.0.0", 24
HERE = "198.18.0.1"
"""This machine's own address in the cluster's network."""
LINK = "elastic-k8s"
"""This machine's link into the cluster's network: no more than 15 characters."""
CONTROL_ADDRESS = "198.18.0.10"
METADATA_ADDRESS = "169.254.169.254"
SERVICES = "198.18.16.0/20"
DNS_ADDRESS = "198.18.16.10"
PODS = "198.19.0.0/16"
DNS_DOMAIN = "cluster.local"
MOST_NODES = 2


@dataclass(frozen=True)
class Machine:
    """A machine of the cluster: namespaces with a directory of their own."""

    name: str
    address: str

    @property
    def directory(self) -> Path:
        """Its directory on this machine."""
        return STATE / self.name

    @property
    def library(self) -> Path:
        """Its /var/lib."""
        return self.directory / "lib"

    @property
    def logs(self) -> Path:
        """Its /var/log: services write `NAME.log` there, and kubelet the pods' logs."""
        return self.directory / "log"

    def file(self, name: str) -> Path:
        """A file of its configuration, by the same path inside and outside."""
        return self.directory / name


CONTROL = Machine("control", CONTROL_ADDRESS)
NODES = tuple(Machine(f"node-{number}", f"198.18.0.{10 + number}") for number in range(1, MOST_NODES + 1))
MACHINES = (CONTROL, *NODES)

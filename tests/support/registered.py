"""A resource as the program registers it, with what an engine would do when its inputs change."""

import base64
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from components.elastic import resources as elastic_resources
from components.kubernetes import existing_cluster, isolation, loaded, weights_check
from components.machine import packet_filter
from components.machine.host import RAN_TO_ITS_END

BECOME_ROOT = 'exec sudo -n bash -s -- "$@"\n}\n'
BEGIN_OF_CLEANUP, END_OF_CLEANUP = "if [ $# -gt 0 ]; then\n(\n", "\n)\nelse\n"
END_OF_SCRIPT = f"case $? in 0) exit {RAN_TO_ITS_END} ;; *) exit 1 ;; esac\n}}\n"
INSTANCE = "gcp:compute/instance:Instance"
CLUSTER = "gcp:container/cluster:Cluster"
NODE_POOL = "gcp:container/nodePool:NodePool"
# Inputs whose change makes Google's provider replace a resource (the schemas of its version 9.35); it changes others in
# place. For an Instance also those that the program itself names (replace_on_changes).
REPLACING = {
    INSTANCE: ("name", "project", "zone", "bootDisk.initializeParams.image", "bootDisk.initializeParams.type"),
    "gcp:compute/address:Address": ("name", "project", "region", "addressType", "subnetwork"),
    "gcp:compute/disk:Disk": ("name", "project", "zone", "type"),  # and a smaller size
    "gcp:compute/firewall:Firewall": ("name", "project", "direction"),
    CLUSTER: (
        *("name", "project", "location", "network", "subnetwork", "networkingMode", "datapathProvider"),
        *("ipAllocationPolicy", "enableL4IlbSubsetting", "masterAuth.clientCertificateConfig"),
    ),
    NODE_POOL: (
        *("name", "project", "location", "cluster", "nodeConfig.serviceAccount", "nodeConfig.oauthScopes"),
        *("nodeConfig.spot", "nodeConfig.flexStart", "nodeConfig.maxRunDuration", "nodeConfig.reservationAffinity"),
        *("nodeConfig.guestAccelerators", "nodeConfig.shieldedInstanceConfig", "nodeConfig.metadata"),
    ),
    "gcp:projects/iAMMember:IAMMember": ("project", "role", "member"),
    "gcp:serviceaccount/account:Account": ("accountId", "project"),
    "gcp:compute/network:Network": ("name", "project"),
    "gcp:compute/router:Router": ("name", "project", "region", "network"),
    "gcp:compute/routerNat:RouterNat": ("name", "project", "region", "router"),
    # A range that holds the old one is changed in place.
    "gcp:compute/subnetwork:Subnetwork": ("name", "project", "region", "network", "ipCidrRange"),
}
# The same for Kubernetes' provider (provider/pkg/provider/diff.go of its version 4.32), with mutable Secrets and
# ConfigMaps.
REPLACING_OBJECTS = {
    "Deployment": ("spec.selector",),
    "Job": ("spec.template",),
    "PersistentVolumeClaim": ("spec",),
    "Secret": ("type",),
}


@dataclass(frozen=True)
class Secret:
    """Value of an input that Pulumi keeps secret."""

    value: Any


@dataclass
class Registered:
    """One resource, as the program registered it. Secret inputs are replaced by Secret(value)."""

    type: str
    name: str
    inputs: dict[str, Any]
    parent: str
    depends_on: list[str]
    """Resources in depends_on, and those whose outputs are inputs."""
    provider: str
    """Name of the explicit provider, or empty."""
    delete_before_replace: bool
    replacement_trigger: Any
    replace_on_changes: list[str]
    ignore_changes: list[str]
    retain_on_delete: bool
    deleted_with: str
    """Name of the resource that takes this one with it, or empty."""
    protect: bool
    create_timeout: str
    outputs: dict[str, Any] = field(default_factory=dict)
    """Outputs that a component registers at its end."""

    @property
    def is_google(self) -> bool:
        return self.type.startswith("gcp:")

    @property
    def is_kubernetes(self) -> bool:
        return self.type.startswith("kubernetes:")

    @property
    def identity(self) -> Any:
        """Return the inputs whose change makes it another resource."""
        if self.is_kubernetes:
            paths = ("metadata.name", "metadata.namespace", *REPLACING_OBJECTS.get(self.inputs["kind"], ()))
            return {path: _at(self.inputs, path) for path in paths}
        if self.is_google:
            return {path: _at(self.inputs, path) for path in (*REPLACING[self.type], *self.replace_on_changes)}
        if self.type.startswith("pulumi-python:"):
            name = f"{self.type.rpartition(':')[2]}Provider"
            modules = (elastic_resources, packet_filter, existing_cluster, isolation, loaded, weights_check)
            provider = next(getattr(module, name) for module in modules if hasattr(module, name))
            return {name: self.inputs.get(name) for name in provider.replaced_by}
        # Of these providers, every input that a setting can change forces replacement, unless it is ignored.
        seen = {name: value for name, value in self.inputs.items() if name not in self.ignore_changes}
        return seen if self.type.startswith(("docker:", "random:", "tls:")) else {}

    @property
    def is_component(self) -> bool:
        return self.type.startswith("elastic-vllm:")

    @property
    def is_docker(self) -> bool:
        return self.type.startswith("docker:")

    @property
    def is_command(self) -> bool:
        return self.type == "command:remote:Command"

    @property
    def script(self) -> str:
        """Return the script for the host: the last group before standard input (components/machine/host.py)."""
        return self._group.rpartition(END_OF_CLEANUP)[2].removeprefix("(\n").removesuffix("fi\n").removesuffix("\n)\n")

    @property
    def cleanup(self) -> str:
        """Return the script that runs when the resource is destroyed; empty without one."""
        assert bool(self.inputs.get("delete")) == self._group.startswith(BEGIN_OF_CLEANUP)
        cleanup, found, _ = self._group.removeprefix(BEGIN_OF_CLEANUP).rpartition(END_OF_CLEANUP)
        return cleanup if found else ""

    @property
    def becoming_root(self) -> str:
        """Return the input of the user's bash before it starts root's; empty if the user is root."""
        before, found, _ = self._stdin.partition(END_OF_SCRIPT)[0].partition(BECOME_ROOT)
        return before + found if found else ""

    @property
    def _group(self) -> str:
        """Return the group that root's bash reads as a whole."""
        return self._stdin.partition(END_OF_SCRIPT)[0].removeprefix(self.becoming_root).removeprefix("{\n")

    @property
    def data(self) -> str:
        """Return the script's standard input."""
        return self._stdin.partition(END_OF_SCRIPT)[2]

    @property
    def files(self) -> dict[str, str]:
        """Return the files in the data (render.files_as_lines), if it holds files."""
        lines = [line.split(" ") for line in self.data.splitlines()]
        return {line[0]: base64.b64decode(line[1]).decode() for line in lines if len(line) == 2}

    @property
    def _stdin(self) -> str:
        stdin = self.inputs["stdin"]
        return str(stdin.value if isinstance(stdin, Secret) else stdin)


def _at(value: Any, path: str) -> Any:
    for part in re.findall(r'[^.\[\]"]+', path):
        value = value.value if isinstance(value, Secret) else value
        value = value.get(part) if isinstance(value, Mapping) else None
    return value


def texts(value: Any, *, secret: bool = False) -> Iterator[str]:
    """Yield all texts in a value of inputs: the plain ones, or with `secret` those that Pulumi keeps secret."""
    if isinstance(value, Secret):
        if secret:
            yield from texts(value.value)
    elif isinstance(value, Mapping):
        for key, item in value.items():
            yield from texts(item, secret=secret)
            if not secret:
                yield str(key)
    elif isinstance(value, list):
        for item in value:
            yield from texts(item, secret=secret)
    elif not secret:
        yield str(value)

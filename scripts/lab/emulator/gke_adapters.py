"""Adapters of target gke: resources of a simulated project, whose cluster is the laboratory's.

No kinder than Google and Pulumi's provider to names that are taken, to what is referred to and not there, to what is
in use, and to a cluster that is protected. Errors have Google's words. What a cluster or a pool brings about in the
laboratory is behind Laboratory (scripts/lab/simulated_gke.py).
"""

import hashlib
import json
import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from components.catalogue.machine_types import load_machine_types
from components.kubernetes.gke_cluster import ROLES
from components.kubernetes.gke_nodes import SYSTEM_MACHINE
from components.settings.gke import ACCELERATORS
from scripts.lab import RehearsalError
from scripts.lab.emulator import google_adapters
from scripts.lab.emulator.google_adapters import API
from scripts.lab.emulator.resource import Adapter, NothingDoneError, Resource, Seen
from scripts.lab.kubernetes.layout import VERSION
from scripts.lib.private_files import write_private

CLUSTER, NODE_POOL = "gcp:container/cluster:Cluster", "gcp:container/nodePool:NodePool"
ROUTER_NAT = "gcp:compute/routerNat:RouterNat"
MOST_NAME = 40
IP_ENDPOINT_ONLY = (
    "the laboratory's cluster has no DNS-based endpoint, whose certificate is of a public CA; fix: rehearse with "
    "controlPlaneSourceRanges"
)


class Laboratory(Protocol):
    """The laboratory's cluster in the place of a cluster of Google's."""

    def is_there(self) -> bool:
        """Return False if everything in the cluster is lost."""

    def create_cluster(self) -> tuple[str, str]:
        """Begin to be a cluster without nodes; return its address, and its CA's certificate in base64."""

    def open_control_plane(self, ranges: list[str]) -> None:
        """Let these CIDR ranges alone reach the control plane's address."""

    def delete_cluster(self) -> None:
        """End to be one: everything that Google has made in it goes."""

    def set_pool(self, name: str, pool: Mapping[str, Any]) -> None:
        """Have the nodes of a pool as it is declared, and the fewest of them."""

    def delete_pool(self, name: str) -> None:
        """Drain the pool's nodes, and delete them."""

    def set_nat(self, *, on: bool) -> None:
        """Give pods a way out, or none."""


class GoogleError(NothingDoneError):
    """A refusal of Google's, in its words."""

    def __init__(self, status: int, reason: str, message: str) -> None:
        super().__init__(f"googleapi: Error {status}: {message}, {reason}")


@dataclass
class Project:
    """A simulated project: what exists in it, and what it allows."""

    file: Path
    resources: dict[str, dict[str, Any]] = field(default_factory=dict)
    """Path below projects/PROJECT -> the inputs that it was made or changed with."""
    disabled_apis: list[str] = field(default_factory=list)
    """compute, container or iam."""
    quotas: dict[str, int] = field(default_factory=dict)
    """Name of a GPU -> the most that there may be; a GPU that is not listed has no limit."""
    lock: threading.RLock = field(default_factory=threading.RLock, repr=False)

    def save(self) -> None:
        """Save everything for the next run."""
        with self.lock:
            content = {"resources": self.resources, "disabled_apis": self.disabled_apis, "quotas": self.quotas}
            self.file.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            write_private(self.file, json.dumps(content, indent=1))

    def load(self) -> "Project":
        """Load what the run before has saved."""
        if self.file.exists():
            for key, value in json.loads(self.file.read_text()).items():
                setattr(self, key, value)
        return self

    def require_api(self, project: str, name: str) -> None:
        """Raise GoogleError if an API is off."""
        if name in self.disabled_apis:
            raise GoogleError(
                403,
                "accessNotConfigured",
                f"{name}.googleapis.com has not been used in project {project} before or it is disabled. Enable it by "
                f"visiting https://console.developers.google.com/apis/api/{name}.googleapis.com/overview?project="
                f"{project} then retry",
            )

    def insert(self, path: str, inputs: dict[str, Any]) -> None:
        """Make a resource."""
        with self.lock:
            self.resources[path] = inputs
            self.save()

    def remove(self, path: str) -> None:
        """Delete a resource, and what is below it."""
        with self.lock:
            for each in [each for each in self.resources if each == path or each.startswith(f"{path}/")]:
                del self.resources[each]
            self.save()

    def users_of(self, path: str) -> list[str]:
        """Return the resources that refer to one."""
        return sorted(each for each, inputs in self.resources.items() if path in inputs.get("refersTo", ()))


@dataclass(frozen=True, kw_only=True)
class _Kind:
    """A kind of resource."""

    api: str
    collection: str
    """Path of its collection, with inputs in braces."""
    name: str
    """Path in the collection, with inputs in braces."""
    inputs: frozenset[str]
    in_place: frozenset[str]
    """Inputs, or parts of them, that change in place; any other makes another resource."""
    refers_to: Callable[[dict[str, Any]], Iterator[str]]
    """Paths of resources that it needs."""
    blocks: bool = False
    """True if Google does not delete it while another refers to it."""
    once: bool = True
    """True if a second one of that name is refused."""

    def path(self, inputs: Mapping[str, Any]) -> str:
        """Return its path below the project."""
        return f"{self.collection}/{self.name}".format_map(inputs)

    def refuses_to_change(self, old: Any, new: Any, at: str = "") -> bool:
        """Return True if a difference can't be made in place."""
        if old == new or at in self.in_place:
            return False
        if isinstance(old, dict) and isinstance(new, dict):
            keys = {*old, *new}
            return any(self.refuses_to_change(old.get(key), new.get(key), f"{at}.{key}" if at else key) for key in keys)
        return True


def _below_project(link: str) -> str:
    """Return the path of a link, or of a name that has its project in front."""
    return link.partition("projects/")[2].partition("/")[2]


def _linked(collection: str, *keys: str) -> Callable[[dict[str, Any]], Iterator[str]]:
    """Return a function that yields what inputs link to; a bare name is of this collection."""

    def refers_to(inputs: dict[str, Any]) -> Iterator[str]:
        for key in keys:
            if value := inputs.get(key):
                yield _below_project(value) or f"{collection}/{value}".format_map(inputs)

    return refers_to


def _account(email: str) -> Iterator[str]:
    yield f"serviceAccounts/{email}"


def _of_nat(inputs: dict[str, Any]) -> Iterator[str]:
    yield f"regions/{inputs['region']}/routers/{inputs['router']}"
    for subnetwork in inputs["subnetworks"]:
        yield _below_project(subnetwork["name"])


def _of_cluster(inputs: dict[str, Any]) -> Iterator[str]:
    yield _below_project(inputs["network"]) or f"global/networks/{inputs['network']}"
    region = "-".join(inputs["location"].split("-")[:2])
    yield _below_project(inputs["subnetwork"]) or f"regions/{region}/subnetworks/{inputs['subnetwork']}"
    yield from _account(inputs["nodeConfig"]["serviceAccount"])


def _of_pool(inputs: dict[str, Any]) -> Iterator[str]:
    yield "locations/{location}/clusters/{cluster}".format_map(inputs)
    yield from _account(inputs["nodeConfig"]["serviceAccount"])


NETWORKS = "global/networks"
SUBNETWORKS = "regions/{region}/subnetworks"
KINDS = {
    "gcp:compute/network:Network": _Kind(
        api="compute",
        collection=NETWORKS,
        name="{name}",
        inputs=frozenset({"project", "name", "autoCreateSubnetworks"}),
        in_place=frozenset(),
        refers_to=lambda _inputs: iter(()),
        blocks=True,
    ),
    "gcp:compute/subnetwork:Subnetwork": _Kind(
        api="compute",
        collection=SUBNETWORKS,
        name="{name}",
        inputs=frozenset(
            {"project", "name", "region", "network", "ipCidrRange", "secondaryIpRanges", "privateIpGoogleAccess"}
        ),
        in_place=frozenset({"secondaryIpRanges", "privateIpGoogleAccess"}),
        refers_to=_linked(NETWORKS, "network"),
        blocks=True,
    ),
    "gcp:compute/router:Router": _Kind(
        api="compute",
        collection="regions/{region}/routers",
        name="{name}",
        inputs=frozenset({"project", "name", "region", "network"}),
        in_place=frozenset(),
        refers_to=_linked(NETWORKS, "network"),
    ),
    ROUTER_NAT: _Kind(
        api="compute",
        collection="regions/{region}/routers/{router}/nats",
        name="{name}",
        inputs=frozenset(
            {
                *("project", "name", "region", "router", "natIpAllocateOption", "sourceSubnetworkIpRangesToNat"),
                "subnetworks",
            }
        ),
        in_place=frozenset({"natIpAllocateOption", "sourceSubnetworkIpRangesToNat", "subnetworks"}),
        refers_to=_of_nat,
    ),
    "gcp:compute/address:Address": _Kind(
        api="compute",
        collection="regions/{region}/addresses",
        name="{name}",
        inputs=frozenset({"project", "name", "region", "addressType", "subnetwork"}),
        in_place=frozenset(),
        refers_to=_linked(SUBNETWORKS, "subnetwork"),
        blocks=True,
    ),
    "gcp:serviceaccount/account:Account": _Kind(
        api="iam",
        collection="serviceAccounts",
        name="{accountId}@{project}.iam.gserviceaccount.com",
        inputs=frozenset({"project", "accountId", "displayName"}),
        in_place=frozenset({"displayName"}),
        refers_to=lambda _inputs: iter(()),
    ),
    "gcp:projects/iAMMember:IAMMember": _Kind(
        api="iam",
        collection="iam/{role}",
        name="{member}",
        inputs=frozenset({"project", "role", "member"}),
        in_place=frozenset(),
        refers_to=lambda inputs: _account(inputs["member"].removeprefix("serviceAccount:")),
        once=False,  # it adds to what is there
    ),
    CLUSTER: _Kind(
        api="container",
        collection="locations/{location}/clusters",
        name="{name}",
        inputs=frozenset(
            {
                *("project", "name", "location", "nodeLocations", "network", "subnetwork", "networkingMode"),
                *("ipAllocationPolicy", "datapathProvider", "privateClusterConfig", "controlPlaneEndpointsConfig"),
                "masterAuth",
                *("masterAuthorizedNetworksConfig", "workloadIdentityConfig", "releaseChannel", "minMasterVersion"),
                *("enableShieldedNodes", "enableL4IlbSubsetting", "databaseEncryption", "addonsConfig"),
                *("removeDefaultNodePool", "initialNodeCount", "nodeConfig", "resourceLabels", "deletionProtection"),
            }
        ),
        in_place=frozenset(
            {
                *("nodeLocations", "controlPlaneEndpointsConfig", "masterAuthorizedNetworksConfig"),
                *("privateClusterConfig", "workloadIdentityConfig", "releaseChannel", "minMasterVersion"),
                *("enableShieldedNodes", "databaseEncryption", "addonsConfig", "resourceLabels"),
                *("deletionProtection", "removeDefaultNodePool"),
            }
        ),
        refers_to=_of_cluster,
    ),
    NODE_POOL: _Kind(
        api="container",
        collection="locations/{location}/clusters/{cluster}/nodePools",
        name="{name}",
        inputs=frozenset(
            {
                *("project", "name", "location", "cluster", "nodeLocations", "networkConfig", "nodeConfig"),
                *("initialNodeCount", "autoscaling", "management", "upgradeSettings"),
            }
        ),
        in_place=frozenset(
            {
                *("nodeLocations", "networkConfig", "autoscaling", "management", "upgradeSettings"),
                *("nodeConfig.machineType", "nodeConfig.diskSizeGb", "nodeConfig.diskType", "nodeConfig.imageType"),
                *("nodeConfig.resourceLabels", "nodeConfig.tags", "nodeConfig.taints", "nodeConfig.gvnic"),
                *("nodeConfig.workloadMetadataConfig", "nodeConfig.kubeletConfig"),
            }
        ),
        refers_to=_of_pool,
    ),
}
"""Inputs that change in place, by the schemas of the provider's version 9.35."""


def adapters(stack: str, project: Project, laboratory: Laboratory) -> Mapping[str, Adapter]:
    """Return the adapters of a stack's resources in a simulated project."""
    return {kind: _Adapter(kind, stack, project, laboratory).adapter() for kind in KINDS}


@dataclass(frozen=True)
class _Adapter:
    type: str
    stack: str
    project: Project
    laboratory: Laboratory

    @property
    def kind(self) -> _Kind:
        return KINDS[self.type]

    def adapter(self) -> Adapter:
        return Adapter(
            inputs=self.kind.inputs,
            create=self.create,
            update=self.update,
            read=self.read,
            delete=self.delete,
            replaces=lambda _changed: False,
            remakes=self.kind.refuses_to_change,
        )

    def create(self, resource: Resource) -> tuple[str, dict[str, Any]]:
        """Make it as the provider would. Raises GoogleError before anything is made."""
        inputs, path = resource.inputs, self.kind.path(resource.inputs)
        resource.say("simulated")
        with self.project.lock:
            self.project.require_api(inputs["project"], self.kind.api)
            if self.kind.once and path in self.project.resources:
                raise GoogleError(409, "alreadyExists", f"Already exists: projects/{inputs['project']}/{path}")
            needed = [*self.kind.refers_to(inputs)]
            for each in needed:
                if each not in self.project.resources:
                    raise GoogleError(404, "notFound", f"Not found: projects/{inputs['project']}/{each}")
            self._require(inputs)
            outputs = self._outputs(inputs, path)
            self._bring_about(inputs, created=True)
            self.project.insert(path, {**inputs, "refersTo": needed, "outputs": outputs})
        return f"projects/{inputs['project']}/{path}", outputs

    def update(self, resource: Resource) -> dict[str, Any]:
        """Change it in place."""
        path = self.kind.path(resource.inputs)
        with self.project.lock:
            if path not in self.project.resources:
                raise GoogleError(404, "notFound", f"Not found: projects/{resource.inputs['project']}/{path}")
            self._require(resource.inputs)
            self._bring_about(resource.inputs, created=False)
            needed = [*self.kind.refers_to(resource.inputs)]
            self.project.insert(path, {**resource.inputs, "refersTo": needed, "outputs": resource.outputs})
        return resource.outputs

    def read(self, resource: Resource) -> Seen:
        """Look, and put back what another has changed."""
        path = self.kind.path(resource.inputs)
        if self.type == CLUSTER and path in self.project.resources and not self.laboratory.is_there():
            self.project.remove(path)
        found = self.project.resources.get(path)
        if found is None:
            return "gone"
        compared = {*found, *resource.inputs} - {"refersTo", "outputs"} - resource.ignored
        if all(found.get(key) == resource.inputs.get(key) for key in compared):
            return "same"
        self.update(resource)
        return "repaired"

    def delete(self, resource: Resource) -> None:
        """Delete it, unless it is in use or protected."""
        inputs, path = resource.inputs, self.kind.path(resource.inputs)
        with self.project.lock:
            if path not in self.project.resources:
                return
            if inputs.get("deletionProtection"):
                raise RehearsalError(
                    "Cannot destroy cluster because deletion_protection is set to true. Set it to false to proceed "
                    "with cluster deletion"
                )
            users = self.project.users_of(path)
            if self.kind.blocks and users:
                raise GoogleError(
                    400,
                    "resourceInUseByAnotherResource",
                    f"The resource 'projects/{inputs['project']}/{path}' is already being used by "
                    f"'projects/{inputs['project']}/{users[0]}'",
                )
            if self.type == CLUSTER:
                self.laboratory.delete_cluster()
            elif self.type == NODE_POOL:
                self.laboratory.delete_pool(inputs["name"])
            elif self.type == ROUTER_NAT:
                self.laboratory.set_nat(on=False)
            self.project.remove(path)

    def _require(self, inputs: dict[str, Any]) -> None:
        """Raise GoogleError for what Google does not accept."""
        if self.type in CHECKS:
            for problem in CHECKS[self.type](inputs, self.project):
                raise GoogleError(400, "badRequest", problem)

    def _bring_about(self, inputs: dict[str, Any], *, created: bool) -> None:
        if self.type == CLUSTER:
            if created:
                self.laboratory.set_nat(on=any("/nats/" in path for path in self.project.resources))
            self.laboratory.open_control_plane(_ranges(inputs))
        elif self.type == NODE_POOL:
            self.laboratory.set_pool(inputs["name"], inputs)
        elif self.type == ROUTER_NAT and created:
            self.laboratory.set_nat(on=True)

    def _outputs(self, inputs: dict[str, Any], path: str) -> dict[str, Any]:
        if self.type == CLUSTER:
            return self._control_plane(inputs, path)
        if self.type == "gcp:serviceaccount/account:Account":
            email = path.rpartition("/")[2]
            return {"email": email, "name": f"projects/{inputs['project']}/{path}", "member": f"serviceAccount:{email}"}
        if self.type == "gcp:compute/address:Address":
            found = {"address": google_adapters.address(self.stack, inputs["addressType"])}
        else:
            found = {}
        return {**found, "selfLink": f"{API}/projects/{inputs['project']}/{path}"}

    def _control_plane(self, inputs: dict[str, Any], path: str) -> dict[str, Any]:
        """Return a cluster's endpoints, and its CA, beside which there are secrets that this one has none of."""
        address, ca = self.laboratory.create_cluster()
        endpoints = inputs["controlPlaneEndpointsConfig"]
        number = hashlib.sha256(path.encode()).hexdigest()[:20]
        dns = {**endpoints["dnsEndpointConfig"], "endpoint": f"gke-{number}.{inputs['location']}.gke.goog"}
        return {
            "endpoint": address,
            "masterAuth": {"clusterCaCertificate": ca, "clientCertificate": "", "clientKey": ""},
            "masterVersion": f"{VERSION}-gke.1000000",
            "controlPlaneEndpointsConfig": {**endpoints, "dnsEndpointConfig": dns},
            "selfLink": f"https://container.googleapis.com/v1/projects/{inputs['project']}/{path}",
        }


def _ranges(inputs: Mapping[str, Any]) -> list[str]:
    return [each["cidrBlock"] for each in inputs["masterAuthorizedNetworksConfig"]["cidrBlocks"]]


def _cluster_problems(inputs: dict[str, Any], project: Project) -> Iterator[str]:
    """Yield what Google refuses in a cluster."""
    if len(inputs["name"]) > MOST_NAME:
        yield f"Invalid value for field 'cluster.name': '{inputs['name']}'"
    if not inputs["controlPlaneEndpointsConfig"]["ipEndpointsConfig"]["enabled"]:
        raise NothingDoneError(IP_ENDPOINT_ONLY)
    wanted = tuple(map(int, inputs["minMasterVersion"].split(".")))
    if wanted > tuple(map(int, VERSION.split(".")[: len(wanted)])):
        yield f'No valid versions with the prefix "{inputs["minMasterVersion"]}" found'
    if inputs["workloadIdentityConfig"]["workloadPool"] != f"{inputs['project']}.svc.id.goog":
        yield f"Workload pool must be {inputs['project']}.svc.id.goog"
    subnetwork = project.resources[[*_of_cluster(inputs)][1]]
    ranges = {each["rangeName"] for each in subnetwork.get("secondaryIpRanges", ())}
    for key, title in (("clusterSecondaryRangeName", "Pod"), ("servicesSecondaryRangeName", "Services")):
        name = inputs["ipAllocationPolicy"].get(key)
        if name and name not in ranges:
            yield f'{title} secondary range "{name}" does not exist in subnetwork "{subnetwork["name"]}"'
    key = inputs.get("databaseEncryption", {}).get("keyName")
    if key and _below_project(key) not in project.resources:
        yield f"Cloud KMS key {key} is not found, or GKE's service agent may not use it"


def _pool_problems(inputs: dict[str, Any], project: Project) -> Iterator[str]:
    """Yield what Google refuses in a pool of nodes."""
    config = inputs["nodeConfig"]
    kind = load_machine_types().get(config["machineType"])
    if not kind and config["machineType"] != SYSTEM_MACHINE:
        yield f"Machine type with name '{config['machineType']}' does not exist in zone '{inputs['nodeLocations'][0]}'"
    fitting = [(ACCELERATORS[kind.name.rpartition("-")[0]], kind.gpus)] if kind else []
    if [(each["type"], each["count"]) for each in config.get("guestAccelerators", ())] != fitting:
        yield f"Accelerators {config.get('guestAccelerators')} do not fit machine type {config['machineType']}"
    scaling = inputs["autoscaling"]
    if not scaling["totalMinNodeCount"] <= scaling["totalMaxNodeCount"] or not scaling["totalMaxNodeCount"]:
        yield f"Invalid autoscaling limits {scaling['totalMinNodeCount']} to {scaling['totalMaxNodeCount']}"
    grant = f"iam/{ROLES['node']}/serviceAccount:{config['serviceAccount']}"
    if inputs["initialNodeCount"] and grant not in project.resources:
        yield (
            f"All cluster resources were brought up, but: only 0 nodes out of {inputs['initialNodeCount']} have "
            "registered; cluster may be unhealthy"
        )


CHECKS: dict[str, Callable[[dict[str, Any], Project], Iterator[str]]] = {
    CLUSTER: _cluster_problems,
    NODE_POOL: _pool_problems,
}

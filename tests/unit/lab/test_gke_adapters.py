"""The simulated project of target gke, without a cluster: no kinder than Google to the program's resources."""

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml

from scripts.lab import RehearsalError, in_place_of_gke
from scripts.lab.cli import ADAPTERS
from scripts.lab.emulator import engine, gke_adapters, google_adapters
from scripts.lab.emulator.gke_adapters import CLUSTER, KINDS, NODE_POOL, Project
from scripts.lab.emulator.resource import Adapter, Resource
from scripts.lab.emulator.state import State, load
from scripts.lib.progress import Display
from scripts.lib.stack_config import StackConfig, read_config
from tests.support.program import ROOT
from tests.support.registered import REPLACING

CLUSTER_PATH = "locations/us-central1-a/clusters/elastic-vllm-gke"
NETWORK, SUBNETWORK = "global/networks/elastic-vllm-gke", "regions/us-central1/subnetworks/elastic-vllm-gke"
ADDRESS = "regions/us-central1/addresses/elastic-vllm-gke"
NO_CLUSTER = "there is no cluster in this test"


class Laboratory:
    """A laboratory without a cluster; it notes what it is asked for."""

    def __init__(self) -> None:
        self.done: list[str] = []
        self.there = True

    def is_there(self) -> bool:
        return self.there

    def create_cluster(self) -> tuple[str, str]:
        self.done.append("create the cluster")
        return "198.18.0.10", "Q0E="

    def open_control_plane(self, ranges: list[str]) -> None:
        self.done.append(f"open the control plane for {', '.join(ranges)}")

    def delete_cluster(self) -> None:
        self.done.append("delete the cluster")

    def set_pool(self, name: str, pool: Mapping[str, Any]) -> None:
        self.done.append(f"set pool {name} ({pool['nodeConfig']['machineType']})")

    def delete_pool(self, name: str) -> None:
        self.done.append(f"delete pool {name}")

    def set_nat(self, *, on: bool) -> None:
        self.done.append(f"NAT {'on' if on else 'off'}")


class Google:
    """A project with the stack gke, whose program runs as far as to the first look at the cluster."""

    def __init__(self, directory: Path) -> None:
        self.root, self.laboratory = directory, Laboratory()
        self.project = Project(directory / "google.json")

    def config(self, **settings: Any) -> StackConfig:
        sets = [f"{key}={value if isinstance(value, str) else json.dumps(value)}" for key, value in settings.items()]
        config = read_config(ROOT, "gke", sets, [])
        return in_place_of_gke.rehearsed(config, {f"elastic-vllm:{key}" for key in settings})

    def adapters(self, config: StackConfig) -> dict[str, Adapter]:
        def refuse(_resource: Resource) -> tuple[str, dict[str, Any]]:
            raise RehearsalError(NO_CLUSTER)

        check = "pulumi-python:dynamic/kubernetes:ClusterCheck"
        blind = Adapter(inputs=ADAPTERS[check].inputs, create=refuse)
        google = gke_adapters.adapters(config.stack, self.project, self.laboratory)
        return {**ADAPTERS, **google_adapters.adapters(config), **google, check: blind}

    def up(self, **settings: Any) -> str:
        """Run the program, and return why it ended."""
        config, state = self.config(**settings), self.state
        self.laboratory.done.clear()
        with Display() as display, pytest.raises(RehearsalError) as error:
            engine.up(ROOT, config, state, self.adapters(config), display)
        return str(error.value)

    def down(self) -> None:
        config, state = self.config(), self.state
        self.laboratory.done.clear()
        with Display() as display:
            engine.destroy(config, state, self.adapters(config), display, lambda: None)

    @property
    def state(self) -> State:
        return load(self.root, "gke")


@pytest.fixture
def google(tmp_path: Path) -> Google:
    return Google(tmp_path)


def test_a_cluster_comes_with_everything_that_it_refers_to(google: Google) -> None:
    assert NO_CLUSTER in google.up()
    assert {*google.project.resources} == {
        NETWORK,
        SUBNETWORK,
        "regions/us-central1/routers/elastic-vllm-gke",
        "regions/us-central1/routers/elastic-vllm-gke/nats/elastic-vllm-gke",
        ADDRESS,
        "serviceAccounts/elastic-vllm-gke@rehearsal.iam.gserviceaccount.com",
        *(
            f"iam/{role}/serviceAccount:elastic-vllm-gke@rehearsal.iam.gserviceaccount.com"
            for role in ("roles/container.defaultNodeServiceAccount", "roles/artifactregistry.reader")
        ),
        CLUSTER_PATH,
        f"{CLUSTER_PATH}/nodePools/system",
        f"{CLUSTER_PATH}/nodePools/gpu",
    }
    assert google.laboratory.done[:4] == [
        "NAT on",
        "create the cluster",
        "NAT on",
        "open the control plane for 198.18.0.1/32",
    ]
    assert {*google.laboratory.done[4:]} == {"set pool system (e2-standard-4)", "set pool gpu (a2-ultragpu-2g)"}


def test_the_kubeconfig_has_the_simulated_control_plane_and_no_token(google: Google) -> None:
    google.up()
    (check,) = [each for each in google.state.resources.values() if each.type.endswith(":ClusterCheck")]
    kubeconfig = yaml.safe_load(check.inputs["kubeconfig"])
    assert kubeconfig["clusters"][0]["cluster"] == {
        "server": "https://198.18.0.10",
        "certificate-authority-data": "Q0E=",
    }
    assert kubeconfig["users"][0]["user"].keys() == {"exec"}


def test_a_second_run_changes_nothing(google: Google) -> None:
    google.up()
    before = dict(google.project.resources)
    google.up()
    assert google.laboratory.done == []
    assert google.project.resources == before


def test_what_somebody_changed_is_put_back(google: Google) -> None:
    google.up()
    pool = google.project.resources[f"{CLUSTER_PATH}/nodePools/gpu"]
    pool["autoscaling"] = {**pool["autoscaling"], "totalMaxNodeCount": 0}
    google.up()
    assert google.laboratory.done == ["set pool gpu (a2-ultragpu-2g)"]
    assert google.project.resources[f"{CLUSTER_PATH}/nodePools/gpu"]["autoscaling"]["totalMaxNodeCount"] == 1


def test_a_cluster_that_is_lost_is_made_again(google: Google) -> None:
    google.up()
    google.laboratory.there = False
    google.up()
    begin = ["create the cluster", "NAT on", "open the control plane for 198.18.0.1/32"]
    assert google.laboratory.done[:3] == begin
    assert len(google.laboratory.done) == 5  # and the pools


@pytest.mark.parametrize(
    ("changed", "done"),
    [
        ({"controlPlaneSourceRanges": ["198.18.0.0/24"]}, ["open the control plane for 198.18.0.0/24"]),
        # The machine type of nodes can be changed; their GPUs can't.
        ({"machineType": "a2-ultragpu-4g"}, ["delete pool gpu", "set pool gpu (a2-ultragpu-4g)"]),
        ({"provisioningModel": "SPOT"}, ["delete pool gpu", "set pool gpu (a2-ultragpu-2g)"]),
        ({"bootDiskGb": 300}, ["set pool gpu (a2-ultragpu-2g)"]),
    ],
)
def test_a_change_does_what_the_provider_plans(changed: dict[str, Any], done: list[str], google: Google) -> None:
    google.up()
    google.up(**changed)
    assert google.laboratory.done == done


def test_a_protected_cluster_is_not_deleted_and_nothing_before_it(google: Google) -> None:
    google.up()
    everything = {*google.project.resources}
    with pytest.raises(RehearsalError, match=r"gke-cluster .* it is protected"):
        google.down()
    assert {*google.project.resources} == everything
    google.up(protectCluster=False)
    google.down()
    assert google.project.resources == {}
    assert google.laboratory.done[-2:] == ["delete the cluster", "NAT off"]
    assert {*google.laboratory.done[:-2]} == {"delete pool gpu", "delete pool system"}


def test_googles_own_protection_holds_without_pulumis(google: Google) -> None:
    google.up()
    adapter = google.adapters(google.config())[CLUSTER]
    (record,) = [each for each in google.state.resources.values() if each.type == CLUSTER]
    resource = Resource(name="", type=CLUSTER, inputs=record.inputs, outputs={}, id="", provider={}, say=lambda _: None)
    with pytest.raises(RehearsalError, match="Cannot destroy cluster because deletion_protection is set to true"):
        adapter.delete(resource)
    assert "delete the cluster" not in google.laboratory.done


def test_an_address_that_a_load_balancer_has_is_in_use(google: Google) -> None:
    google.up(protectCluster=False)
    google.project.insert("forwardingRules/f", {"name": "f", "refersTo": [ADDRESS]})
    with pytest.raises(
        RehearsalError, match=f"{ADDRESS}' is already being used by 'projects/rehearsal/forwardingRules/f"
    ):
        google.down()
    assert NETWORK in google.project.resources


REFUSED = [
    ("api", "container.googleapis.com has not been used in project rehearsal before or it is disabled"),
    ("taken", f"Error 409: Already exists: projects/rehearsal/{CLUSTER_PATH}, alreadyExists"),
    ("key", "Cloud KMS key .* is not found, or GKE's service agent may not use it"),
    ("network", "Not found: projects/rehearsal/regions/us-central1/subnetworks/llm"),
    ("ranges", 'Pod secondary range "pods-2" does not exist in subnetwork "llm"'),
    ("rights", "only 0 nodes out of 1 have registered"),
    ("endpoint", "no DNS-based endpoint"),
]


@pytest.mark.parametrize(("case", "message"), REFUSED, ids=[case for case, _ in REFUSED])
def test_what_google_refuses_ends_up_before_the_cluster_is_asked(case: str, message: str, google: Google) -> None:
    given = {"network": "shared", "subnetwork": "llm", "cloudNat": False}
    settings: dict[str, Any] = {}
    project = google.project
    if case == "api":
        project.disabled_apis = ["container"]
    elif case == "taken":
        project.insert(CLUSTER_PATH, {"name": "somebody's"})
    elif case == "key":
        settings = {"secretsKmsKey": "projects/rehearsal/locations/us-central1/keyRings/llm/cryptoKeys/etcd"}
    elif case == "rights":
        project.insert("serviceAccounts/nodes@rehearsal.iam.gserviceaccount.com", {})
        settings = {"serviceAccount": "nodes@rehearsal.iam.gserviceaccount.com"}
    elif case == "endpoint":
        settings = {"controlPlaneSourceRanges": []}
    else:
        settings = {**given, "podRange": "pods-2", "serviceRange": "services-2"}
    if case == "ranges":
        project.insert("global/networks/shared", {})
        project.insert("regions/us-central1/subnetworks/llm", {"name": "llm", "secondaryIpRanges": []})
    found = google.up(**settings)
    assert re.search(message, found), found
    assert not [each for each in google.state.resources.values() if "kubernetes" in each.type]
    assert ("create the cluster" in google.laboratory.done) == (case == "rights")


def test_a_cluster_comes_once_google_has_what_it_lacked(google: Google) -> None:
    google.project.disabled_apis = ["container"]
    google.up()
    google.project.disabled_apis = []
    assert NO_CLUSTER in google.up()
    assert google.laboratory.done[0] == "create the cluster"


def test_what_was_there_before_a_refusal_can_be_taken_down(google: Google) -> None:
    google.project.disabled_apis = ["container"]
    google.up()
    assert NETWORK in google.project.resources
    google.down()
    assert google.project.resources == {}


def test_a_project_is_the_same_for_the_next_run(google: Google) -> None:
    google.up()
    assert Project(google.project.file).load().resources == google.project.resources


@pytest.mark.parametrize("kind", [each for each in KINDS if each in REPLACING])
def test_an_input_replaces_here_if_it_does_under_the_real_engine(kind: str) -> None:
    for path in REPLACING[kind]:
        nested = "value"
        for part in reversed(path.split(".")[1:]):
            nested = {part: nested}  # type: ignore[assignment]
        other = json.loads(json.dumps(nested).replace("value", "other"))
        key = path.split(".")[0]
        assert KINDS[kind].refuses_to_change({key: nested}, {key: other}), path
    assert REPLACING[NODE_POOL]

"""Resources of target gke: the rules of gke_rules, and what settings change in them."""

import copy
import json
import subprocess
from collections.abc import Callable
from typing import Any

import kubernetes_validate
import pytest

from components.kubernetes import api
from components.kubernetes.gke_cluster import account_id, kubeconfig
from tests.support.gke_rules import EXAMPLES, RULES, Rule
from tests.support.program import FILLED_IN, ROOT, Program, key_of, run, tls_key_of, written
from tests.support.registered import CLUSTER, NODE_POOL, Registered, texts
from tests.unit.components.kubernetes.test_objects import plain, registered
from tests.unit.conftest import ON_GKE

Programs = Callable[..., Program]
Values = Callable[..., dict[str, str]]
NETWORK = {"network": "shared", "subnetwork": "llm", "cloudNat": False}
EXTERNAL = {"loadBalancer": "external"}
PLANE = {"controlPlaneSourceRanges": ["203.0.113.7/32"]}
IMAGE = f"us-docker.pkg.dev/acme/llm/weights:1@sha256:{'d' * 64}"
KEY = "projects/acme-search/locations/us-central1/keyRings/llm/cryptoKeys/etcd"
TOKEN = "ya29.TokenOfTheTests"


@pytest.fixture
def gke(program_of: Programs) -> Program:
    return program_of("gke")


def cluster_of(program: Program) -> Registered:
    (cluster,) = program.of_type(CLUSTER)
    return cluster


# Rules


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.__name__)
@pytest.mark.parametrize(
    "overrides",
    [
        {},
        {"parked": True},
        {"replicas": 3, "maxSurge": 1, "weightsStorageClass": "standard-rwx"},
        {**NETWORK, **PLANE},
        {"serviceAccount": "nodes@acme-search.iam.gserviceaccount.com", "regionalControlPlane": True},
    ],
    ids=str,
)
def test_rule(rule: Rule, overrides: dict[str, Any], program_of: Programs) -> None:
    assert not [*rule(program_of("gke", **overrides))]


@pytest.mark.parametrize(("rule", "name", "path", "value"), EXAMPLES)
def test_a_rule_finds_what_breaks_it(rule: Rule, name: str, path: str, value: Any, gke: Program) -> None:
    program = copy.deepcopy(gke)
    resource = program.resources[name]
    *way, last = path.removeprefix(".").split(".")
    if path.startswith("."):
        setattr(resource, last, value)
    else:
        at = resource.inputs
        for part in way:
            at = at[part]
        at[last] = value
    assert [*rule(program)]


def test_every_rule_has_an_example() -> None:
    assert {rule for rule, *_ in EXAMPLES} == set(RULES)


@pytest.mark.parametrize("stack", ON_GKE)
def test_a_stack_file_leaves_at_most_two_values_to_fill_in(stack: str) -> None:
    empty = {key for key, value in written(stack).items() if value in ("", [])}
    assert empty <= set(FILLED_IN)
    assert len(empty) <= 2


@pytest.mark.parametrize("name", ["p" * 27, "a-" * 13 + "b"])
def test_names_fit_for_the_longest_stack_name(name: str, values_of: Values) -> None:
    program = run(values_of("gke"), stack=name)
    assert not [offender for rule in RULES for offender in rule(program)]
    assert len(cluster_of(program).inputs["name"]) == 40
    (account,) = program.of_type("gcp:serviceaccount/account:Account")
    assert len(account.inputs["accountId"]) == 30


def test_accounts_of_stacks_with_long_names_differ() -> None:
    assert account_id("elastic-vllm-gke") == "elastic-vllm-gke"
    assert account_id(f"elastic-vllm-{'p' * 26}a") != account_id(f"elastic-vllm-{'p' * 26}b")


@pytest.mark.parametrize("version", ["1.34", "1.37"])
@pytest.mark.parametrize("overrides", [{}, EXTERNAL], ids=str)
def test_objects_are_valid(version: str, overrides: dict[str, Any], program_of: Programs) -> None:
    for resource in registered(program_of("gke", **overrides)):
        kubernetes_validate.validate(plain(resource.inputs), version, strict=True)


# Secrets


def test_no_secret_is_in_an_input_or_output_that_pulumi_shows(program_of: Programs) -> None:
    secrets = ("key-v1", "certificate-key", "certificate-ca-key", "internal-door-key", "internal-gateway-key")
    for program in (program_of("gke"), program_of("gke", **PLANE)):
        shown = "\n".join(text for resource in program.resources.values() for text in texts(resource.inputs))
        outputs = {name: value for name, value in program.outputs.items() if name not in program.secret_outputs}
        shown += json.dumps(outputs, default=str)
        for secret in (*map(key_of, secrets), *map(tls_key_of, secrets)):
            assert secret not in shown
        assert "a key of the cluster's" not in shown  # beside the certificate that the kubeconfig has


def test_commands_reach_the_cluster_by_the_outputs(gke: Program) -> None:
    about = gke.outputs["_internal"]["kubernetes"]
    assert about == {
        "kubeconfig": kubeconfig("elastic-vllm-gke", "gke-gke-cluster.us-central1.gke.goog"),
        "context": "elastic-vllm-gke",
        "namespace": "elastic-vllm",
    }


def test_a_client_gets_its_token_from_the_command(monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> None:
    monkeypatch.setenv("GOOGLE_OAUTH_ACCESS_TOKEN", TOKEN)
    monkeypatch.chdir(tmp_path)
    client = api.connect(kubeconfig("llm", "gke-1.us-central1.gke.goog"), "llm")
    assert client.configuration.api_key == {"BearerToken": f"Bearer {TOKEN}"}
    assert client.configuration.host == "https://gke-1.us-central1.gke.goog"


def test_the_command_is_where_pulumis_plugins_look_for_it() -> None:
    command, *arguments = api.CREDENTIALS_COMMAND
    done = subprocess.run(
        [command, *arguments, "--help"], cwd=ROOT, capture_output=True, text=True, check=True, timeout=60
    )
    assert "Kubernetes client" in done.stdout


# The control plane


def test_with_ranges_the_control_plane_has_an_address_for_these_alone(program_of: Programs) -> None:
    program = program_of("gke", **PLANE)
    inputs = cluster_of(program).inputs
    assert inputs["controlPlaneEndpointsConfig"] == {
        "dnsEndpointConfig": {"allowExternalTraffic": False},
        "ipEndpointsConfig": {"enabled": True},
    }
    assert inputs["masterAuthorizedNetworksConfig"]["cidrBlocks"] == [{"cidrBlock": "203.0.113.7/32"}]
    shown = program.resources["cluster-provider"].inputs["kubeconfig"]
    assert "server: https://203.0.113.99\n" in shown
    assert "certificate-authority-data: " in shown


def test_a_regional_control_plane_leaves_the_nodes_in_their_zone(program_of: Programs) -> None:
    program = program_of("gke", regionalControlPlane=True)
    assert cluster_of(program).inputs["location"] == "us-central1"
    assert {pool.inputs["location"] for pool in program.of_type(NODE_POOL)} == {"us-central1"}
    assert [pool.inputs["nodeLocations"] for pool in program.of_type(NODE_POOL)] == [["us-central1-a"]] * 2


def test_protection_is_lifted_only_if_asked(program_of: Programs) -> None:
    cluster = cluster_of(program_of("gke", protectCluster=False))
    assert not cluster.protect
    assert cluster.inputs["deletionProtection"] is False


def test_a_key_of_the_users_encrypts_secrets(program_of: Programs) -> None:
    assert "databaseEncryption" not in cluster_of(program_of("gke")).inputs
    encryption = cluster_of(program_of("gke", secretsKmsKey=KEY)).inputs["databaseEncryption"]
    assert encryption == {"state": "ENCRYPTED", "keyName": KEY}


def test_weights_from_an_image_need_a_newer_version(program_of: Programs) -> None:
    overrides = {"weightsImage": IMAGE, "weightsStorageClass": "", "modelRevision": "", "bootDiskGb": 300}
    assert cluster_of(program_of("gke", **overrides)).inputs["minMasterVersion"] == "1.35"


# Network and address


def test_an_existing_network_is_used_and_none_is_made(program_of: Programs) -> None:
    program = program_of("gke", **NETWORK, podRange="pods-2", serviceRange="services-2")
    assert not [r.name for r in program.leaves if r.type.endswith((":Network", ":Subnetwork", ":Router", ":RouterNat"))]
    inputs = cluster_of(program).inputs
    assert (inputs["network"], inputs["subnetwork"]) == ("shared", "llm")
    assert inputs["ipAllocationPolicy"] == {
        "clusterSecondaryRangeName": "pods-2",
        "servicesSecondaryRangeName": "services-2",
    }


def test_the_own_subnetwork_has_the_ranges_that_the_cluster_names(gke: Program) -> None:
    (subnetwork,) = gke.of_type("gcp:compute/subnetwork:Subnetwork")
    ranges = {each["rangeName"] for each in subnetwork.inputs["secondaryIpRanges"]}
    assert ranges == set(cluster_of(gke).inputs["ipAllocationPolicy"].values())


def test_an_external_endpoint_only_in_these_words(program_of: Programs) -> None:
    program = program_of("gke", **EXTERNAL)
    (address,) = program.of_type("gcp:compute/address:Address")
    assert address.inputs["addressType"] == "EXTERNAL"
    service = program.resources["gateway-service"].inputs
    assert service["metadata"]["annotations"] == {"cloud.google.com/l4-rbs": "enabled"}
    assert service["spec"]["loadBalancerSourceRanges"] == FILLED_IN["httpsSourceRanges"]
    assert program.outputs["connectorUrl"].startswith(f"https://{service['spec']['loadBalancerIP']}/")


# Nodes


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        ({}, {}),
        ({"provisioningModel": "SPOT"}, {"spot": True}),
        (
            {"provisioningModel": "FLEX_START"},
            {
                "flexStart": True,
                "maxRunDuration": "604800s",
                "reservationAffinity": {"consumeReservationType": "NO_RESERVATION"},
            },
        ),
        (
            {"reservation": "llm"},
            {
                "reservationAffinity": {
                    "consumeReservationType": "SPECIFIC_RESERVATION",
                    "key": "compute.googleapis.com/reservation-name",
                    "values": ["llm"],
                }
            },
        ),
    ],
)
def test_nodes_with_gpus_are_provided_as_asked(
    overrides: dict[str, Any], expected: dict[str, Any], program_of: Programs
) -> None:
    pool = program_of("gke", **overrides).resources["gke-gpu"].inputs
    keys = ("spot", "flexStart", "maxRunDuration", "reservationAffinity")
    assert {key: pool["nodeConfig"][key] for key in keys if key in pool["nodeConfig"]} == expected
    assert pool["management"]["autoRepair"] == ("flexStart" not in expected)


@pytest.mark.parametrize(("surge", "unavailable"), [(0, 1), (1, 0)])
def test_nodes_are_upgraded_as_pods_are_rolled(surge: int, unavailable: int, program_of: Programs) -> None:
    program = program_of("gke", maxSurge=surge, weightsStorageClass="standard-rwx")
    upgrade = program.resources["gke-gpu"].inputs["upgradeSettings"]
    assert upgrade == {"strategy": "SURGE", "maxSurge": surge, "maxUnavailable": unavailable}


def test_a_replica_takes_all_gpus_of_its_node(program_of: Programs) -> None:
    program = program_of("gke", machineType="a2-ultragpu-4g")
    (gpus,) = program.resources["gke-gpu"].inputs["nodeConfig"]["guestAccelerators"]
    (vllm,) = program.resources["vllm-pods"].inputs["spec"]["template"]["spec"]["containers"]
    assert (gpus["type"], gpus["count"]) == ("nvidia-a100-80gb", 4)
    assert vllm["resources"]["limits"] == {"nvidia.com/gpu": "4"}


def test_files_that_many_pods_read_need_filestore(program_of: Programs) -> None:
    def addon(program: Program) -> Any:
        return cluster_of(program).inputs["addonsConfig"]["gcpFilestoreCsiDriverConfig"]["enabled"]

    shared = program_of("gke", replicas=2, weightsStorageClass="standard-rwx")
    assert (addon(program_of("gke")), addon(shared)) == (False, True)
    modes = [p.resources["weights-claim"].inputs["spec"]["accessModes"] for p in (program_of("gke"), shared)]
    assert modes == [["ReadWriteOnce"], ["ReadWriteMany"]]


def test_parked_there_are_no_nodes_with_gpus_and_all_else_stays(program_of: Programs) -> None:
    up, parked = program_of("gke"), program_of("gke", parked=True)
    assert {r.name for r in up.leaves} - {r.name for r in parked.leaves} == {"gke-gpu"}
    assert parked.resources["vllm-pods"].inputs["spec"]["replicas"] == 0
    assert {**parked.outputs, "_internal": None} == {**up.outputs, "_internal": None}

"""Settings of target gcp: a wrong one is refused before anything exists, with its key, its value and the fix."""

import json
from collections.abc import Callable
from typing import Any

import pytest

from components.catalogue.machine_types import load_machine_types
from components.settings.gcp import KEYS
from components.settings.stack import Settings
from tests.support.program import HOST_KEY, PINS, PROJECT, Program
from tests.support.registered import INSTANCE
from tests.unit.conftest import ON_GOOGLE, ON_SERVERS, found

Settle = Callable[..., Settings]
LLAMA = "meta-llama/Llama-3.3-70B-Instruct"
RANGES_FIX = 'write ["203.0.113.0/24"]'
NARROWER = "use ranges of /8 or narrower"
BASTION = {"sshVia": "bastion", "bastion": "ops@bastion.example", "bastionHostKey": HOST_KEY}
NETWORK = {"network": "shared", "subnetwork": "llm"}
PRIVATE = {"externalAddress": False}
BASTION_FIX = "write e.g. ops@bastion.example.com:22"
LABEL_FIX = "use lower-case letters, digits"

# base, the setting, its value, the cause, the fix
SHARED = {
    "network": "projects/acme-host/global/networks/shared",
    "subnetwork": "projects/acme-host/regions/us-central1/subnetworks/llm",
}
WRONG: list[Any] = [
    ("prod", "gcpProject", "", "not set", "set it to the project's id"),
    ("prod", "gcpProject", "Acme Search", "invalid format", "6 to 30 of a-z"),
    ("prod", "gcpProject", "a" * 31, "invalid format", "6 to 30 of a-z"),
    ("prod", "zone", "us-central1", "invalid format", "e.g. us-central1-a"),
    ("prod", "zone", "us-west1-a", "has no a2-ultragpu-2g", "asia-southeast1-c, europe-west4-a, us-central1-a"),
    ("prod", "machineType", "a2-ultragpu-3g", "unknown GPU machine type", "use a2-ultragpu-1g, a2-ultragpu-2g"),
    ("prod", "machineType", "n2-standard-8", "unknown GPU machine type", "use a2-ultragpu-1g"),
    ("prod", "machineType", "a3-ultragpu-8g", "has no a3-ultragpu-8g", "use "),
    ("prod", "machineType", "a3-highgpu-1g", "a3-highgpu-1g is not sold so", "use SPOT or FLEX_START"),
    ("prod", "provisioningModel", "PREEMPTIBLE", "unknown value", "use STANDARD or SPOT or FLEX_START or"),
    ("prod", "provisioningModel", "RESERVATION_BOUND", "not set, but provisioningModel is", "the reservation's name"),
    ("prod", "vmImage", "", "not set", "run `scripts/elastic-vllm pin --stack STACK`"),
    ("prod", "vmImage", "projects/p/global/images/family/ubuntu-2404", "invalid format", "scripts/elastic-vllm pin"),
    ("prod", "network", "shared", "set, but subnetwork is not", "name the subnetwork in the zone's region"),
    ("prod", "subnetwork", "llm", "set, but network is not", "name the VPC that it is in"),
    ("prod", "externalAddress", "no", "neither true nor false", "use true or false"),
    ("prod", "httpsSourceRanges", "[]", "empty: nobody could use the endpoint", "give the CIDR ranges that Elastic"),
    ("prod", "httpsSourceRanges", "198.51.100.0/24", "not a list of texts", RANGES_FIX),
    ("prod", "httpsSourceRanges", '["198.51.100.0/33"]', "'198.51.100.0/33' is not an IPv4 CIDR range", RANGES_FIX),
    ("prod", "httpsSourceRanges", '["198.51.100.7/24"]', "has host bits set", RANGES_FIX),
    ("prod", "httpsSourceRanges", '["elastic.example"]', "'elastic.example' is not an IPv4 CIDR range", RANGES_FIX),
    ("prod", "httpsSourceRanges", '["2001:db8::/32"]', "not an IPv4 CIDR range", RANGES_FIX),
    (
        "prod",
        "httpsSourceRanges",
        '["128.0.0.0/1"]',
        "lets in addresses that are not yours",
        "for everyone write 0.0.0.0/0",
    ),
    ("prod", "sshSourceRanges", '["0.0.0.0/0"]', "lets in addresses that are not yours", NARROWER),
    ("prod", "sshSourceRanges", '["203.0.113.7/32", "0.0.0.0/1"]', "0.0.0.0/1 lets in", "a bastion, or sshVia: iap"),
    (
        "prod",
        "sshSourceRanges",
        "[]",
        "empty: the VM could not be set up",
        "the CIDR range that this machine connects from",
    ),
    ("prod", "sshSourceRanges", '["203.0.113.7/3x"]', "not an IPv4 CIDR range", RANGES_FIX),
    ("prod", "sshSourceRanges", "[7]", "not a list of texts", RANGES_FIX),
    ("prod", "sshUser", "root", "do not let root in", "e.g. elastic-vllm"),
    ("prod", "sshUser", "John.Doe", "not a name that a VM's user may have", "use lower-case letters"),
    ("prod", "ipv6", "true", "the VM has IPv4 addresses only", "remove it"),
    ("prod", "sshVia", "vpn", "unknown value", "use address or bastion or iap"),
    ("prod", "sshVia", "bastion", "not set, but sshVia is bastion", "write USER@HOST:PORT"),
    ("prod", "sshVia", "iap", "with sshVia iap only Google's proxy connects", "remove it"),
    ("prod-private", "sshVia", "address", "empty: the VM could not be set up", "give the CIDR range"),
    ("prod", "bastionHostKey", HOST_KEY, "set, but sshVia is address", "set sshVia to bastion"),
    ("prod", "tunnelPort", "2222", "set, but sshVia is address", "set sshVia to iap"),
    ("prod-private", "tunnelPort", "22", "out of range", "use 1024 to 65535"),
    ("prod", "httpsPort", "22", "the port of SSH", "use another, e.g. 443"),
    ("prod", "bootDiskGb", "40", "out of range", "use 80 to 65536"),
    ("prod", "weightsDiskGb", "200 GB", "not a whole number", "use 10 to 65536"),
    ("prod", "weightsDiskGb", "40", "too small for google/gemma-4-31B-it", "or more"),
    ("prod", "weightsDisk", "My Disk", "invalid format", "use the name of a disk in the zone"),
    ("prod", "labels", '{"Team": "search"}', "Google Cloud allows no label Team: search", LABEL_FIX),
    ("prod", "labels", json.dumps({"a": "b" * 64}), "Google Cloud allows no label a: bbb", LABEL_FIX),
    ("prod", "labels", '{"centre": 7}', "the value of centre is not text", 'quote it: centre: "7"'),
    ("prod", "labels", '["team=search", "tier=1"]', "not an object", 'write labels: {team: "search", tier: "1"}'),
    ("prod", "labels", "team=search", "not an object", "labels: {team: search}"),
    (
        "prod",
        "serviceAccount",
        "1-compute@developer.gserviceaccount.com",
        "is a default account",
        "use NAME@PROJECT",
    ),
    ("prod", "serviceAccount", "acme-llm@appspot.gserviceaccount.com", "is a default account", "use NAME@PROJECT"),
    ("prod", "serviceAccount", "ops@example.com", "invalid format", "or leave it empty for none"),
    ("dev", "deletionProtection", "true", "deletes a VM with provisioningModel SPOT", "set it to false"),
    ("prod", "gpuCount", "4", "has no effect with target gcp", "remove it"),
    ("prod", "host", "llm.example", "has no effect with target gcp", "remove it"),
    ("gpu", "zone", "us-central1-c", "has no effect with target existing", "set target to gcp"),
    ("gpu", "parked", "true", "has no effect with target existing", "set target to gcp"),
]
# Cases in which the message names another setting than the changed one.
NAMED = {
    ("machineType", "a3-ultragpu-8g"): "zone",
    ("machineType", "a3-highgpu-1g"): "provisioningModel",
    ("provisioningModel", "RESERVATION_BOUND"): "reservation",
    ("sshVia", "bastion"): "bastion",
    ("sshVia", "iap"): "sshSourceRanges",
    ("sshVia", "address"): "sshSourceRanges",
}


@pytest.mark.parametrize(("base", "key", "value", "cause", "fix"), WRONG)
def test_a_wrong_setting_is_named_with_its_value_and_the_fix(
    base: str, key: str, value: str, cause: str, fix: str, settle: Settle
) -> None:
    (problem,) = found(lambda: settle(base, {key: value}))
    named = NAMED.get((key, value), key)
    if named == key:
        assert problem.startswith(f"{key} = {value!r}: " if value else f"{key}: ")
    assert problem.startswith((f"{named} = ", f"{named}: "))
    reason, _, advice = problem.partition("; ")
    assert cause in reason
    assert fix in advice


# Settings that are only wrong together: base, the settings, the one that is named, the cause, the fix
CONTRADICTIONS: list[Any] = [
    *[
        ("prod", {"provisioningModel": model, **extra, "deletionProtection": True}, "deletionProtection", *text)
        for text in [("Google itself deletes", "set it to false")]
        for model, extra in [("FLEX_START", {}), ("RESERVATION_BOUND", {"reservation": "first"})]
    ],
    *[
        ("prod", {"provisioningModel": model, "reservation": "first"}, "reservation", f"is {model}", "to STANDARD or")
        for model in ("SPOT", "FLEX_START")
    ],
    (
        "prod",
        {"parked": True, "deletionProtection": True},
        "deletionProtection",
        "parked deletes the VM",
        "one of them",
    ),
    (
        *("prod", {"machineType": "a2-ultragpu-1g", "model": LLAMA, "hfToken": "hf_x"}, "model"),
        *("1 x 80 GiB at 90 % are 72 GiB", "(machineType)"),
    ),
    ("prod", {**NETWORK, "cloudNat": True}, "cloudNat", "the network is not the stack's own", "set up Cloud NAT there"),
    ("prod", {"weightsDisk": "kept", "weightsDiskGb": 400}, "weightsDiskGb", "weightsDisk is not managed", "remove it"),
    ("prod", {"weightsDisk": "kept", "keepWeightsDisk": False}, "keepWeightsDisk", "not managed", "remove it"),
    (
        "prod",
        {**BASTION, "sshSourceRanges": []},
        "sshSourceRanges",
        "could not be set up",
        "range that the bastion connects from",
    ),
    ("prod", {**BASTION, "bastion": "bastion.example"}, "bastion", "not of the form USER@HOST:PORT", BASTION_FIX),
    ("prod", {**BASTION, "bastion": "ops@bastion:70000"}, "bastion", "not of the form USER@HOST:PORT", BASTION_FIX),
    ("prod", {**BASTION, "bastion": "ops@-oProxyCommand=x"}, "bastion", "not of the form USER@HOST", BASTION_FIX),
    ("prod", {**BASTION, "bastionHostKey": ""}, "bastionHostKey", "not set", "copy the line"),
    ("prod", {**BASTION, "bastionHostKey": "ssh-ed25519 x"}, "bastionHostKey", "not a public key", "copy the line"),
    ("prod", {**BASTION, "sshVia": "address"}, "bastion", "set, but sshVia is address", "set sshVia to bastion"),
    ("prod", PRIVATE, "cloudNat", "fetch neither packages nor images", "set it to true, or use an existing network"),
    ("prod", {"sshPrivateKeyPath": "@damaged"}, "sshPrivateKeyPath", "damaged", "ssh-keygen -t ed25519"),
]


@pytest.mark.parametrize(("base", "overrides", "key", "cause", "fix"), CONTRADICTIONS)
def test_settings_that_contradict_each_other_are_refused(
    base: str, overrides: dict[str, Any], key: str, cause: str, fix: str, settle: Settle
) -> None:
    problems = found(lambda: settle(base, overrides))
    (problem,) = [problem for problem in problems if problem.startswith((f"{key} =", f"{key}:"))]
    reason, _, advice = problem.partition("; ")
    assert cause in reason
    assert fix in advice


@pytest.mark.parametrize(
    ("base", "overrides"),
    [
        *[(stack, {}) for stack in ON_GOOGLE],
        ("prod", {"reservation": "first", "deletionProtection": True}),
        ("prod", {"provisioningModel": "RESERVATION_BOUND", "reservation": "first"}),
        ("prod", {"provisioningModel": "FLEX_START"}),
        ("prod", {"machineType": "a3-highgpu-1g", "provisioningModel": "SPOT"}),
        ("prod", {"machineType": "g2-standard-48", "zone": "us-west4-a"}),
        ("prod", {"httpsSourceRanges": ["0.0.0.0/0"]}),
        ("prod", {"httpsSourceRanges": ["198.51.100.0/24", "192.0.2.7"], "sshSourceRanges": ["10.0.0.0/8"]}),
        ("prod", BASTION),
        ("prod", {**BASTION, "bastion": "ops@10.0.0.5:2022"}),
        ("prod", {**NETWORK, "externalAddress": False}),
        ("prod", PRIVATE | NETWORK),
        ("prod", {"gcpProject": "example.com:acme-search"}),
        ("prod", SHARED),
        ("prod", {**SHARED, **{k: f"https://www.googleapis.com/compute/v1/{v}" for k, v in SHARED.items()}}),
        ("prod", {"weightsDiskGb": 66}),
        ("prod", {"labels": {"team": "search", "empty": ""}}),
        ("prod", {"serviceAccount": "vm@acme-search.iam.gserviceaccount.com"}),
        ("prod", {"weightsDisk": "kept"}),
        ("prod", {"sshPrivateKeyPath": "@plain"}),
    ],
)
def test_good_settings_are_accepted(base: str, overrides: dict[str, Any], settle: Settle) -> None:
    assert not found(lambda: settle(base, overrides))


@pytest.mark.parametrize(
    ("change", "cause"),
    [
        ({"subnetwork": "llm"}, "one of network and subnetwork is a self link, the other a name"),
        ({"subnetwork": SHARED["subnetwork"].replace("us-central1", "europe-west4")}, "but the zone is in us-central1"),
        ({"subnetwork": SHARED["subnetwork"].replace("acme-host", "acme-other")}, "but network is in acme-host"),
    ],
)
def test_links_of_a_shared_vpc_must_fit_each_other_and_the_zone(
    change: dict[str, Any], cause: str, settle: Settle
) -> None:
    (problem,) = found(lambda: settle("prod", SHARED | change))
    assert problem.startswith("subnetwork = ")
    assert cause in problem


def test_firewall_rules_of_a_shared_vpc_are_made_in_its_host_project(program_of: Callable[..., Program]) -> None:
    program = program_of("prod", **SHARED)
    rules = [r.inputs for r in program.resources.values() if r.type == "gcp:compute/firewall:Firewall"]
    assert {(rule["project"], rule["network"]) for rule in rules} == {("acme-host", SHARED["network"])}
    vm = program.resources["vm-instance"].inputs
    assert vm["project"] != "acme-host"
    assert vm["networkInterfaces"][0]["subnetwork"] == SHARED["subnetwork"]


@pytest.mark.parametrize(("stack", "reason"), [("prod-", "ends in '-'"), ("p" * 41, "up to 40"), ("Prod", "a-z, 0-9")])
def test_a_stack_name_that_fits_no_resource_is_refused(stack: str, reason: str, settle: Settle) -> None:
    (problem,) = found(lambda: settle("prod", {}, stack))
    assert problem.startswith(f"stack name {stack!r}: ")
    assert reason in problem


@pytest.mark.parametrize(("bastion", "port"), [("ops@bastion.example", 22), ("ops@10.0.0.5:2022", 2022)])
def test_a_bastion_has_the_port_that_is_given_or_else_that_of_ssh(bastion: str, port: int, settle: Settle) -> None:
    gcp = settle("prod", {**BASTION, "bastion": bastion}).gcp
    assert gcp
    assert gcp.bastion
    assert gcp.bastion.port == port


def test_an_address_is_a_range_of_one(settle: Settle) -> None:
    settings = settle("prod", {"httpsSourceRanges": ["192.0.2.7"]})
    assert settings.gcp
    assert settings.gcp.https_source_ranges == ("192.0.2.7/32",)


@pytest.mark.parametrize("machine_type", load_machine_types().values(), ids=lambda machine_type: machine_type.name)
def test_every_machine_type_has_gpus_that_a_model_can_be_split_over(machine_type: Any) -> None:
    assert machine_type.gpus & (machine_type.gpus - 1) == 0
    assert machine_type.gpus
    assert machine_type.zones


def test_every_setting_belongs_to_one_target_or_both() -> None:
    assert set(PROJECT["config"]) >= KEYS


def test_the_public_key_is_that_of_the_private_one(settle: Settle, key_files: Any) -> None:
    settings = settle("prod", {"sshPrivateKeyPath": "@plain"})
    assert settings.gcp
    assert settings.gcp.ssh_public_key.split() == (key_files / "plain.pub").read_text().split()[:2]


@pytest.mark.parametrize("base", ON_SERVERS)
def test_nothing_is_made_in_google_cloud_for_an_existing_server(base: str, program_of: Callable[..., Program]) -> None:
    assert not [r.name for r in program_of(base).resources.values() if r.type == INSTANCE or "gcp" in r.type]


def test_what_is_pinned_is_enough(settle: Settle) -> None:
    assert settle("prod", {}).images["vllm"] == PINS["vllmImage"]

"""Results of each check for one error, or one unknown fact, at a time."""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from components.catalogue.machine_types import load_machine_types
from scripts.cli.preflight import cost, run
from scripts.cli.preflight.project import permissions_needed
from scripts.cli.preflight.report import Verdict
from scripts.cli.preflight.survey import Survey
from scripts.lib.google import Google, find_identity
from tests.support.google_stand_in import (
    HUB_TOKEN,
    MANAGER,
    MODEL,
    POLICIES,
    SKUS,
    USAGE,
    Cloud,
    policy,
    quotas,
    sku,
)
from tests.unit.cli.preflight.survey import loaded, report

OK, FAILED, WARNING, NOT_CHECKED = Verdict
REGION, ZONE = "regions/us-central1", "zones/us-central1-a"
NAME = "elastic-vllm-cloud"

Change = Callable[[Cloud], object]


def of(cloud: Cloud, path: str, **values: Any) -> None:
    cloud.things[cloud.compute(path)] |= values


def limits(**changed: float) -> Change:
    def change(cloud: Cloud) -> None:
        region = cloud.things[cloud.compute(REGION)]
        known = {quota["metric"]: quota["limit"] for quota in region["quotas"]} | changed
        region["quotas"] = quotas(**{metric: limit for metric, limit in known.items() if limit >= 0})

    return change


def taken(metric: str, usage: float) -> Change:
    return lambda c: [q.update(usage=usage) for q in c.things[c.compute(REGION)]["quotas"] if q["metric"] == metric]


def without(path: str, project: str = "acme-llm") -> Change:
    return lambda cloud: cloud.things.pop(cloud.compute(path, project))


def having(path: str, **values: Any) -> Change:
    return lambda cloud: cloud.things.update({cloud.compute(path): {"name": path.rpartition("/")[2], **values}})


def reserved(**values: Any) -> Change:
    room = {"count": "3", "inUseCount": "1", "instanceProperties": {"machineType": "a2-ultragpu-2g"}}
    return having(f"{ZONE}/reservations/mine", **{"status": "READY", "specificReservation": room | values})


def ruled(constraint: str, *rules: dict[str, Any]) -> Change:
    """Add a policy of the organisation."""
    path = f"{POLICIES}/{policy('acme-llm', constraint)}"
    return lambda cloud: cloud.things.update({path: {"spec": {"rules": list(rules)}}})


def all_of(*changes: Change) -> Change:
    return lambda cloud: [change(cloud) for change in changes]


def listed_without(word: str) -> Change:
    return lambda cloud: cloud.skus.__setitem__(slice(None), [s for s in cloud.skus if word not in s["description"]])


TYPES = load_machine_types()
IMAGE = "global/images/ubuntu-v20261101"
IMAGES = "ubuntu-os-accelerator-images"
COMPUTE_STATE = f"{USAGE}/v1/projects/acme-llm/services/compute.googleapis.com"
MACHINE = f"{ZONE}/machineTypes/a2-ultragpu-2g"
SPOT, FLEX = {"provisioning_model": "SPOT"}, {"provisioning_model": "FLEX_START"}
RESERVED = {"reservation": "mine"}
EXISTING = {"network": "corp", "subnetwork": "llm"}
PRIVATE = {**EXISTING, "external_address": False}
CORP = having("global/networks/corp")


def subnet(network: str = "corp", *, google_access: bool = True) -> Change:
    path = f"{REGION}/subnetworks/llm"
    return all_of(CORP, having(path, network=f"x/networks/{network}", privateIpGoogleAccess=google_access))


CASES: list[tuple[str, Change, dict[str, Any], Verdict, list[str]]] = [
    ("credentials", lambda c: setattr(c, "email", ""), {}, OK, ["of an account that Google does not name"]),
    (
        "credentials",
        lambda c: setattr(c, "token", "a newer one"),
        {},
        FAILED,
        ["(401: Request had invalid", "renew or"],
    ),
    ("zone", lambda c: setattr(c, "token", "a newer one"), {}, NOT_CHECKED, ["the credentials were refused"]),
    # APIs and permissions
    (
        "api-compute",
        lambda c: c.things.update({COMPUTE_STATE: {"state": "DISABLED"}}),
        {},
        FAILED,
        ["gcloud services enable compute.googleapis.com --project acme-llm"],
    ),
    ("api-iap", lambda c: None, {"ssh_via": "iap"}, OK, ["iap.googleapis.com is enabled"]),
    (
        "api-compute",
        lambda c: c.refuse(COMPUTE_STATE, 403, "SERVICE_DISABLED", "Service Usage API has not been used"),
        {},
        NOT_CHECKED,
        ["answered 403 SERVICE_DISABLED: Service Usage API has not been used"],
    ),
    (
        "permissions",
        lambda c: c.denied.update({"compute.networks.create", "compute.instances.create", "compute.routers.create"}),
        {},
        FAILED,
        [
            "compute.instances.create (roles/compute.instanceAdmin.v1); compute.networks.create (roles/compute.network",
            "--member=user:ada@example.com",
        ],
    ),
    ("permissions", lambda c: c.denied.add("compute.networks.create"), EXISTING, OK, ["all 24"]),
    (
        "permissions",
        lambda c: c.denied.add("iam.serviceAccounts.actAs"),
        {"service_account": "llm@acme-llm.iam.gserviceaccount.com"},
        WARNING,
        ["roles/iam.serviceAccountUser", "fine if it is granted on llm@"],
    ),
    (
        "permissions",
        lambda c: c.refuse(f"{MANAGER}/v3/projects/acme-llm:testIamPermissions", 403, "DENIED", "No."),
        {},
        NOT_CHECKED,
        ["403 DENIED: No."],
    ),
    # Policies of the organisation
    ("policies", lambda c: None, {}, OK, ["no policy of the organisation forbids"]),
    ("policies", ruled("compute.requireOsLogin", {"enforce": True}), {}, FAILED, ["enforces OS Login", "exception"]),
    (
        "policies",
        ruled("compute.vmExternalIpAccess", {"denyAll": True}),
        {},
        FAILED,
        ["allows this VM no external address", "set externalAddress to false"],
    ),
    (
        "policies",
        ruled("compute.vmExternalIpAccess", {"values": {"allowedValues": ["projects/acme-llm/zones/z/instances/x"]}}),
        {},
        FAILED,
        ["allows this VM no external address"],
    ),
    (
        "policies",
        ruled("compute.vmExternalIpAccess", {"denyAll": True}),
        {"external_address": False},
        OK,
        ["no policy"],
    ),
    (
        "policies",
        lambda c: c.refuse(
            f"{POLICIES}/{policy('acme-llm', 'compute.requireOsLogin')}", 403, "SERVICE_DISABLED", "Not enabled."
        ),
        {},
        NOT_CHECKED,
        ["403 SERVICE_DISABLED"],
    ),
    # Quotas
    ("quota-gpus", limits(NVIDIA_A100_80GB_GPUS=1), {}, FAILED, ["2 needed, 1 of 1 free", "ask for more"]),
    ("quota-gpus", taken("NVIDIA_A100_80GB_GPUS", 7), {}, FAILED, ["2 needed, 1 of 8 free"]),
    ("quota-gpus", limits(NVIDIA_A100_80GB_GPUS=-1), {}, NOT_CHECKED, ["lists no NVIDIA_A100_80GB_GPUS"]),
    (
        "quota-gpus",
        all_of(limits(NVIDIA_A100_80GB_GPUS=1), having(f"{ZONE}/instances/{NAME}")),
        {},
        WARNING,
        [f"{NAME}, which exists and is counted"],
    ),
    ("quota-gpus", limits(NVIDIA_A100_80GB_GPUS=0), SPOT, OK, ["PREEMPTIBLE_NVIDIA_A100_80GB_GPUS"]),
    ("quota-gpus", limits(PREEMPTIBLE_NVIDIA_A100_80GB_GPUS=1), FLEX, FAILED, ["2 needed, 1 of 1 free"]),
    ("quota-gpus", limits(PREEMPTIBLE_NVIDIA_A100_80GB_GPUS=0), SPOT, WARNING, ["takes NVIDIA_A100_80GB_GPUS in its"]),
    (
        "quota-gpus",
        limits(PREEMPTIBLE_NVIDIA_A100_80GB_GPUS=0, NVIDIA_A100_80GB_GPUS=0),
        SPOT,
        FAILED,
        ["PREEMPTIBLE_NVIDIA_A100_80GB_GPUS is 0; NVIDIA_A100_80GB_GPUS in us-central1: 2 needed, 0 of 0 free"],
    ),
    ("quota-vcpus", limits(A2_CPUS=23), {}, FAILED, ["A2_CPUS in us-central1: 24 needed, 23 of 23"]),
    ("quota-vcpus", limits(PREEMPTIBLE_CPUS=0), SPOT, WARNING, ["PREEMPTIBLE_CPUS in us-central1 is 0"]),
    ("quota-all-gpus", lambda c: of(c, "", quotas=quotas(GPUS_ALL_REGIONS=1)), {}, FAILED, ["the whole project"]),
    ("quota-all-gpus", lambda c: of(c, "", quotas=quotas(GPUS_ALL_REGIONS=1)), SPOT, WARNING, ["may not count"]),
    ("quota-disks", limits(SSD_TOTAL_GB=399), {}, FAILED, ["400 needed"]),
    (
        "quota-disks",
        all_of(limits(SSD_TOTAL_GB=399), having(f"{ZONE}/disks/{NAME}-weights")),
        {},
        OK,
        ["100 needed"],
    ),
    ("quota-disks", lambda c: None, {"parked": True}, OK, ["300 needed"]),
    ("quota-disks", lambda c: None, {"machine_type": TYPES["a3-ultragpu-8g"]}, NOT_CHECKED, ["Hyperdisk: no source"]),
    ("quota-gpus", lambda c: None, {"machine_type": TYPES["a3-edgegpu-8g"]}, NOT_CHECKED, ["names the quota for it"]),
    (
        "cost",
        lambda c: None,
        {"machine_type": TYPES["a3-megagpu-8g"]},
        NOT_CHECKED,
        ["calls the parts of a3-megagpu-8g"],
    ),
    ("quota-addresses", limits(STATIC_ADDRESSES=0), {}, FAILED, ["1 needed, 0 of 0 free"]),
    ("quota-addresses", having(f"{REGION}/addresses/{NAME}"), {}, OK, ["exists and is counted"]),
    # Reservation
    ("reservation", reserved(), RESERVED, OK, ["2 of 3 a2-ultragpu-2g free"]),
    ("reservation", lambda c: None, RESERVED, FAILED, ["has no reservation mine"]),
    ("reservation", reserved(inUseCount="3"), RESERVED, FAILED, ["all 3 are in use"]),
    ("reservation", reserved(instanceProperties={"machineType": "a2-highgpu-1g"}), RESERVED, FAILED, ["is of a2-high"]),
    ("reservation", reserved(inUseCount="soon"), RESERVED, NOT_CHECKED, ["not of the expected form"]),
    # Zone, machine type, image
    ("zone", without(ZONE), {}, FAILED, ["there is no zone us-central1-a"]),
    ("machine-type", without(MACHINE), {}, FAILED, ["has no a2-ultragpu-2g", "us-east5-b"]),
    ("machine-type", lambda c: of(c, MACHINE, guestCpus=48), {}, FAILED, ["48 vCPUs", "machine_types.yaml expects 24"]),
    (
        "machine-type",
        lambda c: of(c, MACHINE, accelerators=[{"guestAcceleratorType": "nvidia-l4", "guestAcceleratorCount": 2}]),
        {},
        FAILED,
        ["'nvidia-l4': 2", "expects 24 vCPUs and 2 nvidia-a100-80gb"],
    ),
    ("machine-type", lambda c: of(c, MACHINE, guestCpus=None), {}, FAILED, ["None vCPUs"]),
    ("image", without(IMAGE, IMAGES), {}, FAILED, ["has no image ubuntu-v20261101"]),
    (
        "image",
        lambda c: c.things[c.compute(IMAGE, IMAGES)].update(deprecated={"state": "OBSOLETE"}),
        {},
        FAILED,
        ["is READY and OBSOLETE"],
    ),
    ("image", lambda c: c.things[c.compute(IMAGE, IMAGES)].update(diskSizeGb="150"), {}, FAILED, ["needs 150 GB"]),
    # Names
    (
        "names",
        all_of(having(f"{REGION}/addresses/{NAME}"), having(f"{ZONE}/disks/{NAME}-weights")),
        {},
        WARNING,
        [f"address {NAME}, disk {NAME}-weights", "pulumi import"],
    ),
    (
        "names",
        lambda c: None,
        {**PRIVATE, "weights_disk": "mine", "parked": True},
        OK,
        [f"acme-llm: address {NAME}, firew"],
    ),
    (
        "names",
        lambda c: c.refuse(c.compute("global/networks/" + NAME), 404, "notFound", "'projects/acme-llm' was not found"),
        {},
        NOT_CHECKED,
        ["'projects/acme-llm' was not found"],
    ),
    ("network", subnet(), PRIVATE, OK, ["corp/llm in us-central1, with Private Google Access"]),
    ("network", lambda c: None, PRIVATE, FAILED, ["has no network corp"]),
    ("network", CORP, PRIVATE, FAILED, ["us-central1 has no subnetwork llm"]),
    ("network", subnet("other"), PRIVATE, FAILED, ["is of network other"]),
    ("network", subnet(google_access=False), PRIVATE, FAILED, ["--enable-private-ip-google-access"]),
    ("network", subnet(google_access=False), EXISTING, WARNING, ["has no Private Google Access"]),
    ("weights-disk", having(f"{ZONE}/disks/mine", sizeGb="300"), {"weights_disk": "mine"}, OK, ["300 GB"]),
    ("weights-disk", lambda c: None, {"weights_disk": "mine"}, FAILED, ["has no disk mine"]),
    (
        "weights-disk",
        having(f"{ZONE}/disks/mine", sizeGb="300", users=["x/instances/other"]),
        {"weights_disk": "mine"},
        FAILED,
        ["is attached to other"],
    ),
    # Cost
    (
        "cost",
        listed_without("Instance Ram"),
        {},
        NOT_CHECKED,
        ["no SKUs for memory in us-central1 (A2 (Instance )?Ram"],
    ),
    (
        "cost",
        lambda c: c.skus.append(sku("Balanced PD Capacity in Iowa", "GiBy.mo", 0.2, "us-central1")),
        {},
        NOT_CHECKED,
        ["2 SKUs for disks", "Balanced PD Capacity, Balanced PD Capacity in Iowa"],
    ),
    ("cost", lambda c: None, FLEX, NOT_CHECKED, ["DWS\\ Defined\\ Duration"]),
    ("cost", lambda c: None, RESERVED, NOT_CHECKED, ["a reservation is paid for"]),
    ("cost", lambda c: c.skus[0].update(pricingInfo=[]), {}, NOT_CHECKED, ["has no price yet"]),
    ("cost", lambda c: of(c, MACHINE, bundledLocalSsds={}), {}, NOT_CHECKED, ["does not say how much Local SSD"]),
    (
        "cost",
        lambda c: c.refuse(SKUS, 403, "SERVICE_DISABLED", "Not on."),
        {},
        NOT_CHECKED,
        ["SERVICE_DISABLED: Not on"],
    ),
]


@pytest.mark.parametrize(("check", "change", "settings", "verdict", "words"), CASES)
def test_what_a_check_finds(
    cloud: Cloud, check: str, change: Change, settings: dict[str, Any], verdict: Verdict, words: list[str]
) -> None:
    change(cloud)
    found = report(cloud, "credentials", check, **settings)[check]
    assert found.verdict is verdict, found
    assert [word for word in words if word not in found.detail] == [], found


def test_only_what_the_settings_need_is_asked_for(cloud: Cloud) -> None:
    settings, gcp = loaded()

    def needed(**changes: Any) -> set[str]:
        return set(permissions_needed(Survey(settings, dataclasses.replace(gcp, **changes), Google(find_identity()))))

    assert "compute.addresses.create" in needed()
    assert "compute.addresses.createInternal" in needed(external_address=False)
    assert "compute.addresses.create" not in needed(external_address=False)
    assert "compute.subnetworks.create" not in needed(network="corp", subnetwork="llm")
    assert "compute.routers.create" in needed(cloud_nat=True) - needed()
    assert needed(ssh_via="iap") - needed() == {"iap.tunnelInstances.accessViaIAP"}
    assert "iam.serviceAccounts.actAs" not in needed()


@pytest.mark.parametrize("model", ["STANDARD", "SPOT"])
def test_the_cost_is_the_sum_of_its_parts(cloud: Cloud, model: str) -> None:
    found = report(cloud, "cost", provisioning_model=model)["cost"]
    # With the invented prices: cores, memory, GPUs, then Local SSD and disks, by the month of 744 hours.
    hourly = {
        "STANDARD": 24 * 0.03 + 340 * 0.004 + 2 * 4 + 750 * 0.0744 / 744 + 400 * 0.0744 / 744,
        "SPOT": 24 * 0.01 + 340 * 0.001 + 2 * 2 + 750 * 0.0372 / 744 + 400 * 0.0744 / 744,
    }
    assert found.verdict is OK
    total, _, source = found.detail.partition(" ")
    assert float(total) == pytest.approx(hourly[model], abs=0.0006)
    assert source.startswith("USD an hour by cloudbilling.googleapis.com, asked on 2")
    assert "400 x 0.000100 Balanced PD Capacity (since 2026-10-01) + 24 x " in found.detail


def test_a_parked_stack_costs_its_disk(cloud: Cloud) -> None:
    found = report(cloud, parked=True)
    assert found["cost"].detail.startswith("0.030 USD an hour while parked")
    assert "machine-type" not in found


def test_a_price_of_the_future_does_not_hold_yet(cloud: Cloud) -> None:
    later = sku("", "h", 99, since="2999-01-01T00:00:00Z")["pricingInfo"]
    cloud.skus[0]["pricingInfo"] += later
    assert "24 x 0.030000 A2 Instance Core" in report(cloud, "cost")["cost"].detail


def test_no_price_is_written_in_the_program() -> None:
    assert not [line for line in Path(cost.__file__).read_text().splitlines() if "0." in line.replace("0.000", "")]


# The hub


@pytest.mark.parametrize(
    ("overrides", "token", "verdict", "words"),
    [
        ([], HUB_TOKEN, OK, f"{MODEL} at c0c0c0c0c0c0, gated, may be read"),
        ([], "hf_another", FAILED, "gated and $HF_TOKEN may not read it"),
        ([], "", FAILED, "gated and there is no token"),
        ([], "hf_revoked", FAILED, "refuses the token of $HF_TOKEN"),
        (["modelRevision=" + "0f" * 20], HUB_TOKEN, FAILED, "has no revision 0f0f"),
        (["model=acme/typo", "weightsGb=50"], HUB_TOKEN, FAILED, "shows no acme/typo"),
        (["hfEndpoint=http://127.0.0.1:9"], HUB_TOKEN, NOT_CHECKED, "no answer from http://127.0.0.1:9"),
        (["modelSource=host", "modelRevision=", "hfToken="], HUB_TOKEN, NOT_CHECKED, "modelSource is host"),
    ],
)
def test_the_model_on_the_hub(
    cloud: Cloud, monkeypatch: pytest.MonkeyPatch, overrides: list[str], token: str, verdict: Verdict, words: str
) -> None:
    monkeypatch.setenv("HF_TOKEN", token)
    settings, gcp = loaded(*overrides)
    [check] = [check for check in run.checks_of(settings, gcp, None) if check.name == "model"]
    [found] = run.run([check])
    assert found.verdict is verdict, found
    assert words in found.detail
    assert HUB_TOKEN not in found.detail

"""Checks of a stack with target gke: what differs from a VM."""

import dataclasses
from typing import Any

import pytest

from components.settings.gke import GkeSettings
from scripts.cli.preflight import command, run
from scripts.cli.preflight.project import permissions_needed
from scripts.cli.preflight.report import Outcome, Verdict
from scripts.cli.preflight.survey import Survey
from scripts.lib.google import Google, find_identity
from tests.support.google_stand_in import CONTAINER, Cloud
from tests.unit.cli.preflight.survey import invoked

OK, FAILED, WARNING, NOT_CHECKED = Verdict
CLUSTER = f"{CONTAINER}/v1/projects/acme-llm/locations/us-central1-a/clusters/elastic-vllm-cluster"
USAGE = "serviceusage.googleapis.com/v1/projects/acme-llm/services"


def report(cloud: Cloud, *overrides: str, **changes: Any) -> dict[str, Outcome]:
    """Map each check to its outcome, with settings of the stack or of its cluster changed."""
    settings, gke = command.load("cluster", list(overrides))
    assert isinstance(gke, GkeSettings)
    asked = Google(find_identity(), cloud.base, backoff=0)
    checks = run.checks_of(settings, dataclasses.replace(gke, **changes), asked)
    return {result.name: Outcome(result.verdict, result.detail) for result in run.run(checks, redact=asked.redact)}


def test_every_check_passes_where_all_is_well(cloud: Cloud) -> None:
    found = report(cloud)
    assert {name: outcome for name, outcome in found.items() if outcome.verdict is not OK} == {}
    assert list(found) == [
        *("credentials", "api-compute", "api-container", "api-iam", "permissions", "zone", "machine-type"),
        *("quota-gpus", "quota-all-gpus", "quota-vcpus", "quota-system", "quota-disks", "names"),
        *("model", "contexts", "cost"),
    ]
    assert found["quota-gpus"].detail == "NVIDIA_A100_80GB_GPUS in us-central1: 2 needed, 8 of 8 free"
    assert found["quota-system"].detail == "CPUS in us-central1: 4 needed, 24 of 24 free"
    # 100 for the node with GPUs, 100 for that of the system, and 57 for the claim
    assert found["quota-disks"].detail == "SSD_TOTAL_GB in us-central1: 257 needed, 2000 of 2000 free"


def test_the_command_reports_a_cluster_as_it_does_a_vm(cloud: Cloud) -> None:
    result = invoked(stack="cluster")
    assert result.exit_code == 0
    assert result.stdout.splitlines()[-1] == "all 16 checks passed"


def test_quotas_are_for_all_nodes_that_a_rolling_change_may_need(cloud: Cloud) -> None:
    found = report(cloud, "replicas=3", "maxSurge=1", "weightsStorageClass=standard-rwx")
    assert found["quota-gpus"] == (OK, "NVIDIA_A100_80GB_GPUS in us-central1: 8 needed, 8 of 8 free")
    assert found["quota-vcpus"] == (OK, "A2_CPUS in us-central1: 96 needed, 96 of 96 free")
    assert found["quota-disks"] == (OK, "SSD_TOTAL_GB in us-central1: 500 needed, 2000 of 2000 free")
    found = report(cloud, "replicas=5", "weightsStorageClass=standard-rwx")
    assert found["quota-gpus"].verdict is FAILED
    assert found["quota-gpus"].detail.startswith("NVIDIA_A100_80GB_GPUS in us-central1: 10 needed, 8 of 8 free")


def test_a_quota_that_the_cluster_itself_uses_is_a_warning(cloud: Cloud) -> None:
    cloud.things[CLUSTER] = {"name": "elastic-vllm-cluster", "status": "RUNNING"}
    found = report(cloud, "replicas=5", "weightsStorageClass=standard-rwx")
    assert found["quota-gpus"].verdict is WARNING
    assert found["names"] == (WARNING, found["names"].detail)
    assert found["names"].detail.startswith("exists in acme-llm: cluster elastic-vllm-cluster: fine if this stack")


def test_a_refusal_of_the_clusters_api_says_nothing_of_its_name(cloud: Cloud) -> None:
    cloud.refuse(CLUSTER, 403, "PERMISSION_DENIED", "Required container.clusters.get permission.")
    found = report(cloud)["names"]
    assert found.verdict is NOT_CHECKED
    assert "container.clusters.get" in found.detail


@pytest.mark.parametrize(
    ("overrides", "check", "api"),
    [
        ([], "api-container", "container.googleapis.com"),
        ([], "api-iam", "iam.googleapis.com"),
        (["weightsStorageClass=standard-rwx"], "api-filestore", "file.googleapis.com"),
    ],
)
def test_apis_that_a_cluster_needs_must_be_enabled(overrides: list[str], check: str, api: str, cloud: Cloud) -> None:
    cloud.things[f"{USAGE}/{api}"] = {"state": "DISABLED"}
    assert report(cloud, *overrides)[check] == (
        FAILED,
        f"{api} is not enabled in acme-llm: gcloud services enable {api} --project acme-llm",
    )


def test_missing_permissions_are_named_with_the_role_that_has_them(cloud: Cloud) -> None:
    cloud.denied = {"container.clusters.connect", "container.clusters.create", "iam.serviceAccounts.create"}
    found = report(cloud)["permissions"]
    assert found.verdict is FAILED
    assert "container.clusters.connect (roles/container.developer)" in found.detail
    assert "container.clusters.create (roles/container.clusterAdmin)" in found.detail
    assert "iam.serviceAccounts.create (roles/iam.serviceAccountAdmin)" in found.detail


def needed(cloud: Cloud, *overrides: str) -> set[str]:
    settings, gke = command.load("cluster", list(overrides))
    assert isinstance(gke, GkeSettings)
    return {*permissions_needed(Survey(settings, gke, Google(find_identity(), cloud.base)))}


def test_permissions_are_those_that_the_settings_need(cloud: Cloud) -> None:
    plain = needed(cloud)
    own = needed(cloud, "serviceAccount=nodes@acme-llm.iam.gserviceaccount.com")
    assert plain - own == {
        *("iam.serviceAccounts.create", "iam.serviceAccounts.delete", "iam.serviceAccounts.get"),
        *("resourcemanager.projects.getIamPolicy", "resourcemanager.projects.setIamPolicy"),
    }
    assert plain - needed(cloud, 'controlPlaneSourceRanges=["203.0.113.7/32"]') == {"container.clusters.connect"}
    assert "compute.addresses.createInternal" in plain
    assert "compute.addresses.create" in needed(cloud, "loadBalancer=external")
    assert not [name for name in plain if name.startswith(("compute.instances", "compute.firewalls"))]


def test_cost_counts_nodes_disks_and_the_clusters_management(cloud: Cloud) -> None:
    found = report(cloud)["cost"]
    assert found.verdict is OK
    for part in ("1 x 0.110000 Zonal Kubernetes Clusters", "4 x 0.020000 E2 Instance Core", "16 x 0.003000 E2 Inst"):
        assert part in found.detail
    assert "24 x 0.030000 A2 Instance Core running in Americas" in found.detail
    assert "257 x 0.000100 Balanced PD Capacity" in found.detail
    assert "without address, load balancer and traffic" in found.detail
    # 0.11 + 4 x 0.02 + 16 x 0.003 + 24 x 0.03 + 340 x 0.004 + 2 x 4 + (257 + 750) GiB of 0.0744 a month
    assert found.detail.startswith("10.419 USD an hour for 1 nodes with GPUs and 1 for the system by cloudbilling")


def test_cost_of_a_parked_cluster_is_that_of_what_stays(cloud: Cloud) -> None:
    found = report(cloud, "parked=true")
    assert "quota-gpus" not in found
    assert found["cost"].detail.startswith("0.254 USD an hour while parked for 0 nodes with GPUs and 1 for the system")
    assert "A2 Instance" not in found["cost"].detail


def test_cost_follows_the_replicas_and_the_control_plane(cloud: Cloud) -> None:
    image = f"us-docker.pkg.dev/acme/weights:1@sha256:{'e' * 64}"
    overrides = (f"weightsImage={image}", "weightsStorageClass=", "modelRevision=", "hfToken=", "bootDiskGb=300")
    found = report(cloud, "replicas=2", "regionalControlPlane=true", *overrides)
    assert "48 x 0.030000 A2 Instance Core" in found["cost"].detail
    assert "0.120000 Regional Kubernetes Clusters" in found["cost"].detail
    assert found["model"].verdict is NOT_CHECKED


def test_cost_is_left_open_where_no_source_names_a_part(cloud: Cloud) -> None:
    found = report(cloud, "weightsStorageClass=standard-rwx")["cost"]
    assert found == (NOT_CHECKED, "no source says how the price list calls standard-rwx")


def test_a_reservation_must_have_room_for_all_nodes(cloud: Cloud) -> None:
    cloud.things[cloud.compute("zones/us-central1-a/reservations/llm")] = {
        "status": "READY",
        "specificReservation": {
            "count": "3",
            "inUseCount": "1",
            "instanceProperties": {"machineType": "a2-ultragpu-2g"},
        },
    }
    settings = ("reservation=llm", "weightsStorageClass=standard-rwx")
    assert report(cloud, *settings, "replicas=2")["reservation"] == (OK, "llm: 2 of 3 a2-ultragpu-2g free")
    found = report(cloud, *settings, "replicas=3")["reservation"]
    assert found == (FAILED, "llm: 2 of 3 a2-ultragpu-2g free, 3 needed: make it larger")

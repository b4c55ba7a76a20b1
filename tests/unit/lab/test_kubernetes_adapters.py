"""The embedded engine in a cluster: no kinder than Pulumi's provider to what exists, is not ready, or changes."""

import copy
from types import SimpleNamespace
from typing import Any

import pytest
from kubernetes.client import ApiException

from scripts.lab.emulator import kubernetes_adapters
from scripts.lab.emulator.kubernetes_adapters import ADAPTERS
from scripts.lab.emulator.resource import NothingDoneError, Resource

READY = {
    "observedGeneration": 1,
    "replicas": 1,
    "updatedReplicas": 1,
    "readyReplicas": 1,
    "availableReplicas": 1,
    "conditions": [{"type": "Progressing", "status": "True", "reason": "NewReplicaSetAvailable"}],
}
"""Status of a Deployment as the API server of Kubernetes 1.35.4 reports it."""
DEPLOYMENT = {
    "apiVersion": "apps/v1",
    "kind": "Deployment",
    "metadata": {"name": "served", "namespace": "lab"},
    "spec": {"replicas": 1, "selector": {"matchLabels": {"app": "served"}}},
}
CLAIM = {
    "apiVersion": "v1",
    "kind": "PersistentVolumeClaim",
    "metadata": {"name": "weights", "namespace": "lab"},
    "spec": {"storageClassName": "fast", "resources": {"requests": {"storage": "3G"}}},
}
JOB = {
    "apiVersion": "batch/v1",
    "kind": "Job",
    "metadata": {"name": "weights", "namespace": "lab"},
    "spec": {"backoffLimit": 4, "template": {"spec": {"containers": [{"name": "download"}]}}},
}


class Cluster:
    """An API server with one object; a wait finds it ready after `polls` looks."""

    def __init__(self, found: dict[str, Any] | None, *, polls: int = 0) -> None:
        self.found, self.polls, self.applied = found, polls, 0

    def get(self, **_place: str) -> SimpleNamespace:
        if self.found is None:
            raise ApiException(status=404)
        self.polls -= 1
        if self.polls == 0:
            self.found["status"] = READY
        return SimpleNamespace(to_dict=lambda: copy.deepcopy(self.found))

    def server_side_apply(self, *, body: dict[str, Any], dry_run: str = "", **_options: str) -> SimpleNamespace:
        applied = {**(self.found or {}), **body, "metadata": {**body["metadata"], "generation": 1}}
        if not dry_run:
            self.applied += 1
            self.found = applied
        return SimpleNamespace(to_dict=lambda: applied)


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kubernetes_adapters, "POLL_SECONDS", 0)
    monkeypatch.setattr(kubernetes_adapters, "_troubles", lambda _wanted, _labels: iter(()))


def resource(cluster: Cluster, manifest: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> Resource:
    monkeypatch.setattr(kubernetes_adapters, "_kind", lambda *_: (None, cluster))
    access = {"kubeconfig": "/config", "context": "lab"}
    return Resource(
        name="it", type="", inputs=manifest, outputs={}, id="", provider=access, say=lambda _: None
    )  # fmt: skip


def deployment(status: dict[str, Any] | None = None) -> dict[str, Any]:
    found = copy.deepcopy(DEPLOYMENT)
    found["metadata"] = {**DEPLOYMENT["metadata"], "generation": 1}  # type: ignore[dict-item]
    return {**found, "status": status or {}}


def test_an_object_that_a_killed_run_has_made_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    left = deployment(READY)
    left["metadata"]["managedFields"] = [{"manager": kubernetes_adapters.MANAGER}]
    cluster = Cluster(left)
    with pytest.raises(NothingDoneError, match="Deployment lab/served already exists in the cluster"):
        ADAPTERS["kubernetes:apps/v1:Deployment"].create(resource(cluster, DEPLOYMENT, monkeypatch))
    assert cluster.applied == 0


def test_a_deployment_is_created_where_there_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    cluster = Cluster(None, polls=2)
    made, _ = ADAPTERS["kubernetes:apps/v1:Deployment"].create(resource(cluster, DEPLOYMENT, monkeypatch))
    assert made == "lab/served"
    assert cluster.applied == 1


def test_a_refresh_waits_for_a_deployment_that_is_not_ready_any_more(monkeypatch: pytest.MonkeyPatch) -> None:
    cluster = Cluster(deployment({**READY, "availableReplicas": 0}), polls=3)
    assert ADAPTERS["kubernetes:apps/v1:Deployment"].read(resource(cluster, DEPLOYMENT, monkeypatch)) == "repaired"
    assert cluster.applied == 1
    assert cluster.found
    assert cluster.found["status"] == READY


def test_a_refresh_finds_nothing_to_do_for_a_deployment_that_is_ready(monkeypatch: pytest.MonkeyPatch) -> None:
    cluster = Cluster(deployment(READY))
    assert ADAPTERS["kubernetes:apps/v1:Deployment"].read(resource(cluster, DEPLOYMENT, monkeypatch)) == "same"
    assert cluster.applied == 0


@pytest.mark.parametrize(
    ("condition", "annotation", "seen"),
    [
        ("Complete", "true", "same"),
        ("Complete", "", "same"),
        ("Failed", "true", "expired"),
        ("Suspended", "true", "expired"),
    ],
)
def test_a_job_that_has_not_completed_is_replaced_where_it_says_so(
    condition: str, annotation: str, seen: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = copy.deepcopy(JOB)
    job["metadata"]["annotations"] = {"pulumi.com/replaceUnready": annotation}  # type: ignore[index]
    status = {"conditions": [{"type": condition, "status": "True"}]}
    cluster = Cluster({**job, "metadata": {**job["metadata"], "generation": 1}, "status": status})  # type: ignore[dict-item]
    assert ADAPTERS["kubernetes:batch/v1:Job"].read(resource(cluster, job, monkeypatch)) == seen


@pytest.mark.parametrize(
    ("manifest", "path", "value", "replaced"),
    [
        (CLAIM, "spec.resources", {"requests": {"storage": "4G"}}, False),
        (CLAIM, "spec.storageClassName", "slow", True),
        (JOB, "spec.backoffLimit", 5, False),
        (JOB, "spec.template", {"spec": {"containers": [{"name": "another"}]}}, True),
        (JOB, "spec.completions", 2, True),
        (DEPLOYMENT, "spec.replicas", 2, False),
        (DEPLOYMENT, "spec.selector", {"matchLabels": {"app": "another"}}, True),
        (DEPLOYMENT, "metadata.name", "another", True),
        (DEPLOYMENT, "metadata.labels", {"app": "another"}, False),
    ],
)
def test_what_replaces_an_object_is_what_the_provider_replaces(
    manifest: dict[str, Any], path: str, value: Any, replaced: bool
) -> None:
    changed = copy.deepcopy(manifest)
    parent, _, key = path.partition(".")
    changed[parent][key] = value
    adapter = ADAPTERS["kubernetes:apps/v1:Deployment"]
    assert adapter.remakes(manifest, changed) is replaced
    assert not adapter.remakes(manifest, manifest)

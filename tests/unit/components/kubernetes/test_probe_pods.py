"""Pods that look at something: what is said where one can't run, or fails."""

from types import SimpleNamespace
from typing import Any

import pytest
from kubernetes.client import ApiException

from components.kubernetes import probe_pods
from components.kubernetes.api import ClusterError

VOLUMES = [{"name": "tmp", "emptyDir": {}}, {"name": "weights", "persistentVolumeClaim": {"claimName": "models"}}]
POD = {"metadata": {"name": "probe"}, "spec": {"volumes": VOLUMES}}
CLAIMS = "involvedObject.name=models,type=Warning"


class Core:
    """The API of one pod, whose status is that of `statuses` in turn."""

    def __init__(
        self, *statuses: Any, log: str = "", warnings: tuple[str, ...] = (), of_claim: tuple[str, ...] = ()
    ) -> None:
        self.statuses, self.log, self.warnings, self.of_claim = list(statuses), log, warnings, of_claim
        self.exists = False

    def create_namespaced_pod(self, _namespace: str, _pod: Any) -> None:
        self.exists = True

    def read_namespaced_pod(self, _name: str, _namespace: str) -> Any:
        if not self.exists:
            raise ApiException(status=404)
        return SimpleNamespace(status=self.statuses.pop(0) if len(self.statuses) > 1 else self.statuses[0])

    def read_namespaced_pod_log(self, _name: str, _namespace: str) -> str:
        if not self.log:
            raise ApiException(status=400)
        return self.log

    def delete_namespaced_pod(self, _name: str, _namespace: str, *, grace_period_seconds: int) -> None:
        assert grace_period_seconds == 0
        if not self.exists:
            raise ApiException(status=404)
        self.exists = False

    def list_namespaced_event(self, _namespace: str, *, field_selector: str) -> Any:
        about = {"involvedObject.name=probe,type=Warning": self.warnings, CLAIMS: self.of_claim}[field_selector]
        return SimpleNamespace(items=[SimpleNamespace(message=each) for each in about])


def status(phase: str = "Pending", *, unplaced: str = "", **state: Any) -> Any:
    """Return a pod's status; `state` is that of its container: waiting or terminated."""
    container = SimpleNamespace(state=SimpleNamespace(**{"waiting": None, "terminated": None} | state))
    condition = SimpleNamespace(type="PodScheduled", status="False" if unplaced else "True", message=unplaced)
    return SimpleNamespace(
        phase=phase, container_statuses=[container] if state else None, conditions=[condition], message="", reason=""
    )


def why(reason: str, message: str) -> Any:
    return SimpleNamespace(reason=reason, message=message)


def run(core: Core) -> list[str]:
    return probe_pods.run(core, "llm", [POD], "the check's pod")


@pytest.fixture(autouse=True)
def _at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(probe_pods, "POLL_SECONDS", 0.001)
    monkeypatch.setattr(probe_pods, "SECONDS", 0.1)
    monkeypatch.setattr(probe_pods, "PLACE_SECONDS", 0.05)


def test_its_last_line_is_the_answer_and_it_goes() -> None:
    core = Core(status(), status("Running"), status("Succeeded"), log="one\ntwo\n")
    core.exists = True  # of a run that was cut off
    assert run(core) == ["two"]
    assert not core.exists


@pytest.mark.parametrize(
    ("core", "words"),
    [
        (
            Core(status("Failed", terminated=why("Error", "")), log="du\nelastic-vllm: no config\n  fix: fill it\n"),
            "^no config; fix: fill it$",
        ),
        (
            Core(status("Failed", terminated=why("StartError", 'exec: "bash": not found'))),
            'the check\'s pod probe failed: StartError exec: "bash": not found; fix: correct what it names',
        ),
        (
            Core(status(waiting=why("ErrImagePull", "unauthorized"))),
            "ErrImagePull: unauthorized; fix: is the image's name right",
        ),
        (Core(status(waiting=why("CreateContainerConfigError", "no subPath"))), "no subPath; fix: correct what"),
        (
            Core(status(unplaced="0/2 nodes are available: 2 node(s) had volume node affinity conflict")),
            "volume node affinity conflict; fix: correct nodeSelector and tolerations, use a volume or a class that",
        ),
        (
            Core(status(unplaced="0/2 nodes are available"), of_claim=('storageclass "nothing" not found',)),
            '0/2 nodes are available; storageclass "nothing" not found; fix: ',
        ),
        (
            Core(status(waiting=why("ContainerCreating", "")), warnings=("first", "Multi-Attach error for volume")),
            r"has not ended after 0.1 s: Multi-Attach error for volume; fix: correct what it names",
        ),
    ],
)
def test_a_pod_that_does_not_end_well(core: Core, words: str) -> None:
    with pytest.raises(ClusterError, match=words):
        run(core)
    assert not core.exists

"""Pods that look at something from inside the cluster, say what they found, and go."""

import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from http import HTTPStatus
from typing import Any

from components.kubernetes import api
from components.kubernetes.api import ClusterError

SECONDS = 7200
"""Limit for a pod: a node may have to pull vLLM's image first, and the weights' (tens of gigabytes)."""
PLACE_SECONDS = 300
"""Limit for a node to be found, which may have to be started first."""
POLL_SECONDS = 0.5
NO_IMAGE = {"ErrImagePull", "ImagePullBackOff", "ErrImageNeverPull", "InvalidImageName"}
NO_START = {"CreateContainerConfigError", "CreateContainerError", "RunContainerError", "StartError"}
FAIL, FIX = "elastic-vllm: ", "  fix: "
"""How the scripts of the program begin their last two lines where they fail."""


def run(core: Any, namespace: str, pods: Sequence[Mapping[str, Any]], what: str) -> list[str]:
    """Run the pods at once; return the last line that each has printed. `what` they are, for messages.

    No pod is left behind. Raises ClusterError for a pod that can't run, or that fails.
    """
    names = [pod["metadata"]["name"] for pod in pods]
    try:
        _delete(core, namespace, names)  # those of a run that was cut off
        for pod in pods:
            core.create_namespaced_pod(namespace, pod)
        return [_last_line(core, namespace, pod, what) for pod in pods]
    except api.request_errors() as error:
        raise api.explained(error, what) from error
    finally:
        with suppress(*api.request_errors()):
            _delete(core, namespace, names)


def _last_line(core: Any, namespace: str, pod: Mapping[str, Any], what: str) -> str:
    name, begun = pod["metadata"]["name"], time.monotonic()
    while True:
        status = core.read_namespaced_pod(name, namespace).status
        if status.phase in {"Succeeded", "Failed"}:
            lines: list[str] = []
            with api.tolerated(HTTPStatus.BAD_REQUEST):  # its container has never run
                lines = core.read_namespaced_pod_log(name, namespace).splitlines()
            if status.phase == "Succeeded" and lines:
                return lines[-1]
            raise ClusterError(_failure(lines) or f"{what} {name} failed: {_ended(status)}")
        seconds = time.monotonic() - begun
        if cause := _stuck(status):
            raise ClusterError(f"{what} {name} can't run: {cause}")
        if unplaced := _unplaced(status) if seconds > PLACE_SECONDS else "":
            raise ClusterError(
                f"{what} {name} gets no node: {'; '.join([unplaced, *_warnings(core, namespace, pod)])}; fix: correct "
                "nodeSelector and tolerations, use a volume or a class that these nodes reach, or make room"
            )
        if seconds > SECONDS:
            raise ClusterError(
                f"{what} {name} has not ended after {SECONDS} s: "
                f"{'; '.join(_warnings(core, namespace, pod)) or 'no reason was given'}; fix: correct what it names"
            )
        time.sleep(POLL_SECONDS)


def _failure(lines: Sequence[str]) -> str:
    """Return the cause and the fix that a script has printed; empty where it has not."""
    causes = [line.removeprefix(FAIL) for line in lines if line.startswith(FAIL)]
    fixes = [line.removeprefix(FIX) for line in lines if line.startswith(FIX)]
    return f"{causes[-1]}; fix: {fixes[-1]}" if causes and fixes else ""


def _ended(status: Any) -> str:
    ends = [each.state.terminated for each in status.container_statuses or [] if each.state.terminated]
    words = [f"{end.reason} {end.message or ''}".strip() for end in ends] or [status.message or status.reason or ""]
    return f"{words[0] or 'no reason was given'}; fix: correct what it names, and run the same again"


def _stuck(status: Any) -> str:
    """Return why a pod will not run, with the fix; empty as long as it may."""
    for container in status.container_statuses or []:
        waiting = container.state.waiting
        if waiting and waiting.reason in NO_IMAGE:
            return (
                f"{waiting.reason}: {waiting.message}; fix: is the image's name right, do the nodes reach its registry "
                "and know its CA, and does it need imagePullSecret?"
            )
        if waiting and waiting.reason in NO_START:
            return f"{waiting.reason}: {waiting.message}; fix: correct what it names"
    return ""


def _unplaced(status: Any) -> str:
    """Return why the pod has no node; empty if it has one."""
    return next(
        (each.message for each in status.conditions or [] if each.type == "PodScheduled" and each.status != "True"), ""
    )


def _warnings(core: Any, namespace: str, pod: Mapping[str, Any]) -> list[str]:
    """Return the cluster's last warning about the pod, and that about each of its claims."""
    volumes = pod.get("spec", {}).get("volumes", [])
    claims = [each["persistentVolumeClaim"]["claimName"] for each in volumes if "persistentVolumeClaim" in each]
    last = []
    for name in (pod["metadata"]["name"], *claims):
        chosen = f"involvedObject.name={name},type=Warning"
        last += [each.message for each in core.list_namespaced_event(namespace, field_selector=chosen).items][-1:]
    return last


def _delete(core: Any, namespace: str, names: Sequence[str]) -> None:
    """Delete pods, and wait until they are gone."""
    for name in names:
        with api.tolerated(HTTPStatus.NOT_FOUND):
            core.delete_namespaced_pod(name, namespace, grace_period_seconds=0)
    end = time.monotonic() + 60
    for name in names:
        with api.tolerated(HTTPStatus.NOT_FOUND):
            while time.monotonic() < end:
                core.read_namespaced_pod(name, namespace)
                time.sleep(POLL_SECONDS)

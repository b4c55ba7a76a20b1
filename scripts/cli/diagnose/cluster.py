"""Looks of `diagnose` at a stack on Kubernetes: its pods, and why they are not ready."""

from collections.abc import Iterator, Mapping
from typing import Any

from components.kubernetes import api
from components.kubernetes.objects import COMPONENT, GATEWAY, INSTANCE, VLLM
from scripts.cli.diagnose.finding import Finding, Look, Rank
from scripts.lib.errors import ExitCode

CAUSES = {
    "ImagePullBackOff": "is the image's name right, do the nodes reach its registry, and does it need imagePullSecret?",
    "ErrImagePull": "is the image's name right, do the nodes reach its registry, and does it need imagePullSecret?",
    "ErrImageNeverPull": "import the image on every node: localhost/ names are never pulled",
    "CrashLoopBackOff": "see its log: kubectl logs --previous",
    "CreateContainerConfigError": "was a Secret or ConfigMap of the stack deleted? Run up",
    "Unschedulable": "make room, or correct nodeSelector, tolerations, gpuResource or gpuCount",
    "OOMKilled": "is there a LimitRange with a small memory limit in the namespace?",
}
"""Reason that Kubernetes gives -> what to do."""


def looks(about: Mapping[str, str], stack: str) -> Iterator[Look]:
    """Look at the pods; nothing is changed."""
    from kubernetes.client import CoreV1Api  # noqa: PLC0415 - it takes seconds to import

    namespace = about["namespace"]
    try:
        core: Any = CoreV1Api(api.connect(about["kubeconfig"], about["context"]))
        pods = core.list_namespaced_pod(namespace, label_selector=f"{INSTANCE}={stack}").items
    except api.ClusterError as error:
        yield _unreachable(str(error))
        return
    except api.request_errors() as error:
        yield _unreachable(str(api.explained(error, f"the pods in {namespace}")))
        return
    for component in (GATEWAY, VLLM):
        own = [pod for pod in pods if pod.metadata.labels.get(COMPONENT) == component]
        findings = tuple(finding for pod in own for finding in _findings(pod, namespace))
        ready = sum(_is_ready(pod) for pod in own)
        if not own:
            fix = "is it parked? Else run up"
            findings = (Finding(ExitCode.CONTAINERS, Rank.CONTAINERS, f"there is no {component} pod", fix),)
        yield Look(f"{component} pods", "" if findings else f"{ready} of {len(own)} ready", findings)


def _unreachable(text: str) -> Look:
    cause, _, fix = text.partition("; fix: ")
    return Look("cluster", "", (Finding(ExitCode.SERVER, Rank.UNSEEN, cause, fix),))


def _is_ready(pod: Any) -> bool:
    conditions = {condition.type: condition.status for condition in pod.status.conditions or []}
    return conditions.get("Ready") == "True"


def _findings(pod: Any, namespace: str) -> Iterator[Finding]:
    name = pod.metadata.name
    for condition in pod.status.conditions or []:
        if condition.type == "PodScheduled" and condition.status == "False":
            cause = f"the pod {name} has no node: {condition.message}"
            yield Finding(ExitCode.CONTAINERS, Rank.CONTAINERS, cause, CAUSES["Unschedulable"])
            return
    for status in [*(pod.status.init_container_statuses or []), *(pod.status.container_statuses or [])]:
        waiting, last = status.state.waiting, status.last_state and status.last_state.terminated
        reason = waiting.reason if waiting else last.reason if last and not status.ready else ""
        if reason in CAUSES:
            message = (waiting.message if waiting else "") or ""
            cause = f"the container {status.name} of the pod {name}: {reason} {message}".strip()
            yield Finding(ExitCode.CONTAINERS, Rank.CONTAINERS, cause, CAUSES[reason])
            return
    if not _is_ready(pod) and not pod.metadata.deletion_timestamp:
        cause, fix = f"the pod {name} is not ready", f"loading takes minutes; see kubectl logs -n {namespace} {name}"
        yield Finding(ExitCode.LOADING, Rank.CONTAINERS, cause, fix)

"""Waits until every pod of a component reports that its Nginx has loaded a Secret's content."""

import logging
import time
from collections.abc import Sequence
from http import HTTPStatus
from typing import Any

import pulumi
from pulumi import dynamic

from components.kubernetes import api, objects
from components.kubernetes.api import ClusterError

# gRPC would print a traceback for each error that a provider raises; Pulumi shows the error's own words.
logging.getLogger("grpc").setLevel(logging.CRITICAL)

SECONDS = 240
"""Limit: a node takes over a changed Secret within 90 s, and Nginx within seconds."""
POLL_SECONDS = 1
LOADED = "elastic-vllm: loaded "
REFUSED = "elastic-vllm: refused "
ANNOTATION = "elastic-vllm/files"
Props = dict[str, Any]
"""kubeconfig, context, namespace, selector, container, digest."""


class LoadedProvider(dynamic.ResourceProvider):
    """Waits at each change of the digest."""

    replaced_by: tuple[str, ...] = ()

    def diff(self, _id: str, olds: Props, news: Props) -> dynamic.DiffResult:
        """Compare the digest and the pods that it is for."""
        return dynamic.DiffResult(changes=any(olds.get(key) != news.get(key) for key in ("digest", "selector")))

    def create(self, props: Props) -> dynamic.CreateResult:
        """Wait. Raises ClusterError."""
        wait(props)
        return dynamic.CreateResult("loaded", outs=props)

    def update(self, _id: str, _olds: Props, news: Props) -> dynamic.UpdateResult:
        """Wait. Raises ClusterError."""
        wait(news)
        return dynamic.UpdateResult(outs=news)


class Loaded(dynamic.Resource, module="kubernetes", name="Loaded"):
    """Every pod of a component serves with the content that `digest` stands for."""

    def __init__(
        self,
        name: str,
        cluster: objects.Cluster,
        *,
        component: str,
        digest: pulumi.Input[str],
        parent: pulumi.Resource,
        depends_on: Sequence[pulumi.Resource],
    ) -> None:
        selector = ",".join(f"{key}={value}" for key, value in cluster.selector(component).items())
        # A digest shows nothing of the keys in the files, and pods log it.
        inputs: dict[str, Any] = {
            **cluster.access(),
            "selector": selector,
            "container": component,
            "digest": pulumi.Output.unsecret(pulumi.Output.from_input(digest)),
        }
        options = pulumi.ResourceOptions(parent=parent, depends_on=[*cluster.ready, *depends_on])
        super().__init__(LoadedProvider(), name, inputs, options)


def wait(props: Props) -> None:
    """Wait until each pod has logged the digest. Raises ClusterError."""
    from kubernetes.client import CoreV1Api

    core, end = CoreV1Api(api.connect(props["kubeconfig"], props["context"])), time.monotonic() + SECONDS
    last: dict[str, str] = {}
    while True:
        try:
            waiting = _waiting(core, props, last)
        except api.request_errors() as error:
            raise api.explained(error, "the gateway's pods") from error
        if not waiting:
            return
        if time.monotonic() > end:
            raise ClusterError(
                f"after {SECONDS} s these pods have not loaded the changed files: {', '.join(waiting)}; fix: see "
                f"`kubectl logs -n {props['namespace']} {waiting[0]}`, then run the same again"
            )
        time.sleep(POLL_SECONDS)


def _waiting(core: Any, props: Props, last: dict[str, str]) -> list[str]:
    """Return the pods that have not loaded the digest; `last` keeps the last report of each. Raises ClusterError."""
    namespace, waiting = props["namespace"], []
    pods = core.list_namespaced_pod(namespace, label_selector=props["selector"]).items
    for pod in pods:
        name = pod.metadata.name
        if pod.metadata.deletion_timestamp or pod.status.phase != "Running":
            continue
        if (pod.metadata.annotations or {}).get(ANNOTATION) != props["digest"]:
            # A node looks after a pod that changes at once, and else once a minute.
            body = {"metadata": {"annotations": {ANNOTATION: props["digest"]}}}
            core.patch_namespaced_pod(name, namespace, body)
        since = {"since_seconds": 10 * POLL_SECONDS} if name in last else {}
        try:
            lines = core.read_namespaced_pod_log(name, namespace, container=props["container"], **since).splitlines()
        except api.request_errors() as error:
            if api.is_status(error, HTTPStatus.BAD_REQUEST):  # its container does not run yet
                waiting.append(name)
                continue
            raise
        reports = [line for line in lines if line.startswith((LOADED, REFUSED))]
        last[name] = reports[-1] if reports else last.get(name, "")
        if last[name].startswith(f"{REFUSED}{props['digest']}"):
            raise ClusterError(
                f"Nginx in the pod {name} refuses the changed files, and serves with those before; fix: see "
                f"`kubectl logs -n {namespace} {name}`"
            )
        if last[name] != f"{LOADED}{props['digest']}":
            waiting.append(name)
    return waiting if pods else ["(no pod is there)"]

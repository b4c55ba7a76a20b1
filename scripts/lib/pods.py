"""Logs of a stack's gateway pods, as far as the cluster keeps them."""

from collections.abc import Iterator, Mapping
from typing import Any

from components.errors import UserError
from components.kubernetes import api
from components.kubernetes.objects import COMPONENT, GATEWAY, INSTANCE


def gateway_logs(about: Mapping[str, str], stack: str) -> Iterator[tuple[str, list[str]]]:
    """Yield the time since when each gateway pod's log reaches back, and its lines, each with its time in front.

    `about` is the part of a stack's outputs that says how the cluster is reached. Raises UserError.
    """
    from kubernetes.client import CoreV1Api  # noqa: PLC0415 - it takes seconds to import

    namespace = about["namespace"]
    try:
        core: Any = CoreV1Api(api.connect(about["kubeconfig"], about["context"]))
        selector = f"{INSTANCE}={stack},{COMPONENT}={GATEWAY}"
        pods = core.list_namespaced_pod(namespace, label_selector=selector).items
        for pod in pods:
            text = core.read_namespaced_pod_log(pod.metadata.name, namespace, container=GATEWAY, timestamps=True)
            lines = text.splitlines()
            yield lines[0].split()[0] if lines else pod.status.start_time.isoformat(), lines
    except api.ClusterError as error:
        cause, _, fix = str(error).partition("; fix: ")
        raise UserError(cause, fix) from error
    except api.request_errors() as error:
        cause, _, fix = str(api.explained(error, f"the gateway's logs in {namespace}")).partition("; fix: ")
        raise UserError(cause, fix) from error

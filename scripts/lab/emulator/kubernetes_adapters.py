"""kubernetes:* with the official client, by server-side apply, as Pulumi's provider does it.

The provider's own rules are kept (pulumi-kubernetes 4.32: provider/pkg/await, provider/pkg/provider/diff.go): creation
fails where the object exists, a changed name or namespace replaces it, it waits for what it has changed, and a refresh
finds what is not ready any more.
"""

import atexit
import copy
import functools
import shutil
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from http import HTTPStatus
from typing import Any, TypeVar

from components.kubernetes import api
from components.kubernetes.api import ClusterError
from scripts.lab import RehearsalError
from scripts.lab.emulator.resource import Adapter, NothingDoneError, Resource, Seen

MANAGER = "elastic-vllm-rehearsal"
"""Owner of the fields that this engine applies; only its objects are deleted."""
POLL_SECONDS = 0.5
SAY_SECONDS = 5
SECONDS = 600
"""Time that Pulumi's provider waits unless the program names another."""
SKIP_AWAIT, REPLACE_UNREADY = "pulumi.com/skipAwait", "pulumi.com/replaceUnready"
"""Annotations by which the provider does not wait, and replaces a Job that has not completed."""

T = TypeVar("T")
_lock = threading.Lock()


def _explained(do: Callable[[Resource], T]) -> Callable[[Resource], T]:
    """Turn the client's errors into messages for the user."""

    @functools.wraps(do)
    def wrapper(resource: Resource) -> T:
        try:
            return do(resource)
        except ClusterError as error:
            raise RehearsalError(str(error)) from error
        except api.request_errors() as error:
            raise RehearsalError(str(api.explained(error, _title(resource)))) from error

    return wrapper


def _title(resource: Resource) -> str:
    metadata = resource.inputs["metadata"]
    return f"{resource.inputs['kind']} {metadata.get('namespace', '')}/{metadata['name']}"


@functools.lru_cache(maxsize=8)
def _dynamic(kubeconfig: str, context: str) -> Any:
    from kubernetes.dynamic import DynamicClient  # noqa: PLC0415 - it takes seconds to import

    # Its cache of the API's kinds would be a file that all runs share.
    directory = tempfile.mkdtemp()
    atexit.register(shutil.rmtree, directory, ignore_errors=True)
    return DynamicClient(api.connect(kubeconfig, context), cache_file=f"{directory}/kinds.json")


def _kind(kubeconfig: str, context: str, api_version: str, kind: str) -> tuple[Any, Any]:
    """Return a client, and its handle for objects of one kind; it asks the server for all kinds once."""
    with _lock:
        dynamic = _dynamic(kubeconfig, context)
        return dynamic.client, dynamic.resources.get(api_version=api_version, kind=kind)


class _Object:
    """One object in the cluster."""

    def __init__(self, resource: Resource) -> None:
        inputs, metadata = resource.inputs, resource.inputs["metadata"]
        access = (resource.provider["kubeconfig"], resource.provider["context"])
        self.client, self.handle = _kind(*access, inputs["apiVersion"], inputs["kind"])
        self.name, self.namespace = metadata["name"], metadata.get("namespace")
        self.place = {"name": self.name, **({"namespace": self.namespace} if self.namespace else {})}
        self.manifest = {key: value for key, value in inputs.items() if not key.startswith("__")}

    def get(self) -> dict[str, Any] | None:
        """Return the object as it is; None if there is none."""
        try:
            found: dict[str, Any] = self.handle.get(**self.place).to_dict()
        except api.request_errors() as error:
            if api.is_status(error, HTTPStatus.NOT_FOUND):
                return None
            raise
        return found

    def apply(self, *, dry: bool = False) -> dict[str, Any]:
        """Apply the manifest; where another has set one of its fields since, the API server refuses."""
        options = {"dry_run": "All"} if dry else {}
        applied = self.handle.server_side_apply(
            body=copy.deepcopy(self.manifest), field_manager=MANAGER, **self.place, **options
        )
        found: dict[str, Any] = applied.to_dict()
        return found

    def is_ours(self, found: dict[str, Any]) -> bool:
        """Return True if this engine has made it."""
        return any(each.get("manager") == MANAGER for each in found["metadata"].get("managedFields", ()))


@_explained
def _create(resource: Resource) -> tuple[str, dict[str, Any]]:
    wanted = _Object(resource)
    if wanted.get():
        raise NothingDoneError(
            f"{_title(resource)} already exists in the cluster, as Pulumi says of one that a killed run or somebody "
            "else has made; fix: delete it, or use another namespace"
        )
    wanted.apply()
    _wait(resource, wanted)
    return f"{wanted.namespace}/{wanted.name}" if wanted.namespace else wanted.name, {}


@_explained
def _update(resource: Resource) -> dict[str, Any]:
    wanted = _Object(resource)
    wanted.apply()
    _wait(resource, wanted)
    return {}


@_explained
def _read(resource: Resource) -> Seen:
    wanted = _Object(resource)
    found = wanted.get()
    if found is None:
        return "gone"
    annotations = resource.inputs["metadata"].get("annotations", {})
    if annotations.get(REPLACE_UNREADY) == "true" and not _is_complete(found):
        return "expired"
    ready = resource.inputs["kind"] not in SEEN_BY_A_REFRESH or not _missing(resource, wanted, found)
    if ready and _content(wanted.apply(dry=True)) == _content(found):
        return "same"
    wanted.apply()
    _wait(resource, wanted)
    return "repaired"


@_explained
def _delete(resource: Resource) -> None:
    wanted, end = _Object(resource), time.monotonic() + 2 * SECONDS
    found = wanted.get()
    if found is None or not wanted.is_ours(found):
        return
    wanted.handle.delete(body={"propagationPolicy": "Foreground"}, **wanted.place)
    while (left := wanted.get()) and left["metadata"]["uid"] == found["metadata"]["uid"]:
        if time.monotonic() > end:
            raise RehearsalError(f"{_title(resource)} is still being deleted after {2 * SECONDS} s")
        time.sleep(POLL_SECONDS)


def _content(found: dict[str, Any]) -> dict[str, Any]:
    """Return the object without what changes by itself."""
    kept = {key: value for key, value in found.items() if key not in {"status", "metadata"}}
    metadata = found["metadata"]
    own = {"managedFields", "resourceVersion", "generation"}
    return {**kept, "metadata": {key: value for key, value in metadata.items() if key not in own}}


# --- Waiting


def _wait(resource: Resource, wanted: _Object) -> None:
    """Wait until the object is what the provider calls ready."""
    limit = resource.inputs.get("spec", {}).get("progressDeadlineSeconds", SECONDS)
    end, spoken = time.monotonic() + limit, 0.0
    while True:
        missing = _missing(resource, wanted, wanted.get() or {})
        if not missing:
            return
        now = time.monotonic()
        if now > end:
            raise RehearsalError(f"{_title(resource)} is not ready after {limit} s: {missing}")
        if now - spoken > SAY_SECONDS:
            resource.say(missing)
            spoken = now
        time.sleep(POLL_SECONDS)


def _missing(resource: Resource, wanted: _Object, found: dict[str, Any]) -> str:
    """Return what the object waits for; empty if it is ready. Raises RehearsalError if it has failed."""
    waiter = WAITERS.get(resource.inputs["kind"])
    annotations = resource.inputs["metadata"].get("annotations", {})
    return "" if waiter is None or annotations.get(SKIP_AWAIT) == "true" else waiter(wanted, found)


def _deployment(wanted: _Object, found: dict[str, Any]) -> str:
    """Return what a Deployment waits for; empty if its newest pods are all there. Raises RehearsalError."""
    status, replicas = found.get("status", {}), found.get("spec", {}).get("replicas", 1)
    conditions = {each["type"]: each for each in status.get("conditions", ())}
    progressing = conditions.get("Progressing", {})
    seen = status.get("observedGeneration") == found.get("metadata", {}).get("generation")
    done = (
        status.get("updatedReplicas", 0) == replicas
        and status.get("readyReplicas", 0) >= replicas
        and status.get("availableReplicas", 0) >= replicas
        and status.get("replicas", 0) == replicas
    )
    if seen and done and (not replicas or progressing.get("reason") == "NewReplicaSetAvailable"):
        return ""
    troubles = "; ".join(_troubles(wanted, found["spec"]["selector"]["matchLabels"])) if found else ""
    if seen and progressing.get("status") == "False":
        raise RehearsalError(
            f"Deployment {wanted.namespace}/{wanted.name}: {progressing.get('message')}"
            + (f": {troubles}" if troubles else "")
        )
    ready = f"{status.get('availableReplicas', 0)} of {replicas} pods are available"
    return f"{ready}: {troubles}" if troubles else ready


def _troubles(wanted: _Object, labels: dict[str, str]) -> Iterator[str]:
    """Yield what keeps pods from being ready, as they report it."""
    from kubernetes.client import CoreV1Api  # noqa: PLC0415

    core = CoreV1Api(wanted.client)
    selector = ",".join(f"{key}={value}" for key, value in labels.items())
    for pod in core.list_namespaced_pod(wanted.namespace, label_selector=selector).items:
        statuses = [*(pod.status.init_container_statuses or []), *(pod.status.container_statuses or [])]
        for container in statuses:
            state = container.state
            if state.waiting and state.waiting.reason not in {"PodInitializing", "ContainerCreating"}:
                yield f"{pod.metadata.name}: {container.name}: {state.waiting.reason} {state.waiting.message or ''}"
            elif state.terminated and state.terminated.exit_code:
                yield f"{pod.metadata.name}: {container.name} ended with {state.terminated.exit_code}"
        for condition in pod.status.conditions or []:
            if condition.type == "PodScheduled" and condition.status == "False":
                yield f"{pod.metadata.name}: {condition.message}"


def _service(wanted: _Object, found: dict[str, Any]) -> str:
    spec = found.get("spec", {})
    if spec.get("clusterIP") == "None":
        return ""
    if spec.get("type") == "LoadBalancer" and not found.get("status", {}).get("loadBalancer", {}).get("ingress"):
        return "no address has been allocated"
    from kubernetes.client import CoreV1Api  # noqa: PLC0415

    try:
        endpoints = CoreV1Api(wanted.client).read_namespaced_endpoints(wanted.name, wanted.namespace)
    except api.request_errors() as error:
        if api.is_status(error, HTTPStatus.NOT_FOUND):
            return "it targets no pods"
        raise
    return "" if any(subset.addresses for subset in endpoints.subsets or ()) else "it targets no pods"


def _claim(_wanted: _Object, found: dict[str, Any]) -> str:
    return "" if found.get("status", {}).get("phase") == "Bound" else "it is not bound to a volume"


def _is_complete(job: dict[str, Any]) -> bool:
    conditions = {each["type"]: each["status"] for each in job.get("status", {}).get("conditions", ())}
    return conditions.get("Complete") == "True"


def _job(wanted: _Object, found: dict[str, Any]) -> str:
    if _is_complete(found):
        return ""
    conditions = {each["type"]: each for each in found.get("status", {}).get("conditions", ())}
    if (failed := conditions.get("Failed", {})).get("status") == "True":
        raise RehearsalError(
            f"Job {wanted.namespace}/{wanted.name} failed: {failed.get('message')}{_last_words(wanted)}"
        )
    return "it has not completed"


def _last_words(wanted: _Object) -> str:
    from kubernetes.client import CoreV1Api  # noqa: PLC0415

    core = CoreV1Api(wanted.client)
    for pod in core.list_namespaced_pod(wanted.namespace, label_selector=f"job-name={wanted.name}").items:
        lines = core.read_namespaced_pod_log(pod.metadata.name, wanted.namespace, tail_lines=5).strip()
        if lines:
            return f":\n{lines}"
    return ""


WAITERS: dict[str, Callable[[_Object, dict[str, Any]], str]] = {
    "Deployment": _deployment,
    "Service": _service,
    "PersistentVolumeClaim": _claim,
    "Job": _job,
}
SEEN_BY_A_REFRESH = {"Deployment", "Service", "Job"}
"""Kinds that the provider also looks at when it reads them: those that are not ready are updated."""

# --- What replaces an object

REPLACING = {
    "Deployment": ("spec.selector",),
    "Job": ("spec.completions", "spec.parallelism", "spec.selector", "spec.template"),
    "PersistentVolumeClaim": ("spec.accessModes", "spec.selector", "spec.storageClassName", "spec.volumeName"),
    "Secret": ("type",),
    "Service": ("spec.clusterIP",),
}
"""Kind -> fields whose change replaces the object; others change in place, if the API server admits it."""


def _remakes(old: dict[str, Any], new: dict[str, Any]) -> bool:
    """Return True for changes that the provider makes by deleting the object and creating another."""
    return _moves(old, new) or any(_field(old, each) != _field(new, each) for each in REPLACING.get(new["kind"], ()))


def _moves(old: dict[str, Any], new: dict[str, Any]) -> bool:
    """Return True where old and new object can exist at once."""
    return any(_field(old, each) != _field(new, each) for each in ("metadata.name", "metadata.namespace"))


def _field(manifest: dict[str, Any], path: str) -> Any:
    """Return a field by its path; None where there is none."""
    found: Any = manifest
    for key in path.split("."):
        found = (found or {}).get(key)
    return found


def _object() -> Adapter:
    return Adapter(
        inputs=frozenset({"apiVersion", "kind", "metadata", "spec", "data", "type"}),
        create=_create,
        update=_update,
        read=_read,
        delete=_delete,
        replaces=lambda _changed: False,
        remakes=_remakes,
        overlaps=_moves,
    )


def _create_provider(resource: Resource) -> tuple[str, dict[str, Any]]:
    # Without these, the provider replaces a Secret or ConfigMap whose content changes.
    for key in ("enableSecretMutable", "enableConfigMapMutable"):
        if str(resource.inputs.get(key)).lower() != "true":
            raise RehearsalError(f"the rehearsal knows Kubernetes' provider with {key} only")
    return resource.name, {}


def _update_provider(resource: Resource) -> dict[str, Any]:
    raise RehearsalError(
        f"{resource.name}: a stack stays in its cluster and namespace; fix: take it down first (scripts/rehearse down)"
    )


ADAPTERS = {
    "pulumi:providers:kubernetes": Adapter(
        inputs=frozenset({"kubeconfig", "context", "namespace", "enableSecretMutable", "enableConfigMapMutable"}),
        create=_create_provider,
        update=_update_provider,
        replaces=lambda _changed: False,
    ),
    **{
        f"kubernetes:{kind}": _object()
        for kind in (
            "core/v1:Namespace",
            "core/v1:Secret",
            "core/v1:ConfigMap",
            "core/v1:Service",
            "core/v1:PersistentVolumeClaim",
            "apps/v1:Deployment",
            "batch/v1:Job",
            "networking.k8s.io/v1:NetworkPolicy",
            "policy/v1:PodDisruptionBudget",
        )
    },
}

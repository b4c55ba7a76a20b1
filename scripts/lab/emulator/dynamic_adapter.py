"""Resources whose provider is Python of this program's own: the provider itself is run, as Pulumi's plugin would."""

import base64
from collections.abc import Callable
from typing import Any

import dill  # type: ignore[import-untyped]
from pulumi.dynamic import ResourceProvider

from components.elastic.api import ElasticError
from components.kubernetes.api import ClusterError
from components.machine.packet_filter import PacketFilterError
from scripts.lab import RehearsalError
from scripts.lab.emulator.resource import Adapter, Resource, Seen

PROVIDER = "__provider"


def _provider(inputs: dict[str, Any]) -> tuple[ResourceProvider, dict[str, Any]]:
    """The provider that the program pickled, and the properties that it is for."""
    pickled = base64.b64decode(inputs[PROVIDER])
    provider = dill.loads(pickled)  # noqa: S301 - the program has just written it, or this machine's own state holds it
    return provider, {key: value for key, value in inputs.items() if key != PROVIDER}


def _told(act: Callable[[], Any]) -> Any:
    try:
        return act()
    except (ElasticError, PacketFilterError, ClusterError) as error:
        raise RehearsalError(str(error)) from error


def _create(resource: Resource) -> tuple[str, dict[str, Any]]:
    provider, props = _provider(resource.inputs)
    made = _told(lambda: provider.create(props))
    return made.id, made.outs


def _update(resource: Resource) -> dict[str, Any]:
    provider, props = _provider(resource.inputs)
    outs: dict[str, Any] = _told(lambda: provider.update(resource.id, resource.outputs, props)).outs
    return outs


def _read(resource: Resource) -> Seen:
    provider, props = _provider(resource.inputs)
    found = _told(lambda: provider.read(resource.id, {**props, **resource.outputs}))
    # A provider that looks nothing up answers with what it was given.
    if not found.id:
        return "gone"
    checked = provider.check(props, props).inputs
    difference = provider.diff(resource.id, found.outs, checked)
    if not difference.changes:
        return "same"
    for line in checked.get("missing", ()):
        resource.say(f"missing: {line}")
    resource.outputs.update(_told(lambda: provider.update(resource.id, found.outs, checked)).outs)
    return "repaired"


def _delete(resource: Resource) -> None:
    provider, props = _provider(resource.inputs)
    _told(lambda: provider.delete(resource.id, {**props, **resource.outputs}))


def _adapter(inputs: set[str], replaced_by: set[str]) -> Adapter:
    return Adapter(
        inputs=frozenset({*inputs, PROVIDER}),
        create=_create,
        update=_update,
        read=_read,
        delete=_delete,
        replaces=lambda changed: bool(changed & replaced_by),
    )


_CLUSTER = {"kubeconfig", "context", "namespace"}
_ELASTIC = {"url", "key", "ca", "id", "body"}
ADAPTERS = {
    "pulumi-python:dynamic/elastic:KibanaAccess": _adapter({"url", "key", "ca", "space", "pki", "version"}, set()),
    "pulumi-python:dynamic/elastic:ElasticsearchAccess": _adapter({"url", "key", "ca", "version"}, set()),
    "pulumi-python:dynamic/elastic:KibanaDefaultConnector": _adapter(
        {"url", "key", "ca", "id", "space", "before"}, {"url", "space"}
    ),
    "pulumi-python:dynamic/elastic:KibanaConnector": _adapter(_ELASTIC | {"space"}, {"url", "space", "id"}),
    "pulumi-python:dynamic/elastic:InferenceEndpoint": _adapter(_ELASTIC, {"url", "id"}),
    "pulumi-python:dynamic/kubernetes:ClusterCheck": _adapter({*_CLUSTER, "needs"}, set()),
    "pulumi-python:dynamic/kubernetes:IsolationCheck": _adapter({*_CLUSTER, "service", "pods", "accept"}, set()),
    "pulumi-python:dynamic/kubernetes:WeightsCheck": _adapter({*_CLUSTER, "pod"}, set()),
    "pulumi-python:dynamic/kubernetes:Loaded": _adapter({*_CLUSTER, "selector", "container", "digest"}, set()),
    "pulumi-python:dynamic/host:PacketFilter": _adapter({"ssh", "check", "set", "on"}, set()),
}

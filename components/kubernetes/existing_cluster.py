"""A namespace in a cluster that exists."""

import json
import logging
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any

import pulumi
import pulumi_kubernetes as kubernetes
from pulumi import dynamic

from components.kubernetes import api
from components.kubernetes.api import ClusterError
from components.kubernetes.objects import Cluster
from components.kubernetes.rights import RIGHTS

# gRPC would print a traceback for each error that a provider raises; Pulumi shows the error's own words.
logging.getLogger("grpc").setLevel(logging.CRITICAL)

LEAST_VERSION = (1, 29)
"""The first with sidecars that start before a pod's containers and end after them."""
LEAST_FOR_IMAGES = (1, 35)
"""The first whose API server and kubelet have image volumes without a feature gate."""
LEAST_CONTAINERD = (2, 1)
"""The first that mounts images."""
PULL_SECRETS = ("kubernetes.io/dockerconfigjson", "kubernetes.io/dockercfg")
SHOWN = 6
UNITS = {"Ki": 2**10, "Mi": 2**20, "Gi": 2**30, "Ti": 2**40, "k": 10**3, "M": 10**6, "G": 10**9, "T": 10**12, "m": 1e-3}
RESTRICTED = "pod-security.kubernetes.io/enforce"
Props = dict[str, Any]
"""kubeconfig, context, namespace, needs (JSON)."""


@dataclass(frozen=True, kw_only=True)
class Needs:
    """Needs of the stack in the cluster, besides the rights."""

    creates_namespace: bool
    claim: str
    image_volume: bool
    storage_class: str
    runtime_class: str
    pull_secret: str
    gpu_resource: str
    gpus: int
    """GPUs of one replica; 0 without any."""
    replicas: int
    node_selector: Mapping[str, str]
    tolerations: Sequence[Mapping[str, Any]]
    requests: Mapping[str, str]
    """Requests of one replica's vLLM container: resource -> quantity."""
    pods: int

    def as_text(self) -> str:
        """Return them as a resource's input."""
        return json.dumps(vars(self), sort_keys=True)


@dataclass(frozen=True, kw_only=True)
class ExistingClusterArgs:
    """Access to the cluster, and what is asked of it."""

    kubeconfig: pulumi.Input[str]
    """Path of the file, or its content."""
    context: str
    namespace: str
    stack: str
    fixed_users: bool
    pull_secret: str
    needs: Needs
    after: tuple[pulumi.Resource, ...] = ()
    """Checks that must succeed before the cluster is looked at."""


class ExistingCluster(pulumi.ComponentResource):
    """A namespace can hold the stack: it is reached with rights that suffice, and has what the stack needs.

    Nothing outside the namespace is changed. The cluster's owner is responsible for nodes, network and storage.
    """

    cluster: Cluster

    def __init__(self, name: str, args: ExistingClusterArgs, opts: pulumi.ResourceOptions | None = None) -> None:
        super().__init__("elastic-vllm:index:ExistingCluster", name, None, opts)
        check = ClusterCheck(f"{name}-check", args, parent=self)
        provider = kubernetes.Provider(
            f"{name}-provider",
            kubeconfig=args.kubeconfig,
            context=args.context,
            namespace=args.namespace,
            # Else a changed key would delete the Secret and create another, while the gateways serve.
            enable_secret_mutable=True,
            enable_config_map_mutable=True,
            opts=pulumi.ResourceOptions(parent=self, depends_on=[check]),
        )
        self.cluster = Cluster(
            provider=provider,
            kubeconfig=args.kubeconfig,
            context=args.context,
            namespace=args.namespace,
            stack=args.stack,
            fixed_users=args.fixed_users,
            pull_secret=args.pull_secret,
            ready=[check],
        )
        if args.needs.creates_namespace:
            namespace = self.cluster.declare(f"{name}-namespace", namespace_manifest(self.cluster), parent=self)
            self.cluster = self.cluster.after(namespace)
        self.register_outputs({})


def namespace_manifest(cluster: Cluster) -> dict[str, Any]:
    """The namespace, which admits only pods that meet the Pod Security Standard restricted."""
    labels = {**cluster.labels("namespace"), RESTRICTED: "restricted"}
    return {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": cluster.namespace, "labels": labels}}


class ClusterCheckProvider(dynamic.ResourceProvider):
    """Looks at the cluster before anything is created in it."""

    replaced_by: tuple[str, ...] = ()
    compared = ("kubeconfig", "context", "namespace", "needs")

    def diff(self, _id: str, olds: Props, news: Props) -> dynamic.DiffResult:
        """Look again where something else is needed."""
        return dynamic.DiffResult(changes=any(olds.get(key) != news.get(key) for key in self.compared))

    def create(self, props: Props) -> dynamic.CreateResult:
        """Look. Raises ClusterError."""
        require(props, in_use=False)
        return dynamic.CreateResult("cluster", outs=props)

    def update(self, _id: str, _olds: Props, news: Props) -> dynamic.UpdateResult:
        """Look. Raises ClusterError."""
        require(news, in_use=True)
        return dynamic.UpdateResult(outs=news)


class ClusterCheck(dynamic.Resource, module="kubernetes", name="ClusterCheck"):
    """The cluster has what the stack needs."""

    def __init__(self, name: str, args: ExistingClusterArgs, *, parent: pulumi.Resource) -> None:
        inputs: dict[str, Any] = {
            "kubeconfig": args.kubeconfig,
            "context": args.context,
            "namespace": args.namespace,
            "needs": args.needs.as_text(),
        }
        options = pulumi.ResourceOptions(parent=parent, depends_on=list(args.after))
        super().__init__(ClusterCheckProvider(), name, inputs, options)


def require(props: Props, *, in_use: bool) -> None:
    """Raise ClusterError with everything that the cluster lacks; `in_use`: the stack is there already."""
    client = api.connect(props["kubeconfig"], props["context"])
    needs, namespace = Needs(**json.loads(props["needs"])), props["namespace"]
    try:
        found = [*_version(client, needs), *_rights(client, namespace, needs)]
        if not found and (in_use or not needs.creates_namespace):
            found = [*_namespace(client, namespace, needs), *_quota(client, namespace, needs, in_use=in_use)]
        found += _nodes(client, needs)
    except api.request_errors() as error:
        raise api.explained(error, f"the namespace {namespace}") from error
    if found:
        shown = [*found[:SHOWN], *([f"and {len(found) - SHOWN} more"] if found[SHOWN:] else [])]
        raise ClusterError(
            f"the cluster of context {props['context']} lacks what this stack needs; nothing was changed:\n"
            + "\n".join(f"  - {line}" for line in shown)
        )


def is_in_use(props: Props, deployment: str) -> bool:
    """Return True if the namespace holds the stack already, whose Deployment of that name counts against its quotas.

    Raises ClusterError.
    """
    from kubernetes.client import AppsV1Api

    apps, namespace = AppsV1Api(api.connect(props["kubeconfig"], props["context"])), props["namespace"]
    found: list[Any] = []
    try:
        return _exists(lambda: found.append(apps.read_namespaced_deployment(deployment, namespace))) and bool(found)
    except api.request_errors() as error:
        raise api.explained(error, f"the namespace {namespace}") from error


def _version(client: Any, needs: Needs) -> Iterator[str]:
    from kubernetes.client import VersionApi

    found = VersionApi(client).get_code()
    version = (int(found.major), int("".join(filter(str.isdigit, found.minor))))
    if version < LEAST_VERSION:
        yield f"Kubernetes {found.git_version} is too old; fix: use 1.29 or newer"
    elif needs.image_volume and version < LEAST_FOR_IMAGES:
        yield (
            f"Kubernetes {found.git_version} mounts no images (weightsImage); fix: use 1.35 or newer, or set "
            "weightsClaim or weightsStorageClass instead"
        )


def _rights(client: Any, namespace: str, needs: Needs) -> Iterator[str]:
    from kubernetes.client import AuthorizationV1Api

    reviews = AuthorizationV1Api(client)

    def allowed(group: str, resource: str, verb: str, scope: str) -> bool:
        kind, _, subresource = resource.partition("/")
        attributes = {
            "group": group,
            "resource": kind,
            "verb": verb,
            **({"namespace": scope} if scope else {}),
            **({"subresource": subresource} if subresource else {}),
        }
        body = {"spec": {"resourceAttributes": attributes}}
        return bool(reviews.create_self_subject_access_review(body).status.allowed)

    if needs.creates_namespace and not allowed("", "namespaces", "create", ""):
        yield "no right to create namespaces; fix: have the namespace made, and set createNamespace to false"
    rules = reviews.create_self_subject_rules_review({"spec": {"namespace": namespace}}).status.resource_rules

    def listed(group: str, resource: str, verb: str) -> bool:
        # An authorizer that can't list its rules is asked for each right that the others have not listed.
        return any(
            not rule.resource_names
            and {group, "*"} & {*rule.api_groups}
            and {resource, "*"} & {*rule.resources}
            and {verb, "*"} & {*rule.verbs}
            for rule in rules
        )

    missing = [
        f"{resource} ({', '.join(denied)})"
        for group, resources in RIGHTS.items()
        for resource, verbs in resources.items()
        if (
            denied := [
                verb
                for verb in verbs
                if not listed(group, resource, verb) and not allowed(group, resource, verb, namespace)
            ]
        )
    ]
    if missing:
        shown = [*missing[:SHOWN], *(["..."] if missing[SHOWN:] else [])]
        yield (
            f"the user of kubeContext has no rights in the namespace {namespace} for {', '.join(shown)}; fix: have the "
            "Role of docs/reference/kubernetes-role.yaml bound to that user"
        )


def _namespace(client: Any, namespace: str, needs: Needs) -> Iterator[str]:
    from kubernetes.client import CoreV1Api

    core = CoreV1Api(client)
    spaces: list[Any] = []
    if not _exists(lambda: spaces.append(core.read_namespace(namespace))):
        yield f"there is no namespace {namespace}; fix: have it made, or set createNamespace to true"
        return
    if spaces and spaces[0].status.phase == "Terminating":
        yield f"the namespace {namespace} is being deleted; fix: wait until it is gone, or use another one"
        return
    if needs.claim:
        found: list[Any] = []
        if not _exists(lambda: found.append(core.read_namespaced_persistent_volume_claim(needs.claim, namespace))):
            yield f"there is no PersistentVolumeClaim {needs.claim} in {namespace}; fix: correct weightsClaim"
        elif found:
            yield from claim_flaws(found[0], needs)
    secret, secrets = needs.pull_secret, list[Any]()
    if secret and not _exists(lambda: secrets.append(core.read_namespaced_secret(secret, namespace))):
        yield f"there is no Secret {secret} in {namespace}; fix: correct imagePullSecret, or create it"
    elif secrets and secrets[0].type not in PULL_SECRETS:
        yield (
            f"the Secret {secret} has the type {secrets[0].type}, which no image is pulled with; fix: make one for "
            "imagePullSecret by `kubectl create secret docker-registry`"
        )


def _nodes(client: Any, needs: Needs) -> Iterator[str]:
    """Look at what belongs to the whole cluster, as far as a namespace's admin may see it."""
    from kubernetes.client import CoreV1Api, NodeV1Api, StorageV1Api

    storage_class, runtime_class = needs.storage_class, needs.runtime_class
    if storage_class and not _exists(lambda: StorageV1Api(client).read_storage_class(storage_class)):
        yield f"there is no StorageClass {storage_class}; fix: set weightsStorageClass to one of the cluster's"
    if runtime_class and not _exists(lambda: NodeV1Api(client).read_runtime_class(runtime_class)):
        yield f"there is no RuntimeClass {runtime_class}; fix: correct runtimeClass, or leave it empty"
    nodes: list[Any] = []
    selector = ",".join(f"{key}={value}" for key, value in needs.node_selector.items())
    if _seen(lambda: nodes.extend(CoreV1Api(client).list_node(label_selector=selector).items)):
        yield from node_flaws(nodes, needs, f"nodes with {selector}" if selector else "nodes")


def claim_flaws(claim: Any, needs: Needs) -> Iterator[str]:
    """Yield why vLLM's pods can't mount a PersistentVolumeClaim that exists."""
    name, modes = needs.claim, claim.status.access_modes or claim.spec.access_modes or []
    if claim.metadata.deletion_timestamp:
        yield f"the PersistentVolumeClaim {name} is being deleted; fix: use another weightsClaim"
    elif claim.status.phase == "Lost":
        yield f"the volume of the PersistentVolumeClaim {name} is lost; fix: restore it"
    elif claim.spec.volume_mode == "Block":
        yield f"the PersistentVolumeClaim {name} is a block device; fix: use one with volumeMode Filesystem"
    elif [*modes] == ["ReadWriteOncePod"]:
        yield (
            f"the PersistentVolumeClaim {name} serves one pod at a time (ReadWriteOncePod), and a change needs two; "
            "fix: use one with ReadOnlyMany, ReadWriteMany or ReadWriteOnce"
        )
    elif needs.replicas > 1 and not {*modes} & {"ReadOnlyMany", "ReadWriteMany"}:
        yield (
            f"the PersistentVolumeClaim {name} serves the pods of one node ({', '.join(modes)}), and replicas is "
            f"{needs.replicas}; fix: use one with ReadOnlyMany or ReadWriteMany, weightsImage, or one replica"
        )


def node_flaws(nodes: Sequence[Any], needs: Needs, where: str) -> Iterator[str]:
    """Yield why the cluster's nodes can't run vLLM's pods; `nodes` are those that nodeSelector leaves: `where`."""
    if needs.image_volume:
        old = sorted({node.status.node_info.container_runtime_version for node in nodes if _mounts_no_image(node)})
        if old:
            yield (
                f"some {where} have {old[0]}, which mounts no images (weightsImage); fix: bring it to 2.1 or newer, "
                "choose other nodes by nodeSelector, or set weightsClaim or weightsStorageClass instead"
            )
    if not (needs.gpus and needs.replicas):
        return
    offers = [int((node.status.allocatable or {}).get(needs.gpu_resource, 0)) for node in nodes]
    shut = [_shut(node, needs.tolerations) for node in nodes]
    room = sum(offer // needs.gpus for offer, reason in zip(offers, shut, strict=True) if not reason)
    reasons = sorted({reason for offer, reason in zip(offers, shut, strict=True) if reason and offer >= needs.gpus})
    if not any(offers):
        yield (
            f"none of the {len(nodes)} {where} offers {needs.gpu_resource}; fix: install the GPUs' device plugin, or "
            "correct gpuResource and nodeSelector"
        )
    elif room < needs.replicas and reasons:
        yield (
            f"the {where} that this stack may use have room for {room} replicas of {needs.gpus} {needs.gpu_resource}; "
            f"others with it are {' or '.join(reasons)}; fix: tolerate the taint (tolerations), kubectl uncordon, or "
            "use fewer replicas"
        )
    elif room < needs.replicas:
        yield (
            f"the {where} have room for {room} replicas of {needs.gpus} {needs.gpu_resource} (the most on one node: "
            f"{max(offers)}); fix: use fewer replicas or a smaller gpuCount, or add nodes: a replica can't be spread "
            "over several"
        )


def _mounts_no_image(node: Any) -> bool:
    """Return True for a containerd that is too old; other runtimes are not known."""
    runtime, _, version = node.status.node_info.container_runtime_version.partition("://")
    numbers = [int(each) for each in re.findall("[0-9]+", version)[:2]]
    return bool(runtime == "containerd" and numbers and tuple(numbers) < LEAST_CONTAINERD)


def _shut(node: Any, tolerations: Sequence[Mapping[str, Any]]) -> str:
    """Return why no new pod with these tolerations gets to a node; empty where one does."""
    for taint in node.spec.taints or []:
        if taint.effect != "PreferNoSchedule" and not any(_tolerates(each, taint) for each in tolerations):
            if taint.key == "node.kubernetes.io/unschedulable":
                return "cordoned"
            return f"tainted with {taint.key}{f'={taint.value}' if taint.value else ''}:{taint.effect}"
    return ""


def _tolerates(toleration: Mapping[str, Any], taint: Any) -> bool:
    """Compare as Kubernetes does (core/v1/toleration.go)."""
    if toleration.get("effect", "") not in {"", taint.effect} or toleration.get("key", "") not in {"", taint.key}:
        return False
    if toleration.get("operator", "Equal") == "Exists":
        return True
    return bool(toleration.get("key")) and toleration.get("value", "") == (taint.value or "")


def _quota(client: Any, namespace: str, needs: Needs, *, in_use: bool) -> Iterator[str]:
    from kubernetes.client import CoreV1Api

    core = CoreV1Api(client)
    memory = quantity(needs.requests["memory"])
    for limit_range in core.list_namespaced_limit_range(namespace).items:
        for limit in limit_range.spec.limits:
            given = {**(limit.default or {}), **(limit.max or {})}
            if limit.type == "Container" and "memory" in given and quantity(given["memory"]) < memory:
                yield (
                    f"the LimitRange {limit_range.metadata.name} gives a container {given['memory']} of memory, and "
                    f"vLLM needs {needs.requests['memory']}; fix: have it raised, or use another namespace"
                )
    wanted = {f"requests.{name}": quantity(value) * needs.replicas for name, value in needs.requests.items()}
    wanted |= {"pods": needs.pods} | {name: wanted[f"requests.{name}"] for name in ("cpu", "memory")}
    for quota in core.list_namespaced_resource_quota(namespace).items:
        hard = quota.status.hard or quota.spec.hard or {}
        used = {} if in_use else quota.status.used or {}
        for name in sorted(hard.keys() & {"limits.memory", "limits.cpu"}):
            yield (
                f"the ResourceQuota {quota.metadata.name} demands {name} of every container, which vLLM has none of; "
                "fix: have a LimitRange give one that is large enough, or use another namespace"
            )
        for name in sorted(hard.keys() & wanted.keys()):
            left = quantity(hard[name]) - quantity(used.get(name, "0"))
            if left < wanted[name]:
                yield (
                    f"the ResourceQuota {quota.metadata.name} leaves {_shown(name, left)} of {name}, and this stack "
                    f"needs {_shown(name, wanted[name])}; fix: have it raised, or use fewer replicas"
                )


def _shown(resource: str, number: float) -> str:
    return f"{number / 2**30:.4g}Gi" if resource.endswith("memory") else f"{number:g}"


def quantity(text: str) -> float:
    """Return a quantity of Kubernetes as a number: 500m is 0.5, and 1Gi is 2^30."""
    for unit, factor in UNITS.items():
        if text.endswith(unit):
            return float(text.removesuffix(unit)) * factor
    return float(text)


def _exists(ask: Any) -> bool:
    """Return False for what is not there; True also for what may not be seen."""
    try:
        ask()
    except api.request_errors() as error:
        if api.is_status(error, HTTPStatus.NOT_FOUND):
            return False
        if not api.is_status(error, HTTPStatus.FORBIDDEN):
            raise
    return True


def _seen(ask: Any) -> bool:
    """Return False for what may not be seen."""
    try:
        ask()
    except api.request_errors() as error:
        if api.is_status(error, HTTPStatus.FORBIDDEN):
            return False
        raise
    return True

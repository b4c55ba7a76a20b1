"""vLLM's pods, each with the whole model, and with Nginx as the only way to its API."""

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import pulumi

from components import render
from components.catalogue.models import Model
from components.catalogue.sizing import GB, GIB
from components.kubernetes import objects
from components.kubernetes.gateway import TEMPORARY, metrics_conf, nginx_container, with_digest
from components.kubernetes.internal_certificates import Pair
from components.kubernetes.objects import VLLM, Cluster
from components.kubernetes.weights import Volume
from components.serving import gateway_errors
from components.serving.nginx_config import CONTAINER_PORT
from components.serving.vllm_process import (
    CACHE_DIRECTORY,
    HANG_SECONDS,
    MODEL_DIRECTORY,
    SOCKET,
    SOCKET_DIRECTORY,
    VLLM_UID,
    ServedModel,
    entrypoint,
    environment,
    needs_longer_ids,
    questions,
    serve_arguments,
    shared_memory_mib,
)
from components.settings.limits import Limits
from components.settings.model import is_option

FILES_DIRECTORY = "/etc/elastic-vllm"
ANSWER_SECONDS = 600
"""Time for a request to end before its pod does: the gateway's own limit."""
STOP_SECONDS = ANSWER_SECONDS + 10
GRACE_SECONDS = objects.DNS_SECONDS + STOP_SECONDS + 20
LOAD_SECONDS = 3600
"""Time for a pod to load the model and to answer, as on one machine."""
QUESTION_SECONDS = 600
WATCH_SECONDS = HANG_SECONDS + 30
MEMORY_GIB = 4
"""Memory of vLLM's processes beside the weights that they read."""
LIFE_LINE = [*objects.shell('rm -f "$0"; mkfifo -m 0640 "$0"; exec "$@" 9<>"$0"'), f"{SOCKET_DIRECTORY}/alive"]
"""Runs the command that follows with a named pipe open, whose end tells the door that vLLM's processes have ended."""
ON_LOOPBACK = {"VLLM_HOST_IP": "127.0.0.1", "GLOO_SOCKET_IFNAME": "lo", "NCCL_SOCKET_IFNAME": "lo"}
"""The processes of one vLLM find each other within the pod."""


@dataclass(frozen=True, kw_only=True)
class VllmReplicasArgs(ServedModel):
    """Model to serve, and the nodes that serve it."""

    cluster: Cluster
    image: str
    nginx_image: str
    replicas: int
    """0 while parked."""
    max_surge: int
    """Pods that a rolling change may start before it ends old ones; 0: it ends one first."""
    gpu_resource: str
    placement: Mapping[str, Any]
    """Fields of a pod's specification that choose its nodes."""
    weights: Volume
    door: Pair
    metrics: bool
    """True if agents read metrics."""
    internal_ca_pem: pulumi.Output[str]
    after: Sequence[pulumi.Resource]
    """Conditions for a pod to serve."""


class VllmReplicas(pulumi.ComponentResource):
    """Pods of vLLM serve the model, each on a unix socket; the Nginx beside it lets the gateways alone in.

    A pod is in the Service once its model has answered what Elastic will ask, and as long as its server answers. A
    change of the model replaces one pod after the other; each lets its requests end. Keys and routes are left to the
    gateway, and what the pods may reach to Isolation.
    """

    ready: pulumi.Resource

    def __init__(self, name: str, args: VllmReplicasArgs, opts: pulumi.ResourceOptions | None = None) -> None:
        super().__init__("elastic-vllm:index:VllmReplicas", name, None, opts)
        cluster = args.cluster
        files = cluster.declare(f"{name}-files", files_manifest(args), parent=self)
        secret = cluster.declare(f"{name}-door-files", objects.secret(cluster, VLLM, _door_files(args)), parent=self)
        cluster.declare(f"{name}-service", service_manifest(cluster), parent=self)
        cluster.declare(f"{name}-budget", budget_manifest(cluster), parent=self)
        hours = math.ceil(2 * LOAD_SECONDS * max(args.replicas, 1) / 3600)
        self.ready = cluster.declare(
            f"{name}-pods",
            deployment_manifest(args),
            parent=self,
            depends_on=[files, secret, *args.weights.ready, *args.after],
            custom_timeouts=pulumi.CustomTimeouts(create=f"{hours}h", update=f"{hours}h", delete="20m"),
        )
        self.register_outputs({})


def door_name(cluster: Cluster) -> str:
    """Name in the certificate of vLLM's pods."""
    return f"{cluster.prefix}-{VLLM}"


def files_manifest(args: VllmReplicasArgs) -> dict[str, Any]:
    """The ConfigMap with the programs of vLLM's probes."""
    return {**args.cluster.object("v1", "ConfigMap", VLLM), "data": _files(args)}


def service_manifest(cluster: Cluster) -> dict[str, Any]:
    """The headless Service, whose name has the addresses of the pods that are ready."""
    return {
        **cluster.object("v1", "Service", VLLM),
        "spec": {
            "clusterIP": "None",
            "selector": cluster.selector(VLLM),
            "ports": [{"name": "https", "port": CONTAINER_PORT, "targetPort": CONTAINER_PORT, "protocol": "TCP"}],
        },
    }


def budget_manifest(cluster: Cluster) -> dict[str, Any]:
    """The disruption budget of vLLM's pods: one at a time may be evicted, and one that is not ready at any time."""
    return {
        **cluster.object("policy/v1", "PodDisruptionBudget", VLLM),
        "spec": {
            "maxUnavailable": 1,
            "selector": {"matchLabels": cluster.selector(VLLM)},
            "unhealthyPodEvictionPolicy": "AlwaysAllow",
        },
    }


def deployment_manifest(args: VllmReplicasArgs) -> dict[str, Any]:
    """The pods, and how they change."""
    cluster = args.cluster
    files = json.dumps(_files(args), sort_keys=True)
    strategy = {"maxSurge": args.max_surge, "maxUnavailable": 0 if args.max_surge else 1}
    # The door outlives vLLM, which ends its requests first.
    door = nginx_container(cluster, "door", args.nginx_image, VLLM_SOCKET=SOCKET) | {"restartPolicy": "Always"}
    door["volumeMounts"].append({"name": "socket", "mountPath": SOCKET_DIRECTORY, "readOnly": True})
    return {
        **cluster.object("apps/v1", "Deployment", VLLM),
        "spec": {
            "replicas": args.replicas,
            "revisionHistoryLimit": 2,
            "progressDeadlineSeconds": 2 * LOAD_SECONDS,
            "minReadySeconds": objects.DNS_SECONDS,
            "selector": {"matchLabels": cluster.selector(VLLM)},
            "strategy": {"type": "RollingUpdate", "rollingUpdate": strategy},
            "template": {
                "metadata": {
                    "labels": {**cluster.labels(VLLM), objects.NETWORK: VLLM},
                    # Other questions are asked of pods that start.
                    "annotations": {"elastic-vllm/files": hashlib.sha256(files.encode()).hexdigest()},
                },
                "spec": {
                    **objects.pod(cluster, VLLM_UID),
                    "terminationGracePeriodSeconds": GRACE_SECONDS,
                    # It asks nobody, so it is given nobody to ask.
                    "dnsPolicy": "None",
                    "dnsConfig": {"nameservers": ["127.0.0.1"]},
                    "topologySpreadConstraints": [objects.spread(cluster, VLLM)],
                    **args.placement,
                    "initContainers": [door],
                    "containers": [vllm_container(args)],
                    "volumes": [
                        objects.files_volume(cluster, VLLM),
                        {**TEMPORARY, "name": "door-tmp"},
                        {"name": "programs", "configMap": {"name": f"{cluster.prefix}-{VLLM}"}},
                        {"name": "weights", **args.weights.source},
                        {"name": "socket", **objects.memory("1Mi")},
                        {"name": "shm", **objects.memory(f"{shared_memory_mib(args)}Mi")},
                        {"name": "tmp", "emptyDir": {}},
                        {"name": "cache", "emptyDir": {}},
                    ],
                },
            },
        },
    }


def vllm_container(args: VllmReplicasArgs) -> dict[str, Any]:
    """vLLM itself, with the same command line as on one machine."""
    model = patient(args)
    variables = {**environment(model), **ON_LOOPBACK}
    python = ["python3"]
    # A shell, since a probe has no standard input of its own.
    ask = objects.shell(f"exec python3 {FILES_DIRECTORY}/ask_vllm.py {SOCKET} <{FILES_DIRECTORY}/questions.json")
    healthy = [*python, f"{FILES_DIRECTORY}/vllm_healthy.py", SOCKET]
    watch = [*python, f"{FILES_DIRECTORY}/vllm_watch.py", SOCKET, args.model.name, str(HANG_SECONDS)]
    mounts: list[dict[str, Any]] = [
        {"name": "programs", "mountPath": FILES_DIRECTORY, "readOnly": True},
        {"name": "weights", "mountPath": MODEL_DIRECTORY, "readOnly": True},
        {"name": "socket", "mountPath": SOCKET_DIRECTORY},
        {"name": "shm", "mountPath": "/dev/shm"},  # noqa: S108 - inside the container
        {"name": "tmp", "mountPath": "/tmp"},  # noqa: S108
        {"name": "cache", "mountPath": CACHE_DIRECTORY},
    ]
    if args.weights.sub_path:
        mounts[1]["subPath"] = args.weights.sub_path
    return {
        "name": VLLM,
        "image": args.image,
        "imagePullPolicy": objects.image_pull_policy(args.image),
        "command": [
            *LIFE_LINE,
            *entrypoint(model.extra_args, longer_ids=needs_longer_ids(model), stop_seconds=STOP_SECONDS),
        ],
        "args": serve_arguments(model),
        "env": [{"name": key, "value": value} for key, value in sorted(variables.items())],
        "startupProbe": {
            "exec": {"command": ask},
            "periodSeconds": 10,
            "timeoutSeconds": QUESTION_SECONDS,
            "failureThreshold": LOAD_SECONDS // 10,
        },
        "readinessProbe": {"exec": {"command": healthy}, "periodSeconds": 5, "timeoutSeconds": 10},
        # It ends a vLLM that hangs by itself, and calls one that is busy healthy.
        "livenessProbe": {"exec": {"command": watch}, "periodSeconds": 30, "timeoutSeconds": WATCH_SECONDS},
        # The gateways forget the pod first; then vLLM lets its requests end.
        "lifecycle": {"preStop": {"exec": {"command": objects.shell(f"sleep {objects.DNS_SECONDS}")}}},
        "resources": _resources(args),
        "securityContext": objects.container_security(args.cluster, VLLM_UID),
        "volumeMounts": mounts,
    }


def patient(args: VllmReplicasArgs) -> ServedModel:
    """Return the same, with a vLLM that lets its requests end before it does."""
    if any(is_option(argument, "--shutdown-timeout") for argument in args.extra_args):
        return args
    return replace(args, extra_args=(*args.extra_args, "--shutdown-timeout", str(ANSWER_SECONDS)))


def pod_requests(model: Model, gpu_count: int, gpu_resource: str) -> dict[str, str]:
    """Return what vLLM's container requests, so that its pod lands where there is room: resource -> quantity."""
    memory = math.ceil(model.weights_gb * GB / GIB) + MEMORY_GIB
    requests = {"cpu": "4" if gpu_count else "500m", "memory": f"{memory}Gi"}
    return {**requests, gpu_resource: str(gpu_count)} if gpu_count else requests


def _resources(args: VllmReplicasArgs) -> dict[str, Any]:
    """Requests, and limits for GPUs alone: the memory that loading takes depends on the model."""
    requests = pod_requests(args.model, args.gpu_count, args.gpu_resource)
    gpus = {name: value for name, value in requests.items() if name == args.gpu_resource}
    return {"requests": requests, **({"limits": gpus} if gpus else {})}


def _files(args: VllmReplicasArgs) -> dict[str, str]:
    programs = ("vllm/ask_vllm.py", "vllm/vllm_watch.py", "kubernetes/vllm_healthy.py")
    files = {name.rpartition("/")[2]: (render.FILES / name).read_text(encoding="utf-8") for name in programs}
    return {**files, "questions.json": questions(args)}


def door_conf() -> str:
    """Configuration of the Nginx in vLLM's pods."""
    errors = gateway_errors.errors(Limits(concurrent_requests=0, requests_per_minute=0, body_mib=0))  # not in these
    return render.template(
        "kubernetes/door.conf.j2",
        retry_seconds=gateway_errors.RETRY_SECONDS,
        unavailable=errors[503],
        timeout=errors[504],
    )


def _door_files(args: VllmReplicasArgs) -> pulumi.Output[dict[str, str]]:
    """All files of the door's Nginx. Secret."""

    def files(values: Mapping[str, str]) -> dict[str, str]:
        return with_digest(
            {
                "nginx.conf": door_conf(),
                "metrics.conf": metrics_conf("door") if args.metrics else "",
                "certificate.pem": values["certificate"],
                "private-key.pem": values["private_key"],
                "internal-ca.pem": values["ca"],
            }
        )

    return pulumi.Output.secret(
        pulumi.Output.all(
            certificate=args.door.certificate_pem, private_key=args.door.private_key_pem, ca=args.internal_ca_pem
        ).apply(files)
    )

"""The gateway: Nginx pods, which are the only thing that clients reach."""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import pulumi

from components import render
from components.kubernetes import objects
from components.kubernetes.internal_certificates import Pair
from components.kubernetes.loaded import Loaded
from components.kubernetes.objects import GATEWAY, VLLM, Cluster
from components.serving.nginx_config import CONFIG_DIRECTORY, CONTAINER_PORT, START_SCRIPT, keys_conf, nginx_conf
from components.serving.vllm_process import NGINX_UID
from components.settings.limits import Limits

RUN_SCRIPT = "run-nginx.sh"
GRACE_SECONDS = 660
"""Time for a pod to end: more than a client may wait for an answer."""
RESOURCES = {"requests": {"cpu": "100m", "memory": "64Mi"}, "limits": {"memory": "512Mi"}}
METRICS_PORT = 9090
INTERNAL = {
    "networking.gke.io/load-balancer-type": "Internal",
    # Elastic may be in another region of the VPC, or behind a VPN there.
    "networking.gke.io/internal-load-balancer-allow-global-access": "true",
}
EXTERNAL = {"cloud.google.com/l4-rbs": "enabled"}
"""Annotations by which GKE makes the one or the other load balancer."""
TEMPORARY = {"name": "tmp", "emptyDir": {"sizeLimit": "1Gi"}}


@dataclass(frozen=True, kw_only=True)
class LoadBalancer:
    """A load balancer of Google's."""

    address: pulumi.Input[str]
    """Address that is reserved for it."""
    internal: bool


@dataclass(frozen=True, kw_only=True)
class GatewayArgs:
    """The endpoint's address, keys, certificates and limits, and how many pods share them."""

    cluster: Cluster
    image: str
    replicas: int
    service_type: str
    https_port: int
    source_ranges: tuple[str, ...]
    """CIDR ranges that a load balancer lets in."""
    metrics: bool
    """True if agents read metrics."""
    load_balancer: LoadBalancer | None
    """None: the cluster decides which load balancer there is."""
    keys: Mapping[str, pulumi.Input[str]]
    """Label -> key. Secrets."""
    certificate_pem: pulumi.Input[str]
    private_key_pem: pulumi.Input[str]
    clients: tuple[str, ...]
    client_ca_pem: pulumi.Output[str] | None
    limits: Limits
    """Those of the whole endpoint."""
    door: Pair
    """The certificate that vLLM's pods let in."""
    door_name: str
    """The name in the certificates of vLLM's pods."""
    internal_ca_pem: pulumi.Output[str]


class Gateway(pulumi.ComponentResource):
    """Nginx pods answer on the Service's port: the allow-list with a right key goes to a vLLM pod, the rest is refused.

    A changed key, certificate or limit changes a Secret, and no pod: each pod loads it, and this component waits until
    all have. Making keys and certificates is left to others, and so is what the pods may reach (Isolation).
    """

    service: pulumi.CustomResource
    ready: pulumi.Resource

    def __init__(self, name: str, args: GatewayArgs, opts: pulumi.ResourceOptions | None = None) -> None:
        super().__init__("elastic-vllm:index:Gateway", name, None, opts)
        files = _files(args)
        secret = args.cluster.declare(f"{name}-files", objects.secret(args.cluster, GATEWAY, files), parent=self)
        deployment = args.cluster.declare(f"{name}-pods", deployment_manifest(args), parent=self, depends_on=[secret])
        self.service = args.cluster.declare(
            f"{name}-service", service_manifest(args), parent=self, depends_on=[deployment]
        )
        if args.replicas > 1:
            args.cluster.declare(f"{name}-budget", budget_manifest(args.cluster), parent=self)
        self.ready = Loaded(
            f"{name}-loaded",
            args.cluster,
            component=GATEWAY,
            digest=files.apply(lambda found: found["digest"]),
            parent=self,
            depends_on=[secret, deployment],
        )
        self.register_outputs({})


def metrics_conf(nginx: str) -> str:
    """The part of a configuration that shows metrics on METRICS_PORT, without TLS; `nginx` is gateway or door."""
    return (render.FILES / f"kubernetes/{nginx}-metrics.conf").read_text(encoding="utf-8")


def with_digest(files: Mapping[str, str]) -> dict[str, str]:
    """Return the files of an Nginx with their digest beside them, which says in its log what it has loaded."""
    scripts = {
        START_SCRIPT: (render.FILES / "nginx" / START_SCRIPT).read_text(encoding="utf-8"),
        RUN_SCRIPT: (render.FILES / "kubernetes" / RUN_SCRIPT).read_text(encoding="utf-8"),
    }
    everything = {**files, **scripts}
    digest = hashlib.sha256("\0".join(f"{name}\0{everything[name]}" for name in sorted(everything)).encode())
    return {**everything, "digest": digest.hexdigest()}


def nginx_container(cluster: Cluster, name: str, image: str, **environment: str) -> dict[str, Any]:
    """An Nginx that listens with TLS, with its files in the volume `files`."""
    return {
        "name": name,
        "image": image,
        "imagePullPolicy": objects.image_pull_policy(image),
        "command": ["sh", f"{CONFIG_DIRECTORY}/{RUN_SCRIPT}"],
        "env": [{"name": key, "value": value} for key, value in environment.items()],
        "ports": [{"name": "https", "containerPort": CONTAINER_PORT, "protocol": "TCP"}],
        "readinessProbe": {"tcpSocket": {"port": CONTAINER_PORT}, "periodSeconds": 5},
        "resources": RESOURCES,
        "securityContext": objects.container_security(cluster, NGINX_UID),
        "volumeMounts": [
            {"name": "files", "mountPath": CONFIG_DIRECTORY, "readOnly": True},
            {"name": f"{name}-tmp", "mountPath": "/tmp"},  # noqa: S108 - inside the container
        ],
    }


def deployment_manifest(args: GatewayArgs) -> dict[str, Any]:
    """The gateway's pods: one more is started before one ends."""
    cluster = args.cluster
    container = nginx_container(cluster, GATEWAY, args.image, DOORS=f"{cluster.prefix}-{VLLM}.{cluster.namespace}") | {
        # The Service forgets the pod first; then Nginx lets its streams end.
        "lifecycle": {"preStop": {"exec": {"command": objects.shell(f"sleep {objects.DNS_SECONDS}")}}},
        "livenessProbe": {"tcpSocket": {"port": CONTAINER_PORT}, "periodSeconds": 20, "failureThreshold": 6},
    }
    return {
        **cluster.object("apps/v1", "Deployment", GATEWAY),
        "spec": {
            "replicas": args.replicas,
            "revisionHistoryLimit": 2,
            "selector": {"matchLabels": cluster.selector(GATEWAY)},
            "strategy": {"type": "RollingUpdate", "rollingUpdate": {"maxSurge": 1, "maxUnavailable": 0}},
            "template": {
                "metadata": {"labels": {**cluster.labels(GATEWAY), objects.NETWORK: GATEWAY}},
                "spec": {
                    **objects.pod(cluster, NGINX_UID),
                    "terminationGracePeriodSeconds": GRACE_SECONDS,
                    "topologySpreadConstraints": [objects.spread(cluster, GATEWAY)],
                    "containers": [container],
                    "volumes": [
                        objects.files_volume(cluster, GATEWAY),
                        {**TEMPORARY, "name": f"{GATEWAY}-tmp"},
                    ],
                },
            },
        },
    }


def service_manifest(args: GatewayArgs) -> dict[str, Any]:
    """The Service that clients connect to."""
    port: dict[str, Any] = {
        "name": "https",
        "port": args.https_port,
        "targetPort": CONTAINER_PORT,
        "protocol": "TCP",
    }
    outside: dict[str, Any] = {}
    if args.service_type == "NodePort":
        port["nodePort"] = args.https_port
    if args.service_type != "ClusterIP":
        outside = {"externalTrafficPolicy": "Local"}  # the log has the client's address
    if args.service_type == "LoadBalancer":
        outside["loadBalancerSourceRanges"] = list(args.source_ranges)
    annotations: dict[str, str] = {}
    if args.load_balancer:
        outside["loadBalancerIP"] = args.load_balancer.address
        annotations = INTERNAL if args.load_balancer.internal else EXTERNAL
    return {
        **args.cluster.object("v1", "Service", GATEWAY, args.cluster.prefix, annotations=annotations),
        "spec": {
            "type": args.service_type,
            "selector": args.cluster.selector(GATEWAY),
            "ports": [port],
            **outside,
        },
    }


def budget_manifest(cluster: Cluster) -> dict[str, Any]:
    """The disruption budget of several gateway pods: one always stays."""
    return {
        **cluster.object("policy/v1", "PodDisruptionBudget", GATEWAY),
        "spec": {"minAvailable": 1, "selector": {"matchLabels": cluster.selector(GATEWAY)}},
    }


def _files(args: GatewayArgs) -> pulumi.Output[dict[str, str]]:
    """All files of the gateway's Nginx. Secret."""
    limits = args.limits.shared_by(args.replicas)

    def files(values: Mapping[str, Any]) -> dict[str, str]:
        return with_digest(
            {
                "nginx.conf": nginx_conf([], args.clients, limits=limits, door=args.door_name),
                "keys.conf": keys_conf(values["keys"]),
                "metrics.conf": metrics_conf(GATEWAY) if args.metrics else "",
                "certificate.pem": values["certificate"],
                "private-key.pem": values["private_key"],
                "door-client.pem": values["door"],
                "door-client-key.pem": values["door_key"],
                "internal-ca.pem": values["internal_ca"],
                **({"client-ca.pem": values["client_ca"]} if args.clients else {}),
            }
        )

    return pulumi.Output.secret(
        pulumi.Output.all(
            keys=pulumi.Output.all(**args.keys),
            certificate=args.certificate_pem,
            private_key=args.private_key_pem,
            door=args.door.certificate_pem,
            door_key=args.door.private_key_pem,
            internal_ca=args.internal_ca_pem,
            client_ca=args.client_ca_pem or "",
        ).apply(files)
    )

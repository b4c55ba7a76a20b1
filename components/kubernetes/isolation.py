"""Walls around the stack's pods, and the proof that the cluster's network enforces them."""

import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pulumi
from pulumi import dynamic

from components import render
from components.kubernetes import api, objects, probe_pods
from components.kubernetes.api import ClusterError
from components.kubernetes.gateway import METRICS_PORT
from components.kubernetes.objects import GATEWAY, INSTANCE, NETWORK, VLLM, WEIGHTS, Cluster
from components.serving.nginx_config import CONTAINER_PORT
from components.serving.vllm_process import VLLM_UID

# gRPC would print a traceback for each error that a provider raises; Pulumi shows the error's own words.
logging.getLogger("grpc").setLevel(logging.CRITICAL)

DNS_PORT = 53
OPENSHIFT_DNS_PORT = 5353
DNS_PORTS = [
    {"protocol": protocol, "port": port} for port in (DNS_PORT, OPENSHIFT_DNS_PORT) for protocol in ("UDP", "TCP")
]
NAME_SERVERS = [
    *(
        {"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": namespace}}}
        for namespace in ("kube-system", "openshift-dns")
    ),
    {"ipBlock": {"cidr": "169.254.20.10/32"}},  # NodeLocal DNSCache
]
METADATA = ("169.254.169.254", 80)
"""Address at which clouds answer any pod that asks for the node's credentials."""
CONTROL = "control"
GATEWAY_ADDRESS = "GATEWAY-ADDRESS"
"""Stands for the Service's address, which is known when the probes run."""
PROBED = (VLLM, GATEWAY)
SHUT = {VLLM: ("API server", "DNS", "metadata server", "gateway"), GATEWAY: ("API server", "metadata server")}
"""Probe -> what it must not reach."""
Props = dict[str, Any]
"""kubeconfig, context, namespace, service, pods (JSON), accept."""


@dataclass(frozen=True, kw_only=True)
class IsolationArgs:
    """The pods that are walled in."""

    cluster: Cluster
    downloads: bool
    """True if a Job of the stack fetches weights."""
    metrics_namespace: str
    """Namespace whose pods read metrics; empty for none."""
    image: str
    """Image with Python, for the probes: vLLM's own, which the nodes need anyway."""
    placement: Mapping[str, Any]
    """Nodes of vLLM's pods, and so of the probes."""
    service: str
    """Name of the gateway's Service."""
    https_port: int
    accept: bool
    """True if a network that enforces no policies is accepted."""
    after: Sequence[pulumi.Resource]
    """Resources that the probes try to reach."""


class Isolation(pulumi.ComponentResource):
    """vLLM's pods may begin no connection, and only the gateways reach them; the cluster's network enforces it.

    The proof is repeated by each `up`: probe pods with the same labels try what they must not reach, and a pod without
    them shows that it is there to be reached.
    """

    policies: Sequence[pulumi.Resource]
    proven: pulumi.Resource

    def __init__(self, name: str, args: IsolationArgs, opts: pulumi.ResourceOptions | None = None) -> None:
        super().__init__("elastic-vllm:index:Isolation", name, None, opts)
        self.policies = [
            args.cluster.declare(f"{name}-{role}", manifest, parent=self)
            for role, manifest in policy_manifests(
                args.cluster, downloads=args.downloads, metrics_namespace=args.metrics_namespace
            ).items()
        ]
        self.proven = IsolationCheck(f"{name}-check", args, parent=self, depends_on=[*self.policies, *args.after])
        self.register_outputs({})


def policy_manifests(cluster: Cluster, *, downloads: bool, metrics_namespace: str = "") -> dict[str, dict[str, Any]]:
    """Role -> NetworkPolicy. All but the first add to what the first one forbids."""

    def policy(role: str, selector: Mapping[str, str], **spec: Any) -> dict[str, Any]:
        return {
            **cluster.object("networking.k8s.io/v1", "NetworkPolicy", role),
            "spec": {"podSelector": {"matchLabels": dict(selector)}, "policyTypes": ["Ingress", "Egress"], **spec},
        }

    def network(role: str) -> dict[str, str]:
        return {INSTANCE: cluster.stack, NETWORK: role}

    door = [{"protocol": "TCP", "port": CONTAINER_PORT}]
    agents: list[dict[str, Any]] = []
    if metrics_namespace:
        namespace = {"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": metrics_namespace}}}
        agents.append({"from": [namespace], "ports": [{"protocol": "TCP", "port": METRICS_PORT}]})
    dns = {"to": NAME_SERVERS, "ports": DNS_PORTS}
    policies = {
        "deny": policy("deny", {INSTANCE: cluster.stack}),
        GATEWAY: policy(
            GATEWAY,
            network(GATEWAY),
            ingress=[{"ports": door}, *agents],
            egress=[{"to": [{"podSelector": {"matchLabels": network(VLLM)}}], "ports": door}, dns],
        ),
        VLLM: policy(
            VLLM,
            network(VLLM),
            ingress=[{"from": [{"podSelector": {"matchLabels": network(GATEWAY)}}], "ports": door}, *agents],
        ),
    }
    if downloads:
        # Anywhere: a hub's files come from many addresses, and policies know no names.
        policies[WEIGHTS] = policy(WEIGHTS, network(WEIGHTS), egress=[dns, {"ports": [{"protocol": "TCP"}]}])
    return policies


def probe_manifests(args: IsolationArgs) -> list[dict[str, Any]]:
    """The control pod and one probe for each policy. Services and budgets select none of them."""
    targets = {
        # By addresses: a pod that may not ask for names would wait a minute for each.
        "API server": ["api", 443],
        "DNS": ["dns", DNS_PORT],
        "metadata server": list(METADATA),
        "gateway": [GATEWAY_ADDRESS, args.https_port],
    }
    return [_probe(args, role, targets) for role in (CONTROL, *PROBED)]


def _probe(args: IsolationArgs, role: str, targets: Mapping[str, Any]) -> dict[str, Any]:
    cluster = args.cluster
    labels = {"app.kubernetes.io/name": "elastic-vllm", "elastic-vllm/probe": role}
    walled = {INSTANCE: cluster.stack, NETWORK: role} if role in PROBED else {}
    program = (render.FILES / "kubernetes/probe_network.py").read_text(encoding="utf-8")
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {
            "name": f"{cluster.prefix}-probe-{role}",
            "namespace": cluster.namespace,
            "labels": {**labels, **walled},
        },
        "spec": {
            **objects.pod(cluster, VLLM_UID),
            **args.placement,
            "restartPolicy": "Never",
            "terminationGracePeriodSeconds": 0,
            "containers": [
                {
                    "name": "probe",
                    "image": args.image,
                    "imagePullPolicy": objects.image_pull_policy(args.image),
                    "command": ["python3", "-I", "-c", program],
                    "env": [{"name": "TARGETS", "value": json.dumps(targets)}],
                    "resources": {
                        "requests": {"cpu": "10m", "memory": "32Mi"},
                        "limits": {"memory": "128Mi"},
                    },
                    "securityContext": objects.container_security(cluster, VLLM_UID),
                }
            ],
        },
    }


class IsolationCheckProvider(dynamic.ResourceProvider):
    """Looks at each preview and update whether the policies are enforced, and stops where they are not."""

    replaced_by: tuple[str, ...] = ()
    compared = ("context", "namespace", "pods", "accept")

    def check(self, olds: Props, news: Props) -> dynamic.CheckResult:
        """Add what is wrong to the inputs: so a plan shows it as the difference that it is."""
        same = all(key in olds and olds[key] == news[key] for key in self.compared)
        flaws = [] if not same or news["accept"] else _looked(news)
        return dynamic.CheckResult({**news, "missing": flaws} if flaws else news, [])

    def diff(self, _id: str, olds: Props, news: Props) -> dynamic.DiffResult:
        """Look again where anything changed or is wrong."""
        changed = any(olds.get(key) != news.get(key) for key in self.compared)
        return dynamic.DiffResult(changes=changed or bool(news.get("missing")))

    def create(self, props: Props) -> dynamic.CreateResult:
        """Prove it. Raises ClusterError."""
        return dynamic.CreateResult("isolation", outs=_prove(props))

    def update(self, _id: str, _olds: Props, news: Props) -> dynamic.UpdateResult:
        """Prove it. Raises ClusterError."""
        return dynamic.UpdateResult(outs=_prove(news))


class IsolationCheck(dynamic.Resource, module="kubernetes", name="IsolationCheck"):
    """The proof that the cluster's network enforces the policies."""

    def __init__(
        self, name: str, args: IsolationArgs, *, parent: pulumi.Resource, depends_on: Sequence[pulumi.Resource]
    ) -> None:
        inputs: dict[str, Any] = {
            **args.cluster.access(),
            "service": args.service,
            "pods": json.dumps(probe_manifests(args), sort_keys=True),
            "accept": args.accept,
        }
        options = pulumi.ResourceOptions(parent=parent, depends_on=[*args.cluster.ready, *depends_on])
        super().__init__(IsolationCheckProvider(), name, inputs, options)


def _prove(props: Props) -> Props:
    if not props["accept"] and (flaws := flaws_of(run_probes(props))):
        raise ClusterError(
            f"the cluster's network does not enforce this stack's NetworkPolicies: {'; '.join(flaws)}; fix: install a "
            "network that enforces them (Calico, Cilium, kube-router, ...), or accept that other pods may reach vLLM "
            "and that vLLM may reach other addresses: unenforcedNetworkPolicies: accept"
        )
    return {key: value for key, value in props.items() if key != "missing"}


def _looked(props: Props) -> list[str]:
    """Return what is wrong; nothing where it can't be looked at, as what needs the cluster then fails by itself."""
    try:
        return flaws_of(run_probes(props))
    except ClusterError:
        return []


def flaws_of(reached: Mapping[str, Mapping[str, bool]]) -> list[str]:
    """Compare what the probes have reached with what they must not; `reached` is probe -> target -> reached.

    A target that even the control pod does not reach proves nothing.
    """
    control = reached[CONTROL]
    flaws = [
        f"a pod with the policy of {role} reaches the {target}"
        for role, targets in SHUT.items()
        for target in targets
        if control[target] and reached[role][target]
    ]
    if not any(control.values()):
        flaws.append("a pod without any policy reaches nothing either, so there is no telling")
    if not reached[GATEWAY]["DNS"] and control["DNS"]:
        flaws.append("the gateway's pods can't ask the cluster's DNS, although their policy lets them")
    return flaws


def run_probes(props: Props) -> dict[str, dict[str, bool]]:
    """Run all probes, and return what each has reached. Raises ClusterError."""
    from kubernetes.client import CoreV1Api

    core = CoreV1Api(api.connect(props["kubeconfig"], props["context"]))
    try:
        address = core.read_namespaced_service(props["service"], props["namespace"]).spec.cluster_ip
    except api.request_errors() as error:
        raise api.explained(error, "the isolation check's pods") from error
    pods = json.loads(props["pods"].replace(GATEWAY_ADDRESS, address))
    last_lines = probe_pods.run(core, props["namespace"], pods, "the isolation check's pod")
    return {
        pod["metadata"]["labels"]["elastic-vllm/probe"]: json.loads(line)
        for pod, line in zip(pods, last_lines, strict=True)
    }

"""The endpoint on Kubernetes: its components in the order in which they come to exist."""

from collections.abc import Mapping
from dataclasses import dataclass

import pulumi

from components.elastic.corpus import Form
from components.kubernetes.existing_cluster import ExistingCluster, ExistingClusterArgs, Needs
from components.kubernetes.gateway import Gateway, GatewayArgs, LoadBalancer
from components.kubernetes.internal_certificates import InternalCertificates
from components.kubernetes.isolation import Isolation, IsolationArgs
from components.kubernetes.objects import Cluster
from components.kubernetes.vllm_replicas import VllmReplicas, VllmReplicasArgs, door_name, pod_requests
from components.kubernetes.weights import ClusterWeights, ClusterWeightsArgs
from components.serving.model_weights import weights_formats
from components.settings.gke import POOL_LABEL, SYSTEM
from components.settings.kubernetes import KubernetesSettings
from components.settings.stack import Settings
from components.tls.certificate import Certificate
from components.tls.client_certificates import ClientCertificates


@dataclass(frozen=True, kw_only=True)
class Clients:
    """How clients reach the endpoint, and the keys and certificates by which both know each other."""

    keys: Mapping[str, pulumi.Input[str]]
    """Label -> key. Secrets."""
    certificate: Certificate
    clients: ClientCertificates
    load_balancer: LoadBalancer | None
    """None in a cluster that exists."""


def needs_of(settings: Settings, kubernetes: KubernetesSettings) -> Needs:
    """Return what the stack needs of the cluster."""
    replicas = 0 if settings.parked else kubernetes.replicas
    return Needs(
        creates_namespace=kubernetes.create_namespace,
        claim=kubernetes.weights_claim,
        image_volume=bool(kubernetes.weights_image),
        storage_class=kubernetes.weights_storage_class,
        runtime_class=kubernetes.runtime_class,
        pull_secret=kubernetes.image_pull_secret,
        gpu_resource=kubernetes.gpu_resource,
        # Google's pool has nodes with GPUs only while pods need them.
        gpus=0 if settings.gke else settings.vllm_gpu_count,
        replicas=replicas,
        node_selector=kubernetes.node_selector,
        tolerations=[dict(each) for each in kubernetes.tolerations],
        requests=pod_requests(settings.model, settings.vllm_gpu_count, kubernetes.gpu_resource),
        pods=replicas + kubernetes.gateway_replicas + 4,  # those that look at network and weights
    )


def existing_cluster(
    settings: Settings,
    kubernetes: KubernetesSettings,
    kubeconfig: pulumi.Input[str],
    after: tuple[pulumi.Resource, ...],
) -> Cluster:
    """Return the namespace of a cluster that exists, checked; `kubeconfig` is a file's path or its content."""
    return ExistingCluster(
        "cluster",
        ExistingClusterArgs(
            kubeconfig=kubeconfig,
            context=kubernetes.context,
            namespace=kubernetes.namespace,
            stack=settings.stack,
            fixed_users=kubernetes.pod_security == "restricted",
            pull_secret=kubernetes.image_pull_secret,
            needs=needs_of(settings, kubernetes),
            after=after,
        ),
    ).cluster


def serve(
    settings: Settings, kubernetes: KubernetesSettings, cluster: Cluster, forms: tuple[Form, ...], clients: Clients
) -> tuple[pulumi.Resource, ...]:
    """Build the endpoint in the namespace; return what must exist before Elastic may use it."""
    internal = InternalCertificates("internal", door_name(cluster))
    gateway = Gateway(
        "gateway",
        GatewayArgs(
            cluster=cluster,
            image=settings.images["nginx"],
            replicas=kubernetes.gateway_replicas,
            service_type=kubernetes.service_type,
            https_port=settings.https_port,
            source_ranges=tuple(kubernetes.source_ranges),
            metrics=bool(kubernetes.metrics_namespace),
            load_balancer=clients.load_balancer,
            keys=clients.keys,
            certificate_pem=clients.certificate.certificate_pem,
            private_key_pem=clients.certificate.private_key_pem,
            clients=settings.tls.clients,
            client_ca_pem=clients.clients.ca_pem,
            limits=settings.limits,
            door=internal.gateway,
            door_name=door_name(cluster),
            internal_ca_pem=internal.ca_pem,
        ),
    )
    placement = {
        key: value
        for key, value in {
            "nodeSelector": dict(kubernetes.node_selector),
            "tolerations": [dict(each) for each in kubernetes.tolerations],
            "runtimeClassName": kubernetes.runtime_class,
        }.items()
        if value
    }
    # Nodes with GPUs are there for vLLM alone; a probe or a download would keep one, or bring one.
    aside = {"nodeSelector": {POOL_LABEL: SYSTEM}} if settings.gke else placement
    isolation = Isolation(
        "isolation",
        IsolationArgs(
            cluster=cluster,
            downloads=bool(kubernetes.weights_storage_class),
            metrics_namespace=kubernetes.metrics_namespace,
            image=settings.images["vllm"],
            placement=aside,
            service=cluster.prefix,
            https_port=settings.https_port,
            accept=kubernetes.accepts_unenforced_policies,
            after=[gateway.service],
        ),
    )
    weights = ClusterWeights(
        "weights",
        ClusterWeightsArgs(
            cluster=cluster.after(*isolation.policies),
            claim=kubernetes.weights_claim,
            image=kubernetes.weights_image,
            storage_class=kubernetes.weights_storage_class,
            pods=kubernetes.replicas + kubernetes.max_surge,
            model=settings.model,
            directory=settings.weights_path.rpartition("/")[2],
            weights_gb=settings.weights_gb,
            loader_image=settings.images["vllm"],
            hf_endpoint=settings.hf_endpoint,
            revision=settings.model_revision,
            hf_token=settings.hf_token,
            placement=aside,
            formats=weights_formats(settings.model, settings.vllm_extra_args),
            parked=settings.parked,
        ),
    )
    vllm = VllmReplicas(
        "vllm",
        VllmReplicasArgs(
            cluster=cluster,
            image=settings.images["vllm"],
            nginx_image=settings.images["nginx"],
            replicas=0 if settings.parked else kubernetes.replicas,
            max_surge=kubernetes.max_surge,
            gpu_resource=kubernetes.gpu_resource,
            placement=placement,
            weights=weights.volume,
            door=internal.door,
            metrics=bool(kubernetes.metrics_namespace),
            internal_ca_pem=internal.ca_pem,
            after=[isolation.proven],
            model=settings.model,
            alias=settings.served_model_name,
            gpu_count=settings.vllm_gpu_count,
            gpu_memory_utilization=settings.gpus.memory_utilization,
            max_model_len=settings.max_model_len,
            extra_args=settings.vllm_extra_args,
            forms=forms,
        ),
    )
    return (vllm.ready, gateway.ready)

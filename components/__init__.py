"""The program's components, in the order in which `__main__.py` builds them.

Each is loaded when it is first asked for: commands that need one module of this package, and `bundle verify`, which
runs where no package is installed, do not load Pulumi's SDKs.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from components.bundle.artifact_bundle import ArtifactBundle as ArtifactBundle
    from components.bundle.artifact_bundle import ArtifactBundleArgs as ArtifactBundleArgs
    from components.containers.container_runtime import ContainerRuntime as ContainerRuntime
    from components.containers.container_runtime import ContainerRuntimeArgs as ContainerRuntimeArgs
    from components.containers.dcgm_exporter import DcgmExporter as DcgmExporter
    from components.containers.dcgm_exporter import DcgmExporterArgs as DcgmExporterArgs
    from components.elastic.access import ElasticAccess as ElasticAccess
    from components.elastic.access import ElasticAccessArgs as ElasticAccessArgs
    from components.elastic.connector import ElasticConnector as ElasticConnector
    from components.elastic.connector import ElasticConnectorArgs as ElasticConnectorArgs
    from components.kubernetes.existing_cluster import ExistingCluster as ExistingCluster
    from components.kubernetes.existing_cluster import ExistingClusterArgs as ExistingClusterArgs
    from components.kubernetes.gateway import Gateway as Gateway
    from components.kubernetes.gateway import GatewayArgs as GatewayArgs
    from components.kubernetes.gke_cluster import GkeCluster as GkeCluster
    from components.kubernetes.gke_cluster import GkeClusterArgs as GkeClusterArgs
    from components.kubernetes.internal_certificates import InternalCertificates as InternalCertificates
    from components.kubernetes.isolation import Isolation as Isolation
    from components.kubernetes.isolation import IsolationArgs as IsolationArgs
    from components.kubernetes.vllm_replicas import VllmReplicas as VllmReplicas
    from components.kubernetes.vllm_replicas import VllmReplicasArgs as VllmReplicasArgs
    from components.kubernetes.weights import ClusterWeights as ClusterWeights
    from components.kubernetes.weights import ClusterWeightsArgs as ClusterWeightsArgs
    from components.machine.existing_host import ExistingHost as ExistingHost
    from components.machine.existing_host import ExistingHostArgs as ExistingHostArgs
    from components.machine.gpu_driver import GpuDriver as GpuDriver
    from components.machine.gpu_driver import GpuDriverArgs as GpuDriverArgs
    from components.machine.gpu_vm import GpuVm as GpuVm
    from components.machine.gpu_vm import GpuVmArgs as GpuVmArgs
    from components.machine.network import Network as Network
    from components.machine.network import NetworkArgs as NetworkArgs
    from components.serving.model_weights import ModelWeights as ModelWeights
    from components.serving.model_weights import ModelWeightsArgs as ModelWeightsArgs
    from components.serving.nginx_gateway import NginxGateway as NginxGateway
    from components.serving.nginx_gateway import NginxGatewayArgs as NginxGatewayArgs
    from components.serving.shared_secret import SharedSecret as SharedSecret
    from components.serving.shared_secret import SharedSecretArgs as SharedSecretArgs
    from components.serving.vllm_server import VllmServer as VllmServer
    from components.serving.vllm_server import VllmServerArgs as VllmServerArgs
    from components.tls.acme_certificate import AcmeCertificate as AcmeCertificate
    from components.tls.acme_certificate import AcmeCertificateArgs as AcmeCertificateArgs
    from components.tls.certificate import Certificate as Certificate
    from components.tls.certificate import CertificateArgs as CertificateArgs
    from components.tls.client_certificates import ClientCertificates as ClientCertificates
    from components.tls.client_certificates import ClientCertificatesArgs as ClientCertificatesArgs

MODULES = {
    "ElasticAccess": "elastic.access",
    "ExistingHost": "machine.existing_host",
    "Network": "machine.network",
    "GpuVm": "machine.gpu_vm",
    "SharedSecret": "serving.shared_secret",
    "Certificate": "tls.certificate",
    "ClientCertificates": "tls.client_certificates",
    "ArtifactBundle": "bundle.artifact_bundle",
    "ContainerRuntime": "containers.container_runtime",
    "GpuDriver": "machine.gpu_driver",
    "ModelWeights": "serving.model_weights",
    "VllmServer": "serving.vllm_server",
    "AcmeCertificate": "tls.acme_certificate",
    "NginxGateway": "serving.nginx_gateway",
    "DcgmExporter": "containers.dcgm_exporter",
    "GkeCluster": "kubernetes.gke_cluster",
    "ExistingCluster": "kubernetes.existing_cluster",
    "InternalCertificates": "kubernetes.internal_certificates",
    "Gateway": "kubernetes.gateway",
    "Isolation": "kubernetes.isolation",
    "ClusterWeights": "kubernetes.weights",
    "VllmReplicas": "kubernetes.vllm_replicas",
    "ElasticConnector": "elastic.connector",
}
"""Module of each component, and of its arguments."""


def __getattr__(name: str) -> Any:
    module = MODULES.get(name.removesuffix("Args"))
    if module is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{module}"), name)

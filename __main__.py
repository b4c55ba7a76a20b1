"""The program: read the settings, build the components in order, export. `pulumi up` and `scripts/rehearse` run it."""

import pulumi

from components.certificate import Certificate, CertificateArgs
from components.container_runtime import ContainerRuntime, ContainerRuntimeArgs
from components.elastic_connector import ElasticConnector, ElasticConnectorArgs
from components.gpu_driver import GpuDriver, GpuDriverArgs
from components.gpu_vm import GpuVm, GpuVmArgs
from components.host import ExistingHost, ExistingHostArgs, Host
from components.model_weights import ModelWeights, ModelWeightsArgs
from components.network import Network, NetworkArgs
from components.nginx_gateway import NginxGateway, NginxGatewayArgs
from components.settings import read_settings
from components.shared_secret import SharedSecret, SharedSecretArgs
from components.vllm_server import VllmServer, VllmServerArgs

s = read_settings()
# fmt: off
machine: ExistingHost | GpuVm
if isinstance(s.target, Host):
    machine = ExistingHost("host", ExistingHostArgs(
        host=s.target, https_port=s.https_port, images=s.images,
        weights_path=s.weights_path, weights_gb=s.model.weights_gb, weights_on_host=s.model_source == "host",
    ))
else:
    network = Network("network", NetworkArgs(settings=s.target, https_port=s.https_port))
    machine = GpuVm("vm", GpuVmArgs(
        settings=s.target, network=network, weights_directory=s.weights_directory, ssh_user=s.ssh_user,
        ssh_private_key_path=s.ssh_private_key_path, prefix=s.prefix, directory=s.directory,
    ))
address = s.endpoint_host or machine.address
secret = SharedSecret("key", SharedSecretArgs(version=s.key_version, accept_previous=s.accept_previous_key))
certificate = Certificate("certificate", CertificateArgs(host=address))
ready: tuple[pulumi.Resource, ...] = ()
if machine.host:
    runtime = ContainerRuntime("runtime", ContainerRuntimeArgs(
        host=machine.host, images=s.images, gpus=s.gpu_count > 0,
    ))
    gpus = GpuDriver("gpus", GpuDriverArgs(
        host=runtime.host, gpu_count=s.gpu_count, image_name=s.images["vllm"], image=runtime.images["vllm"],
    )).ready if s.gpu_count else None
    weights = ModelWeights("weights", ModelWeightsArgs(
        host=runtime.host, model=s.model, source=s.model_source, path=s.weights_path,
        hub_endpoint=s.hub_endpoint, hub_revision=s.model_revision, hub_token=s.hub_token,
    ))
    vllm = VllmServer("vllm", VllmServerArgs(
        host=runtime.host, provider=runtime.provider, image=runtime.images["vllm"], weights=weights.resource,
        model=s.model, alias=s.model_alias, weights_path=s.weights_path, gpus=gpus,
        gpu_count=s.vllm_gpu_count, gpu_memory_percent=s.gpu_memory_percent,
        context_tokens=s.context_tokens, extra_arguments=s.vllm_arguments,
    ))
    nginx = NginxGateway("nginx", NginxGatewayArgs(
        host=runtime.host, provider=runtime.provider, image=runtime.images["nginx"], https_port=s.https_port,
        socket_directory=vllm.socket_directory, directories=vllm.directories, keys=secret.accepted,
        certificate_pem=certificate.certificate_pem, private_key_pem=certificate.private_key_pem,
    ))
    ready = (vllm.ready, nginx.ready)
connector = ElasticConnector("connector", ElasticConnectorArgs(
    name=s.prefix, host=address, https_port=s.https_port, key=secret.key, ready=ready,
    ca_certificate=certificate.ca_certificate_pem, model=s.model_alias,
    context_tokens=s.served_context_tokens, native_function_calling=s.model.native_function_calling,
))
# fmt: on

pulumi.export("connectorUrl", connector.url)
pulumi.export("connectorApiKey", connector.key)
pulumi.export("model", s.model.name)
pulumi.export("modelAlias", s.model_alias)
pulumi.export("nativeFunctionCalling", s.model.native_function_calling)
pulumi.export("contextTokens", s.served_context_tokens)
pulumi.export("caCertificate", certificate.ca_certificate_pem)
pulumi.export("kibanaConnector", connector.kibana_connector)
pulumi.export("inferenceEndpoint", connector.inference_endpoint)
pulumi.export("kibanaSettings", connector.kibana_settings)
pulumi.export("preconfiguredConnector", connector.preconfigured_connector)
pulumi.export("containers", {"vllm": f"{s.prefix}-vllm", "nginx": f"{s.prefix}-nginx"})
pulumi.export("parked", s.parked)

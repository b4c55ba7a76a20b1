"""The program: read the settings, build the components in order, export."""

from dataclasses import replace

import pulumi

from components import (
    AcmeCertificate,
    AcmeCertificateArgs,
    ArtifactBundle,
    ArtifactBundleArgs,
    Certificate,
    CertificateArgs,
    ClientCertificates,
    ClientCertificatesArgs,
    ContainerRuntime,
    ContainerRuntimeArgs,
    DcgmExporter,
    DcgmExporterArgs,
    ElasticAccess,
    ElasticAccessArgs,
    ElasticConnector,
    ElasticConnectorArgs,
    ExistingHost,
    ExistingHostArgs,
    GpuDriver,
    GpuDriverArgs,
    GpuVm,
    GpuVmArgs,
    ModelWeights,
    ModelWeightsArgs,
    Network,
    NetworkArgs,
    NginxGateway,
    NginxGatewayArgs,
    SharedSecret,
    SharedSecretArgs,
    VllmServer,
    VllmServerArgs,
)
from components.elastic import agent
from components.elastic.agent import Observed
from components.elastic.corpus import forms_to_prove
from components.machine.host import Host
from components.settings.stack import read_settings

s = read_settings()
# fmt: off
access = ElasticAccess("elastic", ElasticAccessArgs(
    elastic=s.elastic, client_certificates=bool(s.tls.clients),
))
machine: ExistingHost | GpuVm
if isinstance(s.target, Host):
    machine = ExistingHost("host", ExistingHostArgs(
        host=s.target, https_port=s.https_port, images=s.images,
        weights_path=s.weights_path, weights_gb=s.weights_gb, weights_on_host=s.model_source == "host",
        bundled_images_mb=s.bundle.packed_mb if s.bundle else None,
        after=access.checks,
    ))
else:
    network = Network("network", NetworkArgs(
        settings=s.target, https_port=s.https_port, acme=s.tls.acme is not None,
    ))
    machine = GpuVm("vm", GpuVmArgs(
        settings=s.target, network=network, weights_directory=s.weights_directory, ssh_user=s.ssh_user,
        ssh_private_key_path=s.ssh_private_key_path, prefix=s.prefix, directory=s.directory,
        after=access.checks,
    ))
address = s.endpoint_host or machine.address
secret = SharedSecret("key", SharedSecretArgs(versions=s.key_versions))
certificate = Certificate("certificate", CertificateArgs(host=address, provided=s.tls.provided, acme=s.tls.acme))
clients = ClientCertificates("clients", ClientCertificatesArgs(names=s.tls.clients))
ready: tuple[pulumi.Resource, ...] = ()
observed: Observed | None = None
if machine.host:
    bundle = ArtifactBundle("bundle", ArtifactBundleArgs(
        host=machine.host, bundle=s.bundle, weights_path=s.weights_path,
    )) if s.bundle else None
    runtime = ContainerRuntime("runtime", ContainerRuntimeArgs(
        host=bundle.host if bundle else machine.host, images=s.images, gpus=s.gpu_count > 0, bundle=bundle,
    ))
    gpus = GpuDriver("gpus", GpuDriverArgs(
        host=runtime.host, gpu_count=s.gpu_count, image_name=s.images["vllm"], image=runtime.images["vllm"],
    )).ready if s.gpu_count else None
    weights = ModelWeights("weights", ModelWeightsArgs(
        host=runtime.host, model=s.model, source=s.model_source, path=s.weights_path,
        brought=bundle.brought.get("weights") if bundle else None,
        hf_endpoint=s.hf_endpoint, hub_revision=s.model_revision, hf_token=s.hf_token,
    ))
    vllm = VllmServer("vllm", VllmServerArgs(
        host=runtime.host, provider=runtime.provider, image=runtime.images["vllm"], weights=weights.resource,
        model=s.model, alias=s.served_model_name, weights_path=s.weights_path, gpus=gpus,
        gpu_count=s.vllm_gpu_count, gpu_memory_utilization=s.gpu_memory_utilization,
        max_model_len=s.max_model_len, extra_args=s.vllm_extra_args,
        forms=forms_to_prove(
            s.elastic, native_function_calling=s.model.native_function_calling, client_certificates=bool(s.tls.clients),
        ),
    ))
    acme = AcmeCertificate("acme", AcmeCertificateArgs(
        host=runtime.host, name=address, https_port=s.https_port, acme=s.tls.acme,
    )) if s.tls.acme else None
    nginx = NginxGateway("nginx", NginxGatewayArgs(
        host=runtime.host, provider=runtime.provider, image=runtime.images["nginx"], https_port=s.https_port,
        socket_directory=vllm.socket_directory, directories=vllm.directories, keys=secret.accepted,
        certificate_pem=certificate.certificate_pem, private_key_pem=certificate.private_key_pem, acme=acme,
        clients=s.tls.clients, client_ca_pem=clients.ca_pem, limits=s.limits,
    ))
    if gpus and "dcgm" in runtime.images:
        DcgmExporter("dcgm", DcgmExporterArgs(
            host=runtime.host, provider=runtime.provider, image=runtime.images["dcgm"], gpus=gpus,
        ))
    ready, observed = (vllm.ready, nginx.ready), replace(nginx.observed, gpus="dcgm" in runtime.images)
connector = ElasticConnector("connector", ElasticConnectorArgs(
    name=s.prefix, host=address, https_port=s.https_port, key=secret.key, ready=ready,
    ca_certificate=certificate.ca_certificate_pem, model=s.connector_model,
    max_model_len=s.served_max_model_len, native_function_calling=s.model.native_function_calling,
    elastic=s.elastic, kibana_version=access.kibana_version,
    client=clients.of[s.tls.clients[0]] if s.tls.clients else None,
))
# fmt: on

pulumi.export("endpointUrl", connector.endpoint_url)
pulumi.export("connectorUrl", connector.url)
pulumi.export("connectorApiKey", connector.key)
pulumi.export("apiKeys", secret.named)
pulumi.export("model", s.model.name)
pulumi.export("servedModelName", s.served_model_name)
pulumi.export("nativeFunctionCalling", s.model.native_function_calling)
pulumi.export("maxModelLen", s.served_max_model_len)
pulumi.export("caCertificate", certificate.ca_certificate_pem)
pulumi.export(
    "clientCertificates",
    {
        name: {"certificate": client.certificate, "privateKey": pulumi.Output.secret(client.private_key)}
        for name, client in clients.of.items()
    },
)
pulumi.export("kibanaConnectorRequest", connector.kibana_connector)
pulumi.export("inferenceEndpointRequest", connector.inference_endpoint)
pulumi.export("kibanaYml", connector.kibana_settings)
pulumi.export("preconfiguredConnectorYml", connector.preconfigured_connector)
pulumi.export("kibanaConnectorId", connector.connector_id)
pulumi.export("inferenceEndpointId", connector.inference_id)
pulumi.export("elasticAgentPolicy", agent.policy(observed) if observed else None)
# For the project's own commands.
pulumi.export(
    "_internal",
    {
        "acceptedKeys": secret.accepted,
        "keyVersions": {name: list(versions) for name, versions in s.key_versions.items()},
        "limits": s.limits.as_output(),
        "containerRuntime": s.container_runtime,
        "containers": {"vllm": f"{s.prefix}-vllm", "nginx": f"{s.prefix}-nginx"},
        "ssh": machine.host.ssh_destination() if machine.host else None,
        "parked": s.parked,
        "elasticDeployment": s.elastic.deployment,
        "elasticVersion": access.kibana_version.apply(lambda version: version or s.elastic.version),
    },
)

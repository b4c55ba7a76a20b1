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
    GkeCluster,
    GkeClusterArgs,
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
from components.machine.ssh import hold_until_exit
from components.serving.model_weights import weights_formats
from components.settings.stack import read_settings

settings = read_settings()
hold_until_exit(settings.ssh_key)
tls = settings.tls
access = ElasticAccess("elastic", ElasticAccessArgs(elastic=settings.elastic, client_certificates=bool(tls.clients)))
machine: ExistingHost | GpuVm | None = None
gke: GkeCluster | None = None
if settings.gcp:
    network = Network(
        "network", NetworkArgs(settings=settings.gcp, https_port=settings.https_port, acme=tls.acme is not None)
    )
    machine = GpuVm(
        "vm",
        GpuVmArgs(
            settings=settings.gcp,
            network=network,
            weights_directory=settings.weights_directory,
            ssh_user=settings.ssh_user,
            ssh_key=settings.ssh_key,
            prefix=settings.prefix,
            directory=settings.directory,
            after=access.checks,
        ),
    )
elif settings.gke:
    gke = GkeCluster("gke", GkeClusterArgs(settings=settings.gke, after=access.checks))
elif not settings.kubernetes:
    machine = ExistingHost(
        "host",
        ExistingHostArgs(
            host=settings.server,
            https_port=settings.https_port,
            ipv6=settings.ipv6,
            images=settings.images,
            weights_path=settings.weights_path,
            weights_gb=settings.weights_gb,
            weights_on_host=settings.model_source == "host",
            weights_formats=weights_formats(settings.model, settings.vllm_extra_args),
            bundled_images_mb=settings.bundle.packed_mb if settings.bundle else None,
            downloads=settings.downloads,
            after=access.checks,
        ),
    )
addressed = machine or gke
address = settings.endpoint_host or (addressed.address if addressed else "")
secret = SharedSecret("key", SharedSecretArgs(versions=settings.key_versions))
certificate = Certificate("certificate", CertificateArgs(host=address, provided=tls.provided, acme=tls.acme))
clients = ClientCertificates("clients", ClientCertificatesArgs(names=tls.clients))
forms = forms_to_prove(
    settings.elastic,
    native_function_calling=settings.model.native_function_calling,
    client_certificates=bool(tls.clients),
)
ready: tuple[pulumi.Resource, ...] = ()
observed: Observed | None = None
access_to_pods: dict[str, pulumi.Input[str]] | None = None
if settings.kubernetes:
    from components.kubernetes import endpoint  # the other targets need none of its libraries

    kubeconfig = gke.kubeconfig if gke else settings.kubernetes.kubeconfig
    nodes = tuple(gke.resources if gke else access.checks)
    cluster = endpoint.existing_cluster(settings, settings.kubernetes, kubeconfig, nodes)
    access_to_pods = cluster.access()
    known = endpoint.Clients(
        keys=secret.accepted,
        certificate=certificate,
        clients=clients,
        load_balancer=gke.load_balancer if gke else None,
    )
    ready = endpoint.serve(settings, settings.kubernetes, cluster, forms, known)
elif machine and not settings.parked:
    host, bundle = machine.host, None
    if settings.bundle:
        bundle = ArtifactBundle(
            "bundle", ArtifactBundleArgs(host=host, bundle=settings.bundle, weights_path=settings.weights_path)
        )
        host = bundle.host
    runtime = ContainerRuntime(
        "runtime",
        ContainerRuntimeArgs(host=host, images=settings.images, gpus=settings.gpu_count > 0, bundle=bundle),
    )
    host, images = runtime.host, runtime.images
    gpus = None
    if settings.gpu_count:
        driver = GpuDriverArgs(
            host=host, gpu_count=settings.gpu_count, image_name=settings.images["vllm"], image=images["vllm"]
        )
        gpus = GpuDriver("gpus", driver).ready
    weights = ModelWeights(
        "weights",
        ModelWeightsArgs(
            host=host,
            model=settings.model,
            source=settings.model_source,
            path=settings.weights_path,
            brought=bundle.brought.get("weights") if bundle else None,
            formats=weights_formats(settings.model, settings.vllm_extra_args),
            hf_endpoint=settings.hf_endpoint,
            revision=settings.model_revision,
            hf_token=settings.hf_token,
        ),
    )
    vllm = VllmServer(
        "vllm",
        VllmServerArgs(
            host=host,
            provider=runtime.provider,
            image=images["vllm"],
            weights=weights.resource,
            model=settings.model,
            alias=settings.served_model_name,
            weights_path=settings.weights_path,
            gpus=gpus,
            gpu_count=settings.vllm_gpu_count,
            gpu_memory_utilization=settings.gpus.memory_utilization,
            max_model_len=settings.max_model_len,
            extra_args=settings.vllm_extra_args,
            forms=forms,
        ),
    )
    acme = None
    if tls.acme:
        acme = AcmeCertificate(
            "acme", AcmeCertificateArgs(host=host, name=address, https_port=settings.https_port, acme=tls.acme)
        )
    nginx = NginxGateway(
        "nginx",
        NginxGatewayArgs(
            host=host,
            provider=runtime.provider,
            image=images["nginx"],
            https_port=settings.https_port,
            ipv6=settings.ipv6,
            socket_directory=vllm.socket_directory,
            directories=vllm.directories,
            keys=secret.accepted,
            certificate_pem=certificate.certificate_pem,
            private_key_pem=certificate.private_key_pem,
            acme=acme,
            clients=tls.clients,
            client_ca_pem=clients.ca_pem,
            limits=settings.limits,
        ),
    )
    if gpus and "dcgm" in images:
        DcgmExporter("dcgm", DcgmExporterArgs(host=host, provider=runtime.provider, image=images["dcgm"], gpus=gpus))
    ready, observed = (vllm.ready, nginx.ready), replace(nginx.observed, gpus="dcgm" in images)
connector = ElasticConnector(
    "connector",
    ElasticConnectorArgs(
        name=settings.prefix,
        host=address,
        https_port=settings.https_port,
        key=secret.key,
        ready=ready,
        ca_certificate=certificate.ca_certificate_pem,
        model=settings.connector_model,
        max_model_len=settings.served_max_model_len,
        native_function_calling=settings.model.native_function_calling,
        elastic=settings.elastic,
        kibana_version=access.kibana_version,
        client=clients.of[tls.clients[0]] if tls.clients else None,
    ),
)

pulumi.export("endpointUrl", connector.endpoint_url)
pulumi.export("connectorUrl", connector.url)
pulumi.export("connectorApiKey", connector.key)
pulumi.export("apiKeys", secret.named)
pulumi.export("model", settings.model.name)
pulumi.export("servedModelName", settings.served_model_name)
pulumi.export("nativeFunctionCalling", settings.model.native_function_calling)
pulumi.export("maxModelLen", settings.served_max_model_len)
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
        "keyVersions": {name: list(versions) for name, versions in settings.key_versions.items()},
        "limits": settings.limits.as_output(),
        "containerRuntime": settings.container_runtime,
        "containers": {"vllm": f"{settings.prefix}-vllm", "nginx": f"{settings.prefix}-nginx"},
        "kubernetes": access_to_pods,
        "ssh": machine.host.ssh_server() if machine and not settings.parked else None,
        "sshPrivateKeyPassword": pulumi.Output.secret(settings.ssh_key.passphrase),
        "parked": settings.parked,
        "refuses": dict(settings.model.refuses),
    },
)

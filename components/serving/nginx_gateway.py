"""Nginx: the only thing that listens."""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import pulumi
import pulumi_docker as docker

from components import render
from components.containers import declared, podman
from components.elastic import agent as elastic_agent
from components.elastic.agent import Observed
from components.machine.host import Host
from components.machine.packet_filter import PacketFilter, filter_script
from components.serving.nginx_config import (
    CONFIG_DIRECTORY,
    CONTAINER_PORT,
    METRICS_DIRECTORY,
    START_SCRIPT,
    keys_conf,
    nginx_conf,
)
from components.serving.vllm_process import NGINX_UID, SOCKET, SOCKET_DIRECTORY, SOCKET_GID
from components.settings.limits import Limits
from components.tls.acme_certificate import AcmeCertificate

INTERFACE_LENGTH = 15  # Linux: IFNAMSIZ less the closing zero


@dataclass(frozen=True, kw_only=True)
class NginxGatewayArgs:
    """The endpoint's address, keys, certificates, limits and upstream."""

    host: Host
    provider: docker.Provider
    image: docker.RemoteImage
    https_port: int
    ipv6: bool
    socket_directory: str
    """Directory on the host that holds vLLM's socket."""
    keys: Mapping[str, pulumi.Input[str]]
    """Label -> key. Secrets."""
    certificate_pem: pulumi.Input[str]
    """Certificate, in one file with its private key; both are empty if the host renews them itself (`acme`)."""
    private_key_pem: pulumi.Input[str]
    acme: AcmeCertificate | None
    clients: tuple[str, ...]
    """Names of the clients that have a certificate; none: no client needs one."""
    client_ca_pem: pulumi.Output[str] | None
    limits: Limits
    directories: pulumi.Resource
    """The command that made the socket's directory."""


class NginxGateway(pulumi.ComponentResource):
    """Nginx answers on the HTTPS port: the allow-list with a right key goes to vLLM, all else is refused as JSON.

    A changed key, certificate or configuration is taken by a reload; the container stays. Nginx opens no connection
    but to the socket: a packet filter on the host and one in the container's own network drop whatever it begins, and
    an update puts back what is missing of either. Leaves making keys and certificates to others.
    """

    container: docker.Container
    ready: pulumi.Resource
    observed: Observed
    """Places of logs and metrics for an agent on the machine."""

    def __init__(self, name: str, args: NginxGatewayArgs, opts: pulumi.ResourceOptions | None = None) -> None:
        super().__init__("elastic-vllm:index:NginxGateway", name, None, opts)
        interface = interface_name(args.host.prefix)
        in_podman = args.host.engine == podman.PODMAN
        container_name = f"{args.host.prefix}-nginx"
        metrics = f"{args.host.directory}/metrics"
        self.observed = Observed(
            prefix=args.host.prefix,
            logs=f"{elastic_agent.LOGS}/{pulumi.get_stack()}",
            metrics_socket=f"{metrics}/{elastic_agent.METRICS_SOCKET}",
        )
        on_docker = pulumi.ResourceOptions(
            parent=self,
            provider=args.provider,
            delete_before_replace=True,
            replacement_trigger=args.host.identity,
            deleted_with=args.host.machine,
        )
        filter_scripts = ["nginx/guard-egress.sh"]
        filter_variables: dict[str, str | int] = {
            "engine": args.host.engine,
            "interface": interface,
            "container": container_name,
            "port": CONTAINER_PORT,
        }
        guard = args.host.command(
            f"{name}-egress-guard",
            filter_script(args.host, filter_scripts, check=False, **filter_variables),
            cleanup=render.script("nginx/remove-egress-guard.sh", prefix=args.host.prefix),
            parent=self,
            depends_on=[args.directories],
        )
        network_name = f"{args.host.prefix}-edge"
        network_options = {"com.docker.network.bridge.name": interface}
        network = docker.Network(
            f"{name}-network",
            name=network_name,
            driver="bridge",
            options=network_options,
            labels=[
                docker.NetworkLabelArgs(label=label, value=value)
                for label, value in declared.labels({"options": network_options}).items()
            ],
            opts=pulumi.ResourceOptions.merge(on_docker, pulumi.ResourceOptions(ignore_changes=declared.OF_NETWORKS)),
        )
        config = args.host.command(
            f"{name}-config",
            render.script(
                "nginx/make-nginx-directories.sh",
                "nginx/install-nginx-config.sh",
                engine=args.host.engine,
                logs=self.observed.logs,
                metrics=metrics,
                stack=pulumi.get_stack(),
                directory=f"{args.host.directory}/nginx",
                mounted_at=CONFIG_DIRECTORY,
                container=container_name,
                owner=NGINX_UID,
                gid=SOCKET_GID,
            ),
            data=_config_files(args),
            cleanup=render.script(
                "nginx/remove-nginx-logs.sh",
                "host/remove-directory.sh",
                logs=self.observed.logs,
                stack=pulumi.get_stack(),
                directory=f"{args.host.directory}/nginx",
            ),
            parent=self,
            depends_on=[args.directories, *([args.acme.issued] if args.acme else [])],
        )
        confinement = _confinement(args.host)
        ports: list[dict[str, Any]] = [
            {"internal": CONTAINER_PORT, "external": args.https_port, "protocol": "tcp", **address}
            for address in ({}, *([{"ip": "::"}] if args.ipv6 else []))  # the provider's default is 0.0.0.0
        ]
        read_back_wrong = {"ports": ports} if args.ipv6 else {}
        labels: dict[str, pulumi.Input[str]] = {
            **declared.labels({**confinement, **read_back_wrong, "network_mode": network_name}),
            declared.NETWORK_LABEL: network.id,
        }
        self.container = docker.Container(
            f"{name}-container",
            name=container_name,
            image=args.image.image_id,
            entrypoints=["sh"],
            command=[f"{CONFIG_DIRECTORY}/current/{START_SCRIPT}"],
            user=f"{NGINX_UID}:{SOCKET_GID}",
            # Not networks_advanced: the provider would have Docker's own bridge left first, which need not exist.
            network_mode=network_name,
            # Docker's resolver would ask on behalf of the container, from the host: give it nobody to ask.
            dns=["127.0.0.1"],
            ports=[docker.ContainerPortArgs(**port) for port in ports],
            read_only=True,
            volumes=[
                docker.ContainerVolumeArgs(
                    host_path=source,
                    container_path=target,
                    read_only=read_only or None,
                    selinux_relabel=podman.RELABEL if in_podman else None,
                )
                for source, target, read_only in (
                    (f"{args.host.directory}/nginx", CONFIG_DIRECTORY, True),
                    (args.socket_directory, SOCKET_DIRECTORY, True),
                    (self.observed.logs, elastic_agent.LOGS, False),
                    (metrics, METRICS_DIRECTORY, False),
                )
            ],
            restart="always",
            destroy_grace_seconds=30,
            labels=[docker.ContainerLabelArgs(label=label, value=value) for label, value in labels.items()],
            **confinement,
            opts=pulumi.ResourceOptions.merge(
                on_docker,
                pulumi.ResourceOptions(
                    depends_on=[config, guard], ignore_changes=[*declared.OF_CONTAINERS, *read_back_wrong]
                ),
            ),
        )
        PacketFilter(
            f"{name}-packet-filter",
            args.host,
            filter_scripts,
            on=[self.container.id],
            parent=self,
            depends_on=[self.container],
            **filter_variables,
        )
        self.ready = args.host.command(
            f"{name}-ready",
            render.script(
                "nginx/wait-for-nginx.sh",
                engine=args.host.engine,
                container=container_name,
                addresses="127.0.0.1 [::1]" if args.ipv6 else "127.0.0.1",
                port=args.https_port,
            ),
            parent=self,
            triggers=[self.container.id],
        )
        self.register_outputs({"container": self.container.name})


def _confinement(host: Host) -> dict[str, Any]:
    """Options of Nginx's container that an engine may complete or rewrite."""
    in_podman = host.engine == podman.PODMAN
    tmpfs = {"/tmp": "rw,noexec,nosuid,nodev,size=64m,mode=1777"}  # noqa: S108 - inside the container
    return {
        "capabilities": {"drops": ["ALL"]},
        "security_opts": podman.security_options(host.prefix) if in_podman else ["no-new-privileges:true"],
        "tmpfs": tmpfs | (podman.OWN_TMPFS if in_podman else {}),
        "ulimits": [{"name": "nofile", "soft": 16384, "hard": 16384}, {"name": "nproc", "soft": 256, "hard": 256}],
        "log_driver": "json-file",
        # Podman keeps one file, and truncates it at this size.
        "log_opts": {"max-size": "50m"} if in_podman else {"max-size": "10m", "max-file": "5"},
        "memory": 512,
        "memory_swap": 512,
        "stop_signal": "SIGQUIT",
        **({} if in_podman else declared.USERS_AS_THEY_ARE),
    }


def interface_name(prefix: str) -> str:
    """Name of the network's bridge on the host, so that the packet filter can name it before it exists."""
    return "ev" + hashlib.sha256(prefix.encode()).hexdigest()[: INTERFACE_LENGTH - 2]


def _config_files(args: NginxGatewayArgs) -> pulumi.Output[str]:
    """All files of Nginx's configuration, as install-nginx-config.sh reads them. Secret."""

    def as_lines(values: Mapping[str, Any]) -> str:
        files = {
            "nginx.conf": nginx_conf([f"unix:{SOCKET}"], args.clients, limits=args.limits, acme=args.acme is not None),
            "metrics.conf": render.FILES.joinpath("nginx/nginx-metrics.conf").read_text(encoding="utf-8"),
            START_SCRIPT: render.FILES.joinpath("nginx", START_SCRIPT).read_text(encoding="utf-8"),
            "keys.conf": keys_conf(values["keys"]),
            **(
                {}
                if args.acme
                else {"certificate.pem": values["certificate"], "private-key.pem": values["private_key"]}
            ),
            **({"client-ca.pem": values["client_ca"]} if args.clients else {}),
        }
        return render.files_as_lines(files)

    return pulumi.Output.secret(
        pulumi.Output.all(
            keys=pulumi.Output.all(**args.keys),
            certificate=args.certificate_pem,
            private_key=args.private_key_pem,
            client_ca=args.client_ca_pem or "",
        ).apply(as_lines)
    )

"""Nginx: the only thing that listens."""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pulumi
import pulumi_docker as docker

from components import render
from components.host import Host
from components.vllm_server import NGINX_UID, SOCKET, SOCKET_DIRECTORY, SOCKET_GID

CONTAINER_PORT = 8443
CONFIG_DIRECTORY = "/etc/elastic-vllm"

# What Nginx itself answers, in the shape of OpenAI's API: status -> (type, code, message).
ERRORS = {
    400: ("invalid_request_error", "bad_request", "The request could not be understood."),
    401: (
        "invalid_request_error",
        "invalid_api_key",
        "Missing or wrong API key: send it as a bearer token in the Authorization header.",
    ),
    404: ("invalid_request_error", "not_found", "Not served here. Use /v1/chat/completions or /v1/models."),
    405: ("invalid_request_error", "method_not_allowed", "Method not allowed for this path."),
    413: ("invalid_request_error", "request_too_large", "The request is larger than 32 MB."),
    414: ("invalid_request_error", "uri_too_long", "The address of the request is too long."),
    431: ("invalid_request_error", "headers_too_large", "The headers of the request are too large."),
    429: ("rate_limit_error", "too_many_requests", "Too many requests: wait and try again."),
    500: ("server_error", "internal_error", "Nginx could not handle the request."),
    503: ("server_error", "model_unavailable", "The model is not ready: it is loading or was stopped. Try again."),
    504: ("server_error", "model_timeout", "The model did not answer in time."),
}
INTERFACE_LENGTH = 15  # Linux: IFNAMSIZ less the closing zero


@dataclass(frozen=True, kw_only=True)
class NginxGatewayArgs:
    """What Nginx serves, to whom, and from which upstreams."""

    host: Host
    provider: docker.Provider
    image: docker.RemoteImage
    https_port: int
    socket_directory: str
    """Directory on the host that holds vLLM's socket."""
    keys: Mapping[str, pulumi.Input[str]]
    """Label -> key. Secrets."""
    certificate_pem: pulumi.Input[str]
    private_key_pem: pulumi.Input[str]
    directories: pulumi.Resource
    """The command that made the socket's directory."""


class NginxGateway(pulumi.ComponentResource):
    """Nginx answers on the HTTPS port: the allow-list with a right key goes to vLLM, all else is refused as JSON.

    A changed key, certificate or configuration is taken by a reload; the container stays. Nginx opens no connection
    but to the socket: a packet filter on the host drops whatever its network begins. Leaves making keys and
    certificates to others.
    """

    container: docker.Container
    ready: pulumi.Resource

    def __init__(self, name: str, args: NginxGatewayArgs, opts: pulumi.ResourceOptions | None = None) -> None:
        super().__init__("elastic-vllm:nginx_gateway:NginxGateway", name, None, opts)
        interface = interface_name(args.host.prefix)
        container_name = f"{args.host.prefix}-nginx"
        on_docker = pulumi.ResourceOptions(
            parent=self,
            provider=args.provider,
            delete_before_replace=True,
            replacement_trigger=args.host.identity,
            deleted_with=args.host.machine,
        )
        labels = [("elastic-vllm.stack", pulumi.get_stack())]
        guard = args.host.command(
            f"{name}-egress-guard",
            render.script("install-egress-guard.sh", prefix=args.host.prefix, interface=interface),
            cleanup=render.script("remove-egress-guard.sh", prefix=args.host.prefix),
            parent=self,
            depends_on=[args.directories],
        )
        network = docker.Network(
            f"{name}-network",
            name=f"{args.host.prefix}-edge",
            driver="bridge",
            options={"com.docker.network.bridge.name": interface},
            labels=[docker.NetworkLabelArgs(label=label, value=value) for label, value in labels],
            opts=on_docker,
        )
        config = args.host.command(
            f"{name}-config",
            render.script(
                "install-nginx-config.sh",
                directory=f"{args.host.directory}/nginx",
                mounted_at=CONFIG_DIRECTORY,
                container=container_name,
                owner=NGINX_UID,
                gid=SOCKET_GID,
            ),
            data=_config_files(args),
            cleanup=render.script("remove-directory.sh", directory=f"{args.host.directory}/nginx"),
            parent=self,
            depends_on=[args.directories],
        )
        self.container = docker.Container(
            f"{name}-container",
            name=container_name,
            image=args.image.image_id,
            entrypoints=["nginx"],
            # -e: before its configuration is read, Nginx would open a log file, and the root is read-only.
            command=["-e", "stderr", "-c", f"{CONFIG_DIRECTORY}/current/nginx.conf", "-g", "daemon off;"],
            user=f"{NGINX_UID}:{SOCKET_GID}",
            networks_advanced=[docker.ContainerNetworksAdvancedArgs(name=network.name)],
            # Docker's resolver would ask on behalf of the container, from the host: give it nobody to ask.
            dns=["127.0.0.1"],
            ports=[docker.ContainerPortArgs(internal=CONTAINER_PORT, external=args.https_port, protocol="tcp")],
            read_only=True,
            capabilities=docker.ContainerCapabilitiesArgs(drops=["ALL"]),
            security_opts=["no-new-privileges:true"],
            memory=512,
            memory_swap=512,
            tmpfs={"/tmp": "rw,noexec,nosuid,nodev,size=64m,mode=1777"},  # noqa: S108 - inside the container
            volumes=[
                docker.ContainerVolumeArgs(
                    host_path=f"{args.host.directory}/nginx", container_path=CONFIG_DIRECTORY, read_only=True
                ),
                docker.ContainerVolumeArgs(
                    host_path=args.socket_directory, container_path=SOCKET_DIRECTORY, read_only=True
                ),
            ],
            ulimits=[
                docker.ContainerUlimitArgs(name="nofile", soft=16384, hard=16384),
                docker.ContainerUlimitArgs(name="nproc", soft=256, hard=256),
            ],
            log_driver="json-file",
            log_opts={"max-size": "10m", "max-file": "5"},
            restart="unless-stopped",
            stop_signal="SIGQUIT",
            destroy_grace_seconds=30,
            labels=[docker.ContainerLabelArgs(label=label, value=value) for label, value in labels],
            opts=pulumi.ResourceOptions.merge(on_docker, pulumi.ResourceOptions(depends_on=[config, guard])),
        )
        self.ready = args.host.command(
            f"{name}-ready",
            render.script("wait-for-nginx.sh", container=container_name, port=args.https_port),
            parent=self,
            triggers=[self.container.id],
        )
        self.register_outputs({})


def interface_name(prefix: str) -> str:
    """Name of the network's bridge on the host, so that the packet filter can name it before it exists."""
    return "ev" + hashlib.sha256(prefix.encode()).hexdigest()[: INTERFACE_LENGTH - 2]


def nginx_conf(upstreams: Sequence[str]) -> str:
    """Nginx's configuration; `upstreams` are sockets or addresses, never names."""
    return render.template(
        "nginx.conf.j2", upstreams=upstreams, port=CONTAINER_PORT, errors=ERRORS, keys_file="keys.conf"
    )


def keys_conf(keys: Mapping[str, str]) -> str:
    """The keys that Nginx accepts: label -> key."""
    return render.template("nginx-keys.conf.j2", keys=keys)


def _config_files(args: NginxGatewayArgs) -> pulumi.Output[str]:
    """All files of Nginx's configuration, as install-nginx-config.sh reads them. Secret."""

    def as_lines(values: Mapping[str, Any]) -> str:
        files = {
            "nginx.conf": nginx_conf([f"unix:{SOCKET}"]),
            "keys.conf": keys_conf(values["keys"]),
            "certificate.pem": values["certificate"],
            "private-key.pem": values["private_key"],
        }
        return render.files_as_lines(files)

    return pulumi.Output.secret(
        pulumi.Output.all(
            keys=pulumi.Output.all(**args.keys),
            certificate=args.certificate_pem,
            private_key=args.private_key_pem,
        ).apply(as_lines)
    )

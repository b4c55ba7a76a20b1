"""Docker on the host, and the images that run there."""

from collections.abc import Mapping
from dataclasses import dataclass, replace

import pulumi
import pulumi_docker as docker

from components import render
from components.host import Host


@dataclass(frozen=True, kw_only=True)
class ContainerRuntimeArgs:
    """Where, and which images."""

    host: Host
    images: Mapping[str, str]
    """Role -> image reference."""


class ContainerRuntime(pulumi.ComponentResource):
    """Docker works on the host and the images are there, by content and not by name.

    Docker is installed from the distribution where it is missing, and stays when the stack is destroyed, as images
    do. Leaves GPU drivers and NVIDIA's toolkit to others.
    """

    host: Host
    """The host, ready for containers: what depends on it waits for Docker, curl and nft."""
    provider: docker.Provider
    images: Mapping[str, docker.RemoteImage]

    def __init__(self, name: str, args: ContainerRuntimeArgs, opts: pulumi.ResourceOptions | None = None) -> None:
        super().__init__("elastic-vllm:container_runtime:ContainerRuntime", name, None, opts)
        installed = args.host.command(
            f"{name}-docker", render.script("install-docker.sh", login=args.host.user), parent=self
        )
        self.host = replace(args.host, ready=[installed])
        # The provider pings Docker at its first use, without a retry: Docker must be there before.
        self.provider = docker.Provider(
            f"{name}-provider",
            host=args.host.docker_url(),
            ssh_opts=args.host.ssh_options(),
            opts=pulumi.ResourceOptions(parent=self, depends_on=[installed]),
        )
        self.images = {
            role: docker.RemoteImage(
                f"{name}-{role}-image",
                name=image,
                keep_locally=True,
                opts=pulumi.ResourceOptions(
                    parent=self, provider=self.provider, replacement_trigger=args.host.identity
                ),
            )
            for role, image in args.images.items()
        }
        self.register_outputs({})

"""Docker on the host, and the images that run there."""

from collections.abc import Mapping
from dataclasses import dataclass, replace

import pulumi
import pulumi_docker as docker

from components import render
from components.gpu_driver import TOOLKIT
from components.host import Host


@dataclass(frozen=True, kw_only=True)
class ContainerRuntimeArgs:
    """Where, and which images."""

    host: Host
    images: Mapping[str, str]
    """Role -> image reference."""
    gpus: bool
    """Whether containers are to use NVIDIA GPUs."""


class ContainerRuntime(pulumi.ComponentResource):
    """Docker works on the host and the images are there, by content and not by name.

    Docker, and for GPUs NVIDIA's container toolkit, are installed where they are missing, and stay when the stack is
    destroyed, as images do. Leaves GPU drivers to others.
    """

    host: Host
    """The host, ready for containers: what depends on it waits for Docker, curl and nft."""
    provider: docker.Provider
    images: Mapping[str, docker.RemoteImage]

    def __init__(self, name: str, args: ContainerRuntimeArgs, opts: pulumi.ResourceOptions | None = None) -> None:
        super().__init__("elastic-vllm:container_runtime:ContainerRuntime", name, None, opts)
        # NVIDIA's toolkit first: Docker would have to be restarted for it, and that would end what it pulls.
        toolkit = ("install-nvidia-toolkit.sh",) if args.gpus else ()
        installed = args.host.command(
            f"{name}-docker",
            render.script(*toolkit, "install-docker.sh", login=args.host.user, **(TOOLKIT if args.gpus else {})),
            parent=self,
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
                    parent=self,
                    provider=self.provider,
                    replacement_trigger=args.host.identity,
                    deleted_with=args.host.machine,
                ),
            )
            for role, image in args.images.items()
        }
        self.register_outputs({})

"""Docker or Podman on the host, and the images that run there."""

from collections.abc import Mapping
from dataclasses import dataclass, replace

import pulumi
import pulumi_docker as docker

from components import render
from components.bundle.artifact_bundle import ArtifactBundle
from components.containers import podman
from components.machine.gpu_driver import TOOLKIT
from components.machine.host import Host


@dataclass(frozen=True, kw_only=True)
class ContainerRuntimeArgs:
    """The host, and the images to load."""

    host: Host
    images: Mapping[str, str]
    """Role -> image reference."""
    gpus: bool
    """True if containers use NVIDIA GPUs."""
    bundle: ArtifactBundle | None
    """Source of packages and images; None for repositories and registries."""


class ContainerRuntime(pulumi.ComponentResource):
    """Docker or Podman works on the host and starts with it, and the images are there, identified by content.

    The engine, and NVIDIA's container toolkit for GPUs, are installed if they are missing. Like images, they stay when
    the stack is destroyed. GPU drivers are installed by another component.
    """

    host: Host
    """The host, ready for containers: its dependents wait for the runtime, curl and nft."""
    provider: docker.Provider
    images: Mapping[str, docker.RemoteImage]

    def __init__(self, name: str, args: ContainerRuntimeArgs, opts: pulumi.ResourceOptions | None = None) -> None:
        super().__init__("elastic-vllm:index:ContainerRuntime", name, None, opts)
        # NVIDIA's toolkit first: Docker would have to be restarted for it, and that would end what it pulls.
        toolkit = ("gpu/install-nvidia-toolkit.sh",) if args.gpus else ()
        brought = args.bundle.brought if args.bundle else {}
        engine = args.host.engine
        installed = args.host.command(
            f"{name}-{engine}",
            render.script(
                *(["containers/keep-containers.sh"] if engine == "docker" else []),
                *toolkit,
                "containers/install-runtime.sh",
                engine=engine,
                login=args.host.user,
                socket=podman.SOCKET,
                **(TOOLKIT if args.gpus else {}),
            ),
            parent=self,
            depends_on=[brought["packages"]] if "packages" in brought else [],
        )
        self.host = replace(args.host, ready=[installed])
        # The provider pings Docker at its first use, without a retry: Docker must be there before.
        self.provider = docker.Provider(
            # A name for each: containers of the one are not looked for in the other.
            f"{name}-provider" if engine != podman.PODMAN else f"{name}-podman-provider",
            host=args.host.docker_url(),
            ssh_opts=args.host.ssh_options(),
            opts=pulumi.ResourceOptions(parent=self, depends_on=[installed]),
        )
        loaded = {
            role: args.host.command(
                f"{name}-{role}-load",
                render.script(
                    "containers/load-image.sh",
                    engine=engine,
                    image=args.images[role],
                    directory=directory,
                    earlier=f"{directory.rpartition('/')[0]}/{role}",
                ),
                parent=self,
                depends_on=[installed, brought[f"image-{role}"]],
            )
            for role, directory in (args.bundle.image_directories.items() if args.bundle else ())
        }
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
                    # A bundle's image is found by its name, so nothing is pulled.
                    depends_on=[loaded[role]] if role in loaded else [],
                ),
            )
            for role, image in args.images.items()
        }
        self.register_outputs({"imageIds": {role: image.image_id for role, image in self.images.items()}})

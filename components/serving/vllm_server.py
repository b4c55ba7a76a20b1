"""vLLM in a container that has no network."""

from dataclasses import dataclass
from typing import Any

import pulumi
import pulumi_docker as docker

from components import render
from components.containers import declared, podman
from components.machine.host import Host
from components.serving.vllm_process import (
    ASK,
    CACHE_DIRECTORY,
    HANG_SECONDS,
    MODEL_DIRECTORY,
    SOCKET,
    SOCKET_DIRECTORY,
    SOCKET_GID,
    SOCKET_NAME,
    STOP_SECONDS,
    VLLM_UID,
    WATCH,
    ServedModel,
    entrypoint,
    environment,
    needs_longer_ids,
    questions,
    serve_arguments,
    shared_memory_mib,
)

# Docker's format of durations, or every `up` would find a difference. While vLLM loads it does not count as unhealthy.
HEALTH_INTERVAL, HEALTH_TIMEOUT, HEALTH_START = "30s", "1m30s", "1h0m0s"
# Compilers of kernels load files that they have just written, so exec is needed.
TMPFS = {"/tmp": "rw,exec,nosuid,nodev,mode=1777"}  # noqa: S108 - inside the container
OPEN_FILES = 16384
CONFINEMENT: dict[str, Any] = {
    "network_mode": "none",
    **declared.USERS_AS_THEY_ARE,
    "capabilities": {"drops": ["ALL"]},
    "security_opts": ["no-new-privileges:true"],
    "tmpfs": TMPFS,
    # Threads count as processes, and each GPU's process has some for each core.
    "ulimits": [{"name": name, "soft": OPEN_FILES, "hard": OPEN_FILES} for name in ("nofile", "nproc")],
    "log_driver": "json-file",
    "log_opts": {"max-size": "10m", "max-file": "3"},
}
"""Options of vLLM's container that Docker may complete or rewrite."""


@dataclass(frozen=True, kw_only=True)
class VllmServerArgs(ServedModel):
    """Model to serve, and the host that serves it."""

    host: Host
    provider: docker.Provider
    image: docker.RemoteImage
    weights_path: str
    weights: pulumi.Resource
    gpus: pulumi.Resource | None
    """Resource that proves that the GPUs work; None without GPUs."""


class VllmServer(pulumi.ComponentResource):
    """vLLM serves the model on a unix socket in a host directory, and the model answers what Elastic will ask.

    Its container has no network, no capabilities, a read-only root and a dedicated user. Docker restarts it if it
    ends or hangs. Keys, TLS and the choice of routes are left to Nginx; weights and images to the components that fetch
    them.
    """

    socket_directory: str
    """Directory on the host that holds the socket."""
    directories: pulumi.Resource
    ready: pulumi.Resource

    def __init__(self, name: str, args: VllmServerArgs, opts: pulumi.ResourceOptions | None = None) -> None:
        super().__init__("elastic-vllm:index:VllmServer", name, None, opts)
        self.socket_directory = f"{args.host.directory}/socket"
        cache_directory = f"{args.host.directory}/cache"
        variables: dict[str, str | int] = {
            "directory": args.host.directory,
            "socket_directory": self.socket_directory,
            "cache_directory": cache_directory,
            "owner": VLLM_UID,
            "gid": SOCKET_GID,
        }
        self.directories = args.host.command(
            f"{name}-directories",
            render.script("vllm/make-vllm-directories.sh", **variables),
            cleanup=render.script("host/remove-directory.sh", directory=args.host.directory),
            parent=self,
        )
        made = self._in_podman(name, args) if args.host.engine == podman.PODMAN else self._in_docker(name, args)
        self.ready = args.host.command(
            f"{name}-ready",
            render.script(
                "vllm/wait-for-vllm.sh",
                engine=args.host.engine,
                container=container_name(args),
                socket=f"{self.socket_directory}/{SOCKET_NAME}",
                socket_inside=SOCKET,
                gpu_count=args.gpu_count,
                ask=ASK,
            ),
            # On standard input, because lists of arguments or variables have limits.
            data=questions(args),
            parent=self,
            triggers=[made],
        )
        self.register_outputs({"socketDirectory": self.socket_directory})

    def _in_docker(self, name: str, args: VllmServerArgs) -> pulumi.Output[str]:
        """Create the container and return its id."""
        container = docker.Container(
            f"{name}-container",
            name=container_name(args),
            image=args.image.image_id,
            entrypoints=entrypoint(args.extra_args, longer_ids=needs_longer_ids(args)),
            command=serve_arguments(args),
            envs=[f"{key}={value}" for key, value in environment(args).items()],
            user=f"{VLLM_UID}:{SOCKET_GID}",
            read_only=True,
            gpus="all" if args.gpu_count else None,
            shm_size=shared_memory_mib(args),
            volumes=[
                docker.ContainerVolumeArgs(host_path=source, container_path=target, read_only=read_only or None)
                for source, target, read_only in volumes(args)
            ],
            # No memory limit: the need while loading depends on the model. If the machine's memory runs out, the kernel
            # kills vLLM first, as the largest process, and Docker restarts it.
            # Not unless-stopped: a dockerd that returns after a crash stops containers, and treats that as deliberate.
            restart="always",
            healthcheck=docker.ContainerHealthcheckArgs(
                tests=["CMD", "python3", "-c", WATCH, SOCKET, args.model.name, str(HANG_SECONDS)],
                interval=HEALTH_INTERVAL,
                timeout=HEALTH_TIMEOUT,
                start_period=HEALTH_START,
                retries=1,
            ),
            destroy_grace_seconds=STOP_SECONDS,
            labels=[
                docker.ContainerLabelArgs(label=label, value=value)
                for label, value in declared.labels(CONFINEMENT).items()
            ],
            **CONFINEMENT,
            opts=pulumi.ResourceOptions(
                parent=self,
                provider=args.provider,
                depends_on=self._before(args),
                # Names and the GPUs are exclusive: the old one must go first.
                delete_before_replace=True,
                replacement_trigger=args.host.identity,
                deleted_with=args.host.machine,
                ignore_changes=declared.OF_CONTAINERS,
            ),
        )
        return container.id

    def _in_podman(self, name: str, args: VllmServerArgs) -> pulumi.Output[str]:
        """Create the container by a command on the host, since Podman's API before 5.4 gives no GPUs; return its id."""
        container = podman_container(args)
        command = args.host.command(
            f"{name}-container",
            args.image.image_id.apply(lambda image: podman.run_script(container, image)),
            cleanup=podman.remove_script(container.name),
            parent=self,
            depends_on=self._before(args),
            delete_first=True,
        )
        return command.stdout

    def _before(self, args: VllmServerArgs) -> list[pulumi.Resource]:
        return [args.weights, self.directories, *([args.gpus] if args.gpus else [])]


def container_name(args: VllmServerArgs) -> str:
    """Name of vLLM's container on the host."""
    return f"{args.host.prefix}-vllm"


def volumes(args: VllmServerArgs) -> list[tuple[str, str, bool]]:
    """Directory on the host, in the container, and whether it is read-only."""
    return [
        (args.weights_path, MODEL_DIRECTORY, True),
        (f"{args.host.directory}/socket", SOCKET_DIRECTORY, False),
        (f"{args.host.directory}/cache", CACHE_DIRECTORY, False),
    ]


def podman_container(args: VllmServerArgs) -> podman.Container:
    """vLLM's container as `podman run` makes it: as Docker's is."""
    return podman.Container(
        name=container_name(args),
        user=f"{VLLM_UID}:{SOCKET_GID}",
        entrypoint=entrypoint(args.extra_args, longer_ids=needs_longer_ids(args)),
        command=serve_arguments(args),
        environment=environment(args),
        volumes=volumes(args),
        tmpfs=TMPFS,
        shared_memory_mib=shared_memory_mib(args),
        open_files=OPEN_FILES,
        security_options=podman.security_options(args.host.prefix, gpus=args.gpu_count > 0),
        log_mib=30,
        stop_seconds=STOP_SECONDS,
        labels={"elastic-vllm.stack": pulumi.get_stack()},
        gpus=args.gpu_count > 0,
    )

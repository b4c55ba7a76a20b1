"""vLLM in a container that has no network."""

from dataclasses import dataclass

import pulumi
import pulumi_docker as docker

from components import render
from components.host import Host
from components.model_checks import is_option
from components.models import Model

# Users of the containers on the host: numbers only, outside the ranges of Debian's and Ubuntu's own users
# (Debian policy 9.2.2 gives people 1000 and up, adduser counts from there).
VLLM_UID = 10001
NGINX_UID = 10002
SOCKET_GID = 10000
"""The group that may connect to vLLM's socket."""

SOCKET_DIRECTORY = "/run/vllm"
SOCKET_NAME = "vllm.sock"
SOCKET = f"{SOCKET_DIRECTORY}/{SOCKET_NAME}"
MODEL_DIRECTORY = "/model"
CACHE_DIRECTORY = "/cache"

# vLLM does not remove a socket that a killed predecessor left (EADDRINUSE). The umask makes the socket 0770, so
# that Nginx can connect by its group and nobody else can.
ENTRYPOINT = [
    "/bin/sh",
    "-c",
    'umask 0007; rm -f "$0"; exec python3 -m vllm.entrypoints.openai.api_server --uds "$0" "$@"',
    SOCKET,
]

# Seconds that Nginx keeps an idle connection to vLLM is 60: vLLM must keep it longer, or a request can meet its end.
ENVIRONMENT = {
    "HF_HUB_OFFLINE": "1",
    "TRANSFORMERS_OFFLINE": "1",
    "VLLM_NO_USAGE_STATS": "1",
    "DO_NOT_TRACK": "1",
    "VLLM_MEDIA_URL_ALLOW_REDIRECTS": "0",
    "VLLM_MAX_N_SEQUENCES": "64",
    "VLLM_HTTP_TIMEOUT_KEEP_ALIVE": "75",
    "HOME": CACHE_DIRECTORY,
    "XDG_CACHE_HOME": CACHE_DIRECTORY,
    "VLLM_CACHE_ROOT": f"{CACHE_DIRECTORY}/vllm",
    "TRITON_CACHE_DIR": f"{CACHE_DIRECTORY}/triton",
    "TORCHINDUCTOR_CACHE_DIR": f"{CACHE_DIRECTORY}/inductor",
}

# Tensor parallelism exchanges data between processes over shared memory; NVIDIA's containers advise 1 GiB and more.
SHARED_MEMORY_MIB = 16 * 1024
SHARED_MEMORY_MIB_CPU = 1024


@dataclass(frozen=True, kw_only=True)
class VllmServerArgs:
    """What is served, and where."""

    host: Host
    provider: docker.Provider
    image: docker.RemoteImage
    model: Model
    alias: str
    weights_path: str
    weights: pulumi.Resource
    gpus: pulumi.Resource | None
    """What proves that the GPUs work; None without GPUs."""
    gpu_count: int
    """0: no GPU."""
    gpu_memory_percent: int
    context_tokens: int
    """0: the model's own."""
    extra_arguments: tuple[str, ...]


class VllmServer(pulumi.ComponentResource):
    """vLLM serves the model on a unix socket in a host directory, and has answered its health check.

    Its container has no network, no capabilities, a read-only root and a user of its own. Leaves keys, TLS and the
    choice of routes to Nginx; leaves weights and images to those who fetch them.
    """

    socket_directory: str
    """Directory on the host that holds the socket."""
    directories: pulumi.Resource
    container: docker.Container
    ready: pulumi.Resource

    def __init__(self, name: str, args: VllmServerArgs, opts: pulumi.ResourceOptions | None = None) -> None:
        super().__init__("elastic-vllm:vllm_server:VllmServer", name, None, opts)
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
            render.script("make-vllm-directories.sh", **variables),
            cleanup=render.script("remove-directory.sh", directory=args.host.directory),
            parent=self,
        )
        container_name = f"{args.host.prefix}-vllm"
        environment = {**ENVIRONMENT, **args.model.environment}
        self.container = docker.Container(
            f"{name}-container",
            name=container_name,
            image=args.image.image_id,
            entrypoints=ENTRYPOINT,
            command=serve_arguments(args),
            envs=[f"{key}={value}" for key, value in environment.items()],
            user=f"{VLLM_UID}:{SOCKET_GID}",
            network_mode="none",
            read_only=True,
            capabilities=docker.ContainerCapabilitiesArgs(drops=["ALL"]),
            security_opts=["no-new-privileges:true"],
            gpus="all" if args.gpu_count else None,
            shm_size=SHARED_MEMORY_MIB if args.gpu_count else SHARED_MEMORY_MIB_CPU,
            # Compilers of kernels load what they have just written, so exec is needed.
            tmpfs={"/tmp": "rw,exec,nosuid,nodev,mode=1777"},  # noqa: S108 - inside the container
            volumes=[
                docker.ContainerVolumeArgs(host_path=args.weights_path, container_path=MODEL_DIRECTORY, read_only=True),
                docker.ContainerVolumeArgs(host_path=self.socket_directory, container_path=SOCKET_DIRECTORY),
                docker.ContainerVolumeArgs(host_path=cache_directory, container_path=CACHE_DIRECTORY),
            ],
            ulimits=[docker.ContainerUlimitArgs(name="nofile", soft=16384, hard=16384)],
            log_driver="json-file",
            log_opts={"max-size": "10m", "max-file": "3"},
            restart="unless-stopped",
            destroy_grace_seconds=30,
            labels=[docker.ContainerLabelArgs(label="elastic-vllm.stack", value=pulumi.get_stack())],
            opts=pulumi.ResourceOptions(
                parent=self,
                provider=args.provider,
                depends_on=[args.weights, self.directories, *([args.gpus] if args.gpus else [])],
                # Names and the GPUs are exclusive: the old one must go first.
                delete_before_replace=True,
                replacement_trigger=args.host.identity,
                deleted_with=args.host.machine,
            ),
        )
        self.ready = args.host.command(
            f"{name}-ready",
            render.script(
                "wait-for-vllm.sh",
                container=container_name,
                socket=f"{self.socket_directory}/{SOCKET_NAME}",
            ),
            parent=self,
            triggers=[self.container.id],
        )
        self.register_outputs({})


def serve_arguments(args: VllmServerArgs) -> list[str]:
    """vLLM's command line for a model: what the catalogue says, the stack's settings, then the user's own."""
    model = args.model
    arguments = ["--model", MODEL_DIRECTORY, "--served-model-name", model.name, args.alias]
    own_parser = any(is_option(argument, "--tool-call-parser") for argument in args.extra_arguments)
    if model.tool_call_parser:
        arguments.append("--enable-auto-tool-choice")
        if not own_parser:
            arguments += ["--tool-call-parser", model.tool_call_parser]
    if model.reasoning_parser:
        arguments += ["--reasoning-parser", model.reasoning_parser]
    if model.chat_template:
        arguments += ["--chat-template", model.chat_template]
    if args.context_tokens:
        arguments += ["--max-model-len", str(args.context_tokens)]
    if args.gpu_count:
        arguments += ["--tensor-parallel-size", str(args.gpu_count)]
        arguments += ["--gpu-memory-utilization", f"{args.gpu_memory_percent / 100:g}"]
    return [*arguments, *model.vllm_arguments, *args.extra_arguments]

"""vLLM in a container that has no network."""

import json
from dataclasses import dataclass
from typing import Any

import pulumi
import pulumi_docker as docker

from components import render
from components.catalogue.models import Model
from components.containers import declared, podman
from components.elastic.corpus import Form
from components.machine.host import Host
from components.settings.model import argument_value, is_option

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
ASK = (render.FILES / "vllm" / "ask_vllm.py").read_text(encoding="utf-8")
WATCH = (render.FILES / "vllm" / "vllm_watch.py").read_text(encoding="utf-8")
CALL_IDS = (render.FILES / "vllm" / "call_ids.py").read_text(encoding="utf-8")
CACHE_DIRECTORY = "/cache"

# Docker's format of durations, or every `up` would find a difference. While vLLM loads it does not count as unhealthy.
HEALTH_INTERVAL, HEALTH_TIMEOUT, HEALTH_START = "30s", "1m30s", "1h0m0s"
READY_TOKENS = 8
HANG_SECONDS = 60
"""Time without a token and a step of the engine after which it counts as hanging."""

# Nginx keeps an idle connection to vLLM for 60 s: vLLM must keep it longer, or it could close it during a request.
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
# It looks for the file: to import the module takes seconds.
HAS_MODULE = (
    'import importlib.util, pathlib; places = importlib.util.find_spec("vllm").submodule_search_locations; '
    'files = [pathlib.Path(place, "entrypoints/openai/api_server.py") for place in places]; '
    'any(file.exists() and "__main__" in file.read_text() for file in files) or exit(1)'
)
START = (
    f"if python3 -c '{HAS_MODULE}' 2>/dev/null; "
    'then set -- python3 -m vllm.entrypoints.openai.api_server --uds "$0" "$@"; '
    'else model=$2; shift 2; set -- vllm serve "$model" --uds "$0" "$@"; fi; "$@"'
)
"""Start of vLLM in a shell whose arguments are those of `serve_arguments`, which begin with --model."""
STOP_SECONDS = 30
ABORT_SECONDS = 2
"""vLLM aborts what it computes in a moment when it shall end, but may wait for ever for the streams that it had."""


@dataclass(frozen=True, kw_only=True)
class VllmServerArgs:
    """Model to serve, and the host that serves it."""

    host: Host
    provider: docker.Provider
    image: docker.RemoteImage
    model: Model
    alias: str
    weights_path: str
    weights: pulumi.Resource
    gpus: pulumi.Resource | None
    """Resource that proves that the GPUs work; None without GPUs."""
    gpu_count: int
    """Number of GPUs; 0 without any."""
    gpu_memory_utilization: float
    max_model_len: int
    """Longest context; 0 for the model's own."""
    extra_args: tuple[str, ...]
    forms: tuple[Form, ...]
    """Requests that it must answer before Elastic may use it."""


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


def questions(args: VllmServerArgs) -> str:
    """Return the requests for `ask_vllm.py`, with short answers: it only matters that they are accepted."""
    name = args.alias or args.model.name
    return json.dumps([{"feature": form.feature, "request": form.request(name, READY_TOKENS)} for form in args.forms])


def container_name(args: VllmServerArgs) -> str:
    """Name of vLLM's container on the host."""
    return f"{args.host.prefix}-vllm"


def needs_longer_ids(args: VllmServerArgs) -> bool:
    """True if one of Mistral's tokenizers builds the prompt: they refuse Kibana's short ids of tool calls."""
    arguments = (*args.extra_args, *args.model.vllm_extra_args)
    parser = argument_value(args.extra_args, "--tool-call-parser") or args.model.tool_call_parser
    return "mistral" in {parser, argument_value(arguments, "--tokenizer-mode")}


def entrypoint(extra_args: tuple[str, ...], *, longer_ids: bool = False) -> list[str]:
    """Command that starts vLLM, and ends it when the container is to stop.

    vLLM does not remove a socket that a killed predecessor left (EADDRINUSE). The umask makes the socket 0770, so that
    Nginx can connect by its group and nobody else can. The shell stays: no signal from inside ends a container's first
    process, so one that hangs could not be killed by the health check. `wait` ends early when a signal comes.

    vLLM 0.32 calls the module deprecated: an image without it is started by `vllm serve`, which takes the model as its
    first argument. The module comes first because the CPU package of 0.32.0 has no `vllm` that works.

    vLLM 0.32.0 kills its engine before the last word of a stream has come from it, and then waits for that stream's
    end (seen in 6 of 8 stops with streams under way, 2026-11): it gets ABORT_SECONDS, or STOP_SECONDS if it is
    to let requests end (`--shutdown-timeout`).
    """
    patient = any(is_option(argument, "--shutdown-timeout") for argument in extra_args)
    module = (
        'mkdir -p /tmp/python; printf %s "$CALL_IDS" >/tmp/python/call_ids.py; export PYTHONPATH=/tmp/python; '
        if longer_ids
        else ""
    )
    seconds = STOP_SECONDS if patient else ABORT_SECONDS
    return [
        "/bin/sh",
        "-c",
        f'umask 0007; rm -f "$0"; {module}{START} & vllm=$!; '
        f'trap "kill -TERM $vllm; (sleep {seconds}; kill -KILL $vllm) &" TERM INT; wait $vllm; code=$?; '
        "while kill -0 $vllm 2>/dev/null; do wait $vllm; code=$?; done; exit $code",
        SOCKET,
    ]


def environment(args: VllmServerArgs) -> dict[str, str]:
    """Environment of vLLM's process, without secrets."""
    longer_ids = {"CALL_IDS": CALL_IDS} if needs_longer_ids(args) else {}
    return {**ENVIRONMENT, **longer_ids, **args.model.environment}


def shared_memory_mib(args: VllmServerArgs) -> int:
    """Size of /dev/shm."""
    return SHARED_MEMORY_MIB if args.gpu_count else SHARED_MEMORY_MIB_CPU


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


def serve_arguments(args: VllmServerArgs) -> list[str]:
    """vLLM's command line for a model: what the catalogue says, the stack's settings, then the user's own."""
    model = args.model
    arguments = ["--model", MODEL_DIRECTORY, "--served-model-name", model.name, *filter(None, [args.alias])]
    own_parser = any(is_option(argument, "--tool-call-parser") for argument in args.extra_args)
    if model.tool_call_parser:
        arguments.append("--enable-auto-tool-choice")
        if not own_parser:
            arguments += ["--tool-call-parser", model.tool_call_parser]
    if model.reasoning_parser:
        arguments += ["--reasoning-parser", model.reasoning_parser]
    if model.chat_template:
        arguments += ["--chat-template", model.chat_template]
    if needs_longer_ids(args):
        arguments += ["--middleware", "call_ids.LongerCallIds"]
    if args.max_model_len:
        arguments += ["--max-model-len", str(args.max_model_len)]
    if args.gpu_count:
        arguments += ["--tensor-parallel-size", str(args.gpu_count)]
        arguments += ["--gpu-memory-utilization", f"{args.gpu_memory_utilization:g}"]
    return [*arguments, *model.vllm_extra_args, *args.extra_args]

"""vLLM's process, wherever it runs: its command line, environment and places in a container."""

import json
from dataclasses import dataclass

from components import render
from components.catalogue.models import Model
from components.elastic.corpus import Form
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
class ServedModel:
    """A model that one vLLM serves, and its GPUs."""

    model: Model
    alias: str
    gpu_count: int
    """Number of GPUs; 0 without any."""
    gpu_memory_utilization: float
    max_model_len: int
    """Longest context; 0 for the model's own."""
    extra_args: tuple[str, ...]
    forms: tuple[Form, ...]
    """Requests that it must answer before Elastic may use it."""


def questions(args: ServedModel) -> str:
    """Return the requests for `ask_vllm.py`, with short answers: it only matters that they are accepted."""
    name = args.alias or args.model.name
    return json.dumps([{"feature": form.feature, "request": form.request(name, READY_TOKENS)} for form in args.forms])


def needs_longer_ids(args: ServedModel) -> bool:
    """True if one of Mistral's tokenizers builds the prompt: they refuse Kibana's short ids of tool calls."""
    arguments = (*args.extra_args, *args.model.vllm_extra_args)
    parser = argument_value(args.extra_args, "--tool-call-parser") or args.model.tool_call_parser
    return "mistral" in {parser, argument_value(arguments, "--tokenizer-mode")}


def entrypoint(extra_args: tuple[str, ...], *, longer_ids: bool = False, stop_seconds: int = STOP_SECONDS) -> list[str]:
    """Command that starts vLLM, and ends it when the container is to stop.

    vLLM does not remove a socket that a killed predecessor left (EADDRINUSE). The umask makes the socket 0770, so that
    Nginx can connect by its group and nobody else can. The shell stays: no signal from inside ends a container's first
    process, so one that hangs could not be killed by the health check. `wait` ends early when a signal comes.

    vLLM 0.32 calls the module deprecated: an image without it is started by `vllm serve`, which takes the model as its
    first argument. The module comes first because the CPU package of 0.32.0 has no `vllm` that works.

    vLLM 0.32.0 kills its engine before the last word of a stream has come from it, and then waits for that stream's
    end (seen in 6 of 8 stops with streams under way, 2026-11): it gets ABORT_SECONDS, or `stop_seconds` if it is
    to let requests end (`--shutdown-timeout`).
    """
    patient = any(is_option(argument, "--shutdown-timeout") for argument in extra_args)
    module = (
        'mkdir -p /tmp/python; printf %s "$CALL_IDS" >/tmp/python/call_ids.py; export PYTHONPATH=/tmp/python; '
        if longer_ids
        else ""
    )
    seconds = stop_seconds if patient else ABORT_SECONDS
    return [
        "/bin/sh",
        "-c",
        f'umask 0007; rm -f "$0"; {module}{START} & vllm=$!; '
        f'trap "kill -TERM $vllm; (sleep {seconds}; kill -KILL $vllm) &" TERM INT; wait $vllm; code=$?; '
        "while kill -0 $vllm 2>/dev/null; do wait $vllm; code=$?; done; "
        # One that ended while the trap ran has been reaped, and its status is still to be had, once.
        "wait $vllm 2>/dev/null; last=$?; [ $last = 127 ] || code=$last; exit $code",
        SOCKET,
    ]


def environment(args: ServedModel) -> dict[str, str]:
    """Environment of vLLM's process, without secrets."""
    longer_ids = {"CALL_IDS": CALL_IDS} if needs_longer_ids(args) else {}
    return {**ENVIRONMENT, **longer_ids, **args.model.environment}


def shared_memory_mib(args: ServedModel) -> int:
    """Size of /dev/shm."""
    return SHARED_MEMORY_MIB if args.gpu_count else SHARED_MEMORY_MIB_CPU


def serve_arguments(args: ServedModel) -> list[str]:
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

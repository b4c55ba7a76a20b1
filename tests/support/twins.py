"""Twins of the catalogue's models (twin_model.py), served by the real vLLM as the program serves the models."""

import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest.mock import ANY

import docker
from docker.models.containers import Container
from docker.types import Mount

from components.catalogue.models import Model
from components.serving.vllm_process import (
    MODEL_DIRECTORY,
    SOCKET_DIRECTORY,
    SOCKET_GID,
    SOCKET_NAME,
    VLLM_UID,
    entrypoint,
    environment,
    needs_longer_ids,
    serve_arguments,
)
from components.serving.vllm_server import TMPFS, VllmServerArgs
from tests.support.vllm_sources import vllm_sources

ROOT = Path(__file__).resolve().parents[2]
IMAGE = "localhost/elastic-vllm/vllm-cpu:0.32.0"
# What a CPU needs, and a context that its memory holds; the weights are random.
ON_THE_CPU = ("--load-format", "dummy", "--enforce-eager", "--dtype", "float32", "--max-model-len", "8192")
CPU_ENVIRONMENT = {"VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_ENABLE_V1_MULTIPROCESSING": "0", "OMP_NUM_THREADS": "1"}
START_SECONDS = 300
ALIAS = "elastic-llm"


@dataclass(frozen=True)
class Twin:
    """A twin that answers."""

    container: Container
    socket: Path
    """On this machine."""


@contextmanager
def twin(model: Model, directory: Path, *, longer_ids: bool = True) -> Iterator[Twin]:
    """The twin of a model, with a socket below `directory`; `longer_ids` False leaves ids of tool calls as they are."""
    client = docker.from_env(timeout=120)
    sources = vllm_sources()
    weights, sockets = directory / "model", directory / "socket"
    _make(client, model, weights, sources)
    sockets.mkdir(mode=0o770)
    subprocess.run(["chown", f"{VLLM_UID}:{SOCKET_GID}", str(sockets)], check=True)
    args = served(model)
    command = serve_arguments(args)
    if not longer_ids:
        place = command.index("--middleware")
        del command[place : place + 2]
    container = client.containers.run(
        IMAGE,
        command,
        entrypoint=entrypoint(args.extra_args, longer_ids=needs_longer_ids(args)),
        environment=environment(args) | CPU_ENVIRONMENT | {"HOME": "/cache"},
        user=f"{VLLM_UID}:{SOCKET_GID}",
        network_mode="none",
        read_only=True,
        cap_drop=["ALL"],
        security_opt=["no-new-privileges"],
        shm_size="1g",
        tmpfs=TMPFS | {"/cache": "mode=1777"},
        mounts=[
            Mount(MODEL_DIRECTORY, str(weights), type="bind", read_only=True),
            Mount(SOCKET_DIRECTORY, str(sockets), type="bind"),
            Mount("/vllm-workspace/examples", str(sources / "examples"), type="bind", read_only=True),
        ],
        detach=True,
    )
    try:
        _wait(container, sockets / SOCKET_NAME)
        yield Twin(container, sockets / SOCKET_NAME)
    finally:
        container.remove(force=True)


def served(model: Model, **values: Any) -> VllmServerArgs:
    """The arguments by which the program serves the model, and what a CPU needs besides."""
    flowing: dict[str, Any] = dict.fromkeys(("host", "provider", "image", "weights", "weights_path", "gpus"), ANY)
    settings: dict[str, Any] = {
        "alias": ALIAS,
        "gpu_count": 0,
        "gpu_memory_utilization": 0.9,
        "max_model_len": 0,
        "forms": (),
    }
    return VllmServerArgs(model=model, extra_args=ON_THE_CPU, **flowing, **settings | values)


def _make(client: docker.DockerClient, model: Model, weights: Path, sources: Path) -> None:
    client.containers.run(
        IMAGE,
        ["-m", "tests.support.twin_model", model.name, f"/made/{weights.name}"],
        entrypoint=["python3"],
        environment={"PYTHONPATH": "/repository", "PYTHONDONTWRITEBYTECODE": "1"},
        network_mode="none",
        mounts=[
            Mount("/repository", str(ROOT), type="bind", read_only=True),
            Mount("/vllm-sources", str(sources), type="bind", read_only=True),
            Mount("/made", str(weights.parent), type="bind"),
        ],
        remove=True,
    )
    for path in (weights, *weights.parents[:2]):
        path.chmod(0o755)


def _wait(container: Container, socket: Path) -> None:
    """Return once vLLM answers its health check; AssertionError with its log where it ends before."""
    ask = ["curl", "-sf", "--unix-socket", str(socket), "-o", "/dev/null", "http://vllm/health"]
    end = time.monotonic() + START_SECONDS
    while subprocess.run(ask, check=False).returncode:
        container.reload()
        assert container.status == "running", container.logs(tail=30).decode()
        assert time.monotonic() < end, container.logs(tail=30).decode()
        time.sleep(0.3)

"""Differences of Podman from Docker (setting containerRuntime), all in one module."""

import hashlib
import json
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from components import render

PODMAN = "podman"
SOCKET = "/run/podman/podman.sock"
"""Socket of the API of root's Podman."""

# Podman puts these into a container with a read-only root: as little as can be, and nothing to be run from them.
OWN_TMPFS = dict.fromkeys(("/run", "/var/tmp"), "rw,noexec,nosuid,nodev,size=64k,mode=0755")  # noqa: S108
# For all users and containers of the server: directories are shared by Nginx and vLLM, weights by stacks.
RELABEL = "z"
CATEGORIES = 1024  # SELinux: c0 to c1023


def security_options(prefix: str, *, gpus: bool = False) -> list[str]:
    """SELinux, where the server has it: the containers of a stack may reach each other's socket, and no other's.

    With GPUs none, as NVIDIA has it: a container that SELinux holds may not open their devices.
    """
    if gpus:
        return ["no-new-privileges", "label=disable"]
    digest = hashlib.sha256(prefix.encode()).digest()
    low = int.from_bytes(digest[:4]) % (CATEGORIES - 1)
    high = low + 1 + int.from_bytes(digest[4:8]) % (CATEGORIES - 1 - low)
    return ["no-new-privileges", f"label=level:s0:c{low},c{high}"]


@dataclass(frozen=True, kw_only=True)
class Container:
    """A container that `podman run` starts on the host. Its arguments show in process lists: no secrets."""

    name: str
    user: str
    entrypoint: Sequence[str]
    command: Sequence[str]
    environment: Mapping[str, str]
    volumes: Sequence[tuple[str, str, bool]]
    """(directory on the host, in the container, whether it is read-only)"""
    tmpfs: Mapping[str, str]
    shared_memory_mib: int
    open_files: int
    security_options: Sequence[str]
    log_mib: int
    stop_seconds: int
    labels: Mapping[str, str]
    gpus: bool


def run_arguments(container: Container, image: str) -> list[str]:
    """Return the arguments after `podman run --detach` for the same container as by Docker's API.

    It has no network and a read-only root. GPUs come by CDI: Podman's API before 5.4 ignores requests without a word.
    """
    limit = f"{container.open_files}:{container.open_files}"
    options = [
        *("--pull", "never", "--name", container.name),
        # Podman's unit for boots starts those with `always` only.
        *("--restart", "always"),
        *("--network", "none"),
        *("--user", container.user),
        *("--read-only", "--read-only-tmpfs=false"),
        *("--cap-drop", "ALL"),
        # Podman's default for processes can be above what the host may give, and it limits a model's threads.
        "--pids-limit=-1",
        *("--ulimit", f"nofile={limit}", "--ulimit", f"nproc={limit}"),
        *("--shm-size", f"{container.shared_memory_mib}m"),
        # Podman keeps one file, and truncates it at this size.
        *("--log-driver", "k8s-file", "--log-opt", f"max-size={container.log_mib}m"),
        *("--stop-timeout", str(container.stop_seconds)),
        *("--entrypoint", json.dumps(list(container.entrypoint))),
    ]
    for option in container.security_options:
        options += ["--security-opt", option]
    for path, flags in container.tmpfs.items():
        options += ["--tmpfs", f"{path}:{flags}"]
    for source, target, read_only in container.volumes:
        options += ["--volume", f"{source}:{target}:{'ro' if read_only else 'rw'},{RELABEL}"]
    for key, value in container.labels.items():
        options += ["--label", f"{key}={value}"]
    for key, value in container.environment.items():
        options += ["--env", f"{key}={value}"]
    if container.gpus:
        options += ["--device", "nvidia.com/gpu=all"]
    return [*options, image, *container.command]


def run_script(container: Container, image: str) -> str:
    """Have it run; prints its id."""
    words = shlex.join(run_arguments(container, image))
    run = "podman_with_gpus" if container.gpus else "podman"
    script = render.script(
        "containers/podman-with-gpus.sh", "containers/run-podman-container.sh", container=container.name, podman=run
    )
    return script + f"run_container {words}\n"


def remove_script(name: str) -> str:
    """Remove it, if it is there."""
    return render.script("containers/remove-podman-container.sh", container=name)

"""Faults on the server of the stack `ailing`, each until its block ends."""

import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.integration.conftest import rehearse_up
from tests.support import vllm_stand_in

STACK = "ailing"
VLLM, NGINX = f"elastic-vllm-{STACK}-vllm", f"elastic-vllm-{STACK}-nginx"
OWN = Path("/var/lib/elastic-vllm") / STACK
LOGS = Path("/var/log/elastic-vllm") / STACK


def docker(*arguments: str) -> None:
    subprocess.run(["docker", *arguments], capture_output=True, check=True)


def up_again() -> None:
    rehearse_up(stack=STACK)


@contextmanager
def stopped(name: str) -> Iterator[None]:
    docker("stop", "--time", "1", name)
    yield
    docker("start", name)


@contextmanager
def killed(name: str) -> Iterator[None]:
    docker("update", "--restart", "no", name)
    docker("kill", name)
    yield
    docker("start", name)
    docker("update", "--restart", "always", name)


@contextmanager
def paused(name: str) -> Iterator[None]:
    docker("pause", name)
    yield
    docker("unpause", name)


@contextmanager
def removed(name: str) -> Iterator[None]:
    docker("rm", "--force", name)
    yield
    up_again()


@contextmanager
def in_its_place(name: str, *command: str, memory: str = "256m") -> Iterator[None]:
    """Replace a container by one of the same name that runs another command."""
    image = vllm_stand_in.IMAGE
    docker("rm", "--force", name)
    (OWN / "socket" / "vllm.sock").unlink(missing_ok=True)
    docker("run", "--detach", "--memory", memory, "--memory-swap", memory, "--name", name, image, *command)
    if memory == "32m":
        subprocess.run(["docker", "wait", name], capture_output=True, check=True)
    yield
    docker("rm", "--force", name)
    up_again()


@contextmanager
def without(path: Path) -> Iterator[None]:
    """Remove a file until the block ends; then Nginx and vLLM are restarted."""
    away = path.with_name(f"{path.name}.away")
    path.rename(away)
    yield
    away.rename(path)


@contextmanager
def broken_configuration() -> Iterator[None]:
    with without(OWN / "nginx" / "current"):
        subprocess.run(["docker", "restart", "--time", "1", NGINX], capture_output=True, check=False)
        yield
    docker("restart", "--time", "1", NGINX)
    up_again()


@contextmanager
def full_disk() -> Iterator[None]:
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "full", str(LOGS)], check=True)
    try:
        with (LOGS / "filler").open("wb", buffering=0) as file:
            while file.write(bytes(4096)) == 4096:
                pass
    except OSError:
        pass
    try:
        yield
    finally:
        subprocess.run(["umount", str(LOGS)], check=True)


@contextmanager
def no_packet_filter() -> Iterator[None]:
    subprocess.run(["nft", "delete", "table", "inet", f"elastic_vllm_{STACK}"], check=True)
    yield
    prefix = f"elastic-vllm-{STACK}"
    subprocess.run(["bash", f"/etc/elastic-vllm/{prefix}-packet-filter.sh", "set", f"{prefix}-egress"], check=True)

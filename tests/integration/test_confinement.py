"""What the two containers may do, as Docker and the kernel say of them while they run."""

import re
from pathlib import Path
from typing import Any

import pytest

from components.vllm_server import NGINX_UID, SOCKET_GID, VLLM_UID
from tests.integration.conftest import STACK_DIRECTORY, Deployment

ROLES = {"nginx": NGINX_UID, "vllm": VLLM_UID}
MIB = 2**20


def inspected(deployed: Deployment, role: str) -> dict[str, Any]:
    attributes: dict[str, Any] = getattr(deployed, role).attrs
    return attributes


def kernel_status(deployed: Deployment, role: str) -> dict[str, str]:
    """What the kernel says of the container's first process."""
    text = Path(f"/proc/{inspected(deployed, role)['State']['Pid']}/status").read_text()
    return {key: " ".join(value.split()) for key, _, value in (line.partition(":") for line in text.splitlines())}


@pytest.mark.parametrize("role", ROLES)
def test_no_capabilities(role: str, deployed: Deployment) -> None:
    status = kernel_status(deployed, role)
    assert {int(status[f"Cap{kind}"], 16) for kind in ("Inh", "Prm", "Eff", "Bnd", "Amb")} == {0}


@pytest.mark.parametrize("role", ROLES)
def test_no_new_privileges(role: str, deployed: Deployment) -> None:
    assert kernel_status(deployed, role)["NoNewPrivs"] == "1"


@pytest.mark.parametrize("role", ROLES)
def test_user_of_its_own(role: str, deployed: Deployment) -> None:
    status = kernel_status(deployed, role)
    assert (set(status["Uid"].split()), set(status["Gid"].split())) == ({str(ROLES[role])}, {str(SOCKET_GID)})


@pytest.mark.parametrize("role", ROLES)
def test_only_its_own_directories_can_be_written(role: str, deployed: Deployment) -> None:
    writable = {
        "vllm": {str(STACK_DIRECTORY / "socket"), str(STACK_DIRECTORY / "cache")},
        "nginx": set(),
    }
    attributes = inspected(deployed, role)
    assert {mount["Source"] for mount in attributes["Mounts"] if mount["RW"]} == writable[role]
    mounts = Path(f"/proc/{attributes['State']['Pid']}/mountinfo").read_text().splitlines()
    options = {fields[4]: fields[5].split(",") for fields in map(str.split, mounts)}
    assert "ro" in options["/"]


@pytest.mark.parametrize("role", ROLES)
def test_logs_are_rotated(role: str, deployed: Deployment) -> None:
    log = inspected(deployed, role)["HostConfig"]["LogConfig"]
    assert log["Type"] == "json-file"
    assert re.fullmatch(r"[1-9]\d?m", log["Config"]["max-size"])
    assert 1 < int(log["Config"]["max-file"]) < 10


@pytest.mark.parametrize("role", ROLES)
def test_image_by_content(role: str, deployed: Deployment) -> None:
    assert re.fullmatch("sha256:[0-9a-f]{64}", inspected(deployed, role)["Config"]["Image"])


@pytest.mark.parametrize("role", ROLES)
def test_comes_back_after_a_reboot(role: str, deployed: Deployment) -> None:
    assert inspected(deployed, role)["HostConfig"]["RestartPolicy"]["Name"] == "unless-stopped"


def test_nginxs_memory_is_limited(deployed: Deployment) -> None:
    limits = inspected(deployed, "nginx")["HostConfig"]
    assert (limits["Memory"], limits["MemorySwap"]) == (512 * MIB, 512 * MIB)

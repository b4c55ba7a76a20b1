"""Rights of the two containers, as Docker and the kernel report them while they run."""

import re
from pathlib import Path
from typing import Any

import pytest

from components.serving.vllm_process import NGINX_UID, SOCKET_GID, VLLM_UID
from tests.integration.conftest import PREFIX, STACK_DIRECTORY, Deployment

ROLES = {"nginx": NGINX_UID, "vllm": VLLM_UID}
MIB = 2**20


def inspected(deployed: Deployment, role: str) -> dict[str, Any]:
    attributes: dict[str, Any] = getattr(deployed, role).attrs
    return attributes


def kernel_status(deployed: Deployment, role: str) -> dict[str, str]:
    """Return the kernel's status of the container's first process."""
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
def test_dedicated_user(role: str, deployed: Deployment) -> None:
    status = kernel_status(deployed, role)
    assert (set(status["Uid"].split()), set(status["Gid"].split())) == ({str(ROLES[role])}, {str(SOCKET_GID)})


@pytest.mark.parametrize("role", ROLES)
def test_only_its_own_directories_can_be_written(role: str, deployed: Deployment) -> None:
    writable = {
        "vllm": {str(STACK_DIRECTORY / "socket"), str(STACK_DIRECTORY / "cache")},
        "nginx": {str(STACK_DIRECTORY / "metrics"), f"/var/log/elastic-vllm/{STACK_DIRECTORY.name}"},
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
    assert inspected(deployed, role)["HostConfig"]["RestartPolicy"]["Name"] == "always"


@pytest.mark.parametrize("role", ROLES)
def test_the_engine_confines_it(role: str, deployed: Deployment) -> None:
    """The options that an auditor reads from `docker inspect`."""
    attributes = inspected(deployed, role)
    host, config = attributes["HostConfig"], attributes["Config"]
    assert {
        "read-only root": host["ReadonlyRootfs"],
        "privileged": host["Privileged"],
        "capabilities dropped": host["CapDrop"],
        "capabilities added": host["CapAdd"] or [],
        "security": host["SecurityOpt"],
        "devices": host["Devices"] or [],
        "other namespaces": [host["PidMode"], host["UTSMode"], host["UsernsMode"]],
        "shared memory": host["IpcMode"],
        "user": config["User"],
    } == {
        "read-only root": True,
        "privileged": False,
        "capabilities dropped": ["ALL"],
        "capabilities added": [],
        "security": ["no-new-privileges:true"],
        "devices": [],
        # Users: the server's own numbers, which its directories have, also where Docker maps others (userns-remap).
        "other namespaces": ["", "", "host"],
        "shared memory": "private",
        "user": f"{ROLES[role]}:{SOCKET_GID}",
    }
    assert host["NetworkMode"] == {"vllm": "none", "nginx": f"{PREFIX}-edge"}[role]
    assert not [mount["Source"] for mount in attributes["Mounts"] if mount["Source"].endswith(".sock")]


@pytest.mark.parametrize(("role", "processes"), [("nginx", 256), ("vllm", 16384)])
def test_files_and_processes_are_limited(role: str, processes: int, deployed: Deployment) -> None:
    """The limits as the kernel reports them for the container's first process."""
    text = Path(f"/proc/{inspected(deployed, role)['State']['Pid']}/limits").read_text()
    limits = {line[:26].strip(): line[26:].split()[:2] for line in text.splitlines()}
    assert limits["Max processes"] == [str(processes)] * 2
    assert limits["Max open files"] == ["16384", "16384"]


def test_nginx_can_start_no_more_processes_than_its_limit(deployed: Deployment) -> None:
    bomb = "for n in $(seq 400); do sleep 2 & done 2>/dev/null; jobs -p | wc -l"
    code, output = deployed.nginx.exec_run(["bash", "-c", bomb])
    assert isinstance(output, bytes)
    assert code != 0 or int(output.split()[-1]) < 260, output
    with deployed.http(deployed.key) as client:
        assert client.get("/v1/models").status_code == 200


def test_nginxs_memory_is_limited(deployed: Deployment) -> None:
    limits = inspected(deployed, "nginx")["HostConfig"]
    assert (limits["Memory"], limits["MemorySwap"]) == (512 * MIB, 512 * MIB)

"""Podman instead of Docker: the same program keeps the same promises, on a separate stack.

The order of the tests matters: they kill the containers, change the model and take the stack down at the end.
"""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import docker
import pytest
import yaml
from docker.models.containers import Container

from components import render
from components.containers import podman
from components.serving.vllm_process import NGINX_UID, SOCKET_GID, VLLM_UID
from tests.integration.conftest import REHEARSAL, ROOT, Deployment, deployment, identity, rehearse, rehearse_up
from tests.integration.test_isolation import LOOK_AROUND, OPEN_TCP, SEND_UDP, Listeners, output_in, own_address
from tests.support import local_sshd, packet_filters
from tests.support.made_stacks import stack_file
from tests.support.netns_machine import outcomes, wait_until

pytestmark = pytest.mark.slow  # the quick run has airgap/test_site.py, with a stand-in for vLLM

STACK = "podman"
PREFIX = f"elastic-vllm-{STACK}"
DIRECTORY = Path("/var/lib/elastic-vllm") / STACK
NGINX_IMAGE = "localhost/elastic-vllm/nginx:debian"
USERS = {"vllm": VLLM_UID, "nginx": NGINX_UID}
MIB = 2**20
CDI_FILE = Path("/etc/cdi/elastic-vllm-test.yaml")


@dataclass(frozen=True)
class Stack:
    """The stack, up in Podman."""

    deployed: Deployment
    checks: dict[str, bool]
    """Results of `verify` on the new stack: check -> True if it passed."""

    def container(self, role: str) -> Container:
        return self.deployed.docker.containers.get(f"{PREFIX}-{role}")

    def identities(self) -> dict[str, tuple[str, str]]:
        return {role: identity(self.container(role)) for role in USERS}

    def kernel_status(self, role: str) -> dict[str, str]:
        """Return the kernel's status of the container's first process."""
        text = Path(f"/proc/{self.container(role).attrs['State']['Pid']}/status").read_text()
        return {key: " ".join(value.split()) for key, _, value in (line.partition(":") for line in text.splitlines())}


def checks(text: str) -> dict[str, bool]:
    """Map each check in the output of `verify` to True if it passed, or met a known limit."""
    verdicts = ("ok    ", "limit ", "FAIL  ")
    lines = [line.split(maxsplit=2) for line in text.splitlines() if line.startswith(verdicts)]
    return {fields[1]: fields[0] != "FAIL" for fields in lines}


@pytest.fixture(scope="module")
def up(machine: None) -> Iterator[Stack]:
    config = yaml.safe_load((ROOT / "stacks" / "Pulumi.test.yaml").read_text())["config"]
    settings = {key.removeprefix("elastic-vllm:"): value for key, value in config.items()}
    own = {"containerRuntime": "podman", "model": "rehearsal/tiny", "httpsPort": local_sshd.free_port()}
    with stack_file(STACK, settings | own):
        printed = rehearse_up("--verify", stack=STACK)
        client = docker.DockerClient(base_url=f"unix://{podman.SOCKET}", timeout=120)
        yield Stack(replace(deployment(STACK), docker=client), checks(printed))


def test_every_check_of_verify_passes_as_with_docker(up: Stack, deployed: Deployment) -> None:
    with_docker = checks(rehearse("verify").stdout)
    assert with_docker == up.checks == dict.fromkeys(with_docker, True)
    assert len(with_docker) > 10


def test_the_containers_are_podmans(up: Stack) -> None:
    names = {f"{PREFIX}-{role}" for role in USERS}
    assert {each.name for each in up.deployed.docker.containers.list()} >= names
    assert not {each.name for each in docker.from_env().containers.list(all=True)} & names


def test_a_second_up_changes_nothing(up: Stack) -> None:
    assert set(outcomes(rehearse_up(stack=STACK)).values()) == {"unchanged"}


# Promises


@pytest.mark.parametrize("role", USERS)
def test_confinement(role: str, up: Stack) -> None:
    status = up.kernel_status(role)
    assert {int(status[f"Cap{kind}"], 16) for kind in ("Inh", "Prm", "Eff", "Bnd", "Amb")} == {0}
    assert (status["NoNewPrivs"], status["Seccomp"]) == ("1", "2")
    assert (set(status["Uid"].split()), set(status["Gid"].split())) == ({str(USERS[role])}, {str(SOCKET_GID)})


@pytest.mark.parametrize("role", USERS)
def test_only_its_own_directories_can_be_written(role: str, up: Stack) -> None:
    container = up.container(role)
    writable = {
        "vllm": {str(DIRECTORY / "socket"), str(DIRECTORY / "cache")},
        "nginx": {str(DIRECTORY / "metrics"), f"/var/log/elastic-vllm/{STACK}"},
    }
    assert {mount["Source"] for mount in container.attrs["Mounts"] if mount["RW"]} == writable[role]
    for path in ("/", "/etc", "/run", "/usr/local/bin"):
        assert container.exec_run(["touch", f"{path}/written"])[0] != 0, path
    # Podman itself adds these to a read-only root.
    mounts = Path(f"/proc/{container.attrs['State']['Pid']}/mountinfo").read_text().splitlines()
    added = {fields[4]: fields[5].split(",") for fields in map(str.split, mounts) if fields[4] in {"/run", "/var/tmp"}}
    assert all({"noexec", "nosuid", "nodev"} <= {*options} for options in added.values())


def test_limits_are_those_that_were_asked_for(up: Stack) -> None:
    limits = up.container("nginx").attrs["HostConfig"]
    assert (limits["Memory"], limits["MemorySwap"]) == (512 * MIB, 512 * MIB)
    for role, expected in {"nginx": ("16384", "256"), "vllm": ("16384", "16384")}.items():
        lines = Path(f"/proc/{up.container(role).attrs['State']['Pid']}/limits").read_text().splitlines()
        found = {line[:26].strip(): line[26:].split()[:2] for line in lines}
        assert (found["Max open files"], found["Max processes"]) == ([expected[0]] * 2, [expected[1]] * 2), role
    assert up.container("vllm").attrs["HostConfig"]["ShmSize"] == 1024 * MIB


def test_vllm_reaches_nothing(up: Stack) -> None:
    edge = up.container("nginx").attrs["NetworkSettings"]["Networks"][f"{PREFIX}-edge"]
    targets = [f"{edge['IPAddress']}:8443", f"{edge['Gateway']}:22022", "169.254.169.254:80", "198.51.100.1:443"]
    look = ["python3", "-c", LOOK_AROUND, " ".join(targets), "example.com"]
    assert json.loads(output_in(up.container("vllm"), look)) == {
        "interfaces": ["lo"],
        "routes": [],
        "tcp": dict.fromkeys(targets, "ENETUNREACH"),
        "names": {"example.com": "unknown"},
    }


def test_nginx_opens_no_connection(up: Stack) -> None:
    nginx = up.container("nginx")
    edge = nginx.attrs["NetworkSettings"]["Networks"][f"{PREFIX}-edge"]
    with ExitStack() as closing:
        listeners = Listeners([edge["Gateway"], own_address()], closing)

        def reached() -> set[str]:
            targets = [*listeners.tcp_targets, "198.51.100.1:443"]
            opened = output_in(nginx, ["bash", "-c", OPEN_TCP, "probe", *targets]).decode().split()
            nginx.exec_run(["bash", "-c", SEND_UDP, "probe", *listeners.udp_targets])
            return {*opened} | listeners.udp_received()

        assert reached() == set()
        walls: tuple[packet_filters.Wall, ...] = ("host", "container")
        for wall in walls:  # either is enough
            with packet_filters.without(PREFIX, nginx.attrs["State"]["Pid"], wall):
                assert reached() == set()
        with packet_filters.without(PREFIX, nginx.attrs["State"]["Pid"], *walls):  # and nothing else is
            assert reached() >= listeners.tcp_targets | listeners.udp_targets
        assert reached() == set()


def test_nothing_but_nginxs_port_is_published(up: Stack) -> None:
    port = up.deployed.url.removeprefix("https://").split("/")[0].rpartition(":")[2]
    published = {role: up.container(role).ports for role in USERS}
    assert published == {"vllm": {}, "nginx": {"8443/tcp": [{"HostIp": "0.0.0.0", "HostPort": port}]}}  # noqa: S104


@pytest.mark.parametrize(("role", "size"), [("vllm", "30MB"), ("nginx", "50MB")])
def test_logs_are_bounded_and_read_as_with_docker(role: str, size: str, up: Stack) -> None:
    log = podman_output("inspect", "--format", "{{json .HostConfig.LogConfig}}", f"{PREFIX}-{role}")
    assert json.loads(log)["Size"] == size
    up.deployed.openai().models.list()
    assert podman_output("logs", "--tail", "1", f"{PREFIX}-{role}")


def test_the_server_is_looked_at_without_docker(up: Stack) -> None:
    """The questions of diagnose and rotate get answers."""
    found = script("diagnose")
    assert (found.returncode, "all is well" in found.stdout) == (0, True), found.stdout
    assert "Podman 4." in found.stdout or "Podman 5." in found.stdout
    status = script("rotate", "--status")
    assert (status.returncode, "last used" in status.stdout) == (0, True), f"{status.stdout}{status.stderr}"


# Access as by the docker provider, with the library of Docker's client


@pytest.mark.parametrize("server", ["docker", "podman"])
def test_dockers_client_reaches_it_over_ssh(server: str, up: Stack, tmp_path: Path) -> None:
    """The connection works with the server's `docker` command, either Docker's or podman-docker's."""
    address = (tmp_path / "docker", '#!/bin/sh\nexec podman "$@"\n')
    key = REHEARSAL / "ssh" / "id_ed25519"
    trusting = "-o StrictHostKeyChecking=no -o UserKnownHostsFile=/dev/null -o LogLevel=ERROR"
    # The package podman-docker cannot be installed beside Docker here: this line does what its script does.
    there = "" if server == "docker" else f"PATH={tmp_path}:$PATH; export PATH; "
    ssh = f"""#!/bin/bash
while [ "$1" != -- ]; do options+=("$1"); shift; done; shift
host=$1; shift
exec /usr/bin/ssh "${{options[@]}}" -i {key} {trusting} "$host" '{there}'"$*"
"""
    for path, text in (address, (tmp_path / "ssh", ssh)):
        path.write_text(text)
        path.chmod(0o755)
    client = str(Path("/usr/local/bin/docker") if Path("/usr/local/bin/docker").exists() else "/usr/bin/docker")
    done = subprocess.run(
        [client, "--host", f"ssh://root@127.0.0.1:22022{podman.SOCKET}", "version"],
        env={**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "Podman Engine" in done.stdout


# GPUs, as far as a machine without them can show: Podman's own CDI, with stand-ins for NVIDIA's files


@pytest.fixture
def described_gpus(up: Stack, tmp_path: Path) -> Iterator[None]:
    smi = tmp_path / "nvidia-smi"
    smi.write_text('#!/bin/sh\n[ -c /dev/nvidia0 ] && echo "GPU 0: stand-in" && echo "GPU 1: stand-in"\n')
    smi.chmod(0o755)
    # Like NVIDIA's, a hook gives libraries their names by writing to the container's root.
    hook = tmp_path / "hook"
    hook.write_text(f"""#!{sys.executable}
import json, pathlib, sys
bundle = pathlib.Path(json.load(sys.stdin)["bundle"])
root = bundle / json.loads((bundle / "config.json").read_text())["root"]["path"]
(root / "usr/lib/libcuda.so.1").symlink_to("libcuda.so.580.95.05")
""")
    hook.chmod(0o755)
    edits = {
        "hooks": [{"hookName": "createContainer", "path": str(hook), "args": ["hook"]}],
        "deviceNodes": [{"path": "/dev/nvidia0", "hostPath": "/dev/zero"}],
        "mounts": [
            {"hostPath": str(smi), "containerPath": "/usr/bin/nvidia-smi", "options": ["ro", "nosuid", "nodev", "bind"]}
        ],
    }
    spec = {"cdiVersion": "0.5.0", "kind": "nvidia.com/gpu", "devices": [{"name": "all", "containerEdits": edits}]}
    had_directory = CDI_FILE.parent.exists()
    CDI_FILE.parent.mkdir(exist_ok=True)
    CDI_FILE.write_text(yaml.safe_dump(spec))
    tmp_path.chmod(0o755)
    try:
        yield
    finally:
        CDI_FILE.unlink()
        if not had_directory:
            CDI_FILE.parent.rmdir()


def test_gpus_by_cdi_are_in_the_container_that_runs(described_gpus: None) -> None:
    proof = render.script(
        "containers/podman-with-gpus.sh",
        "gpu/prove-gpu-container.sh",
        engine="podman",
        prefix=f"{PREFIX}-x",
        image=NGINX_IMAGE,
        gpu_count=2,
    )
    assert bash(proof) == "a container sees 2 GPUs"
    container = podman.Container(
        name=f"{PREFIX}-gpus",
        user=f"{VLLM_UID}:{SOCKET_GID}",
        entrypoint=["/bin/sh", "-c", 'echo "$0" "$@"; exec sleep 1000', "first word"],
        command=["a b", "$c"],
        environment={"D": "e f"},
        volumes=[],
        tmpfs={},
        shared_memory_mib=64,
        open_files=1024,
        security_options=podman.security_options(PREFIX, gpus=True),
        log_mib=1,
        stop_seconds=1,
        labels={},
        gpus=True,
    )
    try:
        first = bash(podman.run_script(container, NGINX_IMAGE))
        assert podman_output("logs", container.name) == "first word a b $c"
        assert podman_output("exec", container.name, "readlink", "/usr/lib/libcuda.so.1") == "libcuda.so.580.95.05"
        refused = "touch /usr/lib/x 2>&1 || true"
        assert "Read-only file system" in podman_output("exec", container.name, "sh", "-c", refused)
        seen = podman_output("exec", container.name, "nvidia-smi", "-L").splitlines()
        assert len(seen) == 2
        # A second run leaves the container alone; a changed argument or a stopped container makes it start over.
        assert bash(podman.run_script(container, NGINX_IMAGE)) == first
        other = bash(podman.run_script(replace(container, environment={"D": "g"}), NGINX_IMAGE))
        assert other != first
        podman_output("stop", "--time", "0", container.name)
        assert bash(podman.run_script(replace(container, environment={"D": "g"}), NGINX_IMAGE)) != other
    finally:
        assert bash(podman.remove_script(container.name)) == f"removed container {container.name}"
    assert f"removed container {container.name}" == bash(podman.remove_script(container.name))


# Changes


def test_a_new_key_is_taken_by_a_reload(up: Stack) -> None:
    before = up.identities()
    rehearse_up("--set", "keys={default: [2, 1]}", stack=STACK)
    rotated = deployment(STACK)
    assert up.identities() == before
    assert rotated.key != up.deployed.key
    for key in (rotated.key, up.deployed.key):
        with up.deployed.http(key) as http:
            assert http.get("/v1/models").status_code == 200


def restarted(container: Container, before: tuple[str, str]) -> bool:
    now = identity(container)
    return container.status == "running" and (now[0], now[1] != before[1]) == (before[0], True)


def test_they_come_back_by_themselves(up: Stack) -> None:
    for role in USERS:
        before = identity(up.container(role))
        os.kill(up.container(role).attrs["State"]["Pid"], signal.SIGKILL)
        wait_until(partial(restarted, up.container(role), before), 10)
        # Podman's unit for boots looks for this label.
        name = f"{PREFIX}-{role}"
        assert name in podman_output("ps", "--filter", "restart-policy=always", "--format", "{{.Names}}").splitlines()


def test_another_model_replaces_vllms_container_and_no_other(up: Stack) -> None:
    before = up.identities()
    printed = rehearse_up("--set", "keys={default: [2, 1]}", "--set", "model=rehearsal/tiny-2", stack=STACK)
    after = up.identities()
    assert after["nginx"] == before["nginx"]
    assert after["vllm"][0] != before["vllm"][0]
    changed = {name: outcome for name, outcome in outcomes(printed).items() if outcome != "unchanged"}
    assert changed == {
        "host-check": "updated",
        "weights-check": "updated",
        "vllm-container": "updated",
        "vllm-ready": "replaced",
    }
    assert "rehearsal/tiny-2" in {model.id for model in deployment(STACK).openai().models.list()}


# Taking the stack down


def test_down_leaves_nothing_behind(up: Stack) -> None:
    done = rehearse("down", stack=STACK)
    assert done.returncode == 0, done.stderr
    assert f"image {NGINX_IMAGE} in Podman: podman image rm {NGINX_IMAGE}" in done.stdout
    assert not [name for name in podman_output("ps", "--all", "--format", "{{.Names}}").splitlines() if PREFIX in name]
    assert not [name for name in podman_output("network", "ls", "--format", "{{.Name}}").splitlines() if PREFIX in name]
    tables = subprocess.run(["nft", "list", "tables"], capture_output=True, text=True, check=True).stdout
    assert f"table inet {PREFIX.replace('-', '_')}" not in tables.splitlines()
    assert not DIRECTORY.exists()


def podman_output(*arguments: str) -> str:
    done = subprocess.run(["podman", *arguments], capture_output=True, text=True, check=True)
    return (done.stdout + done.stderr).strip()


def script(name: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [str(ROOT / "scripts" / name), "--stack", STACK, *arguments]
    environment: Mapping[str, Any] = {**os.environ, "TERM": "dumb"}
    return subprocess.run(command, capture_output=True, text=True, timeout=120, env=environment, check=False)


def bash(text: str) -> str:
    """Run a script, which must succeed, and return its output."""
    done = subprocess.run(["bash", "-s"], input=text, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()

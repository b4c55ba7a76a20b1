"""Podman instead of Docker: the same promises, by its options. With a real one: tests/integration/test_podman.py."""

import itertools
import json
import re
import shlex
import socket
from collections.abc import Callable
from pathlib import Path

import pytest

from components import render
from components.containers import podman
from components.machine.gpu_driver import TOOLKIT
from components.settings.stack import Settings
from tests.support.gpu_machine import Machine, succeeded
from tests.support.program import Program
from tests.support.shell import Result, as_root, failed
from tests.unit.conftest import found

ON_PODMAN = {"containerRuntime": "podman", "sshUser": "root"}


@pytest.fixture
def program(program_of: Callable[..., Program]) -> Program:
    return program_of("gpu", **ON_PODMAN)


def words(program: Program) -> list[str]:
    """Return the arguments of `podman run --detach` for vLLM's container."""
    script = program.resources["vllm-container"].script
    return shlex.split(script[script.rindex("\nrun_container ") :])[1:]


def values(arguments: list[str], option: str) -> list[str]:
    return [value for key, value in itertools.pairwise(arguments) if key == option]


# Settings


@pytest.mark.parametrize(
    ("base", "overrides", "key", "cause"),
    [
        ("prod", {}, "containerRuntime", "target gcp sets up Docker"),
        ("gpu", {}, "sshUser", "only root can use Podman's API"),
        ("gpu", {"sshUser": "root", "dcgmImage": f"a/b:1@sha256:{'c' * 64}"}, "dcgmImage", "GPU requests"),
    ],
)
def test_what_it_can_not_do_is_refused(
    base: str, overrides: dict[str, str], key: str, cause: str, settle: Callable[..., Settings]
) -> None:
    (problem,) = found(lambda: settle(base, {"containerRuntime": "podman", **overrides}))
    assert problem.startswith(key)
    assert cause in problem


# vLLM's container


def test_vllms_command_line(program: Program, golden: Callable[[str, str], None]) -> None:
    # An option and its value in one line.
    golden("podman-run.txt", re.sub(r"\n(?!-)", " ", "\n".join(map(shlex.quote, words(program)))) + "\n")


@pytest.mark.parametrize("base", ["gpu", "local"])
def test_vllm_runs_as_docker_would_run_it(base: str, program_of: Callable[..., Program]) -> None:
    docker = program_of(base).resources["vllm-container"].inputs
    program = program_of(base, **ON_PODMAN)
    arguments = words(program)
    image = arguments.index(docker["image"])
    command, arguments = arguments[image + 1 :], arguments[:image]
    assert command == docker["command"]
    assert [json.loads(value) for value in values(arguments, "--entrypoint")] == [docker["entrypoints"]]
    assert values(arguments, "--env") == docker["envs"]
    assert values(arguments, "--user") == [docker["user"]]
    assert values(arguments, "--network") == [docker["networkMode"]]
    assert values(arguments, "--cap-drop") == docker["capabilities"]["drops"]
    assert values(arguments, "--shm-size") == [f"{docker['shmSize']:.0f}m"]
    assert values(arguments, "--tmpfs") == [f"{path}:{options}" for path, options in docker["tmpfs"].items()]
    assert values(arguments, "--volume") == [
        f"{v['hostPath']}:{v['containerPath']}:{'ro' if v.get('readOnly') else 'rw'},z" for v in docker["volumes"]
    ]
    assert {f"{u['name']}={u['soft']:.0f}:{u['hard']:.0f}" for u in docker["ulimits"]} <= {
        *values(arguments, "--ulimit")
    }
    assert values(arguments, "--label") == [f"elastic-vllm.stack={base}"]
    assert "no-new-privileges" in values(arguments, "--security-opt")
    # Read-only, without the writable mounts that Podman would add.
    assert {"--read-only", "--read-only-tmpfs=false"} <= {*arguments}
    assert values(arguments, "--device") == (["nvidia.com/gpu=all"] if "gpus" in docker else [])


def test_every_container_comes_back_after_a_reboot(program: Program) -> None:
    """Podman's unit for boots starts only containers with `always`."""
    assert values(words(program), "--restart") == ["always"]
    assert program.resources["nginx-container"].inputs["restart"] == "always"


def test_vllm_has_its_gpus_or_up_fails(program: Program) -> None:
    assert "GPU_COUNT=2\n" in program.resources["vllm-ready"].script


def test_vllm_is_created_again_only_after_it_was_removed_by_hand(program: Program) -> None:
    assert program.resources["vllm-container"].delete_before_replace


def test_its_arguments_hold_no_secret(program_of: Callable[..., Program]) -> None:
    program = program_of("gpu", **ON_PODMAN, hfToken="hf_canary0123")
    assert "canary" not in " ".join(words(program))


# Nginx's container and network


def test_nginx_is_confined_as_in_docker(program: Program, program_of: Callable[..., Program]) -> None:
    docker, nginx = (each.resources["nginx-container"].inputs for each in (program_of("gpu"), program))
    same = (
        "readOnly",
        "capabilities",
        "user",
        "dns",
        "ports",
        "memory",
        "memorySwap",
        "ulimits",
        "stopSignal",
        "image",
    )
    assert {key: nginx[key] for key in same} == {key: docker[key] for key in same}
    assert nginx["tmpfs"]["/tmp"] == docker["tmpfs"]["/tmp"]
    assert "no-new-privileges" in nginx["securityOpts"]
    assert "max-size" in nginx["logOpts"]


def test_mounts_are_labelled_for_selinux_in_podman_only(program: Program, program_of: Callable[..., Program]) -> None:
    for each, label in ((program, "z"), (program_of("gpu"), None)):
        volumes = each.resources["nginx-container"].inputs["volumes"]
        assert {volume.get("selinuxRelabel") for volume in volumes} == {label}


def test_another_machine_behind_the_address_gets_another_nginx(program: Program) -> None:
    trigger = program.resources["nginx-container"].replacement_trigger
    assert trigger.startswith(program.machine)


def test_the_containers_of_a_stack_share_a_level_of_selinux_and_no_others(program_of: Callable[..., Program]) -> None:
    levels = set()
    for stack in ("local", "test"):
        program = program_of(stack, **ON_PODMAN)
        nginx = program.resources["nginx-container"].inputs["securityOpts"]
        assert values(words(program), "--security-opt") == nginx
        (level,) = (option for option in nginx if option.startswith("label=level:"))
        low, high = re.fullmatch(r"label=level:s0:c(\d+),c(\d+)", level).groups()  # type: ignore[union-attr]
        assert int(low) < int(high) < 1024
        levels.add(level)
    assert len(levels) == 2


# Access


def test_its_api_is_asked_by_its_socket(program: Program) -> None:
    (provider,) = program.of_type("pulumi:providers:docker")
    assert provider.inputs["host"] == "ssh://llm.example:22/run/podman/podman.sock"


def test_no_script_asks_docker(program: Program) -> None:
    engines = [line for c in program.commands for line in c.script.splitlines() if line.startswith("ENGINE=")]
    assert {*engines} == {"ENGINE=podman"}
    asking = {c.name for c in program.commands if '"$ENGINE"' in c.script}
    informed = {c.name for c in program.commands if "ENGINE=podman\n" in c.script}
    assert asking <= informed


# Scripts on the server, with stand-ins


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    machine = Machine(tmp_path)
    for tool in ("id", "sleep", "tr"):
        (machine.bin / tool).symlink_to(f"/usr/bin/{tool}")
    for tool in ("podman", "docker", "curl", "nft", "sleep"):
        (machine.bin / tool).unlink(missing_ok=True)
    machine.stand_in("sleep")
    return machine


def install(machine: Machine, *, systemd: bool = True, gpus: bool = False) -> Result:
    names = {"engine": "podman", "login": "root", "socket": podman.SOCKET, **(TOOLKIT if gpus else {})}
    script = render.script("containers/install-runtime.sh", **names)
    # This machine may have no systemd: the stand-in's directory exists.
    return machine.run(script.replace("/run/systemd/system", str(machine.root) if systemd else "/nonexistent"))


def test_podman_is_installed_with_the_name_that_its_api_is_asked_by(machine: Machine) -> None:
    machine.apt()
    for name in ("podman", "docker", "curl", "nft"):
        machine.stand_in(name, "echo 4.9.3", directory="new")
    machine.stand_in("systemctl", '[ "$1" != is-enabled ]')
    assert succeeded(install(machine), "podman 4.9.3 works")
    wanted = ["podman", "iptables", "podman-docker", "curl", "ca-certificates", "nftables"]
    assert machine.installed()[-6:] == wanted
    assert [c for c in machine.calls("systemctl") if "is-enabled" not in c] == [
        "systemctl enable --quiet podman.socket",
        "systemctl enable --quiet podman-restart.service",
    ]


def test_docker_that_is_there_is_not_removed_for_podmans_name(machine: Machine) -> None:
    machine.apt()
    for name in ("docker", "curl", "nft"):
        machine.stand_in(name, "echo 28.1")
    machine.stand_in("podman", "echo 4.9.3", directory="new")
    assert succeeded(install(machine))
    assert "podman-docker" not in machine.installed()


def test_a_podman_that_works_is_left_alone_but_comes_up_with_the_machine(machine: Machine) -> None:
    for name in ("podman", "docker", "curl", "nft"):
        machine.stand_in(name, "echo 5.4.0")
    assert succeeded(install(machine), "podman 5.4.0 works")
    assert [c for c in machine.calls("systemctl") if "is-enabled" not in c] == []


@pytest.mark.parametrize("there", [False, True])
def test_for_gpus_runc_is_installed_where_it_can_be_and_is_not_there(machine: Machine, there: bool) -> None:
    machine.apt()
    for name in ("podman", "docker", "curl", "nft", *(["runc"] if there else [])):
        machine.stand_in(name, "echo 4.9.3")
    machine.stand_in("systemctl")
    assert succeeded(install(machine, gpus=True))
    assert (machine.installed()[-1:] == ["runc"]) == (not there)


def test_elsewhere_a_newer_crun_may_do_without_runc(machine: Machine) -> None:
    for name in ("podman", "docker", "curl", "nft"):
        machine.stand_in(name, "echo 5.8.0")
    assert succeeded(install(machine, gpus=True))


def test_where_nothing_can_be_installed_podman_must_be_there(machine: Machine) -> None:
    assert failed(install(machine), "missing here: podman iptables podman-docker", "only Debian and Ubuntu", "by hand")


def check_host(machine: Machine, port: int = 1) -> Result:
    machine.stand_in("uname", "echo Linux")
    sizes = {"port": port, "weights_gb": 1, "images_gb": 1}
    names = {"engine": "podman", "login": "root", "prefix": "elastic-vllm-x", "weights": "/x", "weights_on_host": "no"}
    no_bundle = {"bundled_images_mb": "", "proxied_images": "", "store": "/x", "ipv6": "no"}
    return machine.run(
        render.script(
            "weights/check-weights.sh",
            "containers/check-engine.sh",
            "host/check-host.sh",
            **sizes,
            **names,
            **no_bundle,
            images="a",
        )
    )


@as_root
def test_a_server_that_podman_is_missing_on_is_refused_where_it_can_not_be_installed(machine: Machine) -> None:
    result = check_host(machine)
    assert failed(result, "podman is not on the server (containerRuntime)", "only Debian and Ubuntu", "by hand")


@as_root
def test_a_stack_that_docker_still_has_is_to_be_destroyed_first(machine: Machine) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        machine.stand_in("docker", f'[ "$1" != ps ] || echo "elastic-vllm-x-nginx 0.0.0.0:{port}->8443/tcp"')
        machine.stand_in("podman")
        result = check_host(machine, port)
        assert failed(result, "this stack's own Nginx, in docker (containerRuntime)", "destroy the stack first")


def test_without_systemd_its_service_is_for_others_to_start(machine: Machine) -> None:
    for name in ("podman", "docker", "nft"):
        machine.stand_in(name)
    machine.stand_in("curl", "exit 7")
    assert failed(install(machine, systemd=False), "does not answer", "podman system service")


def test_the_proof_of_gpus_asks_for_them_by_cdi(machine: Machine) -> None:
    machine.stand_in("podman", 'case "$*" in *nvidia.com/gpu=all*) echo "GPU 0: a"; echo "GPU 1: b" ;; esac')
    assert succeeded(machine.prove("podman"), "a container sees 2 GPUs")


def test_containers_with_gpus_run_by_runc_where_it_is(machine: Machine) -> None:
    machine.stand_in("podman", 'echo "GPU 0: a"; echo "GPU 1: b"')
    machine.stand_in("runc")
    machine.prove("podman")
    assert any(call.startswith("podman --runtime runc run --rm ") for call in machine.calls("podman"))


def test_gpus_that_podman_cannot_give_for_want_of_runc(machine: Machine) -> None:
    machine.stand_in("podman", '[ "$1" = rm ] || { echo "crun: error executing hook"; exit 126; }')
    result = machine.prove("podman")
    assert failed(
        result, "can't use the GPUs: crun: error executing hook", "install runc, unless crun is 1.26 or newer"
    )


def test_nvidias_toolkit_leaves_docker_alone(machine: Machine) -> None:
    machine.stand_in("nvidia-ctk", "echo 'NVIDIA Container Toolkit CLI version 1.19.1'")
    machine.stand_in("docker")
    assert succeeded(machine.install_toolkit("podman"), "installed for podman")
    assert machine.calls("docker", "nvidia-ctk", "systemctl") == ["nvidia-ctk --version"] * 2


def test_gpus_are_described_with_the_driver_that_is_there(program: Program, machine: Machine) -> None:
    script = program.resources["gpus-install"].script
    assert script.index("nvidia-smi -L") < script.index("nvidia-ctk cdi generate")
    assert "gpus-install" in program.waits_for("gpus-proof")
    machine.stand_in("nvidia-ctk", "echo 'no driver' >&2; exit 1")
    assert failed(machine.run(render.script("gpu/configure-cdi.sh")), "can't be described to Podman: no driver")

"""GPU health, the proof in a container and NVIDIA's container toolkit, with stand-ins for their programs."""

from pathlib import Path

import pytest

from components.machine.gpu_driver import TOOLKIT
from tests.support.gpu_machine import Machine, succeeded
from tests.support.shell import failed


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    return Machine(tmp_path)


def test_healthy_gpus_pass_in_one_line(machine: Machine) -> None:
    machine.nvidia_smi()
    result = machine.check()
    assert succeeded(result)
    assert result.stdout == "healthy: 2 x NVIDIA A100-SXM4-80GB, 81920 MiB, driver 580.95.05, 24 NVLinks up\n"


def test_gpus_without_nvlink_or_error_correction_pass(machine: Machine) -> None:
    machine.nvidia_smi(name="NVIDIA L4", ecc="[N/A]", recovery="[N/A]", links="\\t Link 0: <inactive>\\n")
    assert succeeded(machine.check(), "healthy: 2 x NVIDIA L4")


def test_a_single_gpu_needs_no_nvlink(machine: Machine) -> None:
    machine.nvidia_smi(count="1", links="\\t Link 0: <inactive>\\n")
    assert succeeded(machine.check(1), "healthy: 1 x")


@pytest.mark.parametrize(
    ("gpu", "words"),
    [
        ({"count": "1"}, ["nvidia-smi reads 1 GPUs, 2 are needed (gpuCount)"]),
        ({"ecc": "3"}, ["GPU 0 (NVIDIA A100-SXM4-80GB) has uncorrected memory errors", ": 3"]),
        ({"ecc": "[Unknown Error]"}, ["uncorrected memory errors", "[Unknown Error]"]),
        ({"recovery": "Reset"}, ["GPU 0 asks for recovery: Reset"]),
        ({"failure": "Yes"}, ["the memory of GPU 0000:00:00.0 can't be repaired"]),
        ({"failure": "1"}, ["the memory of GPU 0000:00:00.0 can't be repaired"]),
        ({"links": "\\t Link 0: 25 GB/s\\n\\t Link 1: <inactive>\\n"}, ["NVLink", "2 links active, 2 inactive"]),
        ({"links": "NVML: Unable to retrieve NVLink information as all links are inActive\\n"}, ["0 links active"]),
        ({"links": ""}, ["0 links active, 0 inactive"]),
    ],
)
def test_a_bad_gpu_stops(machine: Machine, gpu: dict[str, str], words: list[str]) -> None:
    machine.nvidia_smi(**gpu)
    assert failed(machine.check(), *words, "replace the machine")


def test_gpus_that_cannot_be_read_stop(machine: Machine) -> None:
    machine.stand_in(
        "nvidia-smi", "echo; echo 'Unable to determine the device handle for GPU0: Unknown Error'; exit 15"
    )
    assert failed(machine.check(), "nvidia-smi can't read the GPUs: Unable to determine the device handle")


def xid(number: int) -> str:
    return f"NVRM: Xid (PCI:0000:00:05): {number}, pid=1896, name=python3, something happened"


@pytest.mark.parametrize("number", [48, 64, 74, 79, 94, 95])
def test_a_fatal_error_in_the_kernels_log_stops(machine: Machine, number: int) -> None:
    machine.nvidia_smi()
    machine.stand_in("journalctl", f"echo '{xid(31)}'; echo '{xid(number)}'")
    assert failed(machine.check(), "a GPU failed since the machine started", xid(number))


@pytest.mark.parametrize("number", [13, 31, 63, 4, 8])
def test_another_error_in_the_kernels_log_is_a_warning(machine: Machine, number: int) -> None:
    machine.nvidia_smi()
    machine.stand_in("journalctl", "exit 1")
    machine.stand_in("dmesg", f"echo '[ 48.79] {xid(number)}'")
    assert succeeded(machine.check(), f"warning: {xid(number)}\n", "healthy: 2 x")


def test_a_kernel_log_out_of_reach_and_a_pending_repair_are_warnings(machine: Machine) -> None:
    machine.nvidia_smi(pending="Yes")
    machine.stand_in("journalctl", "exit 1")
    assert succeeded(
        machine.check(), "warning: the kernel's log can't be read", "repairs its memory at the next reboot"
    )


# prove-gpu-container.sh


def test_the_container_that_proves_is_confined(machine: Machine) -> None:
    machine.stand_in("docker", "printf 'GPU 0: A (UUID: GPU-a)\\nGPU 1: A (UUID: GPU-b)\\n'")
    assert succeeded(machine.prove(), "a container sees 2 GPUs")
    run = machine.calls("docker")[-2]
    for option in ("--rm", "--gpus all", "--network none", "--read-only", "--cap-drop ALL", "no-new-privileges"):
        assert option in run
    assert run.endswith("--entrypoint nvidia-smi vllm:1 -L")


@pytest.mark.parametrize(
    ("docker", "cause"),
    [
        ("echo 'GPU 0: A (UUID: GPU-a)'", "a container sees 1 GPUs, 2 are needed (gpuCount)"),
        ("echo 'No devices found.'", "a container sees 0 GPUs"),
        ("echo 'could not select device driver'; exit 125", "a container can't use the GPUs: could not select"),
    ],
)
def test_a_container_without_the_gpus_stops(machine: Machine, docker: str, cause: str) -> None:
    machine.stand_in("docker", docker)
    assert failed(machine.prove(), cause)


def test_an_image_that_cannot_start_vllm_stops(machine: Machine) -> None:
    """The GPUs are seen, and a real shell finds no Python, one without vLLM, or one beside the command `vllm`."""
    image = machine.root / "image"
    image.mkdir()
    seen = "printf 'GPU 0: A\\nGPU 1: A\\n'"
    own = f'while [ "$1" != -c ]; do shift; done; PATH={image} exec /bin/sh -c "$2"'
    machine.stand_in("docker", f'case "$*" in *nvidia-smi*) {seen} ;; rm*) ;; *) {own} ;; esac')
    for program, starts in (("", False), ("python3", False), ("vllm", True)):
        if program:
            (image / program).write_text("#!/bin/sh\nexit 1\n")
            (image / program).chmod(0o755)
        result = machine.prove()
        if starts:
            assert succeeded(result, "a container sees 2 GPUs")
        else:
            assert failed(result, "the image vllm:1 has no python3 with vLLM on its PATH (vllmImage)")


# install-nvidia-toolkit.sh


def toolkit(machine: Machine, version: str, *runtimes: str) -> None:
    machine.stand_in("nvidia-ctk", f"echo 'NVIDIA Container Toolkit CLI version {version}'; echo 'commit: 0.0.0a'")
    machine.stand_in("docker", f"printf '%s\\n' {' '.join(runtimes)}")


def test_a_toolkit_that_docker_knows_is_left_alone(machine: Machine) -> None:
    toolkit(machine, "1.17.8", "nvidia", "runc")
    assert succeeded(machine.install_toolkit(), "toolkit 1.17.8 is installed")
    assert all("info" in call or "version" in call for call in machine.calls())


def test_a_toolkit_that_docker_does_not_know_is_configured(machine: Machine) -> None:
    toolkit(machine, "1.17.8", "runc")
    machine.install_toolkit()  # restarts Docker or, without systemd, asks for a restart
    assert "nvidia-ctk runtime configure --runtime=docker" in machine.calls("nvidia-ctk")


@pytest.mark.parametrize("version", ["1.17.7", "1.9.0", "0.99.1"])
def test_a_toolkit_with_the_known_vulnerability_is_not_accepted(machine: Machine, version: str) -> None:
    toolkit(machine, version, "nvidia", "runc")
    assert failed(machine.install_toolkit(), "toolkit above 1.17.7 is missing", "only on Debian and Ubuntu")


def repository(machine: Machine, *fingerprints: str) -> None:
    machine.apt()
    machine.stand_in("curl")
    lines = "\\n".join(
        f"pub:-:4096:1\\nfpr:::::::::{primary}:\\nsub:-:4096\\nfpr:::::::::0:" for primary in fingerprints
    )
    machine.stand_in("gpg", f"printf '{lines}\\n'")


KNOWN = TOOLKIT["toolkit_fingerprint"]


@pytest.mark.parametrize("fingerprints", [(KNOWN[::-1],), (KNOWN, KNOWN[::-1]), (KNOWN[::-1], KNOWN), ()])
def test_a_key_other_than_the_known_one_is_refused(machine: Machine, fingerprints: tuple[str, ...]) -> None:
    repository(machine, *fingerprints)
    assert failed(machine.install_toolkit(), "not the known one", *fingerprints, KNOWN)
    assert machine.calls("apt-get") == []


def test_a_toolkit_repository_out_of_reach_is_reported(machine: Machine) -> None:
    repository(machine, KNOWN)
    machine.stand_in("curl", "exit 6")
    assert failed(machine.install_toolkit(), f"can't be reached: {TOOLKIT['toolkit_key']}")
    assert machine.calls("apt-get") == []

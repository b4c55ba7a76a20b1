"""The driver's and the kernel's scripts, with stand-ins. With real apt: tests/integration/test_gpu_install.py."""

from pathlib import Path

import pytest

from tests.support.gpu_machine import KERNEL, MODULE, Machine, succeeded
from tests.support.shell import failed


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    return Machine(tmp_path)


def test_a_driver_that_works_is_left_alone(machine: Machine) -> None:
    machine.nvidia_smi()
    assert succeeded(machine.install_driver(), "driver 580.95.05 is there")
    assert machine.calls() == []


def test_a_newer_driver_is_left_alone(machine: Machine) -> None:
    machine.nvidia_smi(driver="595.71.05")
    assert succeeded(machine.install_driver())
    assert machine.calls() == []


def test_more_gpus_than_needed_are_fine(machine: Machine) -> None:
    machine.nvidia_smi(count="8")
    assert succeeded(machine.install_driver())


def test_fewer_gpus_than_needed_are_refused(machine: Machine) -> None:
    machine.nvidia_smi(count="1")
    assert failed(machine.install_driver(), "the driver shows 1 GPUs, 2 are needed (gpuCount)")


def test_a_machine_without_gpus_is_refused_before_anything_is_installed(machine: Machine) -> None:
    machine.pci(0)
    machine.apt()
    assert failed(machine.install_driver(), "no NVIDIA GPU on this machine's PCI bus")
    assert machine.calls() == []


def test_a_driver_that_sees_no_gpus_is_no_driver(machine: Machine) -> None:
    machine.stand_in("nvidia-smi", "echo 'No devices were found'")
    machine.pci(0)
    assert failed(machine.install_driver(), "no NVIDIA GPU on this machine's PCI bus")


def test_a_machine_with_too_few_gpus_is_refused_before_anything_is_installed(machine: Machine) -> None:
    machine.pci(1)
    machine.apt()
    assert failed(machine.install_driver(), "this machine has 1 NVIDIA GPUs, 2 are needed (gpuCount)")
    assert machine.calls() == []


def test_ubuntus_signed_driver_is_installed_for_the_running_kernel_and_its_updates(machine: Machine) -> None:
    machine.nvidia_smi(directory="new")
    machine.apt()
    assert succeeded(machine.install_driver(), "driver 580.95.05 installed")
    assert machine.installed() == [
        MODULE,
        "linux-modules-nvidia-580-server-open-gcp",
        "nvidia-headless-no-dkms-580-server-open",
        "nvidia-utils-580-server",
    ]
    assert machine.calls("modprobe") == ["modprobe -a nvidia nvidia_uvm"]


def test_a_kernel_whose_updates_bring_no_module_still_gets_its_own(machine: Machine) -> None:
    machine.nvidia_smi(directory="new")
    machine.apt(offers=f'*"{MODULE} nvidia"*')
    assert succeeded(machine.install_driver(), "driver 580.95.05 installed")
    assert machine.installed()[:2] == [MODULE, "nvidia-headless-no-dkms-580-server-open"]


def test_an_old_driver_that_nobody_uses_makes_way_for_a_newer_one(machine: Machine) -> None:
    machine.nvidia_smi(driver="570.211.01")
    machine.nvidia_smi(directory="new")
    machine.apt()
    loaded(machine, "570.211.01")
    assert succeeded(machine.install_driver(), "driver 580.95.05 installed")
    assert machine.calls("modprobe") == [
        "modprobe -r nvidia_uvm nvidia_drm nvidia_modeset nvidia",
        "modprobe -a nvidia nvidia_uvm",
    ]


def test_an_old_driver_on_an_existing_server_is_left_to_its_owner(machine: Machine) -> None:
    machine.nvidia_smi(driver="535.10.1")
    result = machine.install_driver(may_replace=False)
    assert failed(result, "driver 535.10.1 is too old", "580 or newer")
    assert not machine.calls()


def test_an_old_driver_in_use_asks_for_a_reboot(machine: Machine) -> None:
    machine.nvidia_smi(driver="570.211.01")
    machine.apt()
    loaded(machine, "570.211.01")
    machine.stand_in("modprobe", '[ "$1" != -r ]')
    assert failed(
        machine.install_driver(),
        "a reboot is needed: driver 570.211.01 is loaded and in use, 580.95.05 is installed",
        "fix: reboot the machine",
    )


def loaded(machine: Machine, version: str) -> None:
    """Load a module of this version, while 580.95.05 is on disk."""
    module = machine.root / "sys/module/nvidia"
    module.mkdir(parents=True)
    (module / "version").write_text(f"{version}\n")
    machine.stand_in("modinfo", "echo 580.95.05")


def test_an_updated_driver_whose_module_is_loaded_still_is_not_unloaded(machine: Machine) -> None:
    machine.nvidia_smi(directory="new")
    machine.apt()
    loaded(machine, "580.95.05")
    assert succeeded(machine.install_driver())
    assert machine.calls("modprobe") == ["modprobe -a nvidia nvidia_uvm"]


def test_a_module_that_cannot_be_loaded_is_reported(machine: Machine) -> None:
    machine.apt()
    machine.stand_in(
        "modprobe", "echo 'modprobe: ERROR: could not insert nvidia: Key was rejected by service' >&2; exit 1"
    )
    assert failed(machine.install_driver(), KERNEL, "Key was rejected by service", "Secure Boot")


def test_a_driver_that_does_not_work_after_all_is_reported(machine: Machine) -> None:
    machine.apt()
    machine.stand_in("nvidia-smi", "echo; echo 'NVIDIA-SMI has failed'; exit 9", directory="new")
    assert failed(machine.install_driver(), "does not work: NVIDIA-SMI has failed", "journalctl -k")


def test_another_distribution_must_bring_its_own_driver(machine: Machine) -> None:
    assert failed(machine.install_driver(), "only Ubuntu's can be installed", "driver 580 or newer by hand")
    machine.apt(offers="nothing")
    assert failed(machine.install_driver(), f"{MODULE} can't be installed here", "driver 580 or newer by hand")


def test_a_package_repository_out_of_reach_is_reported(machine: Machine) -> None:
    machine.apt(offers="nothing", update=100)
    assert failed(machine.install_driver(), "a package repository can't be reached")


def test_another_repository_out_of_reach_does_not_matter(machine: Machine) -> None:
    machine.nvidia_smi(directory="new")
    machine.apt(update=100)
    assert succeeded(machine.install_driver(), "driver 580.95.05 installed")


def test_the_fabric_manager_is_for_machines_that_show_nvswitches(machine: Machine) -> None:
    machine.nvidia_smi()
    machine.apt()
    machine.pci(2, switches=6)
    machine.stand_in("systemctl", '[ "$1" != is-active ]')
    assert succeeded(machine.install_driver())
    assert machine.installed() == ["nvidia-fabricmanager-580"]
    assert machine.calls("systemctl")[-1] == "systemctl enable --quiet --now nvidia-fabricmanager"


def test_a_fabric_manager_that_does_not_run_is_reported(machine: Machine) -> None:
    machine.nvidia_smi()
    machine.pci(2, switches=6)
    machine.stand_in("nv-fabricmanager")
    machine.stand_in("systemctl", "exit 1")
    assert failed(machine.install_driver(), "fabric manager does not run", "version 580.95.05")


# prepare-kernel.sh


def test_a_kernel_with_a_driver_stays(machine: Machine) -> None:
    machine.nvidia_smi()
    assert succeeded(machine.prepare_kernel(), f"driver 580.95.05 works with kernel {KERNEL}")
    assert machine.calls() == []


def test_a_kernel_that_a_driver_is_offered_for_stays(machine: Machine) -> None:
    machine.apt()
    assert succeeded(machine.prepare_kernel(), f"driver 580 is offered for kernel {KERNEL}")
    assert machine.calls("systemctl", "systemd-run") == []
    assert machine.installed() == []


NEWEST = "*' linux-image-gcp linux-modules-nvidia-580-server-open-gcp '*"


def test_a_kernel_without_a_driver_is_left_by_a_reboot_that_no_later_command_can_meet(machine: Machine) -> None:
    machine.apt(offers=NEWEST)
    assert succeeded(machine.prepare_kernel(), f"kernel {KERNEL} has no driver: rebooting into the newest")
    refused, reboot = machine.calls("systemctl", "systemd-run")
    assert refused == "systemctl stop ssh.socket ssh.service"
    assert reboot.startswith("systemd-run ")
    assert reboot.endswith(" systemctl reboot")
    assert machine.installed()[:2] == ["linux-image-gcp", "linux-modules-nvidia-580-server-open-gcp"]


def test_a_kernel_is_left_once_only(machine: Machine) -> None:
    machine.apt(offers=NEWEST)
    assert machine.prepare_kernel().returncode == 0
    calls = machine.calls("systemctl", "systemd-run")
    assert failed(machine.prepare_kernel(), f"kernel {KERNEL} runs again after a reboot", "boot the newest kernel")
    assert machine.calls("systemctl", "systemd-run") == calls


def test_a_driver_that_works_ends_the_count_of_reboots(machine: Machine) -> None:
    machine.apt(offers=NEWEST)
    assert machine.prepare_kernel().returncode == 0
    machine.nvidia_smi()
    assert machine.prepare_kernel().returncode == 0
    assert not machine.marker.exists()


def test_connections_are_taken_again_where_the_reboot_fails(machine: Machine) -> None:
    machine.apt(offers=NEWEST)
    machine.stand_in("systemd-run", "exit 1")
    assert failed(machine.prepare_kernel(), "the reboot into the newest kernel could not be started")
    assert machine.calls("systemctl")[-1] == "systemctl start ssh.socket ssh.service"


def test_a_kernel_that_follows_another_metapackage_is_updated_by_that(machine: Machine) -> None:
    machine.stand_in("uname", "echo 6.8.0-60-generic")
    lines = "'installed linux-image-6.8.0-60-generic' 'not-installed linux-image-generic'"
    machine.stand_in("dpkg-query", f"printf '%s\\n' {lines} 'installed linux-image-generic-hwe-24.04'")
    machine.apt(offers="*open-generic-hwe-24.04*")
    assert succeeded(machine.prepare_kernel(), "rebooting")
    assert machine.installed()[0] == "linux-image-generic-hwe-24.04"


@pytest.mark.parametrize(("update", "cause"), [(0, "can't be installed here"), (100, "can't be reached")])
def test_a_machine_without_any_offer_is_not_rebooted(machine: Machine, update: int, cause: str) -> None:
    machine.apt(offers="nothing", update=update)
    assert failed(machine.prepare_kernel(), cause)
    assert machine.calls("systemctl", "systemd-run") == []

"""The VM in Google Cloud: its provisioning and boot, and the disk for weights that outlives it."""

from collections.abc import Callable
from typing import Any

import pytest
import yaml

from components.machine.gpu_vm import FLEX_START_WAIT, user_data
from tests.support.google_rules import DISK, content, metadata
from tests.support.program import HOST_KEY, VM_IMAGE, Program, changes, ssh_key_of
from tests.support.registered import INSTANCE, Registered

Programs = Callable[..., Program]
Values = Callable[..., dict[str, str]]


@pytest.fixture
def prod(program_of: Programs) -> Program:
    return program_of("prod")


def instance_of(program: Program) -> Registered:
    (instance,) = program.of_type(INSTANCE)
    return instance


# The VM


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        ({}, {"provisioningModel": "STANDARD", "automaticRestart": True}),
        (
            {"provisioningModel": "SPOT"},
            {
                "provisioningModel": "SPOT",
                "preemptible": True,
                "automaticRestart": False,
                "instanceTerminationAction": "DELETE",
            },
        ),
        (
            {"provisioningModel": "FLEX_START"},
            {
                "provisioningModel": "FLEX_START",
                "automaticRestart": False,
                "instanceTerminationAction": "DELETE",
                "maxRunDuration": {"seconds": 168 * 3600},
            },
        ),
        (
            {"provisioningModel": "RESERVATION_BOUND", "reservation": "first"},
            {
                "provisioningModel": "RESERVATION_BOUND",
                "automaticRestart": True,
                "instanceTerminationAction": "DELETE",
            },
        ),
        ({"reservation": "first"}, {"provisioningModel": "STANDARD", "automaticRestart": True}),
    ],
)
def test_each_provisioning_model_has_its_scheduling(
    overrides: dict[str, Any], expected: dict[str, Any], program_of: Programs
) -> None:
    inputs = instance_of(program_of("prod", **overrides)).inputs
    assert inputs["scheduling"] == {"onHostMaintenance": "TERMINATE", **expected}
    assert ("reservationAffinity" in inputs) == ("reservation" in overrides)


def test_a_reservation_is_the_named_one(program_of: Programs) -> None:
    program = program_of("prod", reservation="first")
    assert instance_of(program).inputs["reservationAffinity"] == {
        "type": "SPECIFIC_RESERVATION",
        "specificReservation": {"key": "compute.googleapis.com/reservation-name", "values": ["first"]},
    }


def test_flex_start_is_waited_for(program_of: Programs, prod: Program) -> None:
    program = program_of("prod", provisioningModel="FLEX_START")
    assert instance_of(program).create_timeout == FLEX_START_WAIT
    assert not instance_of(prod).create_timeout


def test_the_vm_boots_the_pinned_image(on_google: Program) -> None:
    assert instance_of(on_google).inputs["bootDisk"]["initializeParams"]["image"] == VM_IMAGE


@pytest.mark.parametrize(
    ("overrides", "kind"),
    [
        ({}, "pd-balanced"),
        ({"machineType": "a3-ultragpu-8g", "zone": "us-central1-b"}, "hyperdisk-balanced"),
    ],
)
def test_disks_are_of_a_kind_that_the_machine_type_takes(
    overrides: dict[str, Any], kind: str, program_of: Programs
) -> None:
    program = program_of("prod", **overrides)
    (disk,) = program.of_type(DISK)
    assert {disk.inputs["type"], instance_of(program).inputs["bootDisk"]["initializeParams"]["type"]} == {kind}


def test_labels_are_on_the_vm_and_both_disks(program_of: Programs) -> None:
    program = program_of("prod", labels={"team": "search", "cost": ""})
    (disk,), instance = program.of_type(DISK), instance_of(program)
    labels = [disk.inputs["labels"], instance.inputs["labels"]]
    labels.append(instance.inputs["bootDisk"]["initializeParams"]["labels"])
    assert labels == [{"team": "search", "cost": ""}] * 3


def test_a_vm_has_no_service_account_or_the_given_one(program_of: Programs, prod: Program) -> None:
    assert "serviceAccount" not in instance_of(prod).inputs
    email = "vm@acme-search.iam.gserviceaccount.com"
    assert instance_of(program_of("prod", serviceAccount=email)).inputs["serviceAccount"]["email"] == email


@pytest.mark.parametrize("protected", [True, False])
def test_deletion_protection_is_as_set(protected: bool, program_of: Programs) -> None:
    program = program_of("prod", deletionProtection=protected)
    assert bool(instance_of(program).inputs.get("deletionProtection")) is protected


def test_gpus_are_those_of_the_machine_type(program_of: Programs) -> None:
    program = program_of("prod", machineType="a2-ultragpu-4g")
    command = program.resources["vllm-container"].inputs["command"]
    assert command[command.index("--tensor-parallel-size") + 1] == "4"
    assert "GPU_COUNT=4\n" in program.resources["gpus-install"].script


def test_commands_wait_for_a_vm_that_boots_or_reboots(on_google: Program) -> None:
    assert all(content(c.inputs["connection"])["dialErrorLimit"] >= 60 for c in on_google.commands)


# The first boot


def test_cloud_config_is_as_reviewed(golden: Callable[[str, str], None]) -> None:
    private_key, public_key = ssh_key_of("vm-host-key")
    golden("cloud-config.yaml", user_data("elastic-vllm", HOST_KEY, private_key, public_key))


def test_cloud_init_sets_the_host_key_that_is_trusted(on_google: Program) -> None:
    text = content(metadata(instance_of(on_google))["user-data"])
    assert text.startswith("#cloud-config\n")
    config = yaml.safe_load(text)
    private_key, public_key = ssh_key_of("vm-host-key")
    assert config["ssh_keys"] == {"ed25519_private": private_key, "ed25519_public": public_key}
    assert config["ssh_deletekeys"] is True
    assert {content(c.inputs["connection"])["hostKey"] for c in on_google.commands} == {public_key}


def test_cloud_init_lets_in_the_user_with_the_stacks_key_only(prod: Program, values_of: Values) -> None:
    config = yaml.safe_load(content(metadata(instance_of(prod))["user-data"]))
    (user,) = config["users"]
    with open(values_of("prod")["sshPrivateKeyPath"] + ".pub") as file:  # noqa: PTH123 - a text from settings
        public = " ".join(file.read().split()[:2])
    assert (user["name"], user["ssh_authorized_keys"]) == ("elastic-vllm", [public])
    assert (config["disable_root"], config["ssh_pwauth"], user["lock_passwd"]) == (True, False, True)


# The disk for weights


@pytest.mark.parametrize("keep", [True, False])
def test_the_disk_outlives_the_stack_if_it_is_to(keep: bool, program_of: Programs) -> None:
    (disk,) = program_of("prod", keepWeightsDisk=keep).of_type(DISK)
    assert disk.retain_on_delete is keep


def test_the_vm_mounts_the_disk_where_the_weights_are(on_google: Program) -> None:
    (attached,) = instance_of(on_google).inputs["attachedDisks"]
    (disk,) = on_google.of_type(DISK)
    assert attached["source"] == disk.inputs["name"]
    script = on_google.resources["vm-booted"].script
    assert f"DEVICE=/dev/disk/by-id/google-{attached['deviceName']}\n" in script
    assert "DIRECTORY=/var/lib/elastic-vllm/models\n" in script
    assert "vm-booted" in on_google.waits_for("weights-download")


@pytest.mark.parametrize("overrides", [{"machineType": "a2-ultragpu-4g"}, {"parked": True}])
def test_the_disk_survives_another_vm_and_parking(
    overrides: dict[str, Any], prod: Program, program_of: Programs
) -> None:
    now = changes(prod, program_of("prod", **overrides))
    assert "vm-instance" in now["replaced"] + now["deleted"]
    touched = {name for names in now.values() for name in names}
    assert not {"vm-weights", "network-address", "vm-host-key"} & touched


def test_a_disk_that_exists_is_used_and_not_managed(program_of: Programs) -> None:
    program = program_of("prod", weightsDisk="kept")
    assert not program.of_type(DISK)
    assert [disk["source"] for disk in instance_of(program).inputs["attachedDisks"]] == ["kept"]


def test_the_file_system_grows_with_the_disk(prod: Program, program_of: Programs) -> None:
    assert {"vm-booted", "vm-weights"} <= set(changes(prod, program_of("prod", weightsDiskGb=400))["updated"])

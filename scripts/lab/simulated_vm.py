"""Simulated VM in Google Cloud: this machine, behind a dedicated sshd at a dedicated address.

The simulation reads cloud-init's part from the VM's user-data: the host's key and the users' keys. Without a GPU,
stand-ins replace nvidia-smi and NVIDIA's container toolkit in sessions of this sshd. Everything that a stack installs
on the "VM" disappears with it, like a boot disk; disks that outlive a VM are files with their own file system.
"""

import json
import shutil
import socket
import subprocess
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import docker
import requests
import yaml

from scripts.lab import RehearsalError, processes
from scripts.lab.emulator.state import ROOT, stack_directory
from scripts.lab.machine import start_sshd
from scripts.lib.ports import LOOPBACK
from scripts.lib.private_files import write_private

STAND_INS = Path(__file__).parent / "stand_ins"
DISKS = Path("/var/lib/elastic-vllm/disks")
BY_ID = Path("/dev/disk/by-id")
# A sparse file, whatever the settings say: weights of a rehearsal take some megabytes.
DISK_BYTES = 2 * 2**30
SSH_PORT = 22


@dataclass(frozen=True, kw_only=True)
class Vm:
    """An existing simulated VM."""

    instance_id: str
    address: str
    """Address for clients: this machine has it while the rehearsal runs."""
    ssh_port: int
    """Port of its sshd on loopback."""
    disk: str
    device: str


def directory(stack: str) -> Path:
    """Return the directory of the stack's VM."""
    return stack_directory(ROOT, stack) / "vm"


def find(stack: str) -> Vm | None:
    """Return the stack's VM, if it exists."""
    try:
        return Vm(**json.loads((directory(stack) / "vm.json").read_text()))
    except FileNotFoundError:
        return None


def create(stack: str, vm: Vm, user_data: str, gpus: Mapping[str, Any]) -> None:
    """Create and boot a VM. `gpus` fills the stand-ins: GPUS, NAME, MEMORY (MiB)."""
    destroy(stack)
    home = directory(stack)
    binaries = home / "bin"
    binaries.mkdir(parents=True)
    home.chmod(0o755)  # containers read the stand-in
    _first_boot(home, user_data)
    if not shutil.which("nvidia-smi"):
        for source in STAND_INS.iterdir():
            text = source.read_text().replace("@BIN@", str(binaries))
            for key, value in gpus.items():
                text = text.replace(f"@{key}@", str(value))
            (binaries / source.name).write_text(text)
            (binaries / source.name).chmod(0o755)
    write_private(home / "vm.json", json.dumps(asdict(vm)))
    start(stack, vm)


def start(stack: str, vm: Vm) -> None:
    """Start the VM if it is off, as after a reboot of this machine."""
    home = directory(stack)
    _run("ip", "address", "replace", f"{vm.address}/32", "dev", "lo")
    device = BY_ID / f"google-{vm.device}"
    BY_ID.mkdir(parents=True, exist_ok=True)
    loop = _loop(vm.disk) or _run("losetup", "--find", "--show", str(disk_file(vm.disk))).strip()
    device.unlink(missing_ok=True)
    device.symlink_to(loop)
    rules = f"""table ip {_table(stack)}
delete table ip {_table(stack)}
table ip {_table(stack)} {{
  chain to_the_vm {{
    type nat hook output priority -100;
    ip daddr {vm.address} tcp dport {SSH_PORT} redirect to :{vm.ssh_port}
  }}
}}
"""
    subprocess.run(["nft", "-f", "-"], input=rules, text=True, check=True, capture_output=True)
    path = f"{home / 'bin'}:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
    start_sshd(home, vm.ssh_port, path=path)


def destroy(stack: str) -> None:
    """Delete the VM, if it exists, with everything on it except the disk for weights."""
    home = directory(stack)
    pid = processes.pid_of(home / "sshd.pid", "sshd", str(home / "sshd_config"))
    if pid:
        processes.end([pid], 10)
    prefix = f"elastic-vllm-{stack}"
    _remove_containers(stack, prefix)
    table = prefix.replace("-", "_")
    for name in (table, f"{table}_metadata"):
        subprocess.run(["nft", "delete", "table", "inet", name], capture_output=True, check=False)
    _remove_routing_rules(Path("/etc/elastic-vllm") / f"{prefix}-metadata.rules")
    subprocess.run(["nft", "delete", "table", "ip", _table(stack)], capture_output=True, check=False)
    vm = find(stack)
    if vm:
        _detach(vm)
        subprocess.run(["ip", "address", "delete", f"{vm.address}/32", "dev", "lo"], capture_output=True, check=False)
    units = [*Path("/etc/systemd/system").glob(f"{prefix}-*.service")]
    kinds = ("-metadata.*", "-egress.*", "-packet-filter.sh", "-drain")
    own = [path for kind in kinds for path in Path("/etc/elastic-vllm").glob(f"{prefix}{kind}")]
    for path in [*units, *own, Path("/etc/logrotate.d") / prefix]:
        path.unlink(missing_ok=True)
    shutil.rmtree(Path("/var/lib/elastic-vllm") / stack, ignore_errors=True)
    shutil.rmtree(Path("/var/log/elastic-vllm") / stack, ignore_errors=True)
    with suppress(OSError):  # other stacks' files are in them
        Path("/etc/elastic-vllm").rmdir()
        Path("/var/log/elastic-vllm").rmdir()
    shutil.rmtree(home, ignore_errors=True)


def disk_file(name: str) -> Path:
    """Return the file of a disk."""
    return DISKS / f"{name}.img"


def create_disk(name: str) -> None:
    """Create an empty disk; as in Google Cloud, an existing one of that name is an error."""
    file = disk_file(name)
    if file.exists():
        raise RehearsalError(
            f"the disk {name} exists already: use it with --set weightsDisk={name}, or remove it: rm {file}"
        )
    DISKS.mkdir(parents=True, exist_ok=True)
    with file.open("wb") as new:
        new.truncate(DISK_BYTES)


def _first_boot(home: Path, user_data: str) -> None:
    """Do cloud-init's work with the user-data: install sshd's host key and the users' keys."""
    config = yaml.safe_load(user_data)
    write_private(home / "ssh_host_ed25519_key", config["ssh_keys"]["ed25519_private"])
    keys = [key for user in config["users"] for key in user["ssh_authorized_keys"]]
    write_private(home / "authorized_keys", "".join(f"{key}\n" for key in keys))


def _remove_routing_rules(file: Path) -> None:
    """Those of a metadata guard, which are this machine's while it stands for the VM."""
    for line in file.read_text().splitlines() if file.exists() else []:
        family, priority, _ = line.split(maxsplit=2)
        subprocess.run(["ip", family, "rule", "delete", "priority", priority], capture_output=True, check=False)


def _remove_containers(stack: str, prefix: str) -> None:
    with suppress(docker.errors.DockerException, requests.RequestException):
        client = docker.from_env()
        for container in client.containers.list(all=True, filters={"label": f"elastic-vllm.stack={stack}"}):
            container.remove(force=True)
        for network in client.networks.list(names=[f"{prefix}-edge"]):
            network.remove()


def _detach(vm: Vm) -> None:
    loop = _loop(vm.disk)
    (BY_ID / f"google-{vm.device}").unlink(missing_ok=True)
    if loop:
        targets = _run("findmnt", "--noheadings", "--output", "TARGET", "--source", loop, check=False).split()
        for target in targets:
            _run("umount", target)
            unit = _run("systemd-escape", "--path", "--suffix=mount", target, check=False).strip()
            if unit:
                Path("/etc/systemd/system", unit).unlink(missing_ok=True)
            with suppress(OSError):
                Path(target).rmdir()
        _run("losetup", "--detach", loop)


def _loop(disk: str) -> str:
    """Return the loop device of a disk's file, or an empty string."""
    listed = _run("losetup", "--noheadings", "--output", "NAME", "--associated", str(disk_file(disk)), check=False)
    return listed.split()[0] if listed.split() else ""


def _table(stack: str) -> str:
    return f"elastic_vllm_{stack.replace('-', '_')}_address"


def free_port() -> int:
    """Return a port on loopback that nothing listens on."""
    with socket.socket() as probe:
        probe.bind((LOOPBACK, 0))
        return int(probe.getsockname()[1])


def _run(*command: str, check: bool = True) -> str:
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    except FileNotFoundError as error:
        if not check:
            return ""
        raise RehearsalError(f"the simulated VM needs {command[0]}: install it") from error
    if check and done.returncode:
        raise RehearsalError(f"the simulated VM: {' '.join(command)}: {done.stderr.strip()}")
    return done.stdout

"""The cluster's machines: namespaces of this one, with their links, and the services in them.

A machine is held by its first process. When that is killed, the kernel kills all others of the machine, pods included,
and with them go its mounts, its links and its packet filter: nothing of it can be left behind but files and control
groups.
"""

import os
import signal
import subprocess
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from components.errors import UserError
from scripts.lab import processes
from scripts.lab.kubernetes import configuration
from scripts.lab.kubernetes.layout import (
    CONTROL,
    HERE,
    LAN_BITS,
    LINK,
    METADATA_ADDRESS,
    NODES,
    PROGRAMS,
    SERVICES,
    STATE,
    Machine,
)

MARK = "ELASTIC_VLLM_KUBERNETES"
"""Variable in the environment of a machine's processes, but not in its pods': the machine's name."""
SERVICE_MARK = "ELASTIC_VLLM_KUBERNETES_SERVICE"
BRIDGE = "lan"
BOOT_SECONDS = 20
END_SECONDS = 20
_CGROUPS = Path("/sys/fs/cgroup")
_NAMESPACES = ("--net", "--mount", "--uts", "--ipc", "--pid")

# /var/lib and /var/log are the machine's own. /run is too, where sockets are. Kubelet sets three of the kernel's
# parameters, which every machine here shares: it gets files in their place.
_BOOT = """
set -e
name=$1 directory=$2 state=$3 pause=$4
mount --make-rshared /
hostname "$name"
mount --bind "$state" "$directory/lib/${state##*/}"
mount --rbind "$directory/lib" /var/lib
mount --bind "$directory/log" /var/log
mount -t tmpfs -o mode=755 run /run
if [ -d "$directory/etc" ]; then
  mount -t overlay overlay -o "lowerdir=/etc,upperdir=$directory/etc,workdir=$directory/work" /etc
fi
for parameter in vm/overcommit_memory kernel/panic kernel/panic_on_oops; do
  cat "/proc/sys/$parameter" >"$directory/${parameter##*/}"
  mount --bind "$directory/${parameter##*/}" "/proc/sys/$parameter"
done
ip link set lo up
echo 1 >/proc/sys/net/ipv4/ip_forward
cd /
exec "$pause"
"""


def first_process(machine: Machine) -> int | None:
    """Return the process id of the machine's first process, or None if the machine is off."""
    for pid in processes.marked(f"{MARK}={machine.name}"):
        with suppress(OSError):
            status = Path(f"/proc/{pid}/status").read_text()
            [line] = [line for line in status.splitlines() if line.startswith("NSpid:")]
            if line.split()[2:] == ["1"] and Path(f"/proc/{pid}/comm").read_text().strip() == "pause":
                return pid
    return None


def enter(machine: Machine) -> list[str]:
    """Return the command prefix that runs a command on a machine that is on. Raises UserError."""
    pid = first_process(machine)
    if not pid:
        raise UserError(f"{machine.name} is off", "bring the cluster up: scripts/rehearse cluster up")
    return ["nsenter", f"--target={pid}", *_NAMESPACES, "--"]


def run(machine: Machine, *command: str | Path, data: str | None = None) -> str:
    """Run a command on a machine, which must succeed, and return its output. Raises UserError."""
    done = subprocess.run(
        [*enter(machine), *command],
        env=_environment(),
        input=data,
        stdin=None if data is not None else subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        last = "\n  ".join((done.stderr or done.stdout).strip().splitlines()[-8:])
        raise UserError(
            f"{' '.join(map(str, command[:4]))} on {machine.name} ended with {done.returncode}:\n  {last}",
            f"see {machine.logs}/*.log",
        )
    return done.stdout


def switch_on(machine: Machine) -> bool:
    """Start a machine without services; return False if it is on already. Raises UserError."""
    pid = first_process(machine)
    if pid and _is_connected(machine, pid):
        return False
    end(machine)  # what an interrupted start left
    for path in (machine.library / STATE.name, machine.logs):
        path.mkdir(parents=True, exist_ok=True)
    if machine == CONTROL:
        for name in ("etc", "work"):
            machine.file(name).mkdir(exist_ok=True)
    console = machine.logs / "console.log"
    with console.open("wb") as log:
        started = subprocess.Popen(
            ["unshare", *_NAMESPACES, "--propagation=private", "--fork", "--mount-proc", "bash", "-c", _BOOT, "bash",
             machine.name, str(machine.directory), str(STATE), str(PROGRAMS / "pause")],
            env=_environment() | {MARK: machine.name},
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,  # it outlives this process, until `down`
        )  # fmt: skip
    limit = time.monotonic() + BOOT_SECONDS
    while not (pid := first_process(machine)):
        if started.poll() is not None or time.monotonic() > limit:
            raise UserError(f"{machine.name} does not start: {console.read_text().strip()[-300:]}", f"see {console}")
        time.sleep(0.02)
    if machine == CONTROL:
        _connect_here(pid)
    else:
        _connect(machine, pid)
    return True


def _connect_here(control: int) -> None:
    """Lay the cluster's network: a bridge on the control machine, and a link from this machine to it."""
    _ip(control, "link", "add", BRIDGE, "type", "bridge")
    _ip(control, "address", "add", f"{CONTROL.address}/{LAN_BITS}", "dev", BRIDGE)
    _ip(control, "address", "add", f"{METADATA_ADDRESS}/32", "dev", BRIDGE)
    _ip(control, "link", "set", BRIDGE, "up")
    subprocess.run(["ip", "link", "delete", LINK], capture_output=True, check=False)
    _run_ip("ip", "link", "add", LINK, "type", "veth", "peer", "name", "here", "netns", str(control))
    _ip(control, "link", "set", "here", "master", BRIDGE, "up")
    _run_ip("ip", "address", "add", f"{HERE}/{LAN_BITS}", "dev", LINK)
    _run_ip("ip", "link", "set", LINK, "up")
    _run_ip("ip", "route", "replace", SERVICES, "via", NODES[0].address)


def _is_connected(machine: Machine, pid: int) -> bool:
    """Return True if the last step of connecting the machine is done."""
    if machine == CONTROL:
        routes = ["ip", "route", "show", SERVICES]
    else:
        routes = [*_in_network(pid), "ip", "route", "show", "default"]
    return bool(subprocess.run(routes, capture_output=True, text=True, check=False).stdout.strip())


def _connect(node: Machine, pid: int) -> None:
    """Connect a node to the cluster's network. Everything beyond it is behind the control machine."""
    control = first_process(CONTROL)
    assert control  # noqa: S101 (it is switched on first)
    subprocess.run([*_in_network(control), "ip", "link", "delete", node.name], capture_output=True, check=False)
    _ip(control, "link", "add", node.name, "type", "veth", "peer", "name", BRIDGE, "netns", str(pid))
    _ip(control, "link", "set", node.name, "master", BRIDGE, "up")
    _ip(pid, "address", "add", f"{node.address}/{LAN_BITS}", "dev", BRIDGE)
    _ip(pid, "link", "set", BRIDGE, "up")
    _ip(pid, "route", "add", "default", "via", CONTROL.address)


def route_to_pods(subnets: dict[Machine, str]) -> None:
    """Give every machine that is on the routes to the other nodes' pods."""
    for machine in (CONTROL, *subnets):
        pid = first_process(machine)
        if pid:
            for node, subnet in subnets.items():
                if node != machine:
                    _ip(pid, "route", "replace", subnet, "via", node.address)


def start(machine: Machine, name: str, command: Sequence[str | Path]) -> bool:
    """Start a service on a machine, with its output in a log of its name; return False if it runs already."""
    if service(machine, name):
        return False
    with (machine.logs / f"{name}.log").open("ab") as log:
        subprocess.Popen(
            [*enter(machine), *command],
            env=_environment() | {MARK: machine.name, SERVICE_MARK: f"{machine.name}/{name}"},
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,  # it outlives this process, until `down`
        )
    return True


def service(machine: Machine, name: str) -> list[int]:
    """Return the processes of a service, and of its nsenter, without those that it started."""
    found = []
    for pid in processes.marked(f"{SERVICE_MARK}={machine.name}/{name}"):
        with suppress(OSError):
            program = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")[0].decode()
            if "shim" not in program and program != "nsenter":
                found.append(pid)
    return found


def stop(machine: Machine, name: str) -> None:
    """Ask a service to end, and kill it if it does not."""
    processes.end(service(machine, name), END_SECONDS)


def end(machine: Machine) -> bool:
    """Kill everything on a machine and remove its control groups; return True if anything was there."""
    found = processes.marked(f"{MARK}={machine.name}")
    if pid := first_process(machine):
        os.kill(pid, signal.SIGKILL)
    processes.end(found, END_SECONDS)
    _remove_cgroups(f"{configuration.CGROUP}/{machine.name}")
    return bool(found)


def make_cgroups(machine: Machine) -> None:
    """Make the control groups below which kubelet makes those of the machine's pods."""
    for hierarchy in _hierarchies():
        group = hierarchy
        for part in f"{configuration.CGROUP}/{machine.name}".strip("/").split("/"):
            parent, group = group, group / part
            group.mkdir(exist_ok=True)
            # The first version's cpuset begins empty, and takes no process then.
            for name in ("cpuset.cpus", "cpuset.mems"):
                if (group / "cgroup.clone_children").exists() and (group / name).exists():
                    (group / name).write_text((parent / name).read_text())


def remove_cgroups() -> None:
    """Remove the control groups that all machines share."""
    _remove_cgroups(configuration.CGROUP)


def _remove_cgroups(path: str) -> None:
    limit = time.monotonic() + END_SECONDS
    groups = [
        Path(group)
        for hierarchy in _hierarchies()
        for group, _, _ in os.walk(hierarchy / path.strip("/"), topdown=False)
    ]
    for group in groups:
        while group.exists():
            try:
                group.rmdir()
            except OSError:  # a process is still exiting
                if time.monotonic() > limit:
                    raise UserError(
                        f"the control group {group} stays", "a process in it does not end: see `ps`"
                    ) from None
                time.sleep(0.05)


def _hierarchies() -> list[Path]:
    mounts = [line.split() for line in Path("/proc/mounts").read_text().splitlines()]
    return [
        Path(place)
        for _, place, kind, *_ in mounts
        if kind in {"cgroup", "cgroup2"} and place.startswith(str(_CGROUPS))
    ]


def _environment() -> dict[str, str]:
    path = f"{PROGRAMS}:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
    return {"PATH": path, "HOME": "/root", "LC_ALL": "C.UTF-8"}


def _in_network(pid: int) -> list[str]:
    return ["nsenter", f"--target={pid}", "--net", "--"]


def _ip(pid: int, *arguments: str) -> None:
    _run_ip(*_in_network(pid), "ip", *arguments)


def _run_ip(*command: str) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise UserError(f"{' '.join(command)}: {done.stderr.strip()}", "the cluster's network can't be laid here")

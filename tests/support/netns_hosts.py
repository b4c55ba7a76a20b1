"""Two machines on this one, joined by one cable: the control machine and a server. They reach nothing else.

`control` has this machine's files, but a separate network, processes, /run and rehearsals. `server` is a separate
Debian: another root file system, booted by systemd, with its own sshd and container runtime. `trapped` gives both a
default gateway and a resolver that lead into a trap (packet_trap).
"""

import fcntl
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

from tests.integration.conftest import REHEARSAL
from tests.support import debian_roots, packet_trap
from tests.support.netns_machine import INIT
from tests.support.netns_server import BOOT_SECONDS, PREFIX, Boot, hierarchies, inner_first
from tests.support.packet_trap import Trap

CONTROL, SERVER = "198.51.100.1", "198.51.100.2"
# Machine -> addresses between it and the trap: the trap's address, then the machine's.
TO_TRAP = {
    "control": (("203.0.113.1/30", "fd00:1::1/64"), ("203.0.113.2/30", "fd00:1::2/64")),
    "server": (("203.0.113.5/30", "fd00:2::1/64"), ("203.0.113.6/30", "fd00:2::2/64")),
}
# Neither tmpfs nor an overlay: container runtimes create overlays in it.
DIRECTORY = debian_roots.DIRECTORY / "servers"
PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
CLEAN = {"PATH": PATH, "HOME": str(Path.home()), "LC_ALL": "C.UTF-8", "TERM": "dumb"}

CONTROL_START = """
set -e
mount --bind "$1/rehearsal" "$2"
mount --bind "$1/resolv.conf" "$(realpath /etc/resolv.conf)"
mount -t tmpfs run /run
ip link set lo up
exec "$3" -c "$4"
"""


@dataclass(frozen=True)
class Space:
    """A machine's namespaces, identified by its first process."""

    pid: int

    @property
    def enter(self) -> list[str]:
        return ["nsenter", "--target", str(self.pid), "--net", "--mount", "--uts", "--ipc", "--pid", "--cgroup", "--"]

    def start(
        self, *command: str | Path, environment: Mapping[str, str] | None = None, takes_data: bool = False
    ) -> subprocess.Popen[str]:
        """Start a command there, with its output and errors in one pipe."""
        return subprocess.Popen(
            [*self.enter, *command],
            env={**CLEAN, **(environment or {})},
            stdin=subprocess.PIPE if takes_data else subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )

    def attempt(
        self,
        *command: str | Path,
        environment: Mapping[str, str] | None = None,
        data: str | None = None,
        timeout: float = 600,
    ) -> tuple[int, str]:
        """Run a command there until it exits, and return its exit code and output; `data` is its standard input."""
        process = self.start(*command, environment=environment, takes_data=data is not None)
        try:
            output = process.communicate(data, timeout=timeout)[0]
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            output = process.communicate()[0]
            raise AssertionError(f"{command} takes over {timeout} s; its output:\n{output}") from None
        return process.returncode, output

    def run(self, *command: str | Path, environment: Mapping[str, str] | None = None, timeout: float = 600) -> str:
        """Run a command there, which must succeed, and return its output."""
        code, output = self.attempt(*command, environment=environment, timeout=timeout)
        assert code == 0, f"{' '.join(map(str, command))} ended with {code}:\n{output}"
        return output

    def shell(self, script: str) -> str:
        """Run a script of bash there, which must succeed, and return its output."""
        return self.run("bash", "-c", script)


@dataclass
class Hosts:
    """Both machines, running; `settings` lead a stack to the server."""

    directory: Path
    control: Space
    server: Space
    _boot: Boot = field(repr=False)
    _trap: Trap | None = None

    @property
    def private_key(self) -> Path:
        return self.directory / "id"

    @property
    def settings(self) -> dict[str, object]:
        public = (self.directory / "host.pub").read_text().split()
        return {
            "host": SERVER,
            "sshUser": "root",
            "sshPrivateKeyPath": str(self.private_key),
            "sshHostKey": " ".join(public[:2]),
        }

    @property
    def ssh(self) -> list[str]:
        """`ssh` as `control` runs it, the server's key pinned."""
        options = ["BatchMode=yes", "StrictHostKeyChecking=yes", f"UserKnownHostsFile={self.directory / 'known_hosts'}"]
        return ["ssh", "-i", str(self.private_key), *(f"-o{each}" for each in options), f"root@{SERVER}"]

    def files(self, path: str) -> Path:
        """Return the path on this machine of a file of the server, without its mounts."""
        inner = Path(path).relative_to("/")
        library = Path("var/lib")
        if inner.is_relative_to(library):
            return self._boot.directory / "lib" / inner.relative_to(library)
        return Path("/proc") / str(self.server.pid) / "root" / inner

    def reboot(self) -> None:
        """Cut the server's power and restore it: its processes and mounts are lost, its disk stays."""
        self._boot.off()
        _unplug(self.control.pid, "cable")  # it may take a moment to disappear with its other end
        self.server = Space(self._boot.on())
        self._plug()
        if self._trap:
            _unplug(self._trap.pid, "server")
            _plug_into_trap(self._trap, "server", self.server)
        self._wait_for_ssh()

    def _plug(self) -> None:
        ends = (self.control, CONTROL), (self.server, SERVER)
        _cable(*(("cable", machine.pid, [f"{address}/30"]) for machine, address in ends))

    def _wait_for_ssh(self) -> None:
        limit = time.monotonic() + BOOT_SECONDS
        while True:
            code, output = self.control.attempt(*self.ssh, "-oConnectTimeout=2", "true")
            if code == 0:
                return
            if time.monotonic() > limit:
                journal = self.server.attempt("journalctl", "--no-pager", "--lines", "40")[1]
                raise AssertionError(f"the server does not let anyone in: {output}\n{journal}")
            time.sleep(0.1)

    @contextmanager
    def trapped(self) -> Iterator[Trap]:
        """Make the trap the default gateway and resolver of both machines until the block ends."""
        machines = {"control": self.control, "server": self.server}
        with packet_trap.running() as trap:
            for name, machine in machines.items():
                _plug_into_trap(trap, name, machine)
                _set_resolver(machine, f"nameserver {TO_TRAP[name][0][0].partition('/')[0]}\n")
            self._trap = trap
            yield trap
            self._trap = None
            for name, machine in {"control": self.control, "server": self.server}.items():
                _unplug(trap.pid, name)
                _set_resolver(machine, "")


@contextmanager
def running(*packages: str, of: str = "") -> Iterator[Hosts]:
    """Run both machines until the block ends; the server has these packages besides the bare system.

    `of` is the server's release, one of debian_roots.RELEASES; empty for this machine's.
    """
    root = debian_roots.root(*packages, of=of)
    DIRECTORY.mkdir(mode=0o755, exist_ok=True)
    with ExitStack() as closing:
        directory = closing.enter_context(_directory())
        for name in ("id", "host"):
            subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", directory / name], check=True)
        (directory / "known_hosts").write_text(f"{SERVER} {(directory / 'host.pub').read_text()}")
        control = closing.enter_context(_control(directory))
        boot = _server(root, directory)
        closing.callback(boot.off)
        hosts = Hosts(directory, control, Space(boot.on()), boot)
        hosts._plug()
        hosts._wait_for_ssh()
        yield hosts


@contextmanager
def _directory() -> Iterator[Path]:
    """Create a directory until the block ends, after removing those of killed runs and their control groups."""
    with ExitStack() as closing:
        with (debian_roots.DIRECTORY / "lock").open("w") as all_of_them:
            fcntl.flock(all_of_them, fcntl.LOCK_EX)
            _sweep()
            directory = Path(tempfile.mkdtemp(dir=DIRECTORY))
            mine = closing.enter_context((directory / "lock").open("w"))
            fcntl.flock(mine, fcntl.LOCK_EX)
            closing.callback(shutil.rmtree, directory)
        yield directory


def _sweep() -> None:
    for left in DIRECTORY.iterdir():
        # Another run may remove its directory meanwhile.
        with suppress(BlockingIOError, FileNotFoundError), (left / "lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(left, ignore_errors=True)
    for left in [group for hierarchy in hierarchies() for group in hierarchy.glob(f"{PREFIX}*")]:
        with suppress(OSError):  # it still has processes
            for group in inner_first(left):
                group.rmdir()


@contextmanager
def _control(directory: Path) -> Iterator[Space]:
    had_directory = REHEARSAL.exists()
    REHEARSAL.mkdir(mode=0o700, exist_ok=True)
    (directory / "rehearsal").mkdir(mode=0o700)
    (directory / "resolv.conf").touch()
    apart = "unshare --net --mount --pid --uts --ipc --propagation private --fork --kill-child --mount-proc".split()
    init = [*apart, "sh", "-c", CONTROL_START, "sh", str(directory), str(REHEARSAL), sys.executable, INIT]
    with subprocess.Popen(["setpriv", "--pdeathsig", "KILL", *init], stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout
            assert process.stdout.readline() == "ready\n"
            children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
            yield Space(int(children[0]))
        finally:
            process.kill()
            if not had_directory and not any(REHEARSAL.iterdir()):
                REHEARSAL.rmdir()


def _server(root: Path, directory: Path) -> Boot:
    """Prepare a server, which is off, with its keys."""
    place = directory / "server"
    roots_keys = place / "changes" / "root" / ".ssh"
    for path in (place / "changes/etc/ssh", place / "work", place / "tree", roots_keys):
        path.mkdir(parents=True)
    for path in (roots_keys, roots_keys.parent):
        path.chmod(0o700)
    subprocess.run(["cp", "-a", root / "var/lib", place / "lib"], check=True)
    shutil.copy(directory / "host", place / "changes/etc/ssh/ssh_host_ed25519_key")
    shutil.copy(directory / "host.pub", place / "changes/etc/ssh/ssh_host_ed25519_key.pub")
    shutil.copy(directory / "id.pub", roots_keys / "authorized_keys")
    (place / "changes/etc/resolv.conf").touch()
    return Boot(root, place)


def _plug_into_trap(trap: Trap, name: str, machine: Space) -> None:
    ours, its = TO_TRAP[name]
    _cable((name, trap.pid, ours), ("out", machine.pid, its))
    for address in ours:
        _ip(machine.pid, "route", "add", "default", "via", address.partition("/")[0])


def _unplug(pid: int, name: str) -> None:
    enter = ["nsenter", "--target", str(pid), "--net", "--"]
    subprocess.run([*enter, "ip", "link", "delete", name], capture_output=True, check=False)


def _set_resolver(machine: Space, text: str) -> None:
    """Write the file in place: it may be a mount point."""
    machine.run("sh", "-c", 'printf %s "$1" >/etc/resolv.conf', "sh", text)


def _cable(*ends: tuple[str, int, Sequence[str]]) -> None:
    """Lay a cable between two ends, each with its name, a process in its network, and its addresses."""
    (name, pid, _), (peer, peers_pid, _) = ends
    _ip(pid, "link", "add", name, "type", "veth", "peer", "name", peer, "netns", str(peers_pid))
    for device, at, addresses in ends:
        for address in addresses:
            _ip(at, "address", "add", address, "dev", device, *(["nodad"] if ":" in address else []))
        _ip(at, "link", "set", device, "up")


def _ip(pid: int, *arguments: str) -> None:
    subprocess.run(["nsenter", "--target", str(pid), "--net", "--", "ip", *arguments], check=True)

"""A running server: a root file system under a layer for changes, systemd, and separate namespaces."""

import os
import subprocess
import time
import uuid
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

CGROUPS = Path("/sys/fs/cgroup")
PREFIX = "elastic-vllm-tests-"
BOOT_SECONDS = 60

# Its files: the root file system, and over it a layer for the files that it writes. /var/lib is a plain directory,
# since container runtimes create overlays there. systemd 256 and 257 boot with version 1 of control groups, which this
# machine may have, only if they are told to.
SERVER_START = """
set -e
tree=$1/tree
mount -t overlay overlay -o "lowerdir=$2,upperdir=$1/changes,workdir=$1/work" "$tree"
mount --bind "$1/lib" "$tree/var/lib"
mount -t proc proc "$tree/proc"
mount -t sysfs sysfs "$tree/sys"
mount -t tmpfs -o mode=755 run "$tree/run"
mount -t tmpfs tmp "$tree/tmp"
mount -t tmpfs -o mode=755 dev "$tree/dev"
for node in null:1:3 zero:1:5 full:1:7 random:1:8 urandom:1:9 tty:5:0 kmsg:1:11; do
  IFS=: read -r name major minor <<<"$node"
  mknod -m 666 "$tree/dev/$name" c "$major" "$minor"
done
mkdir "$tree/dev/pts" "$tree/dev/shm" "$tree/dev/mqueue"
mount -t devpts -o newinstance,ptmxmode=0666,mode=0620,gid=5 devpts "$tree/dev/pts"
mount -t tmpfs shm "$tree/dev/shm"
mount -t mqueue mqueue "$tree/dev/mqueue"
ln -s pts/ptmx "$tree/dev/ptmx"
ln -s null "$tree/dev/console"
ln -s /proc/self/fd "$tree/dev/fd"
cgroups=$tree/sys/fs/cgroup
grep -qv ^0: /proc/self/cgroup && mount -t tmpfs -o mode=755 cgroup "$cgroups"
while IFS=: read -r id controllers _; do
  if [ "$id" != 0 ]; then
    mkdir "$cgroups/${controllers#name=}"
    none=$([ "${controllers#name=}" = "$controllers" ] || echo none,)
    mount -t cgroup -o "$none$controllers" cgroup "$cgroups/${controllers#name=}"
  elif mountpoint -q "$cgroups"; then
    mkdir "$cgroups/unified"
    mount -t cgroup2 cgroup2 "$cgroups/unified"
  else
    mount -t cgroup2 cgroup2 "$cgroups"
  fi
done </proc/self/cgroup
hostname server
ip link set lo up
cd "$tree"
pivot_root . .
umount -l .
exec env -i container=elastic-vllm-test /sbin/init SYSTEMD_CGROUP_ENABLE_LEGACY_FORCE=1
"""
# Joins new control groups, which the namespace then makes the root of its hierarchy.
IN_CGROUPS = """
set -e
name=$1
shift
for directory in "$@"; do
  [ "$directory" != -- ] || break
  shift
  mkdir -p "$directory/$name"
  for file in cpuset.cpus cpuset.mems; do
    if [ -e "$directory/cgroup.clone_children" ] && [ -e "$directory/$file" ]; then
      cat "$directory/$file" >"$directory/$name/$file"
    fi
  done
  echo $$ >"$directory/$name/cgroup.procs"
done
shift
exec "$@"
"""


@dataclass
class Boot:
    """The server's power switch."""

    root: Path
    directory: Path
    process: subprocess.Popen[bytes] | None = None
    name: str = field(default_factory=lambda: f"{PREFIX}{uuid.uuid4().hex[:8]}")

    def on(self) -> int:
        apart = "unshare --net --mount --pid --uts --ipc --cgroup --propagation private --fork --kill-child".split()
        start = [*apart, "bash", "-c", SERVER_START, "bash", str(self.directory), str(self.root)]
        inside = ["bash", "-c", IN_CGROUPS, "bash", self.name, *map(str, hierarchies()), "--", *start]
        with (self.directory / "console").open("wb") as console:
            self.process = subprocess.Popen(
                ["setpriv", "--pdeathsig", "KILL", *inside],
                stdin=subprocess.DEVNULL,
                stdout=console,
                stderr=console,
                start_new_session=True,
            )
        return _first(self.process, "systemd", self.directory / "console")

    def off(self) -> None:
        """Kill the server with its first process; all its processes are gone on return."""
        if not self.process:
            return
        self.process.kill()
        self.process.wait()
        limit = time.monotonic() + 30
        for group in [path for hierarchy in hierarchies() for path in inner_first(hierarchy / self.name)]:
            while group.exists():
                try:
                    group.rmdir()
                except OSError:  # a process is still exiting
                    assert time.monotonic() < limit, f"{group} stays"
                    time.sleep(0.05)


def _first(process: subprocess.Popen[bytes], name: str, console: Path) -> int:
    """Return the process id of a machine's first process, once it runs the program of this name."""
    limit = time.monotonic() + BOOT_SECONDS
    while True:
        try:
            children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
            if children and Path(f"/proc/{children[0]}/comm").read_text().strip() == name:
                return int(children[0])
        except (FileNotFoundError, ProcessLookupError):  # it ended meanwhile
            pass
        assert process.poll() is None, console.read_text()
        assert time.monotonic() < limit, console.read_text()
        time.sleep(0.01)


def hierarchies() -> list[Path]:
    """Return the mount points of this machine's control groups."""
    mounts = [line.split() for line in Path("/proc/mounts").read_text().splitlines()]
    return [
        Path(fields[1])
        for fields in mounts
        if fields[2] in {"cgroup", "cgroup2"} and fields[1].startswith(str(CGROUPS))
    ]


def inner_first(group: Path) -> Sequence[Path]:
    return [Path(place) for place, _, _ in os.walk(group, topdown=False)]

"""A copy of this machine's files to install into and change, with separate processes."""

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.support.shell import Result

# A writable layer over all of this machine's files. It is in memory, so it disappears with the last process inside. An
# empty /run keeps packages away from this machine's services, such as Docker.
LAYER = """
set -e
mount -t tmpfs layer "$1"
mkdir "$1/changes" "$1/work" "$1/tree"
mount -t overlay overlay -o "lowerdir=/,upperdir=$1/changes,workdir=$1/work" "$1/tree"
mount --rbind /dev "$1/tree/dev"
mount -t proc proc "$1/tree/proc"
for name in sys tmp run; do mount -t tmpfs "$name" "$1/tree/$name"; done
echo ready
exec "$2" -c 'import signal; signal.pause()'
"""


@dataclass(frozen=True)
class Copy:
    """A changeable copy of this machine's files; it shares this machine's network unless it has its own."""

    pid: int
    layer: Path

    @property
    def enter(self) -> list[str]:
        return ["nsenter", "--target", str(self.pid), "--mount", "--pid", "--net", "--"]

    def run(self, script: str, command: str = "bash -s") -> Result:
        """Run a script there, or a command with this standard input."""
        return subprocess.run(
            [*self.enter, "chroot", self.layer / "tree", "sh", "-c", command],
            input=f"{{\n{script}\nexit\n}}\n" if command == "bash -s" else script,
            env={"PATH": os.environ["PATH"], "DOCKER_HOST": "unix:///nonexistent/docker.sock", "LC_ALL": "C"},
            capture_output=True,
            text=True,
            timeout=900,
            check=False,
        )

    def changes(self) -> str:
        """List every changed file with its time and size."""
        return self.inside("find", self.layer / "changes", "-type", "f", "-printf", "%P %T@ %s\\n")

    def inside(self, *command: str | Path) -> str:
        return subprocess.run([*self.enter, *command], check=True, capture_output=True, text=True).stdout

    def read(self, path: str) -> str:
        return self.inside("cat", f"{self.layer}/tree{path}")


@contextmanager
def running(directory: Path, *, network: bool = False) -> Iterator[Copy]:
    """Run a copy until the block ends, with a network of its own if asked for; `directory` must be empty."""
    apart = [
        "unshare",
        *(["--net"] if network else []),
        "--mount",
        "--pid",
        "--fork",
        "--kill-child",
        "--propagation",
        "private",
    ]
    init = [*apart, "sh", "-c", LAYER, "sh", str(directory), sys.executable]
    with subprocess.Popen(["setpriv", "--pdeathsig", "KILL", *init], stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout
            assert process.stdout.readline() == "ready\n"
            children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
            yield Copy(int(children[0]), directory)
        finally:
            process.kill()

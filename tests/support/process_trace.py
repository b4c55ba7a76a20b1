"""Arguments and environments of started processes: strace on the processes that start them, and /proc."""

import shutil
import subprocess
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

# Programs that start others on behalf of the rehearsal: commands over SSH, and processes in containers.
STARTERS = {"sshd", "dockerd", "containerd", "containerd-shim"}
ATTACH_SECONDS = 30
LET_GO_SECONDS = 10
STRACE = ["strace", "--follow-forks", "--no-abbrev", "--string-limit=1000000", "--trace=execve,execveat"]


def install_strace() -> None:
    """Install strace from Debian's or Ubuntu's package; only these tests need it."""
    if not shutil.which("strace"):
        subprocess.run(["apt-get", "-q", "update"], check=True)
        subprocess.run(["apt-get", "-q", "-y", "install", "--no-install-recommends", "strace"], check=True)


def starters() -> list[int]:
    """Return all processes that run one of the STARTERS."""
    found = []
    for path in Path("/proc").glob("[0-9]*/comm"):
        with suppress(OSError):  # ended meanwhile
            if path.read_text().strip() in STARTERS:
                found.append(int(path.parent.name))
    return found


def launcher(output: Path) -> list[str]:
    """Return a command prefix that records every program started by the command in `output`."""
    return [*STRACE, "--seccomp-bpf", f"--output={output}"]


@contextmanager
def attached(processes: Sequence[int], output: Path) -> Iterator[None]:
    """Record every program that these processes and their children start in `output` until the block ends."""
    tracer = subprocess.Popen(
        [*STRACE, f"--output={output}", *(f"--attach={process}" for process in processes)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        end = time.monotonic() + ATTACH_SECONDS
        while not all(_is_traced(process) for process in processes):
            assert tracer.poll() is None, "strace can't attach"
            assert time.monotonic() < end, "strace takes too long to attach"
            time.sleep(0.05)
        yield
    finally:
        tracer.terminate()  # strace detaches from them, and they continue
        try:
            tracer.wait(LET_GO_SECONDS)
        except subprocess.TimeoutExpired:
            # strace waits for a process that waits for its child to start (vfork), which waits for strace. Once it is
            # killed, the kernel resumes them all; the record is complete, because strace writes line by line.
            tracer.kill()
            tracer.wait(LET_GO_SECONDS)


def _is_traced(process: int) -> bool:
    tasks = list(Path("/proc").glob(f"{process}/task/*/status"))
    with suppress(FileNotFoundError):  # a thread ended meanwhile
        return all("TracerPid:\t0\n" not in task.read_text() for task in tasks)
    return False


class Watcher(threading.Thread):
    """Thread that keeps reading the arguments and environments of all processes in /proc."""

    def __init__(self) -> None:
        super().__init__()
        self._done = threading.Event()
        self.seen: set[bytes] = set()
        self.arguments: set[bytes] = set()
        """The arguments among what was seen."""

    def run(self) -> None:
        while not self._done.wait(0.1):
            for process in Path("/proc").glob("[0-9]*"):
                with suppress(OSError):  # ended meanwhile
                    self.arguments.add((process / "cmdline").read_bytes())
                    self.seen.add((process / "environ").read_bytes())

    def stop(self) -> None:
        self._done.set()
        self.join()
        self.seen |= self.arguments

"""Functions to find and end processes by their properties, never by PID alone: a stale PID may have been reused."""

import os
import signal
import time
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path


def pid_of(pid_file: Path, program: str, argument: str) -> int | None:
    """Return the process in a PID file if it runs that program and its command line contains `argument`."""
    try:
        pid = int(pid_file.read_text())
        command = Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
    except (OSError, ValueError):
        return None
    return pid if program in command and argument in command else None


def marked(mark: str) -> list[int]:
    """Return all processes whose environment contains `mark` (NAME=value), with or without a living parent."""
    found = []
    for path in Path("/proc").glob("[0-9]*/environ"):
        with suppress(OSError):  # it ended meanwhile
            if mark.encode() in path.read_bytes().split(b"\0"):
                found.append(int(path.parent.name))
    return found


def end(pids: Iterable[int], seconds: float) -> None:
    """Ask processes to end, and kill those that still run after this number of seconds."""
    pids = list(pids)
    for number in (signal.SIGTERM, signal.SIGKILL):
        for pid in pids:
            with suppress(ProcessLookupError):
                os.kill(pid, number)
        limit = time.monotonic() + seconds
        while any(_runs(pid) for pid in pids) and time.monotonic() < limit:
            time.sleep(0.05)
        pids = [pid for pid in pids if _runs(pid)]


def _runs(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state != "Z"  # a zombie only waits for its parent

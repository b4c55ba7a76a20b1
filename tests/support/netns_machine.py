"""A nearly separate machine for a rehearsal: its processes and files are isolated, Docker is shared.

A test can thus see every process that the rehearsal leaves behind, and other stacks keep their sshd and state.
"""

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.integration.conftest import REHEARSAL, ROOT

# The first process: it adopts the orphans of others, and is the only one that stays.
INIT = "import signal; signal.signal(signal.SIGCHLD, signal.SIG_IGN); print('ready', flush=True); signal.pause()"


@dataclass
class Run:
    """A started `scripts/rehearse`."""

    process: subprocess.Popen[bytes]
    output: Path
    started: float = field(default_factory=time.monotonic)
    seconds: float = 0

    @property
    def text(self) -> str:
        """Return its output so far, errors included."""
        return self.output.read_text()

    @property
    def exit_code(self) -> int:
        """Wait for its end and return the exit code."""
        code = self.process.wait(300)
        self.seconds = self.seconds or time.monotonic() - self.started
        return code

    @property
    def outcomes(self) -> dict[str, str]:
        """Map each finished resource to created, unchanged, ..., without the set-up of the machine."""
        return outcomes(self.text)

    def send(self, number: signal.Signals) -> None:
        """Send a signal to the rehearsal itself, not to its children."""
        with suppress(FileNotFoundError, ProcessLookupError):  # it has just ended
            children = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text().split()
            for child in children:
                os.kill(int(child), number)
            if number == signal.SIGCONT:
                self.process.send_signal(number)  # nsenter stops when its child does


def outcomes(text: str) -> dict[str, str]:
    """Map each resource to its outcome in the output of an `up` or `down`."""
    lines = [line.split() for line in text.splitlines()]
    # OUTCOME NAME PROVIDER:TYPE SECONDS s
    ended = [fields for fields in lines if len(fields) == 5 and ":" in fields[2] and fields[4] == "s"]
    return {fields[1]: fields[0] for fields in ended if fields[0] not in {"started", "…"}}


@dataclass(frozen=True)
class Machine:
    """A machine for rehearsals; they see `directory` as the rehearsal's directory."""

    pid: int
    directory: Path
    outputs: Path

    def start(self, *arguments: str, stack: str) -> Run:
        """Start `scripts/rehearse ARGUMENTS --stack STACK` here."""
        descriptor, name = tempfile.mkstemp(dir=self.outputs)
        enter = ["nsenter", "--target", str(self.pid), "--mount", "--pid", "--"]
        command = [*enter, str(ROOT / "scripts" / "rehearse"), *arguments, "--stack", stack]
        environment = {**os.environ, "TERM": "dumb"}
        process = subprocess.Popen(command, stdout=descriptor, stderr=descriptor, env=environment, cwd=ROOT)
        os.close(descriptor)
        return Run(process, Path(name))

    def run(self, *arguments: str, stack: str) -> Run:
        """Run `scripts/rehearse ARGUMENTS --stack STACK` here until it exits."""
        run = self.start(*arguments, stack=stack)
        assert run.exit_code is not None
        return run

    def state(self, stack: str) -> dict[str, Any]:
        """Return the rehearsal's state of a stack; empty if there is none."""
        try:
            found: dict[str, Any] = json.loads((self.directory / "stacks" / stack / "state.json").read_text())
        except FileNotFoundError:
            return {}
        return found

    def processes(self) -> list[str]:
        """Return the command lines of all processes here except the first."""
        listed = subprocess.run(
            ["nsenter", "--target", str(self.pid), "--mount", "--pid", "--", "ps", "-wweo", "pid=,stat=,args="],
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        lines = [line.split(maxsplit=2) for line in listed.splitlines()]
        return [args for pid, state, args in lines if pid != "1" and state[0] != "Z" and not args.startswith("ps ")]


@contextmanager
def running() -> Iterator[Machine]:
    """Run the machine until the block ends; then all its processes are killed."""
    had_directory = REHEARSAL.exists()
    REHEARSAL.mkdir(mode=0o700, exist_ok=True)
    directory, outputs = (Path(tempfile.mkdtemp(prefix=f"elastic-vllm-{name}-")) for name in ("machine", "outputs"))
    apart = ["unshare", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc"]
    script = 'mount --bind "$1" "$2" && exec "$3" -c "$4"'
    init = [*apart, "sh", "-c", script, "sh", str(directory), str(REHEARSAL), sys.executable, INIT]
    with subprocess.Popen(["setpriv", "--pdeathsig", "KILL", *init], stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout
            assert process.stdout.readline() == "ready\n"
            children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
            yield Machine(int(children[0]), directory, outputs)
        finally:
            process.kill()
            shutil.rmtree(directory)
            shutil.rmtree(outputs)
            if not had_directory and not any(REHEARSAL.iterdir()):
                REHEARSAL.rmdir()


def wait_until(true: Callable[[], object], seconds: float = 60) -> None:
    """Poll every 5 ms until the condition is true."""
    limit = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < limit, "the condition did not become true"
        time.sleep(0.005)

"""A stand-in for `gcloud compute start-iap-tunnel` with the behaviour and messages of the real one (528).

Like the real one it first tries the VM, and listens only if that worked. Then it looks for the VM at each connection,
and closes the connection if there is none.
"""

import os
import signal
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

PROGRAM = """#!{python} -IS
# A stand-in for gcloud: see tests/support/gcloud_stand_in.py.
import os, pathlib, socket, sys, threading
here = pathlib.Path({here!r})
with (here / "calls").open("a") as calls:
    calls.write(f"{{os.getpid()}} {{' '.join(sys.argv[1:])}}\\n")
options = dict(word.split("=", 1) for word in sys.argv[1:] if word.startswith("--"))
vm = sys.argv[3]
def backend():
    if not (here / "vm").exists():
        return None
    return socket.create_connection(("127.0.0.1", int((here / "vm").read_text())))
if (here / "error").exists():
    sys.exit((here / "error").read_text())
print("Testing if tunnel connection works.", file=sys.stderr, flush=True)
if (first := backend()) is None:
    sys.exit(
        "ERROR: (gcloud.compute.start-iap-tunnel) Could not fetch resource:\\n"
        f" - The resource 'projects/{{options['--project']}}/zones/{{options['--zone']}}/instances/{{vm}}' "
        "was not found\\n"
    )
first.close()
def forward(source, sink):
    try:
        while data := source.recv(65536):
            sink.sendall(data)
    except OSError:
        pass
    for end in (source, sink):
        try:
            end.shutdown(socket.SHUT_RDWR)
        except OSError:
            pass
host, port = options["--local-host-port"].split(":")
with socket.create_server((host, int(port))) as server:
    print(f"Listening on port [{{port}}].")
    while True:
        client, address = server.accept()
        if (target := backend()) is None:
            print(
                f"ERROR: [1] Error during local connection to [{{address}}]: "
                "Error while connecting [4047: 'Failed to lookup instance'].",
                file=sys.stderr, flush=True,
            )
            client.close()
            continue
        for pair in ((client, target), (target, client)):
            threading.Thread(target=forward, args=pair, daemon=True).start()
"""


@dataclass(frozen=True)
class Gcloud:
    """The stand-in, controlled through its directory."""

    directory: Path

    @property
    def bin(self) -> Path:
        """Directory for PATH."""
        return self.directory / "bin"

    def vm_is_at(self, port: int | None) -> None:
        """Let the VM's SSH be this port of this machine; None removes the VM."""
        path = self.directory / "vm"
        if port is None:
            path.unlink()
        else:
            (self.directory / "new").write_text(str(port))
            (self.directory / "new").rename(path)

    def says(self, error: str) -> None:
        """Let it exit at once with this error from now on."""
        (self.directory / "error").write_text(error)

    @property
    def calls(self) -> list[tuple[int, str]]:
        """Return the process id and arguments of each call."""
        path = self.directory / "calls"
        lines = [line.partition(" ") for line in path.read_text().splitlines()] if path.exists() else []
        return [(int(pid), arguments) for pid, _, arguments in lines]

    @property
    def running(self) -> list[int]:
        """Return the process ids of the calls that have not ended."""
        return [pid for pid, _ in self.calls if _command_of(pid).find(str(self.bin)) >= 0]

    def kill(self) -> None:
        """Kill the tunnel, as in a crash."""
        for pid in self.running:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)


def make(directory: Path) -> Gcloud:
    """Create a stand-in that keeps everything in `directory`. There is no VM at first."""
    gcloud = Gcloud(directory)
    gcloud.bin.mkdir(parents=True)
    program = gcloud.bin / "gcloud"
    program.write_text(PROGRAM.format(python=sys.executable, here=str(directory)))
    program.chmod(0o755)
    return gcloud


def until(condition: Callable[[], object], what: str, seconds: float = 30) -> None:
    """Wait for a condition that must become true."""
    limit = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < limit, f"not within {seconds} s: {what}"
        time.sleep(0.01)


def _command_of(pid: int) -> str:
    """Return the command line of a process; it is empty for one that has ended, reaped or not."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_text().replace("\0", " ")
    except (FileNotFoundError, ProcessLookupError):
        return ""

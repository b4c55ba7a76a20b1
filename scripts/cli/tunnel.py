"""Keep Google's IAP tunnel to a stack's private VM open, beside or around `pulumi up`.

The tunnel is `gcloud compute start-iap-tunnel`, restarted as often as needed: while there is no VM yet, and whenever it
ends. gcloud tries the VM's port 22 first and listens only then, so before that the local port refuses connections.
After that it stays: if the VM disappears, it closes each connection at once, and finds a new VM of the same name.
"""

import fcntl
import os
import re
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Annotated, TextIO

import typer
from rich.console import Console

from components.errors import UserError
from components.settings.stack import Settings
from scripts.lib.ports import LOOPBACK, is_taken, listener
from scripts.lib.stack_settings import load, overrides

LOOK_SECONDS = 0.1
PAUSE_SECONDS = 3.0
"""Pause between two tries: gcloud alone takes a second of CPU time for each."""
LINE_SECONDS = 10.0
FIRST_TRY_SECONDS = 30.0
"""Time for which a command waits for the outcome of the first try; one try of gcloud can take a minute."""
END_SECONDS = 5.0

# Errors of gcloud 528 after which another try may succeed, and their meaning. Sources: its code, the program itself
# with a stand-in for IAP, and users' logs.
NO_NETWORK = "Google cannot be reached from this machine"
WAITS = {
    r"/instances/[^/']+' was not found": "there is no such VM yet",
    r"Error while connecting \[(4047|4051):": "IAP does not find it, or it is not running yet",
    # 1000, 4009 and 4010: its sshd has accepted the connection and closed it.
    r"Error while connecting \[(4003|4009|4010|1000):": "IAP gets no answer on its port 22 yet",
    r"Error while connecting \[(?!\d{4}:|Handshake status 4)": NO_NETWORK,
    r"Unexpected error while connecting": NO_NETWORK,
    r"gcloud crashed \((ConnectionError|ConnectTimeout|ReadTimeout|SSLError|TransportError|ServerNotFoundError)\)": (
        NO_NETWORK
    ),
}
PORT_FIX = "end what listens there, or set another tunnelPort"
FIXES = {
    r"\[4033:|Handshake status 4": "give your account roles/iap.tunnelResourceAccessor in project {project}",
    r"Required '[^']+' permission": "give your account that permission in project {project}",
    r"has not been used in project|not enabled on project|SERVICE_DISABLED": (
        "gcloud services enable compute.googleapis.com iap.googleapis.com --project={project}"
    ),
    r"active account|gcloud auth login|eauthentication|invalid_grant": "gcloud auth login",
    r"/projects/[^/']+' was not found|'projects/[^/']+' was not found|Unknown zone|Unknown project": (
        "check the settings gcpProject ({project}) and zone ({zone})"
    ),
    r"Local port \[\d+\] is not available|Unable to open socket": PORT_FIX,
}
console = Console(stderr=True, highlight=False, soft_wrap=True)


@dataclass(frozen=True)
class Target:
    """The VM, and the local port that leads to its SSH."""

    project: str
    zone: str
    vm: str
    port: int

    @property
    def gcloud(self) -> list[str]:
        """Return the command of the tunnel."""
        place = [f"--zone={self.zone}", f"--project={self.project}"]
        return ["gcloud", "compute", "start-iap-tunnel", self.vm, "22", f"--local-host-port={self.address}", *place]

    @property
    def address(self) -> str:
        """Return the address on which it listens."""
        return f"{LOOPBACK}:{self.port}"


class Tunnel:
    """One gcloud at a time, and its state. Only `step` does anything, and it returns at once."""

    def __init__(self, target: Target, *, shared: bool) -> None:
        """Set up a tunnel; `shared`: use another process's tunnel to the same VM, and replace it when it ends."""
        self.tried = False
        """True once the first try has had an outcome, even if there is no VM yet."""
        self._target = target
        self._shared = shared
        self._claim: TextIO | None = None
        self._gcloud: subprocess.Popen[bytes] | None = None
        self._output = ""
        self._open = False
        self._why = ""
        self._began = self._waiting_since = self._next_try = self._next_line = time.monotonic()

    def step(self) -> None:
        """Examine the state and do what is due. Raises UserError for errors that no retry can solve."""
        if self._claim is None and not self._claimed():
            return
        now = time.monotonic()
        if self._gcloud is None:
            if now >= self._next_try:
                self._start()
        else:
            ended = self._gcloud.poll() is not None  # asked before the last lines are read
            self._hear(self._gcloud)
            if ended:
                self._after(self._gcloud)
            elif not self._open and _listens(self._target.port):
                self._open = self.tried = True
                _say(f"open: {self._target.address} leads to SSH on VM {self._target.vm}")
        self.tried |= now >= self._began + FIRST_TRY_SECONDS
        if not self._open and now >= self._next_line:
            self._next_line = now + LINE_SECONDS
            why = f": {self._why}" if self._why else ""
            _say(f"waiting for VM {self._target.vm} ({now - self._waiting_since:.0f} s){why}")

    def close(self) -> None:
        """End gcloud and all its children."""
        if self._gcloud:
            for number in (signal.SIGTERM, signal.SIGKILL):
                if self._gcloud.poll() is None:
                    with suppress(ProcessLookupError, subprocess.TimeoutExpired):
                        os.killpg(self._gcloud.pid, number)
                        self._gcloud.wait(END_SECONDS)
            self._gcloud = None
        if self._claim:
            self._claim.close()
            self._claim = None

    def _claimed(self) -> bool:
        """Reserve the port for this process, even while nothing listens yet."""
        directory = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "elastic-vllm"
        target = self._target
        try:
            directory.mkdir(parents=True, exist_ok=True, mode=0o700)
            file = (directory / f"tunnel-{target.port}").open("a+")
        except OSError as error:
            raise UserError(f"cannot write to {directory}: {error}", "set XDG_CACHE_HOME to a directory") from error
        place = f"{target.project}/{target.zone}/{target.vm}"
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            pid, _, other = file.read().partition(" ")
            file.close()
            if not self._shared or (other and other != place):
                raise UserError(
                    f"there is a tunnel on {target.address} already: process {pid or 'unknown'}, to {other or 'a VM'}",
                    f"use it, or end it (kill {pid})" if other == place else "end it, or set another tunnelPort",
                ) from None
            if not self.tried:
                _say(f"using the tunnel on {target.address} that process {pid} keeps")
            self.tried = True
            return False
        file.truncate(0)
        file.write(f"{os.getpid()} {place}")
        file.flush()
        self._claim = file
        if is_taken(target.port):
            raise UserError(f"{listener(target.port)} listens on {target.address} already", PORT_FIX)
        return True

    def _start(self) -> None:
        # In a separate session: the terminal's Ctrl-C must not end it before the command that uses it has ended.
        # With setpriv (Linux) it also ends if this process is killed.
        setpriv = ["setpriv", "--pdeathsig", "TERM"] if shutil.which("setpriv") else []
        self._gcloud = subprocess.Popen(
            [*setpriv, *self._target.gcloud],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        assert self._gcloud.stdout  # noqa: S101 (for mypy)
        os.set_blocking(self._gcloud.stdout.fileno(), False)
        self._output = ""

    def _hear(self, gcloud: subprocess.Popen[bytes]) -> None:
        """Read gcloud's output; once the tunnel is open, errors concern single connections and are passed on."""
        assert gcloud.stdout  # noqa: S101 (for mypy)
        new = (gcloud.stdout.read() or b"").decode(errors="replace")
        self._output = (self._output + new)[-20_000:]
        if self._open:
            for line in new.splitlines():
                if line.startswith("ERROR:"):
                    self._pass_on(re.sub(r"^ERROR: (\[\d+\] )?(Error during local connection to \[.*?\]: )?", "", line))

    def _pass_on(self, error: str) -> None:
        """Report why a connection through the open tunnel failed, but not each time, because clients retry often."""
        now = time.monotonic()
        if error != self._why or now >= self._next_line:
            self._why, self._next_line = error, now + LINE_SECONDS
            meaning = _meaning(error)
            _say(f"no connection to VM {self._target.vm}: {meaning}" if meaning else f"gcloud: {error}")

    def _after(self, gcloud: subprocess.Popen[bytes]) -> None:
        """Arrange another try after gcloud has ended, or raise UserError."""
        error = self._output[self._output.find("ERROR:") :].strip() if "ERROR:" in self._output else ""
        meaning = _meaning(error)
        if self._open:
            why = "the tunnel has ended"
        elif meaning:
            why = meaning
        elif gcloud.returncode < 0:
            why = "gcloud was killed"
        else:
            place = {"project": self._target.project, "zone": self._target.zone}
            fixes = [fix.format(**place) for pattern, fix in FIXES.items() if re.search(pattern, error)]
            again = f"see what it means, and try it by hand: {shlex.join(self._target.gcloud)}"
            message = error or self._output.strip() or f"gcloud ended with exit code {gcloud.returncode}"
            raise UserError(f"no tunnel to VM {self._target.vm}; gcloud says:\n{message}", fixes[0] if fixes else again)
        now = time.monotonic()
        if self._open:
            self._waiting_since = now
        if self._open or why != self._why:  # a new state
            self._next_line = now
        # A tunnel that was open restarts at once.
        self._next_try = now if self._open else now + PAUSE_SECONDS
        self._why, self._open, self._gcloud = why, False, None
        self.tried = True


def keep_open(target: Target, command: list[str], signals: list[int]) -> int:
    """Keep the tunnel open until `command` ends, whose exit code is returned, or without one until a signal comes.

    `signals` are those received and not yet handled. Raises UserError.
    """
    _require("gcloud", "install it (https://cloud.google.com/sdk/docs/install), then gcloud auth login")
    if command:
        _require(command[0], "check the command behind --")
    tunnel = Tunnel(target, shared=bool(command))
    running: subprocess.Popen[bytes] | None = None
    failure: UserError | None = None
    try:
        while True:
            if running and (code := running.poll()) is not None:
                if failure:
                    raise failure
                return code if code >= 0 else 128 - code
            if signals and not running:
                return 128 + signals[0] if command else 0
            if running:
                _forward(signals, running)
            try:
                if not failure:
                    tunnel.step()
            except UserError as error:
                if not running:
                    raise
                failure = error
                _say(f"{error.cause}; interrupting {command[0]}, which needs the tunnel")
                running.send_signal(signal.SIGINT)
            if command and not running and tunnel.tried:
                running = subprocess.Popen(command)
            time.sleep(LOOK_SECONDS)
    finally:
        if running and running.poll() is None:
            running.terminate()
        tunnel.close()


def _meaning(error: str) -> str | None:
    """Return the meaning of an error of gcloud, or None if waiting cannot solve it."""
    return next((meaning for pattern, meaning in WAITS.items() if re.search(pattern, error)), None)


def _forward(signals: list[int], command: subprocess.Popen[bytes]) -> None:
    while signals:
        number = signals.pop(0)
        # A terminal has sent Ctrl-C to the command too: at a second one Pulumi would stop at once.
        if number != signal.SIGINT or not sys.stdin.isatty():
            command.send_signal(number)


def _require(program: str, fix: str) -> None:
    if not shutil.which(program):
        raise UserError(f"there is no {program} on PATH", fix)


def _listens(port: int) -> bool:
    with suppress(OSError), socket.create_connection((LOOPBACK, port), timeout=1):
        return True
    return False


def _say(text: str) -> None:
    console.print(f"tunnel: {text}", markup=False)


def target_of(settings: Settings) -> Target | None:
    """Return the VM that is reached through IAP, or None if the stack's machine is reached in another way."""
    gcp = settings.gcp
    if gcp is None or gcp.ssh_via != "iap":
        return None
    return Target(project=gcp.project, zone=gcp.zone, vm=gcp.name, port=gcp.tunnel_port)


def main(
    stack: Annotated[str, typer.Option(help="The stack, by its file in stacks/.")],
    set_: Annotated[list[str], typer.Option("--set", metavar="KEY=VALUE", help="A setting, over the file's.")] = [],  # noqa: B006
    command: Annotated[list[str] | None, typer.Argument(metavar="-- COMMAND", help="Run while it is open.")] = None,
) -> None:
    """Open the IAP tunnel to a stack's private VM (sshVia: iap), and keep it open.

    The program reaches the VM through it, so it must be open while `pulumi up` runs. The best way:

    \b
        scripts/elastic-vllm tunnel --stack prod-private -- pulumi up --stack prod-private

    which ends with the command and passes on its exit code; a tunnel to that VM that is open already is used.
    Or, in another terminal, `scripts/elastic-vllm tunnel --stack prod-private`, until Ctrl-C.

    You may start it before there is a VM: it waits for it, without limit, and reconnects when the tunnel ends or the VM
    is replaced. If it reports for long that port 22 gives no answer although the VM runs, the firewall blocks IAP's
    range 35.235.240.0/20. An error that waiting cannot solve (no login, no permission, wrong project) ends it with exit
    code 1 and gcloud's message; a running command is then interrupted.

    Needs gcloud, logged in with an account that has roles/iap.tunnelResourceAccessor. Listens on 127.0.0.1 only, on
    the setting tunnelPort. With sshVia address or bastion no tunnel is needed: the command just runs.
    """
    signals: list[int] = []

    def received(number: int, _frame: FrameType | None) -> None:
        signals.append(number)

    target = target_of(load(stack, overrides(set_)))
    if target is None:
        _say(f"stack {stack} is not reached through IAP: nothing to open")
        if command:
            _require(command[0], "check the command behind --")
            os.execvp(command[0], command)  # noqa: S606
        return
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, received)
    code = keep_open(target, command or [], signals)
    raise typer.Exit(code)

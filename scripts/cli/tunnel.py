"""Keep Google's IAP tunnel to a stack's private VM open, beside or around `pulumi up`.

The tunnel is `gcloud compute start-iap-tunnel`, restarted as often as needed: while there is no VM yet, and whenever it
ends. gcloud tries the VM's port 22 first and listens only then, so before that the local port refuses connections.
After that it stays: if the VM disappears, it closes each connection at once, and finds a new VM of the same name.
"""

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
from enum import Enum
from types import FrameType
from typing import Annotated

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
PORT_FIX = "use it if it is a tunnel to this VM; else end it, or set another tunnelPort"
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


class State(Enum):
    """State of a tunnel."""

    WAITING = "no gcloud runs; it is started when the next try is due"
    TRYING = "gcloud runs, and does not listen yet"
    OPEN = "gcloud listens"


class Tunnel:
    """gcloud, started again whenever it ends. Only `step` does anything, and it returns at once."""

    def __init__(self, target: Target) -> None:
        """Set up a tunnel whose first try is due now."""
        self._target = target
        self._state = State.WAITING
        self._gcloud: subprocess.Popen[bytes] | None = None
        self._output = ""
        self._reason = ""
        self._began = self._waiting_since = self._next_try = self._next_line = time.monotonic()

    @property
    def tried(self) -> bool:
        """Return True once the first try has had an outcome, even if there is no VM yet, or takes too long."""
        too_long = time.monotonic() >= self._began + FIRST_TRY_SECONDS
        return self._state is State.OPEN or bool(self._reason) or too_long

    def step(self) -> None:
        """Do what is due. Raises UserError for errors that no retry can solve."""
        if self._gcloud:
            ended = self._gcloud.poll() is not None  # asked before the last lines are read
            self._read(self._gcloud)
            if ended:
                self._wait_after(self._gcloud)
            elif self._state is State.TRYING and _listens(self._target.port):
                self._state = State.OPEN
                _say(f"open: {self._target.address} leads to SSH on VM {self._target.vm}")
        elif time.monotonic() >= self._next_try:
            self._start()
        if self._state is not State.OPEN and time.monotonic() >= self._next_line:
            self._next_line = time.monotonic() + LINE_SECONDS
            seconds = time.monotonic() - self._waiting_since
            _say(f"waiting for VM {self._target.vm} ({seconds:.0f} s)" + (f": {self._reason}" if self._reason else ""))

    def close(self) -> None:
        """End gcloud and all its children."""
        for number in (signal.SIGTERM, signal.SIGKILL):
            if self._gcloud and self._gcloud.poll() is None:
                with suppress(ProcessLookupError, subprocess.TimeoutExpired):
                    os.killpg(self._gcloud.pid, number)
                    self._gcloud.wait(END_SECONDS)

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
        self._state, self._output = State.TRYING, ""

    def _read(self, gcloud: subprocess.Popen[bytes]) -> None:
        """Read gcloud's output; once the tunnel is open, errors concern single connections and are passed on."""
        assert gcloud.stdout  # noqa: S101 (for mypy)
        new = (gcloud.stdout.read() or b"").decode(errors="replace")
        self._output = (self._output + new)[-20_000:]
        if self._state is State.OPEN:
            for line in new.splitlines():
                if line.startswith("ERROR:"):
                    self._pass_on(re.sub(r"^ERROR: (\[\d+\] )?(Error during local connection to \[.*?\]: )?", "", line))

    def _pass_on(self, error: str) -> None:
        """Report why a connection through the open tunnel failed, but not each time, because clients retry often."""
        if error != self._reason or time.monotonic() >= self._next_line:
            self._reason, self._next_line = error, time.monotonic() + LINE_SECONDS
            meaning = _meaning(error)
            _say(f"no connection to VM {self._target.vm}: {meaning}" if meaning else f"gcloud: {error}")

    def _wait_after(self, gcloud: subprocess.Popen[bytes]) -> None:
        """Arrange another try after gcloud has ended, or raise UserError."""
        now = time.monotonic()
        if self._state is State.OPEN:
            reason, self._next_try, self._waiting_since = "the tunnel has ended", now, now
        else:
            reason, self._next_try = self._reason_of_failure(gcloud.returncode), now + PAUSE_SECONDS
        if self._state is State.OPEN or reason != self._reason:
            self._next_line = now
        self._state, self._reason, self._gcloud = State.WAITING, reason, None

    def _reason_of_failure(self, exit_code: int) -> str:
        """Return what a try that failed waits for. Raises UserError where waiting does not help."""
        error = self._output[self._output.find("ERROR:") :].strip() if "ERROR:" in self._output else ""
        if meaning := _meaning(error):
            return meaning
        if exit_code < 0:
            return "gcloud was killed"
        place = {"project": self._target.project, "zone": self._target.zone}
        fixes = [fix.format(**place) for pattern, fix in FIXES.items() if re.search(pattern, error)]
        by_hand = f"see what it means, and try it by hand: {shlex.join(self._target.gcloud)}"
        message = error or self._output.strip() or f"gcloud ended with exit code {exit_code}"
        raise UserError(f"no tunnel to VM {self._target.vm}; gcloud says:\n{message}", [*fixes, by_hand][0])


def keep_open(target: Target, command: list[str], signals: list[int]) -> int:
    """Keep the tunnel open until `command` ends, whose exit code is returned, or without one until a signal comes.

    `signals` are those received and not yet handled. Raises UserError.
    """
    _require("gcloud", "install it (https://cloud.google.com/sdk/docs/install), then gcloud auth login")
    if command:
        _require(command[0], "check the command behind --")
    if is_taken(target.port):
        raise UserError(f"{listener(target.port)} listens on {target.address} already", PORT_FIX)
    tunnel = Tunnel(target)
    try:
        return _run(tunnel, command, signals) if command else _hold(tunnel, signals)
    finally:
        tunnel.close()


def _hold(tunnel: Tunnel, signals: list[int]) -> int:
    """Keep the tunnel until a signal comes."""
    while not signals:
        tunnel.step()
        time.sleep(LOOK_SECONDS)
    return 0


def _run(tunnel: Tunnel, command: list[str], signals: list[int]) -> int:
    """Run the command once the first try is over, and keep the tunnel until it ends; the command's exit code."""
    while not tunnel.tried:
        if signals:
            return 128 + signals[0]
        tunnel.step()
        time.sleep(LOOK_SECONDS)
    running = subprocess.Popen(command)
    failure: UserError | None = None
    try:
        while (code := running.poll()) is None:
            _forward(signals, running)
            try:
                if not failure:
                    tunnel.step()
            except UserError as error:
                failure = error
                _say(f"{error.cause}; interrupting {command[0]}, which needs the tunnel")
                running.send_signal(signal.SIGINT)
            time.sleep(LOOK_SECONDS)
    finally:
        if running.poll() is None:
            running.terminate()
    if failure:
        raise failure
    return code if code >= 0 else 128 - code


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

    which ends with the command and passes on its exit code.
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

"""Faults of `up` itself: interrupted, and started twice."""

import json
import signal
import subprocess
import tempfile
import time
from pathlib import Path

from tests.integration.conftest import ROOT
from tests.integration.drills.measure import Row, Site, measure, next_up
from tests.integration.drills.server import Server
from tests.support.netns_machine import Run, wait_until


def second_up(site: Site) -> Row:
    """A second `up` while another runs."""
    server = site.server
    messages: list[str] = []

    def twice() -> None:
        first = start(server, "up")
        wait_until(lambda: "settings" in first.text)
        # It has nothing to do and would end in a second. (The brackets keep the pattern from matching its own shell.)
        to_first = "pkill -{} -f 'scripts.lab [u]p'"
        server.shell(to_first.format("STOP"))
        second = server.rehearse("up")
        server.shell(to_first.format("CONT"))
        first.process.send_signal(signal.SIGCONT)  # nsenter has stopped along with it
        assert second.returncode == 1, second.stdout
        messages.append(second.stderr)
        assert first.exit_code == 0, first.text

    row = measure(site, "a second `up` while one runs", twice)
    assert f"error: stack {server.stack} is being changed by process " in messages[0]
    assert messages[0].rstrip().endswith("wait for it")
    return row


def start(server: Server, *arguments: str) -> Run:
    """Start `scripts/rehearse` in the background."""
    output = tempfile.NamedTemporaryFile(dir=server.directory, delete=False)  # noqa: SIM115 - Run reads it
    command = [*server.enter, str(ROOT / "scripts" / "rehearse"), *arguments, "--stack", server.stack]
    process = subprocess.Popen(command, stdout=output, stderr=output)
    return Run(process, Path(output.name))


def ssh_cut_at_every_step(site: Site, most: int = 1000) -> Row:
    """Start from nothing: at each new step of `up`, cut SSH until `up` gives up; then run `up` again.

    `most` is the number of failed runs after which `up` is left alone.
    """
    server = site.server
    assert server.rehearse("down").returncode == 0
    since = time.monotonic()
    known: set[str] = set()
    failed = 0
    while True:
        run = start(server, "up")
        _wait_for_new(server, run, known)
        begun = _begun(server)  # a failed step is not in the state afterwards
        while run.process.poll() is None and begun - known and failed < most:
            _cut_ssh(server)
            time.sleep(0.05)
            begun |= _begun(server)
        if run.exit_code == 0:
            break
        assert "Traceback" not in run.text, run.text
        known |= begun
        failed += 1
    assert (
        failed == most
        or {"runtime-docker", "vllm-container", "nginx-config", "nginx-container", "nginx-ready"} <= known
    )
    seconds = time.monotonic() - since
    saw = f"nothing: the endpoint did not exist yet; {failed} times `up` reported the lost connection"
    return Row("SSH cut at every step of `up`, then `up` again", saw, seconds, 0, next_up(server))


def _wait_for_new(server: Server, run: Run, known: set[str]) -> None:
    wait_until(lambda: _begun(server) - known or run.process.poll() is not None, 240)


def _begun(server: Server) -> set[str]:
    path = server.directory / "rehearsal" / "stacks" / server.stack / "state.json"
    try:
        resources = json.loads(path.read_text())["resources"]
    except (FileNotFoundError, ValueError):
        return set()
    return {urn.rpartition("::")[2] for urn in resources}


def _cut_ssh(server: Server) -> None:
    """End every session of sshd, not sshd itself."""
    server.shell("""
      listener=$(cat /var/lib/elastic-vllm-rehearsal/ssh/sshd.pid)
      for session in $(ps -o pid= --ppid "$listener"); do kill -9 "$session" 2>/dev/null || true; done""")

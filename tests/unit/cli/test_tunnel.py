"""The tunnel to a private VM, with a stand-in for gcloud that prints the real one's messages."""

import io
import os
import signal
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from rich.console import Console

from components.errors import UserError
from scripts.cli import tunnel
from scripts.cli.tunnel import Target
from tests.support import gcloud_stand_in
from tests.support.commands import invoke
from tests.support.gcloud_stand_in import Gcloud, until

DENIED = """\
ERROR: (gcloud.compute.start-iap-tunnel) While checking if a connection can be made: Error while connecting \
[4033: 'not authorized'].
"""
SLEEP = "sleep 60"


@dataclass
class Run:
    """A tunnel in a separate thread, with its output and its outcome."""

    target: Target
    command: list[str]
    signals: list[int] = field(default_factory=list)
    code: int | None = None
    error: UserError | None = None

    def work(self) -> None:
        try:
            self.code = tunnel.keep_open(self.target, self.command, self.signals)
        except UserError as error:
            self.error = error

    @property
    def ended(self) -> bool:
        return self.code is not None or self.error is not None


@pytest.fixture
def gcloud(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Gcloud]:
    """Stand-in on PATH, with shortened waits."""
    stand_in = gcloud_stand_in.make(tmp_path / "gcloud")
    monkeypatch.setenv("PATH", f"{stand_in.bin}:{os.environ['PATH']}")
    monkeypatch.setattr(tunnel, "PAUSE_SECONDS", 0.05)
    monkeypatch.setattr(tunnel, "LOOK_SECONDS", 0.01)
    yield stand_in
    stand_in.kill()


@pytest.fixture
def output(monkeypatch: pytest.MonkeyPatch) -> Callable[[], str]:
    text = io.StringIO()
    monkeypatch.setattr(tunnel, "console", Console(file=text, soft_wrap=True, highlight=False))
    return text.getvalue


@pytest.fixture
def target() -> Target:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = int(server.getsockname()[1])
    return Target(project="acme-llm", zone="us-central1-a", vm="elastic-vllm-x", port=port)


@contextmanager
def running(target: Target, *command: str) -> Iterator[Run]:
    """Run the tunnel beside a test, and interrupt it at the end, as by Ctrl-C."""
    run = Run(target, list(command))
    thread = threading.Thread(target=run.work)
    thread.start()
    try:
        yield run
    finally:
        run.signals.append(signal.SIGTERM)
        thread.join(30)
        assert not thread.is_alive()


@contextmanager
def backend(greeting: bytes) -> Iterator[int]:
    """Run a server that stands for the VM's sshd and greets like it, and yield its port."""
    with socket.create_server(("127.0.0.1", 0)) as server:

        def serve() -> None:
            while True:
                try:
                    connection, _ = server.accept()
                except OSError:
                    return
                with connection:
                    connection.sendall(greeting)

        threading.Thread(target=serve, daemon=True).start()
        try:
            yield int(server.getsockname()[1])
        finally:
            server.shutdown(socket.SHUT_RDWR)


def greeting(target: Target) -> bytes | None:
    """Return the greeting that comes through the tunnel; None if nothing listens."""
    try:
        with socket.create_connection(("127.0.0.1", target.port), timeout=5) as client:
            return client.recv(100)
    except ConnectionRefusedError:
        return None
    except ConnectionResetError:
        return b""


def test_it_waits_for_the_vm_and_opens(gcloud: Gcloud, target: Target, output: Callable[[], str]) -> None:
    with running(target), backend(b"SSH-2.0-a") as port:
        until(lambda: len(gcloud.calls) > 2, "tries")
        assert greeting(target) is None
        gcloud.vm_is_at(port)
        until(lambda: "open: " in output(), "the tunnel")
        assert greeting(target) == b"SSH-2.0-a"
    assert gcloud.calls[0][1] == (
        f"compute start-iap-tunnel elastic-vllm-x 22 --local-host-port=127.0.0.1:{target.port} "
        "--zone=us-central1-a --project=acme-llm"
    )


def test_while_it_waits_it_reports_that_and_why(
    gcloud: Gcloud, target: Target, output: Callable[[], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert tunnel.LINE_SECONDS <= 10
    monkeypatch.setattr(tunnel, "LINE_SECONDS", 0.1)
    with running(target):
        until(lambda: output().count("waiting for VM elastic-vllm-x (") > 2, "lines")
        until(lambda: "(0 s): there is no such VM yet" in output(), "the reason")


def test_it_opens_again_when_the_tunnel_has_ended(gcloud: Gcloud, target: Target, output: Callable[[], str]) -> None:
    with running(target), backend(b"SSH-2.0-a") as port:
        gcloud.vm_is_at(port)
        for time in (1, 2, 3):
            until(lambda count=time: output().count("open: ") == count, f"tunnel {time}")  # type: ignore[misc]
            assert greeting(target) == b"SSH-2.0-a"
            if time == 2:  # like a drop while the VM is replaced
                gcloud.vm_is_at(None)
            gcloud.kill()
            if time == 2:
                until(lambda: "there is no such VM yet" in output(), "waiting")
                gcloud.vm_is_at(port)
    assert "the tunnel has ended" in output()


def test_it_leads_to_the_vm_that_replaces_another(gcloud: Gcloud, target: Target, output: Callable[[], str]) -> None:
    with running(target), backend(b"SSH-2.0-old") as old, backend(b"SSH-2.0-new") as new:
        gcloud.vm_is_at(old)
        until(lambda: "open: " in output(), "the tunnel")
        gcloud.vm_is_at(None)
        for _ in range(3):  # it reports only the first
            assert greeting(target) == b""
        until(lambda: "no connection to VM elastic-vllm-x: IAP does not find it" in output(), "the reason")
        gcloud.vm_is_at(new)
        assert greeting(target) == b"SSH-2.0-new"
    assert output().count("no connection to VM") == 1
    assert len(gcloud.calls) == 1


@pytest.mark.parametrize(
    "error",
    [
        "Could not fetch resource:\n - The resource 'projects/p/zones/z/instances/vm' was not found",
        "While checking if a connection can be made: Error while connecting [4047: 'Failed to lookup instance'].",
        "Error while connecting [4003: 'failed to connect to backend']. (Failed to connect to port 22)",
        "While checking if a connection can be made: Error while connecting [1000: ''].",
        "Error while connecting [[Errno -2] Name or service not known].",
        "Error while connecting [Handshake status 502 Bad Gateway].",
        "gcloud crashed (ConnectionError): HTTPSConnectionPool(host='compute.googleapis.com', port=443): Max retries",
    ],
)
def test_it_waits_for_an_error_that_may_pass(error: str) -> None:
    assert tunnel._meaning(f"ERROR: (gcloud.compute.start-iap-tunnel) {error}")


@pytest.mark.parametrize(
    ("error", "fix"),
    [
        ("Error while connecting [4033: 'not authorized'].", "roles/iap.tunnelResourceAccessor in project acme-llm"),
        ("Error while connecting [Handshake status 403 Forbidden].", "roles/iap.tunnelResourceAccessor"),
        (
            "Could not fetch resource:\n - The resource 'projects/acme-llm' was not found",
            "check the settings gcpProject",
        ),
        ("Could not fetch resource:\n - Invalid value for field 'zone': 'q'. Unknown zone.", "zone (us-central1-a)"),
        ("Could not fetch resource:\n - Required 'compute.instances.get' permission for 'x'", "that permission"),
        ("Compute Engine API has not been used in project 1 before or it is disabled.", "gcloud services enable"),
        (
            "You do not currently have an active account selected.\nPlease run:\n  $ gcloud auth login",
            "gcloud auth login",
        ),
        ("Local port [1] is not available.", "tunnelPort"),
        ("Something new.", "try it by hand: gcloud compute start-iap-tunnel elastic-vllm-x 22 --local"),
    ],
)
def test_a_lasting_error_ends_it_with_gclouds_message(error: str, fix: str, gcloud: Gcloud, target: Target) -> None:
    gcloud.says(f"WARNING: of something else\nERROR: (gcloud.compute.start-iap-tunnel) {error}\n")
    with pytest.raises(UserError) as raised:
        tunnel.keep_open(target, [], [])
    text, its_fix = raised.value.cause, raised.value.fix
    assert text == f"no tunnel to VM elastic-vllm-x; gcloud says:\nERROR: (gcloud.compute.start-iap-tunnel) {error}"
    assert fix in its_fix
    assert len(gcloud.calls) == 1


def test_without_gcloud_the_fix_is_to_install_it(
    gcloud: Gcloud, target: Target, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", "/nonexistent")
    with pytest.raises(UserError, match=r"there is no gcloud on PATH; fix: install it \(https://"):
        tunnel.keep_open(target, [], [])


def test_a_port_that_something_else_has_is_an_error(gcloud: Gcloud, target: Target) -> None:
    with (
        socket.create_server(("127.0.0.1", target.port)),
        pytest.raises(UserError, match=f"listens on 127.0.0.1:{target.port} already; fix: use it .*tunnelPort"),
    ):
        tunnel.keep_open(target, [], [])
    assert not gcloud.calls


# With a command


@pytest.mark.parametrize(("script", "code"), [("exit 0", 0), ("exit 7", 7), ("kill -9 $$", 137)])
def test_the_commands_exit_code_is_passed_on(script: str, code: int, gcloud: Gcloud, target: Target) -> None:
    with backend(b"SSH-2.0-a") as port:
        gcloud.vm_is_at(port)
        assert tunnel.keep_open(target, ["sh", "-c", script], []) == code
    assert gcloud.calls
    assert not gcloud.running


def test_a_command_finds_the_tunnel_open(gcloud: Gcloud, target: Target, tmp_path: Path) -> None:
    with backend(b"SSH-2.0-a") as port:
        gcloud.vm_is_at(port)
        script = f"read -r -n 9 greeting < /dev/tcp/127.0.0.1/{target.port}; echo $greeting > {tmp_path}/heard"
        assert tunnel.keep_open(target, ["bash", "-c", script], []) in {0, 1}
    assert (tmp_path / "heard").read_text() == "SSH-2.0-a\n"


def test_a_command_that_creates_the_vm_need_not_wait_for_it(gcloud: Gcloud, target: Target) -> None:
    with backend(b"SSH-2.0-a") as port:
        script = f"echo {port} > {gcloud.directory}/vm; until : < /dev/tcp/127.0.0.1/{target.port}; do sleep 0.05; done"
        assert tunnel.keep_open(target, ["bash", "-c", f"({script}) 2>/dev/null"], []) == 0
    assert len(gcloud.calls) > 1


def test_no_command_begins_where_the_first_try_fails_for_good(gcloud: Gcloud, target: Target, tmp_path: Path) -> None:
    gcloud.says(DENIED)
    with pytest.raises(UserError, match="4033"):
        tunnel.keep_open(target, ["touch", str(tmp_path / "begun")], [])
    assert not (tmp_path / "begun").exists()


def test_a_command_is_interrupted_where_the_tunnel_fails_for_good(
    gcloud: Gcloud, target: Target, output: Callable[[], str], tmp_path: Path
) -> None:
    script = f"trap 'touch {tmp_path}/interrupted; exit 3' INT; touch {tmp_path}/begun; while :; do sleep 0.02; done"
    with running(target, "bash", "-c", script) as run:
        until((tmp_path / "begun").exists, "the command")
        gcloud.says(DENIED)
        until(lambda: run.ended, "the end")
    assert "4033" in str(run.error)
    assert "interrupting bash" in output()
    assert (tmp_path / "interrupted").exists()


def test_a_command_that_is_not_there_is_an_error(gcloud: Gcloud, target: Target) -> None:
    with pytest.raises(UserError, match="there is no nonsense on PATH"):
        tunnel.keep_open(target, ["nonsense"], [])
    assert not gcloud.calls


def test_a_signal_is_the_commands_own_and_the_tunnel_outlives_it(
    gcloud: Gcloud, target: Target, tmp_path: Path
) -> None:
    """Pulumi, for example, then finishes its current steps, which need the tunnel."""
    with backend(b"SSH-2.0-a") as port:
        gcloud.vm_is_at(port)
        last = f"cat < /dev/tcp/127.0.0.1/{target.port} > {tmp_path}/heard; exit 5"
        script = f"trap '{last}' TERM; touch {tmp_path}/begun; while :; do sleep 0.02; done"
        with running(target, "bash", "-c", script) as run:
            until((tmp_path / "begun").exists, "the command")
            run.signals.append(signal.SIGTERM)
            until(lambda: run.ended, "the end")
    assert run.code == 5
    assert (tmp_path / "heard").read_text() == "SSH-2.0-a"
    assert not gcloud.running


# The script


def settings(gcp: Any) -> Any:
    return SimpleNamespace(gcp=gcp)


def gcp(**values: Any) -> Any:
    given = {"project": "acme-llm", "zone": "us-central1-a", "ssh_via": "iap", "name": "elastic-vllm-x"}
    return SimpleNamespace(**given | {"tunnel_port": 2222} | values)


def test_the_vm_is_the_stacks() -> None:
    assert tunnel.target_of(settings(gcp())) == Target(
        project="acme-llm", zone="us-central1-a", vm="elastic-vllm-x", port=2222
    )


@pytest.mark.parametrize("other", [None, gcp(ssh_via="bastion"), gcp(ssh_via="address")])
@pytest.mark.parametrize("command", [[], ["--", "sh", "-c", "exit 7"]])
def test_where_no_tunnel_is_needed_the_command_is_just_run(
    other: Any, command: list[str], gcloud: Gcloud, output: Callable[[], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[Any] = []

    def load(*arguments: Any) -> Any:
        asked.append(arguments)
        return settings(other)

    monkeypatch.setattr(tunnel, "load", load)
    monkeypatch.setattr(os, "execvp", lambda *arguments: asked.append(arguments))
    result = invoke("tunnel", "--stack", "x", "--set", "tunnelPort=2022", *command)
    assert result.exit_code == 0, result.output
    assert "stack x is not reached through IAP: nothing to open" in output()
    assert asked == [("x", {"tunnelPort": "2022"}), *([("sh", ["sh", "-c", "exit 7"])] if command else [])]
    assert not gcloud.calls


def test_an_error_is_a_short_message(
    gcloud: Gcloud, target: Target, output: Callable[[], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    gcloud.says(DENIED)
    monkeypatch.setattr(tunnel, "load", lambda *_: None)
    monkeypatch.setattr(tunnel, "target_of", lambda _: target)
    monkeypatch.setattr(signal, "signal", lambda *_: None)
    result = invoke("tunnel", "--stack", "x")
    assert result.exit_code == 1
    assert "error: no tunnel to VM elastic-vllm-x; gcloud says:\nERROR: (gcloud." in result.stderr
    assert "Traceback" not in output() + result.output

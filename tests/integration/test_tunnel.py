"""The tunnel as users run it: the command in its own process, a real ssh in front and a real sshd behind.

Only gcloud and Google are stand-ins (tests/support/gcloud_stand_in.py).
"""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.support import gcloud_stand_in, local_sshd
from tests.support.gcloud_stand_in import Gcloud, until
from tests.support.local_sshd import Server, free_port

ROOT = Path(__file__).resolve().parents[2]
# The command, with fixed settings: no stack file of these tests is in stacks/.
SCRIPT = """\
import sys
from scripts.cli import tunnel
port = int(sys.argv.pop(1))
tunnel.load = lambda *_: None
tunnel.target_of = lambda _: tunnel.Target("acme-llm", "us-central1-a", "elastic-vllm-x", port)
from scripts.cli.app import app
app(["tunnel", *sys.argv[1:]])
"""


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with local_sshd.running() as running:
        yield running


@pytest.fixture
def gcloud(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Gcloud]:
    stand_in = gcloud_stand_in.make(tmp_path / "gcloud")
    monkeypatch.setenv("PATH", f"{stand_in.bin}:{os.environ['PATH']}")
    yield stand_in
    stand_in.kill()


@contextmanager
def tunnel(port: int, *command: str) -> Iterator[subprocess.Popen[str]]:
    """Run the command until the block ends."""
    arguments = [sys.executable, "-c", SCRIPT, str(port), "--stack", "x", *(["--", *command] if command else [])]
    process = subprocess.Popen(arguments, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    try:
        yield process
    finally:
        process.terminate()
        process.communicate(timeout=60)


def ssh(server: Server, port: int, command: str, host_key: Path | None = None) -> subprocess.CompletedProcess[str]:
    """Run a command over a real ssh, with the host key pinned as by the program."""
    known = " ".join((host_key or server.host_key).read_text().split()[:2])
    options = {
        "IdentitiesOnly": "yes",
        "StrictHostKeyChecking": "yes",
        "UserKnownHostsFile": "/dev/null",
        "GlobalKnownHostsFile": "/dev/null",
        "KnownHostsCommand": f"/bin/echo [127.0.0.1]:{port} {known}",
    }
    flags = [flag for name, value in options.items() for flag in ("-o", f"{name}={value}")]
    words = ["ssh", "-p", str(port), "-i", str(server.private_key), *flags, "root@127.0.0.1", command]
    return subprocess.run(words, capture_output=True, text=True, timeout=60, check=False)


def works(server: Server, port: int) -> bool:
    return ssh(server, port, "echo through").stdout == "through\n"


def test_ssh_works_through_it_and_again_after_a_drop(server: Server, gcloud: Gcloud) -> None:
    port = free_port()
    with tunnel(port):
        until(lambda: gcloud.calls, "the first try")
        assert "Connection refused" in ssh(server, port, "true").stderr
        gcloud.vm_is_at(server.port)
        until(lambda: works(server, port), "ssh")
        first = gcloud.running
        gcloud.kill()
        until(lambda: works(server, port), "ssh after the drop")
        assert gcloud.running != first
        refused = ssh(server, port, "true", server.new_key("another").with_suffix(".pub"))
        assert refused.returncode == 255
        assert "Host key verification failed" in refused.stderr
    assert not gcloud.running


def test_ssh_works_to_the_vm_that_replaces_another(server: Server, gcloud: Gcloud) -> None:
    port = free_port()
    with local_sshd.running() as old, tunnel(port):
        gcloud.vm_is_at(old.port)
        until(lambda: works(old, port), "ssh to the first")
        gcloud.vm_is_at(None)
        assert not works(old, port)
        gcloud.vm_is_at(server.port)
        until(lambda: works(server, port), "ssh to the second")
        assert not works(old, port)


def test_the_commands_output_is_unchanged_and_its_exit_code_is_passed_on(server: Server, gcloud: Gcloud) -> None:
    gcloud.vm_is_at(server.port)
    port = free_port()
    script = f"read -r -n 8 greeting < /dev/tcp/127.0.0.1/{port}; echo $greeting; exit 7"
    arguments = [sys.executable, "-c", SCRIPT, str(port), "--stack", "x", "--", "bash", "-c", script]
    done = subprocess.run(arguments, cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stdout) == (7, "SSH-2.0-\n")
    assert f"open: 127.0.0.1:{port} leads to SSH on VM elastic-vllm-x" in done.stderr
    assert not gcloud.running


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGKILL])
@pytest.mark.parametrize("there_is_a_vm", [True, False])
def test_ending_it_leaves_no_process(
    number: signal.Signals, there_is_a_vm: bool, server: Server, gcloud: Gcloud
) -> None:
    """Even SIGKILL ends gcloud too, where setpriv is installed."""
    if there_is_a_vm:
        gcloud.vm_is_at(server.port)
    port = free_port()
    with tunnel(port) as process:
        until(lambda: works(server, port) if there_is_a_vm else gcloud.calls, "the tunnel")
        process.send_signal(number)
        process.wait(60)
    assert process.returncode == (-9 if number == signal.SIGKILL else 0)
    until(lambda: not gcloud.running, "the end of gcloud", 5)
    assert not works(server, port)


def test_a_second_tunnel_is_refused_with_the_process_of_the_first(server: Server, gcloud: Gcloud) -> None:
    gcloud.vm_is_at(server.port)
    port = free_port()
    with tunnel(port):
        until(lambda: works(server, port), "the first")
        with tunnel(port) as second:
            text, _ = second.communicate(timeout=60)
        assert second.returncode == 1
        assert f"process {gcloud.running[0]} (" in text
        assert f") listens on 127.0.0.1:{port} already\n  fix: use it if it is a tunnel to this VM" in text
        assert works(server, port)

"""End of the first process of vLLM's container, in a real shell with another program as vLLM."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from components.serving import vllm_process

Start = Callable[..., subprocess.Popen[str]]
LONG = 10.0
"""Seconds: longer than a moment takes on a busy machine."""
# These programs print when they are ready for a signal, and end some time after the process that started them.
ENDS = "trap 'exit 3' TERM; echo ready; for _ in $(seq 400); do sleep 0.05; done"
WAITS = ENDS.replace("exit 3", "")


@pytest.fixture
def start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Start]:
    groups = []

    def started(vllm: str, abort_seconds: float, *extra_args: str) -> subprocess.Popen[str]:
        monkeypatch.setattr(vllm_process, "ABORT_SECONDS", abort_seconds)
        program = tmp_path / "python3"
        program.write_text(f'#!/bin/sh\n[ "$1" != -c ] || exit 0\n{vllm}\n')
        program.chmod(0o755)
        *shell, _ = vllm_process.entrypoint(extra_args)
        path = f"{tmp_path}:{os.environ['PATH']}"
        command = [*shell, str(tmp_path / "vllm.sock"), "--model", "/model"]
        process = subprocess.Popen(
            command, env={"PATH": path}, stdout=subprocess.PIPE, text=True, start_new_session=True
        )
        groups.append(process.pid)
        assert process.stdout
        assert process.stdout.readline() == "ready\n"
        while not {signal.SIGTERM, signal.SIGINT} <= caught(process.pid):
            time.sleep(0.005)
        return process

    yield started
    for group in groups:  # in a container, nothing outlives its first process
        with suppress(ProcessLookupError):
            os.killpg(group, signal.SIGKILL)


def caught(process: int) -> set[int]:
    """Return the signals that a process has set a trap for."""
    status = Path(f"/proc/{process}/status").read_text()
    mask = int(status.partition("SigCgt:")[2].split()[0], 16)
    return {number for number in range(1, 65) if mask >> (number - 1) & 1}


def ended(process: subprocess.Popen[str], after: signal.Signals) -> tuple[int, float]:
    """Send a signal, and return the exit status and the seconds until the end."""
    begun = time.monotonic()
    process.send_signal(after)
    return process.wait(20), time.monotonic() - begun


@pytest.mark.parametrize("sent", [signal.SIGTERM, signal.SIGINT])
def test_a_vllm_that_ends_is_not_waited_for(start: Start, sent: signal.Signals) -> None:
    status, seconds = ended(start(ENDS, LONG), sent)
    assert status == 3
    assert seconds < LONG


def test_a_vllm_that_waits_for_its_streams_is_killed(start: Start) -> None:
    status, seconds = ended(start(WAITS, 0.3), signal.SIGTERM)
    assert status == 128 + signal.SIGKILL
    assert seconds > 0.3


def test_a_vllm_with_a_shutdown_timeout_may_let_requests_end(start: Start) -> None:
    slow = ENDS.replace("exit 3", "sleep 0.6; exit 3")
    status, seconds = ended(start(slow, 0.1, "--shutdown-timeout", "20"), signal.SIGTERM)
    assert status == 3
    assert seconds > 0.6


ECHO = '#!/bin/sh\necho "$@"\n'


@pytest.mark.parametrize(
    ("module", "started"),
    [
        ('if __name__ == "__main__": main()', "-m vllm.entrypoints.openai.api_server --uds SOCKET --model /model -x"),
        ("# nothing to run any more", "serve /model --uds SOCKET -x"),
        (None, "serve /model --uds SOCKET -x"),
    ],
)
def test_an_image_without_the_module_starts_vllm_by_its_command(
    tmp_path: Path, module: str | None, started: str
) -> None:
    server = tmp_path / "packages" / "vllm" / "entrypoints" / "openai" / "api_server.py"
    server.parent.mkdir(parents=True)
    if module is not None:
        server.write_text(module)
    (tmp_path / "vllm").write_text(ECHO)
    (tmp_path / "python3").write_text(f'#!/bin/sh\n[ "$1" != -c ] || exec {sys.executable} "$@"\necho "$@"\n')
    for name in ("vllm", "python3"):
        (tmp_path / name).chmod(0o755)
    *shell, _ = vllm_process.entrypoint(())
    done = subprocess.run(
        [*shell, str(tmp_path / "vllm.sock"), "--model", "/model", "-x"],
        env={"PATH": f"{tmp_path}:{os.environ['PATH']}", "PYTHONPATH": str(tmp_path / "packages")},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.strip() == started.replace("SOCKET", str(tmp_path / "vllm.sock"))


def test_a_vllm_that_ends_by_itself_is_reported_with_its_status(start: Start) -> None:
    assert start("echo ready; exit 7", LONG).wait(LONG) == 7

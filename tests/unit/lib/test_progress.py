"""Progress of every command: on a terminal a table, elsewhere lines."""

import io
import os
import pty
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress

import pytest

from scripts.lib import progress
from scripts.lib.progress import Display
from tests.support.program import ROOT

CHECKS = """
import time
from scripts.lib.progress import Display
with Display(results_on_stdout=True) as display, display.task("checks") as task:
    task.say("chat")
    time.sleep(0.3)
    display.line("ok chat")
    time.sleep(0.3)
"""
WITHOUT_RICH = "import sys; sys.modules['rich'] = sys.modules['rich.console'] = None\n"


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress, "HEARTBEAT_SECONDS", 0.02)
    monkeypatch.setattr(progress, "QUICK_SECONDS", 0.01)
    monkeypatch.setattr(progress, "POLL_SECONDS", 0.005)


def until(stream: io.StringIO, text: str) -> str:
    """Return everything that is shown once the text is in it. capsys would lose a line that comes while it reads."""
    end = time.monotonic() + 5
    while text not in stream.getvalue() and time.monotonic() < end:
        time.sleep(0.001)
    return stream.getvalue()


def test_without_a_terminal_a_long_task_is_announced_with_its_progress(
    quick: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    shown = io.StringIO()
    monkeypatch.setattr(sys, "stdout", shown)
    with Display() as display, display.task("image", "set-up") as task:
        task.say("pulling\nlayer 1\r layer 2 \n\n")
        seen = until(shown, "layer 2\n")
        task.outcome = "pulled"
    assert "started    image                            set-up\n" in seen
    assert "…          image                               0 s  layer 2\n" in seen
    assert "\npulled     image " in shown.getvalue()


def test_silence_lasts_ten_seconds_at_most() -> None:
    assert progress.HEARTBEAT_SECONDS + progress.POLL_SECONDS < 10


def test_results_are_apart_from_progress(
    quick: None, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    shown = io.StringIO()
    monkeypatch.setattr(sys, "stderr", shown)
    with Display(results_on_stdout=True) as display, display.task("checks") as task:
        task.say("chat")
        display.line("ok chat")
        seen = until(shown, "chat\n")
    assert "…          checks" in seen
    assert capsys.readouterr().out == "ok chat\n"
    with Display(results_on_stdout=True) as display, display.task("checks"):
        display.line("ok chat")
    assert capsys.readouterr().out == "ok chat\n"


class Halting(io.StringIO):
    """A stream that another thread writes to between any two writes."""

    def write(self, text: str) -> int:
        written = super().write(text)
        time.sleep(0.002)
        return written


def test_lines_of_threads_do_not_run_together(monkeypatch: pytest.MonkeyPatch) -> None:
    stream = Halting()
    monkeypatch.setattr(sys, "stdout", stream)
    names = [f"resource-{number}" for number in range(40)]
    with Display() as display, ThreadPoolExecutor(8) as threads:
        list(threads.map(display.line, names))
    assert sorted(stream.getvalue().splitlines()) == sorted(names)


def test_a_task_that_fails_is_reported_as_failed(capsys: pytest.CaptureFixture[str]) -> None:
    with Display() as display, pytest.raises(ValueError, match="no"), display.task("image"):
        raise ValueError("no")
    assert capsys.readouterr().out.startswith("failed     image ")


def on_a_terminal(code: str) -> tuple[str, str]:
    """Run a program with a terminal as standard error, and return its standard output and standard error."""
    terminal, its_end = pty.openpty()
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT,
        env={**os.environ, "TERM": "xterm", "COLUMNS": "80"},
        stdout=subprocess.PIPE,
        stderr=its_end,
        text=True,
        check=True,
    )
    os.close(its_end)
    shown = b""
    with suppress(OSError):  # no process writes to the terminal any more
        while piece := os.read(terminal, 100_000):
            shown += piece
    os.close(terminal)
    return done.stdout, shown.decode()


def test_on_a_terminal_a_table_shows_what_runs_and_results_stay_on_standard_output() -> None:
    results, shown = on_a_terminal(CHECKS)
    assert results == "ok chat\n"
    assert "checks" in shown
    assert "chat" in shown


def test_where_nothing_is_installed_lines_must_do() -> None:
    results, shown = on_a_terminal(WITHOUT_RICH + CHECKS)
    assert (results, shown) == ("ok chat\n", "")

"""Progress of all commands: a live table on a terminal, elsewhere a line at least every ten seconds.

rich draws the table. Without it, such as when a bundle is verified before anything is installed, there are only lines.
"""

import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Self, TextIO

if TYPE_CHECKING:
    from rich.live import Live
    from rich.table import Table

HEARTBEAT_SECONDS = 9.0
POLL_SECONDS = 0.5
QUICK_SECONDS = 1.0
"""A task that ends sooner is shown only at its end."""
TIMELINE_SECONDS = 0.2
"""A task that ended sooner is not in the timeline."""
BAR_WIDTH = 40


class Task:
    """Something that runs: set `outcome` before it ends, `say` what it is doing."""

    def __init__(self, name: str, kind: str) -> None:
        self.name, self.kind = name, kind
        self.outcome = "done"
        self.line = ""
        self.announced = False
        self.started = time.monotonic()

    def say(self, text: str) -> None:
        """Show the last line of a program's output, or what is done now."""
        lines = [part.strip() for part in text.replace("\r", "\n").splitlines() if part.strip()]
        if lines:
            self.line = lines[-1]

    @property
    def seconds(self) -> float:
        """Return the seconds for which it has been running."""
        return time.monotonic() - self.started


class Display:
    """Context manager that shows the running tasks, safe to use from many threads."""

    def __init__(self, *, results_on_stdout: bool = False) -> None:
        """`results_on_stdout`: `line` prints results; progress goes to standard error, and a task leaves no line."""
        self._apart = results_on_stdout
        self._stream = sys.stderr if results_on_stdout else sys.stdout
        self._lock = threading.Lock()
        self._printing = threading.Lock()
        self._running: list[Task] = []
        self._finished: list[tuple[str, float, float]] = []  # name, start, seconds
        self._counts: Counter[str] = Counter()
        self._start = time.monotonic()
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._beat, daemon=True)
        self._live: Live | None = None

    def __enter__(self) -> Self:
        self._live = self._table_on_a_terminal()
        if self._live:
            self._live.start()
        else:
            self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        if self._live:
            self._live.stop()

    def line(self, text: str) -> None:
        """Print one line of plain text on standard output, above the table."""
        if not self._live:
            self._print(text, sys.stdout)
        elif self._apart:
            self._live.stop()
            print(text, flush=True)
            self._live.start()
        else:
            self._live.console.print(text, markup=False, highlight=False, soft_wrap=True)

    @contextmanager
    def task(self, name: str, kind: str = "", *, counted: bool = False) -> Iterator[Task]:
        """Show that something runs until the block ends, then its outcome; `counted` ones go into `counts`."""
        task = Task(name, kind)
        with self._lock:
            self._running.append(task)
        try:
            yield task
        except BaseException:
            task.outcome = "failed"
            raise
        finally:
            with self._lock:
                self._running.remove(task)
                self._finished.append((name, task.started - self._start, task.seconds))
                if counted:
                    self._counts[task.outcome] += 1
            if not self._apart:
                self.line(f"{task.outcome:<10} {name:<32} {kind:<24} {task.seconds:6.1f} s")

    def counts(self) -> str:
        """Like "2 created, 1 replaced, 11 unchanged"."""
        order = ["created", "updated", "replaced", "deleted", "failed", "unchanged"]
        return ", ".join(f"{self._counts[word]} {word}" for word in order if self._counts[word]) or "nothing to do"

    def timeline(self) -> str:
        """Yield one line for each task that took a while: start, bar and length, all in seconds."""
        total = max(time.monotonic() - self._start, 0.001)
        rows = [f"total {total:.1f} s"]
        for name, start, seconds in sorted(self._finished, key=lambda each: each[1]):
            if seconds < TIMELINE_SECONDS:
                continue
            left = min(int(start / total * BAR_WIDTH), BAR_WIDTH - 1)
            length = max(1, min(round(seconds / total * BAR_WIDTH), BAR_WIDTH - left))
            bar = (" " * left + "█" * length).ljust(BAR_WIDTH)
            rows.append(f"{name:<32} {start:6.1f} s |{bar}| {seconds:6.1f} s")
        return "\n".join(rows)

    def _beat(self) -> None:
        last = time.monotonic()
        while not self._over.wait(POLL_SECONDS):
            with self._lock:
                running = list(self._running)
            for task in running:
                if not self._apart and not task.announced and task.seconds > QUICK_SECONDS:
                    task.announced = True
                    self._note(f"{'started':<10} {task.name:<32} {task.kind}")
                    last = time.monotonic()
            if running and time.monotonic() - last > HEARTBEAT_SECONDS:
                last = time.monotonic()
                for task in running:
                    self._note(f"{'…':<10} {task.name:<32} {task.seconds:4.0f} s  {task.line[:100]}")

    def _note(self, text: str) -> None:
        self._print(text.rstrip(), self._stream)

    def _print(self, text: str, stream: TextIO) -> None:
        """Write a line at once: `print` writes its end apart, and another thread's line could come between."""
        with self._printing:
            stream.write(f"{text}\n")
            stream.flush()

    def _table_on_a_terminal(self) -> "Live | None":
        try:
            from rich.console import Console  # noqa: PLC0415 (it may not be installed yet)
            from rich.live import Live  # noqa: PLC0415
        except ModuleNotFoundError:
            return None
        console = Console(stderr=self._apart)
        if not console.is_terminal:
            return None
        return Live(get_renderable=self._table, console=console, transient=True, redirect_stdout=not self._apart)

    def _table(self) -> "Table":
        from rich.table import Table  # noqa: PLC0415
        from rich.text import Text  # noqa: PLC0415

        table = Table.grid(padding=(0, 2))
        with self._lock:
            for task in self._running:
                line = Text(task.line, overflow="ellipsis", no_wrap=True, style="dim")
                table.add_row(Text(task.name, no_wrap=True), f"{task.seconds:.0f} s", line)
        return table

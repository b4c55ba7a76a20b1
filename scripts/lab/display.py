"""What runs now and for how long, while it runs; counts and a timeline at the end."""

import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Self

from rich.console import Console
from rich.live import Live
from rich.table import Table
from rich.text import Text

HEARTBEAT_SECONDS = 10.0
QUICK_SECONDS = 1.0  # what ends sooner is told at its end only
TIMELINE_SECONDS = 0.2  # what ended sooner is not in the timeline
BAR_WIDTH = 40


class Task:
    """One thing that runs: set `outcome` before it ends, `say` what it is doing."""

    def __init__(self, name: str, kind: str) -> None:
        self.name, self.kind = name, kind
        self.outcome = "done"
        self.line = ""
        self.announced = False
        self.started = time.monotonic()

    def say(self, line: str) -> None:
        """Show the last line of what was put out."""
        lines = [part.strip() for part in line.replace("\r", "\n").splitlines() if part.strip()]
        if lines:
            self.line = lines[-1]

    @property
    def seconds(self) -> float:
        """How long it has been running."""
        return time.monotonic() - self.started


class Display:
    """A live table on a terminal, plain lines elsewhere. Safe to use from many threads. A context manager."""

    def __init__(self) -> None:
        self.console = Console(highlight=False)
        self._lock = threading.Lock()
        self._running: list[Task] = []
        self._finished: list[tuple[str, float, float]] = []  # name, start, seconds
        self._counts: Counter[str] = Counter()
        self._start = time.monotonic()
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._beat, daemon=True)
        self._live: Live | None = None

    def __enter__(self) -> Self:
        if self.console.is_terminal:
            self._live = Live(get_renderable=self._table, console=self.console, transient=True)
            self._live.start()
        else:
            self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        if self._live:
            self._live.stop()

    def line(self, text: str) -> None:
        """One line of plain text, above whatever is live."""
        self.console.print(text, markup=False, soft_wrap=True)
        sys.stdout.flush()

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
            self.line(f"{task.outcome:<10} {name:<32} {kind:<24} {task.seconds:6.1f} s")

    def counts(self) -> str:
        """Like "2 created, 1 replaced, 11 unchanged"."""
        order = ["created", "updated", "replaced", "deleted", "failed", "unchanged"]
        return ", ".join(f"{self._counts[word]} {word}" for word in order if self._counts[word]) or "nothing to do"

    def timeline(self) -> str:
        """One line for each thing that took a while: start, bar and length, all in seconds."""
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
        while not self._over.wait(0.5):
            with self._lock:
                running = list(self._running)
            for task in running:
                if not task.announced and task.seconds > QUICK_SECONDS:
                    task.announced = True
                    self.line(f"{'started':<10} {task.name:<32} {task.kind}".rstrip())
                    last = time.monotonic()
            if running and time.monotonic() - last > HEARTBEAT_SECONDS - 1:
                last = time.monotonic()
                for task in running:
                    self.line(f"{'…':<10} {task.name:<32} {task.seconds:4.0f} s  {task.line[:100]}".rstrip())

    def _table(self) -> Table:
        table = Table.grid(padding=(0, 2))
        with self._lock:
            for task in self._running:
                line = Text(task.line, overflow="ellipsis", no_wrap=True, style="dim")
                table.add_row(Text(task.name, no_wrap=True), f"{task.seconds:.0f} s", line)
        return table

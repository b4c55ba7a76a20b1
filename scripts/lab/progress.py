"""One line now and then while something long runs, so that silence always means trouble."""

import threading
import time
from collections.abc import Callable
from types import TracebackType

EVERY_SECONDS = 5.0


class Progress:
    """Says the latest note, with the time passed, every few seconds until the block ends.

    `note` may be called as often as lines arrive; `say` is called from another thread.
    """

    def __init__(self, say: Callable[[str], None], title: str, every: float = EVERY_SECONDS) -> None:
        """`title` starts every line; `every` is in seconds."""
        self._say, self._title, self._every = say, title, every
        self._latest = ""
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self.started = time.monotonic()

    def note(self, text: str) -> None:
        """Keep the last non-empty line of `text` for the next time something is said."""
        lines = [line.strip() for line in text.replace("\r", "\n").splitlines() if line.strip()]
        if lines:
            self._latest = lines[-1][:120]

    @property
    def seconds(self) -> float:
        """Seconds since the block was entered."""
        return time.monotonic() - self.started

    def __enter__(self) -> "Progress":
        self.started = time.monotonic()
        self._say(self._title)
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._done.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._done.wait(self._every):
            self._say(f"{self._title}: {self.seconds:.0f} s {self._latest}".rstrip())

"""A stub for `pulumi` on PATH with configurable answers, which records its calls."""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

SCRIPT = """\
#!/bin/sh
echo "$*" >> "{directory}/asked"
cat "{directory}/answer"
cat "{directory}/error" >&2
exit "$(cat "{directory}/code")"
"""
LOGIN_ERROR = "error: PULUMI_ACCESS_TOKEN must be set for login during non-interactive CLI sessions"


class PulumiStub:
    """The stub; every call gets the same answer."""

    def __init__(self, directory: Path) -> None:
        """Create `directory` with the stub in it."""
        self._directory = directory
        directory.mkdir()
        program = directory / "pulumi"
        program.write_text(SCRIPT.format(directory=directory))
        program.chmod(0o755)
        self.answers({})

    @property
    def path(self) -> str:
        """Return PATH with the stub first."""
        return f"{self._directory}:{os.environ['PATH']}"

    @property
    def asked(self) -> list[str]:
        """Return the arguments of each call."""
        calls = self._directory / "asked"
        return calls.read_text().splitlines() if calls.exists() else []

    def answers(self, outputs: Mapping[str, Any] | str) -> None:
        """Let it print these outputs, or this text."""
        self._set(outputs if isinstance(outputs, str) else json.dumps(outputs), "", 0)

    def fails(self, error: str = LOGIN_ERROR, code: int = 255) -> None:
        """Let it print the error and exit with the code."""
        self._set("", f"{error}\n", code)

    def _set(self, answer: str, error: str, code: int) -> None:
        for name, text in {"answer": answer, "error": error, "code": str(code)}.items():
            (self._directory / name).write_text(text)

"""Functions to run the scripts of components/files in a real bash."""

import os
import subprocess
from collections.abc import Sequence

import pytest

as_root = pytest.mark.skipif(os.geteuid() != 0, reason="gives files to the containers' users: needs root, as in CI")
Result = subprocess.CompletedProcess[str]
NO_DOCKER = {"DOCKER_HOST": "unix:///nonexistent/docker.sock"}


def bash(script: str, data: str = "", *, under: Sequence[str] = (), **environment: str) -> Result:
    """Run a script, followed by data, on standard input, as Host.command does."""
    return subprocess.run(
        [*under, "bash", "-s"],
        input=f"{{\n{script}\nexit\n}}\n{data}",
        env=os.environ | NO_DOCKER | environment,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def failed(result: Result, *words: str) -> bool:
    """Return True if it failed with one cause, with these words, and a fix."""
    cause, fix = result.stderr.splitlines()
    assert fix.startswith("  fix: ")
    return (
        result.returncode == 1 and cause.startswith("elastic-vllm: ") and all(word in result.stderr for word in words)
    )

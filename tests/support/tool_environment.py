"""Separate virtual environments, created on demand, for tools whose pins contradict ours."""

import subprocess
import sys
from pathlib import Path

from tests.integration.conftest import ROOT


def programs(name: str) -> Path:
    """Return the directory of programs of the environment that requirements-NAME.txt describes."""
    requirements = Path(__file__).with_name(f"requirements-{name}.txt")
    environment = ROOT / ".venv" / name
    stamp = environment / "requirements.txt"
    if not stamp.exists() or stamp.read_text() != requirements.read_text():
        subprocess.run([sys.executable, "-m", "venv", "--clear", environment], check=True)
        python = environment / "bin" / "python"
        uv = Path(sys.executable).with_name("uv")
        install: list[str | Path] = [sys.executable, ROOT / "scripts" / "lib" / "uv_install.py", uv, python]
        subprocess.run([*install, "--quiet", "-r", requirements], check=True)
        stamp.write_text(requirements.read_text())
    return environment / "bin"

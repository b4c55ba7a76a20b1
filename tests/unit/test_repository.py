"""The repository itself: nothing unused, nothing too long, nothing of one machine."""

import os
import re
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.unit.program import ROOT, Program

FILES = sorted(path.name for path in (ROOT / "components" / "files").iterdir())
SCRIPTS = sorted(path.name for path in (ROOT / "scripts").iterdir() if path.is_file() and not path.suffix)
MOST_LINES = 400


def own_files(*patterns: str) -> list[Path]:
    """The files of a checkout that match, those not committed yet included."""
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard", "--", *patterns]
    listed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout.splitlines()
    return [ROOT / name for name in listed if (ROOT / name).is_file()]


@pytest.mark.parametrize("name", FILES)
def test_every_file_for_the_host_gets_there(name: str, program_of: Callable[..., Program]) -> None:
    first_line = (ROOT / "components" / "files" / name).read_text().splitlines()[0]
    commands = [command for base in ("local", "gpu") for command in program_of(base).commands]
    sent = "\n".join(text for c in commands for text in (c.script, *c.files.values(), c.cleanup))
    sent = sent.replace("'\"'\"'", "'")  # as the shell quotes it
    assert first_line in sent


@pytest.mark.parametrize("name", SCRIPTS)
def test_every_script_is_executable(name: str) -> None:
    assert os.access(ROOT / "scripts" / name, os.X_OK)


@pytest.fixture(scope="module")
def helps() -> Iterator[dict[str, "subprocess.Popen[str]"]]:
    """All scripts with --help, started at once: most of the time is Python's imports."""
    names = [name for name in SCRIPTS if name != "launch"]  # takes a module, not options
    processes = {
        name: subprocess.Popen(
            [ROOT / "scripts" / name, "--help"],
            cwd="/",
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for name in names
    }
    yield processes
    for process in processes.values():
        process.kill()
        process.communicate()


@pytest.mark.parametrize("name", [name for name in SCRIPTS if name != "launch"])
def test_every_script_answers_help(name: str, helps: dict[str, "subprocess.Popen[str]"]) -> None:
    output, _ = helps[name].communicate(timeout=60)
    assert helps[name].returncode == 0, output
    assert "Usage: " in output


def test_no_file_is_too_long() -> None:
    lengths = {path.relative_to(ROOT): len(path.read_text().splitlines()) for path in own_files("*.py", "*.sh")}
    assert {str(path): lines for path, lines in lengths.items() if lines > MOST_LINES} == {}


def test_packages_come_from_the_index_that_pip_is_set_to() -> None:
    lines = [line.partition("#")[0] for path in own_files("requirements*") for line in path.read_text().splitlines()]
    assert lines
    assert not [line for line in lines if "://" in line or line.startswith(("--index", "--extra", "--find", "-e"))]


def test_every_package_has_one_version() -> None:
    lines = [line.partition("#")[0].strip() for line in (ROOT / "requirements.txt").read_text().splitlines()]
    assert not [line for line in lines if line and not re.fullmatch(r"[A-Za-z0-9._\[\]-]+==[\w.+!-]+( *;.*)?", line)]


def test_nothing_names_a_home_or_this_checkout() -> None:
    homes = re.compile(r"/(home|root|Users)/(?!\.cache\b)")  # of images that are built, too, root's cache is removed
    found = []
    for path in own_files():
        text = path.read_text(errors="replace")
        if path != Path(__file__) and (homes.search(text) or f"{ROOT}/" in text):
            found.append(str(path.relative_to(ROOT)))
    assert not found

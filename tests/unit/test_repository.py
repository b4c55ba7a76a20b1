"""The repository itself: nothing unused, nothing of one machine."""

import os
import re
import runpy
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support.program import ROOT, Program
from tests.support.registered import texts

# *.in: what `make pins` makes a file of.
AREAS = ROOT / "components" / "files"
FILES = sorted(path.relative_to(AREAS).as_posix() for path in AREAS.glob("*/*.*") if path.suffix != ".in")
SCRIPTS = sorted(path.name for path in (ROOT / "scripts").iterdir() if path.is_file() and not path.suffix)
IN_BASH = ("bundle", "bring-back", "setup")


def own_files(*patterns: str) -> list[Path]:
    """The files of a checkout that match, those not committed yet included."""
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard", "--", *patterns]
    listed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout.splitlines()
    return [ROOT / name for name in listed if (ROOT / name).is_file()]


@pytest.fixture(scope="module")
def sent(program_of: Callable[..., Program]) -> str:
    """All that any stack sends to its host."""
    acme = program_of("gpu", tls="letsencrypt", endpointHost="llm.example.com")
    disk = program_of("airgap", bundleOnHost="/media/bundle")
    podman = program_of("gpu", containerRuntime="podman", sshUser="root")
    programs = [acme, disk, podman, *(program_of(base) for base in ("local", "gpu", "airgap", "prod"))]
    commands = [command for program in programs for command in program.commands]
    sent = "\n".join(text for c in commands for text in (c.becoming_root, c.script, *c.files.values(), c.cleanup))
    sent += str(programs[0].resources["vllm-container"].inputs["healthcheck"]["tests"][3])
    sent += "\n".join(texts(programs[-1].resources["vm-instance"].inputs, secret=True))
    return sent.replace("'\"'\"'", "'")  # as the shell quotes it


@pytest.mark.parametrize("name", sorted({*FILES} - {"bundle/transfer.py"}))  # that one sends
def test_every_file_for_the_host_gets_there(name: str, sent: str) -> None:
    assert (AREAS / name).read_text().splitlines()[0] in sent


@pytest.mark.parametrize("name", SCRIPTS)
def test_every_script_is_executable(name: str) -> None:
    assert os.access(ROOT / "scripts" / name, os.X_OK)


@pytest.fixture(scope="module")
def launched(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The scripts, beside a setup that does nothing and a Python that only says what it is asked for."""
    root = tmp_path_factory.mktemp("checkout")
    shutil.copytree(ROOT / "scripts", root / "scripts", ignore=lambda _, names: set(names) - set(SCRIPTS))
    (root / ".venv" / "bin").mkdir(parents=True)
    for path in (root / "scripts" / "setup", root / ".venv" / "bin" / "python"):
        path.write_text('#!/bin/sh\necho "$@"\n')
        path.chmod(0o755)
    return root / "scripts"


@pytest.mark.filterwarnings("ignore:.*found in sys.modules:RuntimeWarning")  # another test has imported it
@pytest.mark.parametrize("name", sorted(set(SCRIPTS) - {"launch", *IN_BASH}))
def test_every_script_answers_help(
    name: str, launched: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = subprocess.run([launched / name, "--help"], capture_output=True, text=True, check=True).stdout.split()
    assert (asked[:2], asked[3:]) == (["-P", "-m"], ["--help"])
    # What that Python would do, but in this process: most of its time would go into imports.
    monkeypatch.setattr(sys, "argv", [name, "--help"])
    with pytest.raises(SystemExit) as stopped:
        runpy.run_module(asked[2], run_name="__main__")
    assert not stopped.value.code
    assert "Usage: " in capsys.readouterr().out


@pytest.mark.parametrize("name", IN_BASH)
def test_a_script_in_bash_answers_help(name: str) -> None:
    command = [str(ROOT / "scripts" / name), "--help"]
    assert "Usage: " in subprocess.run(command, capture_output=True, text=True, check=True).stdout


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

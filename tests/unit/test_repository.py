"""The repository itself: nothing unused, nothing of one machine."""

import os
import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support import side_by_side
from tests.support.program import ROOT, Program
from tests.support.registered import texts

# `make pins` generates other files from *.in.
AREAS = ROOT / "components" / "files"
FILES = sorted(path.relative_to(AREAS).as_posix() for path in AREAS.glob("*/*.*") if path.suffix != ".in")
SCRIPTS = sorted(path.name for path in (ROOT / "scripts").iterdir() if path.is_file() and not path.suffix)


def own_files(*patterns: str) -> list[Path]:
    """Return the files of a checkout that match, including those not committed yet."""
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard", "--", *patterns]
    listed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout.splitlines()
    return [ROOT / name for name in listed if (ROOT / name).is_file()]


@pytest.mark.parametrize("target", ["test", "prove", "rehearse", "bench", "clean"])
def test_a_dry_run_of_make_runs_nothing(target: str, tmp_path: Path) -> None:
    """A recipe that names MAKE would run all the same."""
    shutil.copy(ROOT / "Makefile", tmp_path)
    (tmp_path / "scripts").mkdir()
    for name in ("setup", "rehearse"):
        (tmp_path / "scripts" / name).write_text(f"#!/bin/sh\ntouch {tmp_path}/ran\n")
        (tmp_path / "scripts" / name).chmod(0o755)
    done = subprocess.run(["make", "-n", target], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert done.stdout
    assert not (tmp_path / "ran").exists()


@pytest.fixture(scope="module")
def sent(program_of: Callable[..., Program]) -> str:
    """Everything that any stack sends to its host."""
    acme = program_of("gpu", tls="letsencrypt", endpointHost="llm.example.com")
    disk = program_of("airgap", bundleOnHost="/media/bundle")
    podman = program_of("gpu", containerRuntime="podman", sshUser="root")
    mistral = program_of("gpu", model="mistralai/Mistral-Small-3.2-24B-Instruct-2506")
    programs = [acme, disk, podman, mistral, *(program_of(base) for base in ("local", "gpu", "airgap", "prod"))]
    commands = [command for program in programs for command in program.commands]
    sent = "\n".join(text for c in commands for text in (c.becoming_root, c.script, *c.files.values(), c.cleanup))
    filters = [each for program in programs for each in program.of_type("pulumi-python:dynamic/host:PacketFilter")]
    sent += "\n".join(each.inputs["set"] for each in filters)
    sent += str(programs[0].resources["vllm-container"].inputs["healthcheck"]["tests"][3])
    sent += "\n".join(mistral.resources["vllm-container"].inputs["envs"])
    sent += "\n".join(texts(programs[-1].resources["vm-instance"].inputs, secret=True))
    return sent.replace("'\"'\"'", "'")  # as the shell quotes it


ON_THIS_MACHINE = {"bundle/transfer.py", "ssh/check_ssh.py", "ssh/connect.py"}
"""Programs that run on the control machine."""
IN_PODS = {name for name in FILES if name.startswith("kubernetes/")}
"""Files of target kubernetes, which tests/unit/components/kubernetes looks for in its objects."""


@pytest.mark.parametrize("name", sorted({*FILES} - ON_THIS_MACHINE - IN_PODS))
def test_every_file_for_the_host_gets_there(name: str, sent: str) -> None:
    assert (AREAS / name).read_text().splitlines()[0] in sent


@pytest.mark.parametrize("name", SCRIPTS)
def test_every_script_is_executable(name: str) -> None:
    assert os.access(ROOT / "scripts" / name, os.X_OK)


@pytest.mark.parametrize(("name", "module"), [("elastic-vllm", "scripts.cli.app"), ("rehearse", "scripts.lab")])
def test_a_launcher_sets_up_and_runs_its_module_with_the_checkouts_python(
    name: str, module: str, tmp_path: Path
) -> None:
    """The launcher runs beside a setup that does nothing and a Python that only prints its arguments."""
    (tmp_path / "scripts").mkdir()
    shutil.copy(ROOT / "scripts" / name, tmp_path / "scripts")
    (tmp_path / ".venv" / "bin").mkdir(parents=True)
    for path in (tmp_path / "scripts" / "setup", tmp_path / ".venv" / "bin" / "python"):
        path.write_text('#!/bin/sh\necho "$@"\n')
        path.chmod(0o755)
    asked = subprocess.run(
        [tmp_path / "scripts" / name, "verify", "--help"], capture_output=True, text=True, check=True
    )
    assert asked.stdout.split() == ["-P", "-m", module, "verify", "--help"]


def test_setup_answers_help() -> None:
    done = subprocess.run([ROOT / "scripts" / "setup", "--help"], capture_output=True, text=True, check=True)
    assert "Usage: " in done.stdout


PINNED = own_files("requirements*.txt", "*/requirements*.txt", "*-client.txt")


@pytest.mark.parametrize("path", PINNED, ids=lambda path: path.name)
def test_every_package_has_one_version_and_hashes_from_any_index(path: Path) -> None:
    text = re.sub(r"^ *#.*\n", "", path.read_text(), flags=re.MULTILINE)
    packages = re.sub(r" *\\\n *", " ", text).splitlines()
    assert packages
    pinned = re.compile(r"[\w.\[\]-]+==[\w.+!-]+( ; [^:/@\\]+)?( --hash=sha256:[0-9a-f]{64})+")
    assert not [package for package in packages if not pinned.fullmatch(package)]


def test_every_pinned_file_has_the_packages_that_it_was_asked_for() -> None:
    asked_for = {path.with_suffix(".txt") for path in own_files("*.in")}
    assert asked_for == set(PINNED)
    for path in asked_for:
        asked = re.findall(r"^[\w.-]+==[\w.+!-]+", path.with_suffix(".in").read_text(), re.MULTILINE)
        pinned = re.findall(r"^([\w.-]+==[\w.+!-]+)", path.read_text(), re.MULTILINE)
        assert asked
        assert not {re.sub(r"[._](?=.*==)", "-", package) for package in asked} - set(pinned), path.name


def test_nothing_names_a_home_or_this_checkout() -> None:
    homes = re.compile(r"/(home|root|Users)/(?!\.cache\b)")  # of images that are built, too, root's cache is removed
    found = []
    for path in own_files():
        text = path.read_text(errors="replace")
        if path != Path(__file__) and (homes.search(text) or f"{ROOT}/" in text):
            found.append(str(path.relative_to(ROOT)))
    assert not found


def test_the_schedule_of_parallel_tests_names_tests_that_exist() -> None:
    named = (*side_by_side.FIRST, side_by_side.SITE, *side_by_side.NO_IMAGES, *side_by_side.APART)
    assert not [part for part in named if not list((ROOT / "tests").glob(f"{part}*"))]


def test_components_know_nothing_of_rehearsals() -> None:
    command = ["grep", "-ril", "rehears", "components", "__main__.py", "Pulumi.yaml", "--include=*.*"]
    found = subprocess.run(
        [*command, "--exclude-dir=__pycache__"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert (found.stdout, found.returncode) == ("", 1)


def test_a_docstring_names_its_subject_or_begins_with_a_verb() -> None:
    clause = re.compile(r'^ *r?"""\s*(?:What|Whether|Of)\b.*', re.MULTILINE)
    python = own_files("__main__.py", "components/*.py", "scripts/*.py", "tests/*.py")
    assert len(python) > 300
    found = {path.relative_to(ROOT).as_posix(): clause.findall(path.read_text()) for path in python}
    assert not {name: lines for name, lines in found.items() if lines}

"""A Docker that `up` installs keeps containers running during restarts; an existing Docker is not touched."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from components import render
from tests.support.shell import Result, bash


@pytest.fixture
def keep(tmp_path: Path) -> Callable[..., Result]:
    """Function that runs the script on a machine with these programs besides `install`."""

    def keep(*programs: str) -> Result:
        path = tmp_path / "bin"
        path.mkdir()
        (path / "install").symlink_to(shutil.which("install") or "/usr/bin/install")
        for program in programs:
            (path / program).write_text("#!/bin/sh\n")
            (path / program).chmod(0o755)
        script = render.script("containers/keep-containers.sh").replace("/etc/docker", str(tmp_path / "docker"))
        return bash(f"PATH={path}\n{script}")

    return keep


def test_where_docker_is_missing_it_will_keep_containers(keep: Callable[..., Result], tmp_path: Path) -> None:
    assert keep().returncode == 0
    assert json.loads((tmp_path / "docker" / "daemon.json").read_text()) == {"live-restore": True}


def test_a_docker_that_is_there_is_not_touched(keep: Callable[..., Result], tmp_path: Path) -> None:
    assert keep("docker").returncode == 0
    assert not (tmp_path / "docker").exists()


def test_settings_that_are_there_are_not_touched(keep: Callable[..., Result], tmp_path: Path) -> None:
    (tmp_path / "docker").mkdir()
    settings = tmp_path / "docker" / "daemon.json"
    settings.write_text("{}")
    assert keep().returncode == 0
    assert settings.read_text() == "{}"

"""uv gets pip's settings, or leaves the work to pip."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from scripts.lib.uv_install import as_environment
from tests.support.program import ROOT

SCRIPT = ROOT / "scripts" / "lib" / "uv_install.py"
ALWAYS = as_environment({})


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"index-url": "https://pypi.example/simple"}, {"UV_DEFAULT_INDEX": "https://pypi.example/simple"}),
        (
            {"extra-index-url": "\nhttps://a.example/simple\nhttps://b.example/simple"},
            {"UV_INDEX": "https://a.example/simple https://b.example/simple"},
        ),
        ({"find-links": "/srv/wheels https://c.example/"}, {"UV_FIND_LINKS": "/srv/wheels,https://c.example/"}),
        ({"trusted-host": "a.example b.example"}, {"UV_INSECURE_HOST": "a.example b.example"}),
        ({"cert": "/etc/ca.pem", "client-cert": "/etc/me.pem"}, {"SSL_CERT_FILE": "/etc/ca.pem"}),
        ({"timeout": "60", "quiet": "1", "cache-dir": "/tmp/cache"}, {"UV_HTTP_TIMEOUT": "60"}),
    ],
)
def test_uv_has_another_name_for_it(settings: dict[str, str], expected: dict[str, str]) -> None:
    found = as_environment(settings)
    assert found.items() >= {**ALWAYS, **expected}.items()


@pytest.mark.parametrize("setting", ["constraint", "no-index", "target", "no-binary"])
def test_settings_without_a_counterpart_in_uv_are_left_to_pip(setting: str) -> None:
    with pytest.raises(KeyError, match=setting):
        as_environment({setting: "x"})


def run(tmp_path: Path, uvs_status: int = 0, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run it with an `uv` and a Python that print their arguments, and with these settings alone."""
    for name, status in (("uv", uvs_status), ("python", 3)):
        (tmp_path / name).write_text(f"#!/bin/sh\nenv\necho {name}: $*\nexit {status}\n")
        (tmp_path / name).chmod(0o755)
    config = tmp_path / "pip.conf"
    config.write_text("[global]\nindex-url = https://file.example/simple\n[install]\ntimeout = 7\n")
    kept = {key: value for key, value in os.environ.items() if not key.startswith(("PIP_", "UV_"))}
    return subprocess.run(
        [sys.executable, "-P", SCRIPT, tmp_path / "uv", tmp_path / "python", "-r", "x"],
        env={**kept, "HOME": str(tmp_path), "PIP_CONFIG_FILE": str(config), **environment},
        capture_output=True,
        text=True,
        check=False,
    )


BY_UV = "uv: pip install --python {}/python --require-hashes -r x"
BY_PIP = "python: -m pip install --disable-pip-version-check --no-compile --require-hashes -r x"


def test_the_environment_counts_more_than_a_file(tmp_path: Path) -> None:
    done = run(tmp_path, PIP_INDEX_URL="https://environment.example/simple")
    assert (done.returncode, done.stderr) == (0, "")
    lines = done.stdout.splitlines()
    assert {"UV_DEFAULT_INDEX=https://environment.example/simple", "UV_HTTP_TIMEOUT=7"} <= set(lines)
    assert lines[-1] == BY_UV.format(tmp_path)


def test_pip_does_what_uv_has_no_setting_for(tmp_path: Path) -> None:
    done = run(tmp_path, PIP_CONSTRAINT="/srv/constraints.txt")
    assert (done.returncode, done.stdout.splitlines()[-1]) == (3, BY_PIP)
    assert "uv: " not in done.stdout
    assert done.stderr == "pip has a setting that uv has not: 'constraint'; pip, which takes longer, does it\n"


def test_pip_tries_where_uv_fails(tmp_path: Path) -> None:
    done = run(tmp_path, uvs_status=1)
    lines = done.stdout.splitlines()
    assert BY_UV.format(tmp_path) in lines
    assert (done.returncode, lines[-1]) == (3, BY_PIP)
    assert done.stderr == "uv could not; pip, which takes longer, tries\n"

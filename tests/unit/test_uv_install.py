"""uv is told what pip is told, or leaves the work to pip."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from scripts.uv_install import as_environment
from tests.unit.program import ROOT

SCRIPT = ROOT / "scripts" / "uv_install.py"
ALWAYS = as_environment({})
SAYS_WHAT_IT_IS_TOLD = "#!/bin/sh\nenv\necho arguments: $*\n"


@pytest.mark.parametrize(
    ("settings", "told"),
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
def test_uv_has_another_name_for_it(settings: dict[str, str], told: dict[str, str]) -> None:
    found = as_environment(settings)
    assert found.items() >= {**ALWAYS, **told}.items()


@pytest.mark.parametrize("setting", ["constraint", "no-index", "target", "no-binary"])
def test_what_uv_has_no_name_for_is_left_to_pip(setting: str) -> None:
    with pytest.raises(KeyError, match=setting):
        as_environment({setting: "x"})


def run(tmp_path: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """With an `uv` that says what it is told, and the settings of this file and environment alone."""
    uv, config = tmp_path / "uv", tmp_path / "pip.conf"
    uv.write_text(SAYS_WHAT_IT_IS_TOLD)
    uv.chmod(0o755)
    config.write_text("[global]\nindex-url = https://file.example/simple\n[install]\ntimeout = 7\n")
    kept = {key: value for key, value in os.environ.items() if not key.startswith(("PIP_", "UV_"))}
    return subprocess.run(
        [sys.executable, "-P", SCRIPT, uv, "pip", "install", "x"],
        env={**kept, "HOME": str(tmp_path), "PIP_CONFIG_FILE": str(config), **environment},
        capture_output=True,
        text=True,
        check=False,
    )


def test_the_environment_counts_more_than_a_file(tmp_path: Path) -> None:
    done = run(tmp_path, PIP_INDEX_URL="https://environment.example/simple")
    assert done.returncode == 0
    lines = done.stdout.splitlines()
    assert {"UV_DEFAULT_INDEX=https://environment.example/simple", "UV_HTTP_TIMEOUT=7"} <= set(lines)
    assert lines[-1] == "arguments: pip install x"


def test_before_anything_is_fetched_it_gives_up(tmp_path: Path) -> None:
    done = run(tmp_path, PIP_CONSTRAINT="/srv/constraints.txt")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "pip has a setting that uv has not: 'constraint'\n"

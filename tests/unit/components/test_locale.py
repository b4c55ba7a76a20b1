"""The terminal's locale and a file's line endings decide nothing: neither here nor on the server."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from components import render
from scripts.lib.stack_config import read_config
from scripts.lib.stack_file import StackFile
from tests.support.program import ROOT

REGISTER = """
import json, locale, sys
from tests.support.program import run
made = run(json.load(sys.stdin), stack="gpu").resources.values()
inputs = {r.name: json.dumps(r.inputs, sort_keys=True, default=lambda secret: [secret.value]) for r in made}
print(json.dumps([locale.getpreferredencoding(), inputs]))
"""


def registered(values: dict[str, str], **environment: str) -> tuple[str, dict[str, str]]:
    """Return the encoding that Python takes for the terminal's, and every resource with its inputs."""
    done = subprocess.run(
        [sys.executable, "-c", REGISTER],
        input=json.dumps(values),
        env={**os.environ, **environment},
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    encoding, resources = json.loads(done.stdout)
    return encoding, resources


def test_the_program_is_the_same_in_any_locale(values_of: Callable[..., dict[str, str]]) -> None:
    """As in a cron job: a changed text would replace what is up."""
    values = values_of("gpu")
    usual = registered(values, LC_ALL="C.UTF-8")
    ascii_only = registered(values, LC_ALL="C", PYTHONUTF8="0", PYTHONCOERCECLOCALE="0")
    assert (usual[0], ascii_only[0]) == ("UTF-8", "ANSI_X3.4-1968")
    assert usual[1] == ascii_only[1]


@pytest.mark.parametrize("name", ["elastic-vllm", "rehearse"])
def test_a_terminal_shows_what_it_can(name: str, tmp_path: Path) -> None:
    for path, text in {
        f"scripts/{name}": (ROOT / "scripts" / name).read_text(),
        "scripts/setup": "#!/bin/sh\n",
        ".venv/bin/python": f"#!/bin/sh\nexec {sys.executable} -c 'print(\"50 % \\u2588\\u2026 \\u00fc\")'\n",
    }.items():
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_text(text)
        (tmp_path / path).chmod(0o755)
    environment = {**os.environ, "LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    environment.pop("PYTHONIOENCODING", None)
    done = subprocess.run([tmp_path / "scripts" / name, "--help"], env=environment, capture_output=True, check=False)
    assert (done.returncode, done.stdout) == (0, b"50 % ?? ?\n"), done.stderr


def test_programs_on_the_server_print_what_scripts_look_for(tmp_path: Path) -> None:
    """German there; a message that is looked for is English nevertheless."""
    compiled = subprocess.run(
        ["localedef", "-i", "de_DE", "-f", "UTF-8", tmp_path / "de_DE.UTF-8"], capture_output=True, check=False
    )
    if compiled.returncode > 1:
        pytest.fail(f"no locale can be made here: {compiled.stderr.decode()}")
    german = {**os.environ, "LOCPATH": str(tmp_path), "LC_ALL": "de_DE.UTF-8", "LANGUAGE": "de"}

    def printed(script: str) -> str:
        done = subprocess.run(["bash", "-s"], input=script, env=german, capture_output=True, text=True, check=False)
        return done.stderr

    missing = "ls /nonexistent || true"
    assert "Datei oder Verzeichnis nicht gefunden" in printed(missing)
    assert "No such file or directory" in printed(f"{render.script()}{missing}")


STACK_FILE = """\
config:
  elastic-vllm:host: llm.example
  elastic-vllm:keys:
    default: [2, 1]
  elastic-vllm:tlsCa: |
    -----BEGIN CERTIFICATE-----
    MIIB
    -----END CERTIFICATE-----
"""


@pytest.mark.parametrize("before", ["", "\ufeff"], ids=["without", "with a byte order mark"])
def test_a_stack_file_with_windows_line_endings_means_the_same(before: str, tmp_path: Path) -> None:
    (tmp_path / "stacks").mkdir()
    (tmp_path / "Pulumi.yaml").write_bytes((ROOT / "Pulumi.yaml").read_bytes().replace(b"\n", b"\r\n"))
    for name, text in (("unix", STACK_FILE), ("windows", before + STACK_FILE.replace("\n", "\r\n"))):
        (tmp_path / "stacks" / f"Pulumi.{name}.yaml").write_bytes(text.encode())
    unix, windows = (read_config(tmp_path, name, [], []).values for name in ("unix", "windows"))
    assert unix == windows
    file = StackFile(tmp_path, "windows")
    file.set("httpsPort", 8443)
    file.save()
    assert read_config(tmp_path, "windows", [], []).values == {**unix, "elastic-vllm:httpsPort": 8443}

"""Files sent to a server by the real sender and the real script, with a shell instead of ssh."""

import hashlib
import os
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest

from components import render
from components.files.bundle.transfer import Sent, send

CONTENTS = {"one": os.urandom(3_000_001), "below/two": b"", "three": b"x" * 70_000}
TOOLS = "bash cat chmod cut dd df dirname du flock grep mkdir mv openssl rm sha256sum stat tail tee touch".split()


@pytest.fixture(params=["with Python there", "without", "without OpenSSL either"])
def shell(request: pytest.FixtureRequest, tmp_path: Path) -> list[str]:
    """Command for a server's shell, as `ssh` would run it."""
    left_out = {"with Python there": set(), "without": {"python3"}}.get(request.param, {"python3", "openssl"})
    programs = tmp_path / "bin"
    programs.mkdir()
    tools = {tool: str(shutil.which(tool)) for tool in TOOLS} | {"python3": str(Path(sys.executable).resolve())}
    for tool in tools.keys() - left_out:
        (programs / tool).symlink_to(tools[tool])
    return ["env", f"PATH={programs}", str(programs / "bash"), "-s"]


@pytest.fixture
def order(shell: list[str], tmp_path: Path) -> dict[str, Any]:
    for name, content in CONTENTS.items():
        (tmp_path / "carried" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "carried" / name).write_bytes(content)
    script = render.script(
        "bundle/receive-files.sh",
        engine="docker",
        destination=str(tmp_path / "arrived"),
        alike=str(tmp_path / "nothing"),
        source="",
        part="",
        image="",
    )
    files = [
        {"path": name, "sha256": hashlib.sha256(content).hexdigest(), "bytes": len(content), "carried": True}
        for name, content in CONTENTS.items()
    ]
    return {
        "ssh": shell,
        "script": f"{{\n(\n{script}\n)\ncase $? in 0) echo the end ;; *) exit 1 ;; esac\n}}\n",
        "closing_word": "the end",
        "title": "files",
        "directory": str(tmp_path / "carried"),
        "files": files,
    }


def test_they_arrive_and_come_once(order: dict[str, Any], tmp_path: Path) -> None:
    printed: list[str] = []
    sent = Sent()
    assert send(order, printed.append, sent) == 0, printed
    assert {name: (tmp_path / "arrived" / name).read_bytes() for name in CONTENTS} == CONTENTS
    assert send(order, printed.append, again := Sent()) == 0
    assert (sent.bytes, again.bytes) == (sum(map(len, CONTENTS.values())), 0)
    assert printed[-1].startswith("complete: 3 files")


def test_an_interrupted_transfer_resumes(order: dict[str, Any], tmp_path: Path) -> None:
    parts = tmp_path / "arrived" / ".elastic-vllm-parts"
    parts.mkdir(parents=True)
    (parts / order["files"][0]["sha256"]).write_bytes(CONTENTS["one"][:1_000_000])
    sent = Sent()
    assert send(order, lambda _line: None, sent) == 0
    assert sent.bytes == sum(map(len, CONTENTS.values())) - 1_000_000
    assert (tmp_path / "arrived" / "one").read_bytes() == CONTENTS["one"]


def test_what_arrives_damaged_is_removed_and_named(
    order: dict[str, Any], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "carried" / "three").write_bytes(b"y" * 70_000)
    assert send(order, lambda _line: None, Sent()) == 1
    assert "three arrived damaged and was removed" in capfd.readouterr().err
    assert not (tmp_path / "arrived" / "three").exists()
    assert (tmp_path / "arrived" / "one").read_bytes() == CONTENTS["one"]

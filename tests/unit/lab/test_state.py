"""The rehearsal's state: whole at any moment, private, held by one process at a time."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from scripts.lab import RehearsalError
from scripts.lab.emulator import engine
from scripts.lab.emulator.state import Record, State, is_locked, load, locked, stacks_with_state
from scripts.lib.private_files import write_private

HOLDER = """
import sys, time
from pathlib import Path
from scripts.lab.emulator.state import locked
with locked(Path(sys.argv[1]), "local"):
    print("held", flush=True)
    time.sleep(60)
"""


def record() -> Record:
    return Record(type="t", name="n", id="1", inputs={"key": "secret"}, outputs={}, dependencies=["u"], trigger=[1])


def test_state_is_read_as_it_was_written_and_private(tmp_path: Path) -> None:
    state = load(tmp_path / "root", "local")
    state.resources["urn"] = record()
    state.outputs = {"x": {"value": 1, "secret": False}}
    state.save()
    assert load(tmp_path / "root", "local") == state
    assert stacks_with_state(tmp_path / "root") == ["local"]
    assert state.path.stat().st_mode & 0o777 == 0o600
    assert state.path.parent.stat().st_mode & 0o777 == 0o700


def test_a_write_that_is_cut_off_leaves_the_old_state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    state = State(path=tmp_path / "state.json", resources={"urn": record()})
    state.save()

    def cut_off(_descriptor: int) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", cut_off)
        state.resources.clear()
        with pytest.raises(KeyboardInterrupt):
            state.save()
    assert "urn" in state.path.read_text()
    state.save()  # remains of the interrupted write do not matter
    assert "urn" not in state.path.read_text()


def test_a_private_file_is_never_readable_by_others(tmp_path: Path) -> None:
    (tmp_path / "key.new").write_text("left over")
    (tmp_path / "key.new").chmod(0o644)
    write_private(tmp_path / "key", "secret")
    assert (tmp_path / "key").stat().st_mode & 0o777 == 0o600


def test_an_unreadable_state_is_explained(tmp_path: Path) -> None:
    path = tmp_path / "stacks/local/state.json"
    path.parent.mkdir(parents=True)
    path.write_text("{")
    with pytest.raises(RehearsalError, match=r"state\.json can't be read as a state"):
        load(tmp_path, "local")


def test_lock_is_refused_at_once_and_freed_by_sigkill(tmp_path: Path) -> None:
    with subprocess.Popen([sys.executable, "-c", HOLDER, tmp_path], stdout=subprocess.PIPE) as holder:
        assert holder.stdout
        holder.stdout.readline()
        assert is_locked(tmp_path, "local")
        refused = f"stack local is being changed by process {holder.pid} .since"
        with pytest.raises(RehearsalError, match=refused), locked(tmp_path, "local"):
            pass
        with locked(tmp_path, "other") as interrupted:
            assert not interrupted
        holder.kill()
        holder.wait()
    with locked(tmp_path, "local") as interrupted:
        assert interrupted
    with locked(tmp_path, "local") as interrupted:
        assert not interrupted
    assert not is_locked(tmp_path, "local")


def test_lock_survives_the_deletion_of_its_file(tmp_path: Path) -> None:
    with locked(tmp_path, "local"):
        (tmp_path / "stacks/local/lock").unlink()
    with locked(tmp_path, "local"):
        assert is_locked(tmp_path, "local")


def test_outputs_of_a_stack_that_is_not_up(tmp_path: Path) -> None:
    with pytest.raises(RehearsalError, match="stack nowhere isn't up"):
        engine.outputs("nowhere", tmp_path)

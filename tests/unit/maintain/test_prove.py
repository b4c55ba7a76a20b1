"""`make prove` reports the outcome of each proof, and fails if one did."""

import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from scripts.maintain import prove
from scripts.maintain.prove import Proof


def proved(*arguments: str) -> Result:
    return CliRunner().invoke(prove.app, arguments)


@pytest.fixture(autouse=True)
def proofs(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    good = (sys.executable, "-c", "import os; print('ran', os.environ.get('SLOW'))")
    bad = (sys.executable, "-c", "print('this is why'); raise SystemExit(3)")
    after = (sys.executable, "-c", f"open({str(tmp_path / 'afterwards')!r}, 'w')")
    made = {
        "first": Proof("one that fails", bad, afterwards=after),
        "second": Proof("one that does not", good, environment={"SLOW": "1"}),
        "alone": Proof("one that comes first", good, place="alone"),
        "beside": Proof("one beside the others", good, place="beside"),
        "third": Proof("one that can't be run", good, needs="no-such-program"),
    }
    monkeypatch.setattr(prove, "PROOFS", made)
    monkeypatch.setattr(prove, "LOGS", prove.ROOT / ".proofs" / tmp_path.name)


def test_a_failing_proof_is_reported_with_its_reason_and_the_others_still_run() -> None:
    done = proved()
    assert done.exit_code == 1
    assert "this is why" in done.stdout
    summary = done.stdout.partition("summary")[2]
    assert "first     FAILED (3)" in summary
    assert "second    ok" in summary
    assert "ran 1" in summary
    assert "third     not run: no no-such-program on PATH" in summary


def test_proofs_that_measure_times_end_before_the_others_begin() -> None:
    lines = proved().stdout.splitlines()
    starts = [lines.index(f"{name}: {proof.title}") for name, proof in prove.PROOFS.items() if name != "alone"]
    over = [number for number, line in enumerate(lines) if line.startswith("alone: ok")]
    assert len(over) == 1
    assert over[0] < min(starts)


def test_the_cleanup_runs_even_if_the_proof_failed(tmp_path: Path) -> None:
    proved("--only", "second")
    assert not (tmp_path / "afterwards").exists()
    proved("--only", "first")
    assert (tmp_path / "afterwards").exists()


def test_all_well_is_exit_status_0() -> None:
    assert proved("--only", "second").exit_code == 0


def test_an_unknown_proof_is_refused() -> None:
    done = proved("--only", "fourth")
    assert done.exit_code == 2
    assert "no such proof; use one of first, second, alone, beside, third" in " ".join(done.stdout.split())

"""Program of `make prove`: the slow proofs, each with its time, and a summary at the end.

Proofs that measure times run first and alone. The others run one after the other; beside them, also one after the
other, run those with a stack or files to themselves. After a failure the others still run. Each proof has its own
output file.
"""

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Mapping
from concurrent import futures
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal

import typer
from rich.console import Console

ROOT = Path(__file__).resolve().parents[2]
LOGS = ROOT / ".proofs"
PYTEST = (sys.executable, "-m", "pytest", "--quiet", "-p", "no:cacheprovider")
SLOW = {"ELASTIC_VLLM_PROVE": "1"}
LONG = [f"tests/integration/test_{name}.py" for name in ("lifecycle", "rotate", "google_cloud")]
"""Tests that depend on ELASTIC_VLLM_PROVE, so they run whole, not only their slow tests."""
IN_A_CLUSTER = ("kubernetes", "kubernetes_refused", "kubernetes_stacks", "gke", "cluster")
"""The last one leaves no cluster."""
ELSEWHERE = [
    *LONG,
    "tests/integration/engine",
    "tests/integration/hostile",
    *(f"tests/integration/test_{name}.py" for name in ("canary", "capacity", "drills", "soak", "twins", *IN_A_CLUSTER)),
]
LEFT_OUT = [f"--ignore={path}" for path in ELSEWHERE]
"""Tests with their own proofs."""
SHOWN_LINES = 40
TICK_SECONDS = 10
app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None)
console = Console(highlight=False, soft_wrap=True)


@dataclass(frozen=True)
class Proof:
    """A command that fails if a promise does not hold."""

    title: str
    command: tuple[str, ...]
    needs: str = ""
    """Program that it requires."""
    environment: Mapping[str, str] = field(default_factory=dict)
    place: Literal["alone", "row", "beside"] = "row"
    """When it runs: before the others, in sequence with them, or beside them."""
    afterwards: tuple[str, ...] = ()
    """Command that runs after all proofs, whatever their outcome."""


PROOFS = {
    "drills": Proof(
        "each part broken, with the real vLLM: docs/reliability.md",
        (sys.executable, "-m", "tests.integration.drills"),
        place="alone",
    ),
    "capacity": Proof(
        "`load` at full size on a real vLLM: every profile is answered, and the knee is the same in three runs",
        (*PYTEST, "--capture=no", "--timeout", "1800", "tests/integration/test_capacity.py"),
        environment=SLOW,
        place="alone",
    ),
    "hostile": Proof(
        "10,000 hostile requests to each Nginx, routes, limits, errors",
        (*PYTEST, "--timeout", "7200", "tests/integration/hostile"),
        environment=SLOW,
    ),
    "audit": Proof(
        "sslyze and gixy, containers as the engine and the kernel have them",
        (*PYTEST, "tests/integration/test_audit.py", "tests/integration/test_confinement.py"),
    ),
    "kubernetes": Proof(
        "target kubernetes on a real cluster of two nodes: verified, changed under load, moved to, taken down",
        (*PYTEST, "--timeout", "10800", *(f"tests/integration/test_{name}.py" for name in IN_A_CLUSTER)),
    ),
    "canary": Proof(
        "canaries in every secret setting, and the key through two rotations",
        (*PYTEST, "tests/integration/test_canary.py", "tests/integration/test_secrets.py"),
        environment=SLOW,
    ),
    "engine": Proof(
        "on the real Pulumi: a rehearsal, the same canaries, kinds of Docker, ways to a server, a cluster",
        (*PYTEST, "--timeout", "1800", "tests/integration/engine"),
        needs="pulumi",
    ),
    "short": Proof(
        "the drills and the soak in short, with a stand-in for vLLM where it suffices",
        (*PYTEST, "tests/integration/test_drills.py", "tests/integration/test_soak.py"),
        environment=SLOW,
    ),
    "long": Proof(
        "in full, what make test shortens: `up` killed at each step, keys rotated twice, prod rehearsed with vLLM",
        (*PYTEST, *LONG),
        environment=SLOW,
    ),
    "twins": Proof(
        "what Elastic sends, to a twin of every model of the catalogue, on the real vLLM",
        (*PYTEST, "--capture=no", "tests/integration/test_twins.py"),
        environment=SLOW,
    ),
    "slow": Proof(
        "the other tests that make test leaves out",
        (*PYTEST, "-m", "slow", *LEFT_OUT, "tests/integration"),
        environment=SLOW,
    ),
    "soak": Proof(
        "half an hour of mixed traffic: nothing fails, Nginx does not grow",
        (sys.executable, "-m", "tests.support.long_soak"),
        afterwards=("scripts/rehearse", "down", "--stack", "soaked"),
        place="beside",
    ),
    "mutation": Proof(
        "mutants of what renders, reads settings and writes payloads",
        ("nice", sys.executable, "-m", "scripts.maintain.mutation"),
        place="beside",
    ),
}


@app.command()
def main(
    only: Annotated[list[str] | None, typer.Option(help=f"Only this one of {', '.join(PROOFS)}. Repeatable.")] = None,
) -> None:
    """Run the slow proofs; the exit status is 1 if one of them failed."""
    unknown = [name for name in only or [] if name not in PROOFS]
    if unknown:
        console.print(f"prove: --only {unknown[0]}: no such proof; use one of {', '.join(PROOFS)}")
        raise typer.Exit(2)
    LOGS.mkdir(parents=True, exist_ok=True)
    chosen = {name: proof for name, proof in PROOFS.items() if not only or name in only}
    outcomes: dict[str, str] = {}
    begun = time.monotonic()
    try:
        with futures.ThreadPoolExecutor(2) as pool:
            for places in (["alone"], ["row", "beside"]):
                rows = [{name: proof for name, proof in chosen.items() if proof.place == place} for place in places]
                working = [pool.submit(_run_all, row, outcomes) for row in rows]
                while futures.wait(working, TICK_SECONDS).not_done:
                    console.print(
                        f"  {time.monotonic() - begun:.0f} s, {len(outcomes)} of {len(chosen)} done", markup=False
                    )
                for each in working:
                    each.result()
    finally:
        for proof in chosen.values():
            if proof.afterwards:
                subprocess.run(proof.afterwards, cwd=ROOT, stdout=subprocess.DEVNULL, check=False)
    console.print("\nsummary")
    for name in chosen:
        console.print(f"  {name:<10}{outcomes[name]}", markup=False)
    raise typer.Exit(any(outcome.startswith("FAILED") for outcome in outcomes.values()))


def _run_all(proofs: Mapping[str, Proof], outcomes: dict[str, str]) -> None:
    """Run proofs one after the other, and record their outcomes in `outcomes`."""
    for name, proof in proofs.items():
        console.print(f"{name}: {proof.title}", markup=False)
        outcomes[name] = _run(name, proof)
        console.print(f"{name}: {outcomes[name]}", markup=False)


def _run(name: str, proof: Proof) -> str:
    """Run a proof and return its outcome as a line."""
    if proof.needs and not shutil.which(proof.needs):
        return f"not run: no {proof.needs} on PATH"
    begun = time.monotonic()
    log = LOGS / f"{name}.log"
    with log.open("wb") as file:
        environment = {**os.environ, "TERM": "dumb", **proof.environment}
        code = subprocess.run(
            proof.command, cwd=ROOT, env=environment, stdout=file, stderr=file, check=False
        ).returncode
    lines = log.read_text(errors="replace").splitlines() or [""]
    took = f"{time.monotonic() - begun:.0f} s"
    if code == 0:
        return f"ok, {took}: {lines[-1]}"
    console.print("\n".join(lines[-SHOWN_LINES:]), markup=False)
    return f"FAILED ({code}), {took}: see {log.relative_to(ROOT)}"


if __name__ == "__main__":
    app(prog_name="scripts.maintain.prove")

"""`make bench`, part three: the cost of carrying a bundle, against `scp` and `sha256sum`, for docs/benchmarks.md.

    python -m scripts.maintain.bench_transfer [--rounds N] [--gb N]

A file of random bytes is sent over an sshd on this machine: by scp, and as `up` sends it (files/bundle/transfer.py),
with its checksum taken on arrival. Then the same bytes, in two files, are checked by two sha256sum side by side, and by
`scripts/elastic-vllm bundle verify`. Each runs once per round. Memory is the peak of the largest process.
"""

import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from components import render
from components.bundle import manifest as bundle_manifest
from components.bundle.manifest import SUMS, File, Manifest, Part
from components.machine.host import CLOSING_WORD, RUN_SCRIPT, standard_input
from scripts.lab.emulator.state import ROOT as REHEARSAL
from scripts.lab.machine import start_sshd, stop_sshd
from scripts.lab.ssh_keys import write_keys
from scripts.maintain.price import document

ROOT = Path(__file__).resolve().parents[2]
PORT = 22023
BLOCK_BYTES = 1 << 20
PROMISED_SHARE = 0.8
PROMISED_MB = 300
HELD = (
    "import resource, subprocess, sys\n"
    "code = subprocess.call(sys.argv[1:])\n"
    "print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss, file=sys.stderr)\n"
    "sys.exit(code)"
)
"""Program that runs a command, then prints the peak memory (KiB) of its largest process."""
app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None)
console = Console(highlight=False)


@app.command()
def main(
    rounds: Annotated[int, typer.Option(help="Runs of each; the median counts.", min=1)] = 3,
    gb: Annotated[float, typer.Option(help="Size of the file in GB.", min=0.1)] = 2,
) -> None:
    """Measure transfer against scp, and verify against sha256sum."""
    # Not in /tmp: sshd accepts no keys below a world-writable directory.
    REHEARSAL.mkdir(parents=True, exist_ok=True, mode=0o700)
    with tempfile.TemporaryDirectory(dir=REHEARSAL, prefix="transfer-") as scratch, ExitStack() as cleanup:
        place = Path(scratch)
        write_keys(place / "ssh")
        start_sshd(place / "ssh", PORT)
        cleanup.callback(stop_sshd, place / "ssh")
        size = int(gb * 10**9)
        bundle = _bundle(place / "bundle", size)
        ways: dict[str, Callable[[], Sequence[str]]] = {
            "scp": lambda: _scp(place, bundle),
            "up": lambda: _transfer(place, bundle, size),
            "two sha256sum": lambda: ["sh", "-c", f"sha256sum {bundle}/one >/dev/null & sha256sum {bundle}/two; wait"],
            "verify": lambda: [str(ROOT / "scripts" / "elastic-vllm"), "bundle", "verify", str(bundle), "--unsigned"],
        }
        rates: dict[str, list[float]] = {way: [] for way in ways}
        memory: dict[str, int] = dict.fromkeys(ways, 0)
        for number in range(1, rounds + 1):
            for way, made in ways.items():
                shutil.rmtree(place / "arrived", ignore_errors=True)
                seconds, kib = _timed(made())
                moved = size if way in {"scp", "up"} else 2 * size
                rates[way].append(moved / 1e6 / seconds)
                memory[way] = max(memory[way], kib)
                console.print(f"round {number}: {way}: {rates[way][-1]:.0f} MB/s, {kib // 1024} MiB")
    command = f"python -m scripts.maintain.bench_transfer --rounds {rounds} --gb {gb:g}"
    document.write("transfer", _table(rates, memory, gb), command)


def _bundle(directory: Path, size: int) -> Path:
    """Make a bundle of two files of random bytes, with their checksums."""
    directory.mkdir()
    console.print(f"two files of {size / 1e9:g} GB ...")
    for name in ("one", "two"):
        with (directory / name).open("wb") as file:
            for begin in range(0, size, BLOCK_BYTES):
                file.write(os.urandom(min(BLOCK_BYTES, size - begin)))
    files = tuple(
        File(path=name, bytes=size, sha256=bundle_manifest.sha256(directory / name)) for name in ("one", "two")
    )
    about = {"stack": "bench", "commit": "-", "made": "-", "architecture": "-", "python": "-"}
    parts = {"all": Part(source="random", licence=None, about={}, files=files)}
    manifest = Manifest(**about, parts=parts)
    bundle_manifest.write(directory, manifest)
    (directory / SUMS).write_text(bundle_manifest.sums(directory, manifest))
    return directory


def _ssh(place: Path) -> list[str]:
    key = ["-i", str(place / "ssh" / "id_ed25519")]
    return [*key, *("-o", "BatchMode=yes", "-o", "StrictHostKeyChecking=no", "-o", "UserKnownHostsFile=/dev/null")]


def _scp(place: Path, bundle: Path) -> list[str]:
    (place / "arrived").mkdir()
    return ["scp", "-q", *_ssh(place), "-P", str(PORT), str(bundle / "one"), f"root@127.0.0.1:{place}/arrived/one"]


def _transfer(place: Path, bundle: Path, size: int) -> list[str]:
    script = render.script(
        "bundle/receive-files.sh",
        engine="docker",
        destination=str(place / "arrived"),
        alike="/nonexistent",
        source="",
        part="",
        image="",
    )
    order = {
        "ssh": ["ssh", *_ssh(place), "-p", str(PORT), "root@127.0.0.1", RUN_SCRIPT],
        "script": standard_input(script, login="root"),
        "closing_word": CLOSING_WORD,
        "title": "one",
        "directory": str(bundle),
        "files": [
            {"path": "one", "sha256": bundle_manifest.sha256(bundle / "one"), "bytes": size, "carried": True},
        ],
    }
    (place / "order.json").write_text(json.dumps(order))
    return ["sh", "-c", f"exec python3 {ROOT}/components/files/bundle/transfer.py < {place}/order.json"]


def _timed(command: Sequence[str]) -> tuple[float, int]:
    """Return the seconds of a command, and the peak memory (KiB) of its largest process."""
    began = time.monotonic()
    done = subprocess.run([sys.executable, "-c", HELD, *command], capture_output=True, text=True, check=False)
    seconds = time.monotonic() - began
    if done.returncode:
        console.print(done.stdout, done.stderr)
        raise typer.Exit(1)
    return seconds, int(done.stderr.split()[-1])


def _table(rates: dict[str, list[float]], memory: dict[str, int], gb: float) -> str:
    median = {way: statistics.median(values) for way, values in rates.items()}
    rows = [
        ("`scp` of one file", "scp", "", ""),
        ("the same file by `up`, checked on arrival", "up", "scp", PROMISED_SHARE),
        ("two `sha256sum` in parallel", "two sha256sum", "", ""),
        ("the same files by `scripts/elastic-vllm bundle verify`", "verify", "two sha256sum", PROMISED_SHARE),
    ]
    lines = [
        "| what | MB/s | compared with the line above | promised | most memory, MiB |",
        "| --- | --- | --- | --- | --- |",
    ]
    for what, way, other, promised in rows:
        share = f"{median[way] / median[other]:.2f}" if other else ""
        most = f"{memory[way] / 1024:.0f}" + (f" (promised: {PROMISED_MB} MB)" if other else "")
        lines.append(f"| {what} | {median[way]:.0f} | {share} | {promised} | {most} |")
    return f"Files of {gb:g} GB, medians.\n\n" + "\n".join(lines)


if __name__ == "__main__":
    app()

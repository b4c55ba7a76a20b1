"""`make bench`, part two: the gateways side by side, and the proxy's price with vLLM, for docs/benchmarks.md.

    python -m scripts.maintain.price [--rounds N] [--vllm-rounds N] [--stack test]

All ways are measured in turns, so that a noisy machine disturbs all alike. What people would take instead of this
project's gateway is installed from packages (tests/support/requirements-peers.in), apart from the rest of the machine.
"""

import json
import os
import signal
import subprocess
import time
from contextlib import ExitStack
from datetime import timedelta
from pathlib import Path
from typing import Annotated

import docker
import typer
from rich.console import Console

from components.errors import UserError
from scripts.lab.images import NEWER_SUITE, ensure_nginx_image
from scripts.lab.packages import install_missing
from scripts.lib.progress import Display
from scripts.maintain.price import compare, document, real
from scripts.maintain.price.gateways import PEERS, opened
from tests.support import tool_environment

ROOT = Path(__file__).resolve().parents[3]
IMAGE = f"localhost/elastic-vllm/nginx:{NEWER_SUITE}"
STAT = Path("/proc/stat")
STOLEN = 7  # in a line of /proc/stat, after the name
app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None)
console = Console(highlight=False, markup=False, soft_wrap=True)


@app.command()
def main(
    rounds: Annotated[int, typer.Option(help="Measurements of each gateway; 5 take six minutes.", min=0)] = 5,
    vllm_rounds: Annotated[int, typer.Option(help="Measurements with the real vLLM, a minute each.", min=0)] = 20,
    stack: Annotated[str, typer.Option(help="Stack for vLLM; it is brought up and stays up.")] = "test",
) -> None:
    """Compare this project's Nginx with its peers over a paced source, and with direct access to the real vLLM.

    0 rounds of one part leave it out. The tables go into docs/benchmarks.md.
    """
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # so that nothing is left running
    command = f"python -m scripts.maintain.price --rounds {rounds} --vllm-rounds {vllm_rounds}"
    try:
        if rounds:
            rehearse("setup", stack)  # Docker
            document.write("price: gateways", gateways_compared(rounds), command)
        if vllm_rounds:
            rehearse("up", stack)
            outputs = json.loads(rehearse("outputs", stack, "--json", "--show-secrets"))
            os.sched_setaffinity(0, {real.PROXY_CORE})
            document.write("price: vllm", real.with_vllm(stack, outputs, vllm_rounds, console.print), command)
    except UserError as error:
        console.print(f"price: {error.cause}\n  fix: {error.fix}")
        raise typer.Exit(1) from None


def gateways_compared(rounds: int) -> str:
    """Return the comparison as Markdown, and draw its figures beside the document."""
    with ExitStack() as closing:
        with Display() as display:
            with display.task("wrk", "package") as task:
                install_missing(
                    task.say, need_docker=False, also={"wrk": "wrk"}, log=Path("/var/log/elastic-vllm-price")
                )
            with display.task("Nginx", "image") as task:
                ensure_nginx_image(docker.from_env(timeout=120), IMAGE, task.say)
            with display.task("peers", "packages"):
                programs = tool_environment.programs("peers")
            running = closing.enter_context(opened(IMAGE, display, PEERS, programs, undisturbed=True))
        before, start = STAT.read_text(), time.monotonic()
        found = compare.measure(running, compare.Amount(rounds), lambda text: console.print(f"{_clock(start)} {text}"))
        stolen = stolen_percent(before, STAT.read_text())
    compare.write_figures(found, document.DOCS)
    return f"{compare.tables(running, found)}\n\nThe host took {stolen:.2f} % of the cores' time (steal)."


def _clock(start: float) -> str:
    return str(timedelta(seconds=round(time.monotonic() - start)))


def stolen_percent(before: str, after: str) -> float:
    """Return the share of the cores' time that the machine's host took between two readings of /proc/stat."""
    earlier, later = ([int(field) for field in text.splitlines()[0].split()[1:9]] for text in (before, after))
    spent = [end - begin for begin, end in zip(earlier, later, strict=True)]
    return 100.0 * spent[STOLEN] / sum(spent)


def rehearse(what: str, stack: str, *arguments: str) -> str:
    """Run scripts/rehearse and return its output. If it fails, end the benchmark with its errors."""
    command = [str(ROOT / "scripts" / "rehearse"), what, *arguments, "--stack", stack]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        console.print(done.stdout, done.stderr)
        raise typer.Exit(1)
    return done.stdout


if __name__ == "__main__":
    app(prog_name="python -m scripts.maintain.price")

"""Mixed traffic for a given time: nothing may fail, and Nginx may not grow.

    python -m scripts.maintain.soak --stack local --minutes 30

The stack must be up on this machine. Streams, tool calls, clients that leave, slow readers, large bodies and refusals
come in rounds. In the pause after each, Nginx is idle, and its memory and file descriptors are counted: growth is a
leak. The exit status is 1 if anything failed or grew.
"""

import json
import statistics
import subprocess
import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import docker
import typer
from rich.console import Console

from scripts.maintain import soak_traffic
from scripts.maintain.soak_traffic import Endpoint

ROOT = Path(__file__).resolve().parents[2]
WORKERS = 6
ROUND_SECONDS = 60
LEAST_ROUNDS = 4
IDLE_SECONDS = 2
GROWTH_KIB = 2048
"""Permitted growth of all of Nginx's processes, from the first third of the rounds to the last."""
GROWTH_DESCRIPTORS = 8
app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None)
console = Console(highlight=False, soft_wrap=True)


@dataclass(frozen=True)
class Size:
    """Size of Nginx while it is idle."""

    memory_kib: int
    descriptors: int


@app.command()
def main(
    minutes: Annotated[float, typer.Option(help="Duration of the traffic.")] = 30,
    stack: Annotated[str, typer.Option(help="A stack that is up on this machine.")] = "local",
) -> None:
    """Load a stack with mixed traffic; nothing may fail, and Nginx may not grow."""
    endpoint = endpoint_of(stack)
    seconds = min(ROUND_SECONDS, minutes * 60 / LEAST_ROUNDS)
    rounds = max(LEAST_ROUNDS, round(minutes * 60 / seconds))
    done: Counter[str] = Counter()
    failed: Counter[str] = Counter()
    sizes = []
    for number in range(1, rounds + 1):
        one_round(endpoint, seconds - IDLE_SECONDS, done, failed)
        time.sleep(IDLE_SECONDS)
        sizes.append(size_of_nginx(stack))
        console.print(
            f"round {number} of {rounds}: {done.total()} done, {failed.total()} failed; Nginx idle: "
            f"{sizes[-1].memory_kib / 1024:.1f} MiB, {sizes[-1].descriptors} file descriptors"
        )
    problems = [f"{count} x {what}" for what, count in failed.items()] + growth(sizes)
    console.print(f"{', '.join(f'{count} {what}' for what, count in sorted(done.items()))}")
    for problem in problems:
        console.print(f"FAIL {problem}")
    if problems:
        raise typer.Exit(1)
    console.print("nothing failed, nothing grew")


def one_round(endpoint: Endpoint, seconds: float, done: Counter[str], failed: Counter[str]) -> None:
    """Run all kinds of traffic side by side until the time is over; requests in flight may finish."""
    end = time.monotonic() + seconds
    lock = threading.Lock()

    def work(first: int) -> None:
        number = first
        while time.monotonic() < end:
            kind = KINDS[number % len(KINDS)]
            number += 1
            name = kind.__name__.replace("_", " ")
            try:
                kind(endpoint)
            except Exception as error:  # any error is reported at the end
                with lock:
                    failed[f"{name}: {type(error).__name__}: {error}"[:200]] += 1
            else:
                with lock:
                    done[name] += 1

    workers = [threading.Thread(target=work, args=(number,)) for number in range(WORKERS)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()


KINDS: tuple[Callable[[Endpoint], None], ...] = (
    soak_traffic.streams,
    soak_traffic.tool_calls,
    soak_traffic.clients_that_leave,
    soak_traffic.slow_readers,
    soak_traffic.plain_calls,
    soak_traffic.bodies_of_10_mb,
    soak_traffic.refusals,
)


def growth(sizes: list[Size]) -> list[str]:
    """List what is larger in the last third of the rounds than in the first, without the first round, a warm-up."""
    third = max(1, (len(sizes) - 1) // 3)
    early, late = sizes[1 : 1 + third], sizes[-third:]
    grown = []
    for what, most in (("memory_kib", GROWTH_KIB), ("descriptors", GROWTH_DESCRIPTORS)):
        before, after = (statistics.median(getattr(size, what) for size in part) for part in (early, late))
        if after - before > most:
            grown.append(f"Nginx's {what} grew from {before:g} to {after:g}")
    return grown


def size_of_nginx(stack: str) -> Size:
    """Return the size of all processes together, without shared memory: the TLS session cache fills up to 10 MB."""
    processes = docker.from_env().containers.get(f"elastic-vllm-{stack}-nginx").top(ps_args="-eo pid")["Processes"]
    memory = descriptors = 0
    for (pid,) in processes:
        status = Path(f"/proc/{pid}/status").read_text()
        memory += int(status.partition("RssAnon:")[2].split()[0])
        descriptors += len(list(Path(f"/proc/{pid}/fd").iterdir()))
    return Size(memory, descriptors)


def endpoint_of(stack: str) -> Endpoint:
    """Return the endpoint as the stack's outputs describe it."""
    command = [str(ROOT / "scripts" / "rehearse"), "outputs", "--json", "--show-secrets", "--stack", stack]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        console.print(done.stderr.strip())
        raise typer.Exit(1)
    values = json.loads(done.stdout)
    return Endpoint(values["connectorUrl"], values["connectorApiKey"], values["caCertificate"], values["model"])


if __name__ == "__main__":
    app()

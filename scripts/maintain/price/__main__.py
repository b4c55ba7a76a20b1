"""`make bench`, part two: the proxy's price, for docs/benchmarks.md.

    python -m scripts.maintain.price [--rounds N] [--stack test] [--without-vllm]

All ways are measured in turns, so that a noisy machine disturbs all alike.
"""

import json
import os
import random
import statistics
import subprocess
from collections.abc import Callable, Sequence
from itertools import chain
from pathlib import Path
from typing import Annotated, Any, TypeVar

import docker
import typer
from rich.console import Console

from components.serving.nginx_config import CONTAINER_PORT
from scripts.maintain.price import document, real, ways
from scripts.maintain.price.figures import bars
from scripts.maintain.price.traffic import Lags, Way, latencies, stream_lags
from scripts.maintain.price.ways import DIRECT, GUIDE, OTHER_CORE, OURS, PROXY_CORE, STACKS, Ways

ROOT = Path(__file__).resolve().parents[3]
REQUESTS = 200  # of a block on one connection
SIDE_BY_SIDE = (1, 16, 64)
EVENTS = 100  # of each stream, one each 20 ms
ABORTS = 6
BUSY_PROCESSES = 4
NAMES = {DIRECT: "direct", OURS: "this stack's Nginx", GUIDE: "the guide's Nginx"}
PROMISED_MS = {50: 0.15, 99: 0.5}
PROMISED_LAG_MS = 2
FEW = 0.001
"""Share of late events up to which the machine is to blame: it delays a few on every way, a buffer nearly all."""
PROMISED_FIRST_TOKEN_MS = 2
PROMISED_THROUGHPUT = 0.99
PROMISED_STOP_SECONDS = 1
RESAMPLES = 1000
PAIRS = 8  # of blocks for the throughput, in each round: short ones, because the machine's speed varies
T = TypeVar("T")
app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None)
console = Console(highlight=False)


@app.command()
def main(
    rounds: Annotated[int, typer.Option(help="Measurements of each way.", min=1)] = 20,
    stack: Annotated[str, typer.Option(help="The stack; it is brought up and stays up.")] = "test",
    without_vllm: Annotated[bool, typer.Option("--without-vllm", help="Measure only with the paced source.")] = False,
) -> None:
    """Measure what Nginx adds: over a paced source of events, and with the real vLLM."""
    rehearse("up", stack)
    outputs = json.loads(rehearse("outputs", stack, "--json", "--show-secrets"))
    image = str(docker.from_env().containers.get(f"elastic-vllm-{stack}-nginx").attrs["Config"]["Image"])
    os.sched_setaffinity(0, {OTHER_CORE})
    command = f"python -m scripts.maintain.price --rounds {rounds}"
    with ways.opened(stack, image, outputs["connectorApiKey"]) as opened:
        ways.first(0)
        document.write("price: paced", paced(opened, rounds), command)
        os.sched_setscheduler(0, os.SCHED_OTHER, os.sched_param(0))
    if not without_vllm:
        os.sched_setaffinity(0, {PROXY_CORE})
        document.write("price: vllm", with_vllm(stack, outputs, rounds), command)


def rehearse(what: str, stack: str, *arguments: str) -> str:
    """Run scripts/rehearse and return its output. If it fails, end the benchmark with its errors."""
    command = [str(ROOT / "scripts" / "rehearse"), what, *arguments, "--stack", stack]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        console.print(done.stdout, done.stderr)
        raise typer.Exit(1)
    return done.stdout


# --- Over the paced source


def paced(opened: Ways, rounds: int) -> str:
    """Return the results as Markdown, and write the figures beside the document."""
    taken: dict[str, list[float]] = {name: [] for name in opened.ways}
    lags = {(name, streams): Lags() for name in opened.ways for streams in SIDE_BY_SIDE}
    cpu = dict.fromkeys(opened.containers, 0.0)
    events = dict.fromkeys(opened.containers, 0)
    for number in range(1, rounds + 1):
        console.print(f"round {number} of {rounds}: paced source")
        opened.place_source(PROXY_CORE)  # one after the other: server and client each have a core
        for name, way in opened.ways.items():
            taken[name] += latencies(way, REQUESTS)
        opened.place_source(OTHER_CORE)  # side by side: Nginx has a core for itself
        for streams in SIDE_BY_SIDE:
            for name, way in opened.ways.items():
                before = opened.cpu_seconds(name) if name in cpu else 0.0
                found = stream_lags(way, streams, EVENTS)
                lags[name, streams].seconds += found.seconds
                lags[name, streams].held_back += found.held_back
                if name in cpu and streams == SIDE_BY_SIDE[-1]:
                    cpu[name] += opened.cpu_seconds(name) - before
                    events[name] += streams * EVENTS
    _figures(taken, lags)
    return "\n\n".join([_latency_table(taken), _lag_table(lags), _cpu_table(cpu, events)])


def ms(values: Sequence[float], percent: int) -> float:
    """Return a percentile of seconds, in milliseconds."""
    return statistics.quantiles(values, n=100)[percent - 1] * 1000


def _latency_table(taken: dict[str, list[float]]) -> str:
    lines = [
        "| one connection, answered at once | p50 | p99 | added p50 | added p99 |",
        "| --- | --- | --- | --- | --- |",
    ]
    for name, values in taken.items():
        mine = [ms(values, percent) for percent in PROMISED_MS]
        direct = [ms(taken[DIRECT], percent) for percent in PROMISED_MS]
        added = [f"{value - base:.3f} ms ({value / base:.2f} x)" for value, base in zip(mine, direct, strict=True)]
        if name == DIRECT:
            added = ["", ""]
        cells = [NAMES[name], *(f"{value:.3f} ms" for value in mine), *added]
        lines.append(f"| {' | '.join(cells)} |")
    over = {p: ms(taken[OURS], p) - ms(taken[DIRECT], p) for p in PROMISED_MS}
    kept = all(over[p] <= promised for p, promised in PROMISED_MS.items())
    promise = ", ".join(f"p{p} {promised} ms" for p, promised in PROMISED_MS.items())
    lines += [
        "",
        f"Promised for what this stack's Nginx adds: at most {promise}: **{'kept' if kept else 'not kept'}**.",
    ]
    return "\n".join(lines)


def _lag_table(lags: dict[tuple[str, int], Lags]) -> str:
    lines = [
        "| lag of a stream's events | streams | p50 | p99 | p99 over direct | arrived with the next event |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for (name, streams), found in lags.items():
        mine, direct = ms(found.seconds, 99), ms(lags[DIRECT, streams].seconds, 99)
        share = f"{found.held_back} of {len(found.seconds)}"
        over = "" if name == DIRECT else f"{mine - direct:.2f} ms"
        lines.append(
            f"| {NAMES[name]} | {streams} | {ms(found.seconds, 50):.2f} ms | {mine:.2f} ms | {over} | {share} |"
        )
    most = SIDE_BY_SIDE[-1]
    over_direct = ms(lags[OURS, most].seconds, 99) - ms(lags[DIRECT, most].seconds, 99)
    held = lags[OURS, most].held_back
    kept = over_direct <= PROMISED_LAG_MS and held <= max(
        lags[DIRECT, most].held_back, FEW * len(lags[OURS, most].seconds)
    )
    lines += [
        "",
        f"Promised at {most} streams: no event waits for the next one, and p99 is at most {PROMISED_LAG_MS} ms over "
        f"direct: **{'kept' if kept else 'not kept'}**.",
    ]
    return "\n".join(lines)


def _cpu_table(cpu: dict[str, float], events: dict[str, int]) -> str:
    lines = ["| CPU time of Nginx | for 1,000 events of 64 streams |", "| --- | --- |"]
    lines += [f"| {NAMES[name]} | {cpu[name] / events[name] * 1e6:.1f} ms |" for name in cpu]
    return "\n".join(lines)


def _figures(taken: dict[str, list[float]], lags: dict[tuple[str, int], Lags]) -> None:
    groups = {
        f"p{percent}": {NAMES[name]: ms(values, percent) for name, values in taken.items()} for percent in PROMISED_MS
    }
    document.DOCS.joinpath("latency.svg").write_text(bars("One connection, answered at once", "ms", groups))
    groups = {
        f"{streams} streams": {NAMES[name]: ms(lags[name, streams].seconds, 99) for name in taken}
        for streams in SIDE_BY_SIDE
    }
    document.DOCS.joinpath("lag.svg").write_text(bars("Lag of a stream's events, p99", "ms", groups))


# --- With the real vLLM


def with_vllm(stack: str, outputs: dict[str, Any], rounds: int) -> str:
    """Return the results as Markdown. vLLM has one core, Nginx and the client share the other."""
    client = docker.from_env(timeout=120)
    containers = {role: client.containers.get(f"elastic-vllm-{stack}-{role}") for role in ("vllm", "nginx")}
    address = next(iter(containers["nginx"].attrs["NetworkSettings"]["Networks"].values()))["IPAddress"]
    key, model = outputs["connectorApiKey"], outputs["model"]
    direct = Way(DIRECT, "vllm", 0, None, key, path=str(STACKS / stack / "socket" / "vllm.sock"))
    both = (direct, Way(OURS, address, CONTAINER_PORT, ways.any_certificate(), key))
    every_core = f"0-{(os.cpu_count() or 1) - 1}"
    ways.first(0)
    for pid in ways.processes(containers["nginx"]):
        ways.first(pid)
    containers["vllm"].update(cpuset_cpus=str(OTHER_CORE))
    containers["nginx"].update(cpuset_cpus=str(PROXY_CORE))
    try:
        loads = {way.name: real.Load() for way in both}
        for number in range(1, rounds + 1):
            console.print(f"round {number} of {rounds}: vLLM")
            for pair in range(PAIRS):
                for way in both if pair % 2 else both[::-1]:
                    real.throughput(way, model, loads[way.name])
            moments = real.random_moments(number)
            for way in both if number % 2 else both[::-1]:
                real.first_tokens(way, model, loads[way.name], moments)
    finally:
        for container in containers.values():
            container.update(cpuset_cpus=every_core)
    # From here on all processes share all cores at the same priority.
    os.sched_setaffinity(0, set(range(os.cpu_count() or 1)))
    os.sched_setscheduler(0, os.SCHED_OTHER, os.sched_param(0))
    for pid in ways.processes(containers["nginx"]):
        os.sched_setscheduler(pid, os.SCHED_OTHER, os.sched_param(0))
    stops: dict[tuple[str, int], list[float]] = {}
    for processes in (0, BUSY_PROCESSES):
        with real.busy(processes):
            for number in range(ABORTS):
                console.print(f"{number + 1} of {ABORTS}: a client leaves; {processes} other processes compute")
                for way in both:
                    stops.setdefault((way.name, processes), []).append(real.seconds_to_stop(way, model, direct))
    return f"{_load_table(loads)}\n\n{_stop_table(stops)}"


def _load_table(loads: dict[str, real.Load]) -> str:
    lines = [
        f"| with vLLM | tokens per second, {real.STREAMS} streams of {real.TOKENS} tokens, median "
        f"| first token p50, {real.A_SECOND} requests per second | p99 |",
        "| --- | --- | --- | --- |",
    ]
    rates = {name: statistics.median(load.tokens_a_second) for name, load in loads.items()}
    for name, load in loads.items():
        p50, p99 = (ms(list(chain.from_iterable(load.first_token_seconds)), percent) for percent in (50, 99))
        lines.append(f"| {NAMES[name]} | {rates[name]:.1f} | {p50:.1f} ms | {p99:.1f} ms |")
    pairs = list(zip(loads[OURS].tokens_a_second, loads[DIRECT].tokens_a_second, strict=True))
    ratio, *ratios = _with_interval(pairs, lambda drawn: statistics.median(ours / direct for ours, direct in drawn))
    blocks = list(zip(loads[OURS].first_token_seconds, loads[DIRECT].first_token_seconds, strict=True))
    more, *mores = _with_interval(blocks, _p99_more)
    kept = [ratio >= PROMISED_THROUGHPUT, more <= PROMISED_FIRST_TOKEN_MS]
    words = ["kept" if each else "not kept" for each in kept]
    lines += [
        "",
        f"Promised: throughput at least {PROMISED_THROUGHPUT} of direct, measured {ratio:.3f} ({ratios[0]:.3f} to "
        f"{ratios[1]:.3f}): **{words[0]}**; first token p99 at most {PROMISED_FIRST_TOKEN_MS} ms more, "
        f"measured {more:.1f} ms ({mores[0]:.1f} to {mores[1]:.1f}): **{words[1]}**. In brackets: the 95 % interval of "
        f"{RESAMPLES} bootstrap samples of the pairs of measurements.",
    ]
    return "\n".join(lines)


def _with_interval(pairs: Sequence[T], figure: Callable[[Sequence[T]], float]) -> tuple[float, float, float]:
    """Return a figure of paired measurements, and the ends of its 95 % interval (percentile bootstrap)."""
    chance = random.Random(0)  # noqa: S311 - no secret
    found = sorted(figure(chance.choices(pairs, k=len(pairs))) for _ in range(RESAMPLES))
    return figure(pairs), found[RESAMPLES * 25 // 1000], found[RESAMPLES * 975 // 1000]


def _p99_more(blocks: Sequence[tuple[list[float], list[float]]]) -> float:
    """Return by how many ms the first token of our blocks is later than in those beside them, at p99."""
    ours, direct = (ms(list(chain.from_iterable(way)), 99) for way in zip(*blocks, strict=True))
    return ours - direct


def _stop_table(stops: dict[tuple[str, int], list[float]]) -> str:
    lines = ["| from the client's disconnect to `num_requests_running` 0 | median | longest |", "| --- | --- | --- |"]
    for (name, processes), seconds in stops.items():
        busy = f", while {processes} other processes compute" if processes else ""
        lines.append(f"| {NAMES[name]}{busy} | {statistics.median(seconds):.2f} s | {max(seconds):.2f} s |")
    longest = max(stops[OURS, 0])
    kept = "kept" if longest <= PROMISED_STOP_SECONDS else "not kept"
    lines += ["", f"Promised: within {PROMISED_STOP_SECONDS} s: **{kept}**."]
    return "\n".join(lines)


if __name__ == "__main__":
    app()

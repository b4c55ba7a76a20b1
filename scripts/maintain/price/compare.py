"""The gateways side by side over the stand-in source: measurements in turns, and their tables."""

import math
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from scripts.maintain.price import behaviour
from scripts.maintain.price.figures import bars
from scripts.maintain.price.gateways import DIRECT, NAMES, OURS, Gateway, Opened
from scripts.maintain.price.traffic import CONNECTIONS, Lags, latencies, stream_lags, throughput

MOST_STREAMS = 64
PROMISED_MS = {50: 0.15, 99: 0.5}
PROMISED_LAG_MS = 2
FEW = 0.001
"""Share of late events up to which the machine is to blame: it delays a few on every way, a buffer nearly all."""


@dataclass(frozen=True)
class Amount:
    """How much is measured of each gateway."""

    rounds: int
    requests: int = 200
    """Requests on one connection, in a round."""
    streams: tuple[int, ...] = (16, MOST_STREAMS)
    events: int = 100
    """Events of each stream, one each 20 ms, in a round."""
    load_seconds: int = 2
    """Duration of the requests on all connections, in a round."""
    leaves: int = 5
    """Clients that leave a request of each kind."""


@dataclass
class Figures:
    """Measurements of one gateway."""

    latencies: list[list[float]] = field(default_factory=list)
    """Seconds of each request, round by round."""
    lags: dict[int, list[Lags]] = field(default_factory=dict)
    """By the number of streams, round by round."""
    cpu_seconds: float = 0.0
    events: int = 0
    """The events of MOST_STREAMS, during which the CPU time was taken."""
    loads: list[float] = field(default_factory=list)
    """Requests a second, round by round."""
    memory_mib: tuple[float, float] = (0.0, 0.0)
    """Resident and proportional, after the load."""
    notices: dict[str, list[float | None]] = field(default_factory=dict)
    """By the kind of request that a client leaves: seconds, None for too many."""
    behaviours: dict[str, str] = field(default_factory=dict)
    """Row of the table -> cell."""


def measure(opened: Opened, amount: Amount, say: Callable[[str], None]) -> dict[str, Figures]:
    """Measure all gateways in turns, so that a noisy machine disturbs all alike."""
    found = {name: Figures() for name in opened.gateways}
    for number in range(1, amount.rounds + 1):
        say(f"round {number} of {amount.rounds}: requests on one connection")
        for name, gateway in opened.gateways.items():
            found[name].latencies.append(latencies(gateway.way, amount.requests))
        for streams in amount.streams:
            for name, gateway in opened.gateways.items():
                say(f"round {number} of {amount.rounds}: {streams} streams, {gateway.title}")
                _lags(gateway, found[name], streams, amount.events)
    with opened.fast_source():
        for number in range(1, amount.rounds + 1):
            for name, gateway in opened.gateways.items():
                say(f"round {number} of {amount.rounds}: {CONNECTIONS} connections, {gateway.title}")
                found[name].loads.append(throughput(gateway.way, amount.load_seconds))
    _other_figures(opened, found, amount, say)
    return found


def _other_figures(opened: Opened, found: dict[str, Figures], amount: Amount, say: Callable[[str], None]) -> None:
    """Take the memory that the load has left, and the behaviours."""
    for name, gateway in opened.gateways.items():
        if gateway.pid:
            found[name].memory_mib = gateway.memory_mib()
        for kind in behaviour.LEAVING:
            say(f"clients leave: {kind}, {gateway.title}")
            seconds = found[name].notices.setdefault(kind, [])
            while len(seconds) < amount.leaves and None not in seconds:
                seconds.append(behaviour.seconds_to_notice(gateway.way, opened.source, kind, say))
    for name, gateway in opened.gateways.items():
        if gateway.pid:
            say(f"behaviours: {gateway.title}")
            found[name].behaviours |= behaviour.with_source(gateway, opened.source)
    for name, rows in behaviour.without_source(opened, say).items():
        found[name].behaviours |= rows


def _lags(gateway: Gateway, figures: Figures, streams: int, events: int) -> None:
    before = gateway.cpu_seconds() if gateway.pid else 0.0
    lags = stream_lags(gateway.way, streams, events)
    if gateway.pid and streams == MOST_STREAMS:
        figures.cpu_seconds += gateway.cpu_seconds() - before
        figures.events += streams * events
    figures.lags.setdefault(streams, []).append(lags)


def ms(values: Sequence[float], percent: int) -> float:
    """Return a percentile of seconds, in milliseconds."""
    return statistics.quantiles(values, n=100)[percent - 1] * 1000


def latency_ms(figures: Figures, percent: int) -> float:
    """Return the median of the rounds' percentiles: what disturbs one round does not count."""
    return statistics.median(ms(each, percent) for each in figures.latencies)


def lag_ms(figures: Figures, percent: int, streams: int = MOST_STREAMS) -> float:
    """Return the median of the rounds' percentiles."""
    return statistics.median(ms(each.seconds, percent) for each in figures.lags[streams])


def bunched(figures: Figures) -> tuple[int, int]:
    """Return how many events of MOST_STREAMS came bunched with the next one, and how many came."""
    rounds = figures.lags[MOST_STREAMS]
    return sum(each.held_back for each in rounds), sum(len(each.seconds) for each in rounds)


# --- Tables


def tables(opened: Opened, found: dict[str, Figures]) -> str:
    """Return the results as Markdown."""
    return "\n\n".join(
        [_figures_table(opened, found), _ahead(found), _promises(found), _behaviours_table(opened, found)]
    )


def _added(found: dict[str, Figures], name: str, percent: int) -> float:
    """Return by how many ms requests on one connection took longer than directly."""
    return latency_ms(found[name], percent) - latency_ms(found[DIRECT], percent)


COLUMNS: dict[str, Callable[[dict[str, Figures], str], float]] = {
    "added p50, ms": lambda found, name: _added(found, name, 50),
    "added p99, ms": lambda found, name: _added(found, name, 99),
    "lag p50, ms": lambda found, name: lag_ms(found[name], 50),
    "lag p99, ms": lambda found, name: lag_ms(found[name], 99),
    "bunched, %": lambda found, name: 100 * bunched(found[name])[0] / bunched(found[name])[1],
    "CPU ms for 1,000 events": lambda found, name: found[name].cpu_seconds / found[name].events * 1e6,
    "requests/s": lambda found, name: statistics.median(found[name].loads),
    "resident, MiB": lambda found, name: found[name].memory_mib[0],
    "proportional, MiB": lambda found, name: found[name].memory_mib[1],
}
"""Columns of the first table: title -> figure of a gateway. Less is better, except for requests/s."""
WITHOUT_DIRECT = {"CPU ms for 1,000 events", "resident, MiB", "proportional, MiB"}
CLOSE = 1.03
"""Ratio of two figures from which on they count as different: the rounds differ by as much."""


def cell(value: float) -> str:
    """Return a figure with three digits, at most three of them after the point."""
    digits = 2 - math.floor(math.log10(max(abs(value), 0.1)))
    return f"{value:,.{max(digits, 0)}f}"


def _figures_table(opened: Opened, found: dict[str, Figures]) -> str:
    few = min(found[OURS].lags)
    lines = [
        f"| way | TLS | {' | '.join(COLUMNS)} | lag p50 / p99, {few} streams, ms |",
        "| --- | --- |" + " ---: |" * (len(COLUMNS) + 1),
    ]
    for name, gateway in opened.gateways.items():
        cells = []
        for title, figure in COLUMNS.items():
            if name == DIRECT and title in WITHOUT_DIRECT:
                cells.append("")
            elif name == DIRECT and title.startswith("added"):
                percent = 50 if "p50" in title else 99
                cells.append(f"(takes {cell(latency_ms(found[DIRECT], percent))})")
            else:
                cells.append(cell(figure(found, name)))
        cells.append(" / ".join(cell(lag_ms(found[name], percent, few)) for percent in (50, 99)))
        lines.append(f"| {gateway.title} | {'yes' if gateway.way.tls else 'no'} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _ahead(found: dict[str, Figures]) -> str:
    """List the columns in which this project's gateway is not first; the direct way does not count."""
    behind = []
    for title, figure in COLUMNS.items():
        values = {name: figure(found, name) for name in found if name != DIRECT}
        more_is_better = title == "requests/s"
        best = (max if more_is_better else min)(values, key=lambda name: values[name])
        ratio = values[best] / values[OURS] if more_is_better else values[OURS] / max(values[best], 1e-9)
        if best != OURS and values[OURS] != values[best] and ratio > CLOSE:
            behind.append(f"{title} ({NAMES[best]}: {cell(values[best])} against {cell(values[OURS])})")
    first = "in every column" if not behind else f"in every column except {'; '.join(behind)}"
    return f"Of the gateways, {NAMES[OURS]} is first, or at most {CLOSE - 1:.0%} behind the first, {first}."


def _promises(found: dict[str, Figures]) -> str:
    kept = all(_added(found, OURS, percent) <= promised for percent, promised in PROMISED_MS.items())
    promise = ", ".join(f"p{percent} {promised} ms" for percent, promised in PROMISED_MS.items())
    (held, events), (held_directly, _) = bunched(found[OURS]), bunched(found[DIRECT])
    over_direct = lag_ms(found[OURS], 99) - lag_ms(found[DIRECT], 99)
    lag_kept = over_direct <= PROMISED_LAG_MS and held <= max(held_directly, FEW * events)
    return (
        f"Promised for what {NAMES[OURS]} adds: at most {promise}: **{'kept' if kept else 'not kept'}**; at "
        f"{MOST_STREAMS} streams, no event waits for the next one ({held} of {events} did, "
        f"directly {held_directly}), and the lag's p99 is at most {PROMISED_LAG_MS} ms over direct "
        f"(it is {over_direct:.2f}): **{'kept' if lag_kept else 'not kept'}**."
    )


def _behaviours_table(opened: Opened, found: dict[str, Figures]) -> str:
    names = [name for name in found if name != DIRECT]
    lines = [f"| behaviour | {' | '.join(opened.gateways[name].title for name in names)} |"]
    lines.append("| --- |" + " --- |" * len(names))
    lines += [
        f"| {row} | {' | '.join(found[name].behaviours[row] for name in names)} |" for row in found[OURS].behaviours
    ]
    for kind in behaviour.LEAVING:
        cells = []
        for name in names:
            seconds = [each for each in found[name].notices[kind] if each is not None]
            whole = len(seconds) == len(found[name].notices[kind])
            cells.append(
                f"{statistics.median(seconds) * 1000:.2g} ms" if whole else f"not within {behaviour.NOTICE_SECONDS} s"
            )
        lines.append(f"| a client that leaves a {kind} is noticed after | {' | '.join(cells)} |")
    return "\n".join(lines)


def write_figures(found: dict[str, Figures], directory: Path) -> None:
    """Draw the latency and the lag of each way."""
    rows = {"p50": "lag p50, ms", "p99": "lag p99, ms"}
    added = {
        NAMES[name]: {f"p{percent}": latency_ms(found[name], percent) for percent in PROMISED_MS} for name in found
    }
    lag = {NAMES[name]: {row: COLUMNS[title](found, name) for row, title in rows.items()} for name in found}
    directory.joinpath("latency.svg").write_text(bars("One connection, answered at once", "ms", added))
    directory.joinpath("lag.svg").write_text(bars(f"Lag of the events of {MOST_STREAMS} streams", "ms", lag))

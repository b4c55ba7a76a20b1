"""The answer in a user's words, as JSON, and as one page. It holds figures only: no prompt, no answer, no key."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import jinja2

from scripts.cli.load.figures import Figures, Limits, carried
from scripts.cli.load.profiles import Profile

_templates = jinja2.Environment(
    loader=jinja2.FileSystemLoader(Path(__file__).parent), undefined=jinja2.StrictUndefined, autoescape=True
)


@dataclass(frozen=True, kw_only=True)
class Alone:
    """One piece of work at an endpoint that does nothing else."""

    seconds: float
    """Time of its requests, without the pauses between them."""
    first_token: float | None
    """The longest time to a first token; None for answers in one piece."""
    prompt_tokens: int
    """Tokens of all its prompts, as the endpoint counts them."""
    answer_tokens: int


@dataclass(frozen=True, kw_only=True)
class Run:
    """The steps of one profile, or of the mix."""

    name: str
    profiles: Sequence[Profile]
    """As scaled."""
    alone: Mapping[str, Alone]
    """The warm-up by profile, as far as it came."""
    steps: Sequence[Figures]
    by_profile: dict[str, Figures]
    """Figures by profile, of the last step that keeps the limits."""
    cut_short: Figures | None
    """The step that was not complete when the load ended, if any."""
    ended: str
    """Reason for which it ended before it was past the limit; empty if it was."""
    advice: str
    """Changes that would let it carry more."""

    @property
    def nothing_kept(self) -> str:
        """Sentence in place of what it carries, if no step kept the limits."""
        return "not even the first step kept the limits" if self.steps else "no step was complete"

    @property
    def plural(self) -> str:
        """Word for the pieces of its work."""
        return self.profiles[0].plural if len(self.profiles) == 1 else "pieces of work"


@dataclass(frozen=True, kw_only=True)
class Result:
    """All that a load found out, and under what conditions."""

    host: str
    model: str
    started: datetime
    seconds: float
    scale: float
    seed: int
    limits: Limits
    per_person: float
    """Pieces of work that a person starts in an hour."""
    key: str
    """Owner of the requests' key, in words."""
    hourly_cost: float | None
    tokens: int
    """Tokens of all prompts and answers, warm-up included."""
    interrupted: bool
    runs: Sequence[Run]

    def document(self) -> dict[str, Any]:
        """The result for JSON."""
        return {
            "host": self.host,
            "model": self.model,
            "started": self.started.isoformat(timespec="seconds"),
            "seconds": round(self.seconds, 1),
            "scale": self.scale,
            "seed": self.seed,
            "firstTokenSeconds": self.limits.first_token_seconds,
            "answerSeconds": self.limits.answer_seconds,
            "perPerson": self.per_person,
            "key": self.key,
            "hourlyCost": self.hourly_cost,
            "tokens": self.tokens,
            "interrupted": self.interrupted,
            "runs": [
                {
                    "name": run.name,
                    "carries": kept.per_hour if (kept := carried(run.steps)) else 0,
                    "people": self.people(kept),
                    "ended": run.ended,
                    "advice": run.advice,
                    "profiles": {each.name: _sizes(each, self.limits) for each in run.profiles},
                    "alone": {name: asdict(found) for name, found in run.alone.items()},
                    "steps": [asdict(step) for step in run.steps],
                    "cutShort": asdict(run.cut_short) if run.cut_short else None,
                    "byProfile": {name: asdict(found) for name, found in run.by_profile.items()},
                }
                for run in self.runs
            ],
        }

    def people(self, kept: Figures | None) -> int:
        """People at work whom the endpoint carries at a step."""
        return int(kept.per_hour / self.per_person) if kept else 0

    def text(self) -> str:
        """The answer as lines of text."""
        return "\n".join(self.lines())

    def lines(self) -> list[str]:
        """The answer, a sentence or figure a line."""
        lines = [f"{self.model} at {self.host}, scale {self.scale:g}, seed {self.seed}"]
        if self.scale != 1:
            lines.append(
                f"all sizes are {self.scale:g} times those of production: the figures hold for these sizes only"
            )
        lines.append(self.key)
        for run in self.runs:
            lines += ["", *self.of_run(run)]
        cost = (
            f", about {self.hourly_cost * self.seconds / 3600:.2f} at the given hourly cost" if self.hourly_cost else ""
        )
        lines += ["", f"the load took {self.seconds / 60:.1f} minutes and {self.tokens:,} tokens{cost}"]
        if self.interrupted:
            lines.append("interrupted: these are the figures so far")
        return lines

    def of_run(self, run: Run) -> list[str]:
        """The answer about one profile, or the mix: what it carries, and then the details."""
        kept = carried(run.steps)
        if kept is None:
            lines = [f"{run.name}: {run.nothing_kept}"]
        else:
            lines = [
                f"{run.name}: carries {kept.per_hour:,.0f} {run.plural} an hour "
                f"({kept.requests_per_hour:,.0f} requests), which is "
                f"{self.people(kept):,} people with {self.per_person:g} an hour each (an assumption: --per-person)",
                f"  first token: {_span(kept.first_token_p50, kept.first_token_p95)}; whole answer: "
                f"{_span(kept.whole_p50, kept.whole_p95)} (half and 95 % of the requests)",
                f"  {kept.answer_tokens_per_second:,.0f} tokens a second written, "
                f"{kept.prompt_tokens_per_second:,.0f} read; {_cached(kept)}",
            ]
            if self.hourly_cost and kept.requests_per_hour:
                price = self.hourly_cost / kept.requests_per_hour * 1000
                lines.append(f"  {price:.2f} for 1,000 requests at this load, at the given hourly cost")
            lines += [
                f"  {name}: {found.requests} requests, first token "
                f"{_span(found.first_token_p50, found.first_token_p95)}, whole answer "
                f"{_span(found.whole_p50, found.whole_p95)}"
                for name, found in run.by_profile.items()
                if len(run.by_profile) > 1
            ]
        lines += [
            f"  {name} alone: {found.prompt_tokens:,} tokens read and {found.answer_tokens:,} written in "
            f"{_seconds(found.seconds)}"
            for name, found in run.alone.items()
        ]
        broken = next((found for found in run.steps if found.past), None)
        if broken:
            lines.append(f"  past the limit at {broken.per_hour:,.0f} {run.plural} an hour: {broken.past}")
        if run.cut_short:
            found = run.cut_short
            answered = found.requests - sum(found.errors.values())
            lines.append(
                f"  cut short at {found.per_hour:,.0f} {run.plural} an hour: {answered} requests answered, first token "
                f"{_span(found.first_token_p50, found.first_token_p95)}; whole answer "
                f"{_span(found.whole_p50, found.whole_p95)}"
            )
        if run.ended:
            lines.append(f"  it ended there: {run.ended}")
        lines.append(f"  for more: {run.advice}")
        if run.steps:
            busiest = max(step.client_cpu_share for step in run.steps)
            verdict = "it may itself be the limit" if any(step.client_busy for step in run.steps) else "not the limit"
            latest = max(step.client_late_p95 for step in run.steps)
            lines.append(
                f"  this client used at most {busiest:.0%} of one core, and 95 % of its requests were at most "
                f"{_seconds(latest)} late: {verdict}"
            )
        return lines


def _cached(found: Figures) -> str:
    if found.cached_share is None:
        return "the endpoint does not report the share of its prefix cache"
    return f"{found.cached_share:.0%} of them from the prefix cache"


def _span(middle: float | None, high: float | None) -> str:
    return "not streamed" if middle is None or high is None else f"{_seconds(middle)} and {_seconds(high)}"


def _seconds(value: float) -> str:
    return f"{value * 1000:.0f} ms" if value < 1 else f"{value:.1f} s"


def _sizes(profile: Profile, limits: Limits) -> dict[str, Any]:
    return {
        "title": profile.title,
        "requests": len(profile.turns),
        "promptTokens": profile.prompt_tokens,
        "answerTokens": profile.answer_tokens,
        "longestContext": profile.longest_context,
        "limitSeconds": limits.answer_seconds or profile.limit_seconds,
        "limitSource": "--answer-seconds" if limits.answer_seconds else profile.limit_source,
    }


# --- The page

WIDTH, HEIGHT, LEFT, BOTTOM, TOP, RIGHT = 640, 312, 64, 44, 28, 24


def page(result: Result) -> str:
    """The result as one HTML page that needs nothing else."""
    runs = []
    for run in result.runs:
        plots = [
            plot("First token", run.steps, ("first_token_p50", "first_token_p95"), result.limits.first_token_seconds),
            plot("Time between tokens", run.steps, ("between_tokens_p50", "between_tokens_p95"), None),
            plot("Whole answer", run.steps, ("whole_p50", "whole_p95"), None),
        ]
        answer, *details = (line.strip().removeprefix(f"{run.name}: ") for line in result.of_run(run))
        sizes = {each.name: _sizes(each, result.limits) for each in run.profiles}
        runs.append(
            {
                "run": run,
                "plots": [each for each in plots if each],
                "kept": carried(run.steps),
                "answer": sentence(answer),
                "details": map(sentence, details),
                "sizes": sizes,
            }
        )
    return _templates.get_template("page.html.j2").render(result=result, runs=runs, seconds=_cell)


def sentence(text: str) -> str:
    """A line of the text as a sentence."""
    return f"{text[0].upper()}{text[1:]}."


def _cell(value: float | None) -> str:
    return "" if value is None else f"{value:.3g}"


def plot(title: str, steps: Sequence[Figures], names: tuple[str, str], limit: float | None) -> dict[str, Any] | None:
    """Coordinates of a plot of two times in seconds against the load, both axes from 0; None without values."""
    points = [(step.per_hour, getattr(step, names[0]), getattr(step, names[1])) for step in steps]
    points = [point for point in points if point[1] is not None]
    if not points:
        return None
    across = _round_up(max(point[0] for point in points))
    up = _round_up(max([point[2] for point in points] + [limit or 0.0]))

    def x(value: float) -> float:
        return round(LEFT + (WIDTH - LEFT - RIGHT) * value / across, 1)

    def y(value: float) -> float:
        return round(HEIGHT - BOTTOM - (HEIGHT - BOTTOM - TOP) * value / up, 1)

    return {
        "title": title,
        "median": [(x(rate), y(low)) for rate, low, _ in points],
        "high": [(x(rate), y(high)) for rate, _, high in points],
        "limit": None if limit is None else y(limit),
        "across": [(x(across * part / 4), f"{across * part / 4:,.6g}") for part in range(5)],
        "up": [(y(up * part / 4), f"{up * part / 4:.3g}") for part in range(5)],
        "box": (LEFT, TOP, WIDTH - RIGHT, HEIGHT - BOTTOM),
        "size": (WIDTH, HEIGHT),
    }


def _round_up(value: float) -> float:
    """The next of some multiples of a power of ten whose quarters are easily read."""
    power = 1e-6
    while True:
        for factor in (1, 1.2, 1.6, 2, 2.4, 3.2, 4, 6, 8):
            if value <= factor * power:
                return factor * power
        power *= 10

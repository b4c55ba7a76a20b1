"""The result as text, JSON and a page that needs nothing else."""

import json
import re
import xml.etree.ElementTree as ET
from datetime import UTC, datetime
from typing import Any

import pytest

from scripts.cli.load.drive import Step
from scripts.cli.load.figures import Figures, Limits, advice, figures
from scripts.cli.load.profiles import PROFILES
from scripts.cli.load.result import HEIGHT, WIDTH, Alone, Result, Run, page, plot
from tests.unit.cli.load.test_figures import answer

LIMITS = Limits(first_token_seconds=2.0)


def step(per_hour: float, first_token: float = 0.1, **values: Any) -> Figures:
    answers = [answer(number, first_token=first_token, cached_tokens=60, **values) for number in range(20)]
    return figures(Step(per_hour, 20.0, answers, 0.25), LIMITS)


KEPT, PAST = step(1024, 0.4), step(2048, 3.0)


def run_of(*steps: Figures, **changed: Any) -> Run:
    own: dict[str, Any] = {
        "name": "assistant",
        "profiles": [PROFILES["assistant"]],
        "alone": {"assistant": Alone(seconds=2.5, first_token=0.2, prompt_tokens=6213, answer_tokens=300)},
        "steps": steps,
        "by_profile": {},
        "cut_short": None,
        "ended": "",
        "advice": advice(steps),
    }
    return Run(**own | changed)


def result_of(*runs: Run, **changed: Any) -> Result:
    own: dict[str, Any] = {
        "host": "llm.example.com",
        "model": "acme/own",
        "started": datetime(2026, 11, 30, 12, 0, tzinfo=UTC),
        "seconds": 600.0,
        "scale": 1.0,
        "seed": 1,
        "limits": LIMITS,
        "per_person": 10.0,
        "key": "the requests stand in the access log under the key load",
        "hourly_cost": None,
        "tokens": 123_456,
        "interrupted": False,
        "runs": runs,
    }
    return Result(**own | changed)


def test_the_answer_is_in_a_users_words() -> None:
    lines = result_of(run_of(step(512), KEPT, PAST)).lines()
    assert lines[3] == (
        "assistant: carries 1,024 questions an hour (3,600 requests), which is 102 people with 10 an hour each "
        "(an assumption: --per-person)"
    )
    assert "  first token: 400 ms and 400 ms; whole answer: 1.0 s and 1.0 s (half and 95 % of the requests)" in lines
    assert "  10 tokens a second written, 100 read; 60% of them from the prefix cache" in lines
    assert "  assistant alone: 6,213 tokens read and 300 written in 2.5 s" in lines
    assert "  past the limit at 2,048 questions an hour: 95 % of the answers began within 3 s, not 2 s" in lines
    assert lines[-3] == (
        "  this client used at most 25% of one core, and 95 % of its requests were at most 0 ms late: not the limit"
    )


@pytest.mark.parametrize("hourly_cost", [None, 7.2])
def test_a_price_is_named_if_the_machines_is_known(hourly_cost: float | None) -> None:
    text = result_of(run_of(KEPT, PAST), hourly_cost=hourly_cost).text()
    assert ("2.00 for 1,000 requests at this load, at the given hourly cost" in text) is bool(hourly_cost)
    assert ("about 1.20 at the given hourly cost" in text) is bool(hourly_cost)


def test_another_scale_than_productions_is_said() -> None:
    assert "all sizes are 0.1 times those of production" in result_of(run_of(KEPT), scale=0.1).text()
    assert "those of production" not in result_of(run_of(KEPT)).text()
    assert "those of production" in page(result_of(run_of(KEPT), scale=0.1))


def test_without_a_complete_step_the_one_in_progress_is_what_is_known() -> None:
    run = run_of(cut_short=KEPT, ended="it was interrupted")
    text = result_of(run, interrupted=True).text()
    assert "assistant: no step was complete" in text
    assert "cut short at 1,024 questions an hour: 20 requests answered, first token 400 ms and 400 ms" in text
    assert "for more: let it run longer (--minutes, --tokens)" in text
    assert "interrupted: these are the figures so far" in text
    assert "one core" not in text
    shown = page(result_of(run))
    assert "No step was complete." in shown
    assert "started an hour" not in shown


def test_a_first_step_past_the_limit_is_told_from_no_step() -> None:
    assert "assistant: not even the first step kept the limits" in result_of(run_of(PAST)).text()


def test_a_busy_client_is_said_to_be_perhaps_the_limit() -> None:
    busy = figures(Step(1024, 20.0, [answer(number) for number in range(20)], 0.8), LIMITS)
    late = figures(Step(1024, 20.0, [answer(number, late_start=0.3) for number in range(20)], 0.2), LIMITS)
    for found, why in ((busy, "80% of one core"), (late, "at most 300 ms late")):
        *_, line = (line for line in result_of(run_of(found)).lines() if "this client" in line)
        assert why in line
        assert line.endswith("it may itself be the limit")


def test_the_document_is_json_with_every_step() -> None:
    document = json.loads(json.dumps(result_of(run_of(step(512), KEPT, PAST)).document()))
    [run] = document["runs"]
    assert [each["per_hour"] for each in run["steps"]] == [512, 1024, 2048]
    assert (run["carries"], run["people"], run["cutShort"]) == (1024, 102, None)
    assert run["alone"]["assistant"]["prompt_tokens"] == 6213
    assert run["profiles"]["assistant"]["longestContext"] == 6500


def test_the_page_says_what_the_text_says_and_needs_nothing_else() -> None:
    result = result_of(run_of(step(512), KEPT, PAST))
    shown = page(result)
    assert "Carries 1,024 questions an hour" in shown
    for line in result.of_run(result.runs[0])[1:]:
        assert f"<li>{line.strip()[0].upper()}{line.strip()[1:]}.</li>" in shown
    assert not re.search(r"(src|href)=|https?:|@import|url\(", shown)
    assert len(re.findall(r'<tr class="kept">', shown)) == 1
    assert len(re.findall(r'<tr class="past">', shown)) == 2  # the step and its reason


def test_names_from_outside_are_text_on_the_page() -> None:
    shown = page(result_of(run_of(KEPT), model="<script>alert(1)</script>"))
    assert "<script" not in shown
    assert "&lt;script&gt;" in shown


def test_plots_stay_inside_their_box_with_axes_from_zero() -> None:
    shown = page(result_of(run_of(step(512), KEPT, PAST)))
    plots = [ET.fromstring(each) for each in re.findall(r"<svg.*?</svg>", shown, re.DOTALL)]  # noqa: S314
    assert len(plots) == 3
    for drawn in plots:
        points = [(float(each.attrib["cx"]), float(each.attrib["cy"])) for each in drawn.iter("circle")]
        assert len(points) == 6
        assert all(0 < across < WIDTH and 0 < down < HEIGHT for across, down in points)
        labels = [each.text for each in drawn.iter("text")]
        assert labels.count("0") == 2
    assert sum("limit" in [each.text for each in drawn.iter("text")] for drawn in plots) == 1


@pytest.mark.parametrize(
    ("rate", "ends"), [(2048, "2,400"), (2400, "2,400"), (5.6, "6"), (0.7, "0.8"), (104_000, "120,000")]
)
def test_an_axis_ends_a_little_above_the_highest_value(rate: float, ends: str) -> None:
    drawn = plot("First token", [step(rate)], ("first_token_p50", "first_token_p95"), None)
    assert drawn
    assert drawn["across"][-1][1] == ends


def test_what_was_not_streamed_has_no_plot_of_first_tokens() -> None:
    whole = [answer(number, is_stream=False, first_token=None, between_tokens=None) for number in range(20)]
    shown = page(result_of(run_of(figures(Step(100, 20.0, whole, 0.1), LIMITS))))
    assert re.findall(r"<h3>(.*?) against load", shown) == ["Whole answer"]

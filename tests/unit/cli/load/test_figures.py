"""Figures of a step, its verdict, and the step up to which an endpoint keeps its limits."""

from typing import Any

import pytest

from scripts.cli.load.drive import Answer, Step
from scripts.cli.load.figures import Figures, Limits, advice, carried, figures, is_late, percentile

LIMITS = Limits(first_token_seconds=2.0)


def answer(number: int = 0, **values: Any) -> Answer:
    """A streamed answer that began after 0.1 s and was complete after 1 s, due at second `number`."""
    own: dict[str, Any] = {"first_token": 0.1, "whole": 1.0, "between_tokens": 0.01, "limit_seconds": 60.0}
    own |= {"prompt_tokens": 100, "answer_tokens": 10, "ended": number + own["whole"]}
    return Answer("assistant", float(number), **own | values)


def in_one_piece(number: int = 0, **values: Any) -> Answer:
    """The same without a stream."""
    return answer(number, is_stream=False, first_token=None, between_tokens=None, **values)


def found(*answers: Answer, seconds: float = 10.0, cpu_share: float = 0.1) -> Figures:
    return figures(Step(3600.0, seconds, list(answers), cpu_share), LIMITS)


@pytest.mark.parametrize(("percent", "expected"), [(50, 50), (95, 95), (99, 99), (100, 100), (0.5, 1)])
def test_a_percentile_is_a_value_that_occurred(percent: float, expected: float) -> None:
    assert percentile([float(value) for value in range(100, 0, -1)], percent) == expected


def test_without_values_there_is_no_percentile() -> None:
    assert percentile([], 50) is None


def test_a_step_that_keeps_its_limits() -> None:
    step = found(*map(answer, range(20)))
    assert step.past == ""
    assert (step.first_token_p95, step.whole_p50, step.between_tokens_p50) == (0.1, 1.0, 0.01)
    assert (step.requests_per_hour, step.prompt_tokens_per_second, step.answer_tokens_per_second) == (7200, 200, 20)
    assert step.cached_share is None


def test_the_share_of_the_prefix_cache_is_of_all_prompt_tokens() -> None:
    assert found(*(answer(number, cached_tokens=80) for number in range(4))).cached_share == 0.8


@pytest.mark.parametrize(
    ("odd", "past"),
    [
        ({"first_token": 2.5}, "95 % of the answers began within 2.5 s, not 2 s"),
        ({"whole": 61.0}, "2 of 20 answers were complete too late for Kibana, or never"),
        ({"error": "HTTP 503", "whole": None}, "2 of 20 requests failed (HTTP 503)"),
        ({"error": "cut", "whole": None}, "2 of 20 requests failed (cut)"),
        ({"error": "own limit: too_many_requests"}, "the gateway's own limit refused 2 of 20 requests"),
        (
            {"error": "unfinished", "first_token": None, "whole": None, "ended": 100.0},
            "95 % of the answers began within 98 s, not 2 s",
        ),
    ],
)
def test_a_step_is_past_the_limit_if_a_tenth_of_its_requests_is_odd(odd: dict[str, Any], past: str) -> None:
    assert found(*map(answer, range(18)), *(answer(2, **odd) for _ in range(2))).past == past


def test_requests_that_the_gateway_refused_by_its_own_limit_do_not_count_for_the_model() -> None:
    step = found(*map(answer, range(18)), answer(3, error="own limit: too_many_requests", first_token=None, whole=None))
    assert (step.own_limit, step.failed, step.first_token_p99) == (1, 0, 0.1)


def test_an_answer_in_one_piece_has_no_first_token() -> None:
    step = found(*map(in_one_piece, range(20)))
    assert (step.first_token_p95, step.whole_p95, step.past) == (None, 1.0, "")


def test_who_waits_for_an_answer_in_one_piece_does_not_wait_for_a_first_token() -> None:
    waiting = [in_one_piece(number, error="unfinished", whole=None, ended=50.0) for number in range(20)]
    assert not any(is_late(each, LIMITS) for each in waiting)
    assert found(*waiting).past == ""
    too_long = [in_one_piece(number, error="unfinished", whole=None, ended=90.0) for number in range(20)]
    assert found(*too_long).past == "20 of 20 answers were complete too late for Kibana, or never"


def test_a_step_is_past_the_limit_if_answers_take_longer_and_longer() -> None:
    slower = [answer(number, whole=1 + number * 0.5, first_token=None) for number in range(20)]
    assert found(*slower, seconds=20).past.startswith("answers took longer and longer: 7.5 s more")
    steady = [answer(number, whole=1 + number * 0.05, first_token=None) for number in range(20)]
    assert found(*steady, seconds=20).past == ""


def test_the_step_carried_is_the_last_before_the_first_past_the_limit() -> None:
    good, bad = found(*map(answer, range(20))), found(*(answer(number, first_token=3.0) for number in range(20)))
    assert carried([good, bad, good]) is good
    assert carried([bad, good]) is None
    assert carried([]) is None


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, "prompts or memory are short"),
        ({"between_tokens": 0.05}, "computing is short"),
        ({"error": "own limit: too_many_requests"}, "raise maxRequestsPerMinute"),
        ({"error": "cut"}, "connections broke"),
        ({"late_start": 1.0}, "on a faster or idle machine"),
    ],
)
def test_advice_follows_from_what_grew(changes: dict[str, Any], expected: str) -> None:
    good = found(*map(answer, range(20)))
    bad = found(*(answer(number, **{"first_token": 3.0, **changes}) for number in range(20)))
    assert expected in advice([good, bad])


def test_advice_where_no_step_or_every_step_keeps_the_limits() -> None:
    good, bad = found(*map(answer, range(20))), found(*(answer(number, first_token=3.0) for number in range(20)))
    assert "not even the least load" in advice([bad])
    assert "the limit was not reached" in advice([good])
    assert advice([]).startswith("let it run longer (--minutes, --tokens) or begin higher (--from)")


def test_a_request_that_was_cut_short_before_it_was_late_says_nothing() -> None:
    cut_short = answer(3, error="unfinished", first_token=None, whole=None, ended=3.5)
    step = found(*map(answer, range(18)), *(cut_short for _ in range(18)))
    assert (step.failed, step.whole_late, step.first_token_p50, step.past) == (0, 0, 0.1, "")

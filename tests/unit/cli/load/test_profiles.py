"""Profiles: the corpus's requests, grown to the sizes of production."""

import json
import random
from itertools import pairwise
from typing import Any

import pytest

from scripts.cli.load.command import on_grid
from scripts.cli.load.drive import arrivals
from scripts.cli.load.profiles import MIX, PROFILES, Sizes, form_named, requests

SIZES = Sizes(per_word=1.0)


def made(name: str, *, seed: int = 1, scale: float = 0.1) -> list[dict[str, Any]]:
    profile = PROFILES[name].scaled(scale)
    generator, shared = random.Random(seed), random.Random(0)  # noqa: S311
    return [request for _, request in requests(profile, "model", SIZES, generator, shared)]


def words(request: dict[str, Any]) -> int:
    """Words of the messages and the tools' descriptions."""
    texts = [message["content"] for message in request["messages"]]
    texts += [tool["function"]["description"] for tool in request.get("tools", [])]
    return sum(len(text.split()) for text in texts)


@pytest.mark.parametrize("name", PROFILES)
def test_requests_have_the_fields_of_the_corpus(name: str) -> None:
    form = form_named(PROFILES[name].form).request("model", 1)
    for request in made(name):
        added = {"min_tokens", "ignore_eos"} | ({"stream_options"} if form["stream"] else set())
        assert set(request) == set(form) | added
        assert [tool["function"]["name"] for tool in request.get("tools", [])] == [
            tool["function"]["name"] for tool in form.get("tools", [])
        ]


@pytest.mark.parametrize("name", PROFILES)
@pytest.mark.parametrize("scale", [0.1, 1.0])
def test_requests_have_the_profiles_sizes(name: str, scale: float) -> None:
    profile = PROFILES[name].scaled(scale)
    sent = made(name, scale=scale)
    assert sum(map(words, sent)) == pytest.approx(profile.prompt_tokens, rel=0.1, abs=60 * len(sent))
    assert [request["max_tokens"] for request in sent] == [turn.answer_tokens for turn in profile.turns]


def test_what_prompt_format_and_tools_take_counts_for_the_profiles_size() -> None:
    profile, seeds = PROFILES["assistant"], (random.Random(1), random.Random(2))  # noqa: S311
    sizes = Sizes(per_word=1.0, fixed={"assistant": 700, "agent": 5000})
    [(_, request)] = requests(profile, "model", sizes, *seeds)
    assert words(request) == pytest.approx(words(made("assistant", scale=1.0)[0]) - 700, abs=3)


def test_an_agents_tool_results_answer_calls_with_kibanas_ids_of_six_characters() -> None:
    *_, last = made("agent")
    roles = [message["role"] for message in last["messages"]]
    assert roles == ["system", "user", "assistant", "tool", "assistant", "tool", "assistant", "tool"]
    for call, result in zip(last["messages"][2::2], last["messages"][3::2], strict=True):
        assert call["content"] == ""
        assert len(result["tool_call_id"]) == 6
        assert call["tool_calls"][0]["id"] == result["tool_call_id"]


def test_each_turn_of_a_conversation_sends_all_before_it() -> None:
    sent = made("conversation")
    for earlier, later in pairwise(sent):
        assert later["messages"][: len(earlier["messages"])] == earlier["messages"]
        assert [message["role"] for message in later["messages"][-2:]] == ["assistant", "user"]


def test_conversations_share_system_prompt_and_tools_and_nothing_else() -> None:
    one, other = made("assistant", seed=1)[0], made("assistant", seed=2)[0]
    assert one["messages"][0] == other["messages"][0]
    assert one["tools"] == other["tools"]
    assert one["messages"][1] != other["messages"][1]


def test_the_same_seed_makes_the_same_requests() -> None:
    assert json.dumps(made("agent")) == json.dumps(made("agent"))


def test_the_mix_is_of_known_profiles() -> None:
    assert set(MIX) <= set(PROFILES)


def test_arrivals_are_random_and_as_many_as_the_rate_says() -> None:
    moments = arrivals(36_000, 100, random.Random(1))  # noqa: S311
    gaps = [later - earlier for earlier, later in pairwise(moments)]
    assert len(moments) == pytest.approx(1000, rel=0.1)
    assert moments == sorted(moments)
    assert moments[-1] < 100
    assert max(gaps) > 4 * sum(gaps) / len(gaps)


def test_rates_are_on_one_series_wherever_a_load_begins() -> None:
    assert [on_grid(rate) for rate in (1.0, 64.0, 90.0, 91.0)] == pytest.approx([1, 64, 64, 90.5], rel=0.001)

"""Work of Elastic's features, as sequences of requests: forms of the corpus, grown to the sizes of production.

The forms (components/elastic/corpus.yaml) decide fields, roles, tools and ids; the sizes below are assumptions about
production, because Elastic publishes none. One factor scales them all.
"""

import copy
import json
import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from components.elastic.corpus import Form, all_forms

WORDS = (
    "alert host user process login failed denied timeout service network index shard query dashboard rule severity "
    "source target address port session token error warning restart deploy container memory disk latency request"
).split()
CALIBRATION_WORDS = 400
LEAST_TOKENS = 4


@dataclass(frozen=True, kw_only=True)
class Turn:
    """A request: tokens that it adds to the conversation, and of its answer."""

    new_tokens: int
    answer_tokens: int
    is_tool_result: bool = False
    pause_seconds: float = 0.0
    """Time between the answer before it and this request, in which a person reads and types."""


@dataclass(frozen=True, kw_only=True)
class Profile:
    """One piece of work, e.g. a conversation: its requests one after the other."""

    name: str
    title: str
    plural: str
    """Word for several pieces of this work."""
    form: str
    """Name of the corpus's form that all its requests have."""
    shared_tokens: int
    """Tokens of system prompt and tools: the same in every piece of work, so a prefix cache helps as in Elastic."""
    turns: Sequence[Turn]
    limit_seconds: float
    """Kibana's limit for an answer by this way."""
    limit_source: str

    def scaled(self, factor: float) -> "Profile":
        """The same with all sizes multiplied, but at least a few tokens each."""

        def size(tokens: int) -> int:
            return max(LEAST_TOKENS, round(tokens * factor))

        turns = [
            replace(turn, new_tokens=size(turn.new_tokens), answer_tokens=size(turn.answer_tokens))
            for turn in self.turns
        ]
        return replace(self, shared_tokens=size(self.shared_tokens), turns=turns)

    @property
    def longest_context(self) -> int:
        """Tokens of the last request and its answer."""
        return self.shared_tokens + sum(turn.new_tokens + turn.answer_tokens for turn in self.turns)

    @property
    def prompt_tokens(self) -> int:
        """Tokens of all prompts together: each request sends the conversation so far."""
        total, sent = 0, self.shared_tokens
        for turn in self.turns:
            sent += turn.new_tokens
            total += sent
            sent += turn.answer_tokens
        return total

    @property
    def answer_tokens(self) -> int:
        """Tokens of all answers together."""
        return sum(turn.answer_tokens for turn in self.turns)

    @property
    def has_tools(self) -> bool:
        """True if its requests offer tools."""
        return form_named(self.form).has_tools


KIBANA_STREAM = "xpack.actions.responseTimeout, 60 s by default, for the connector's streams"
KIBANA_RUN = "Kibana's 120 s for the connector's answers in one piece"

PROFILES: Mapping[str, Profile] = {
    profile.name: profile
    for profile in (
        Profile(
            name="assistant",
            title="a question to an assistant, with its system prompt and tools",
            plural="questions",
            form="stream-tools",
            shared_tokens=6_000,
            turns=[Turn(new_tokens=200, answer_tokens=300)],
            limit_seconds=60,
            limit_source=KIBANA_STREAM,
        ),
        Profile(
            name="conversation",
            title="a conversation of five questions",
            plural="conversations",
            form="stream-tools",
            shared_tokens=6_000,
            turns=[
                Turn(new_tokens=200, answer_tokens=300, pause_seconds=0 if first else 20) for first in (1, 0, 0, 0, 0)
            ],
            limit_seconds=60,
            limit_source=KIBANA_STREAM,
        ),
        Profile(
            name="agent",
            title="an agent's loop: a question, three tool results, an answer",
            plural="questions to an agent",
            form="stream-tools",
            shared_tokens=8_000,
            turns=[
                Turn(new_tokens=200, answer_tokens=80),
                Turn(new_tokens=2_000, answer_tokens=80, is_tool_result=True),
                Turn(new_tokens=2_000, answer_tokens=80, is_tool_result=True),
                Turn(new_tokens=2_000, answer_tokens=500, is_tool_result=True),
            ],
            limit_seconds=60,
            limit_source=KIBANA_STREAM,
        ),
        Profile(
            name="attack-discovery",
            title="an Attack Discovery over many alerts",
            plural="Attack Discoveries",
            form="run-system",
            shared_tokens=1_500,
            turns=[Turn(new_tokens=40_000, answer_tokens=3_000)],
            limit_seconds=120,
            limit_source=KIBANA_RUN,
        ),
    )
}
MIX: Mapping[str, int] = {"assistant": 12, "conversation": 4, "agent": 3, "attack-discovery": 1}
"""Pieces of work of each profile among twenty, in the mix; an assumption as well."""


def form_named(name: str) -> Form:
    """Return a form of the corpus."""
    return next(form for form in all_forms() if form.name == name)


@dataclass(frozen=True)
class Sizes:
    """Tokens that the endpoint counts for what the texts are made of, measured before the load."""

    per_word: float
    """Tokens of a word and its space."""
    fixed: Mapping[str, int] = field(default_factory=dict)
    """Tokens of a profile's request beside its texts, by profile: prompt format, and what declares the tools."""

    def words(self, tokens: float, generator: random.Random) -> str:
        """Text of about so many tokens."""
        return " ".join(generator.choices(WORDS, k=max(1, round(tokens / self.per_word))))


def requests(
    profile: Profile, model: str, sizes: Sizes, generator: random.Random, shared: random.Random
) -> Iterator[tuple[Turn, dict[str, Any]]]:
    """Yield the requests of one piece of work. `shared` makes what all pieces have in common: give it the same seed."""
    form = form_named(profile.form)
    body = dict(form.request(model, profile.turns[0].answer_tokens))
    tools = copy.deepcopy(body.get("tools", []))
    same = max(LEAST_TOKENS, profile.shared_tokens - sizes.fixed.get(profile.name, 0))
    messages: list[dict[str, Any]] = [{"role": "system", "content": sizes.words(same / (2 if tools else 1), shared)}]
    for tool in tools:
        tool["function"]["description"] += " " + sizes.words(same / 2 / len(tools), shared)
    for turn in profile.turns:
        text = sizes.words(turn.new_tokens, generator)
        if turn.is_tool_result:
            call = f"{generator.getrandbits(24):06x}"  # Kibana's ids have six characters
            arguments = json.dumps({"query": generator.choice(WORDS), "minutes": 15})
            function = {"name": "search_logs", "arguments": arguments}
            messages[-1] = {
                "role": "assistant",
                "content": "",
                "tool_calls": [{"id": call, "type": "function", "function": function}],
            }
            messages.append({"role": "tool", "tool_call_id": call, "content": text})
        else:
            messages.append({"role": "user", "content": text})
        request = {
            **body,
            "messages": copy.deepcopy(messages),
            "max_tokens": turn.answer_tokens,
            "min_tokens": turn.answer_tokens,
            "ignore_eos": True,  # an answer has the profile's length, whatever the model would say
        }
        if tools:
            request["tools"] = tools
        if request["stream"]:
            request["stream_options"] = {"include_usage": True}
        yield turn, request
        messages.append({"role": "assistant", "content": sizes.words(turn.answer_tokens, generator)})

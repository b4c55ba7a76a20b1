"""Requests that Elastic's features send (corpus.yaml), as `up` and `verify` send them to a model."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from components.settings.elastic import ElasticSettings

CONNECTOR, INFERENCE_ENDPOINT = "connector", "inference-endpoint"
"""The two ways that connect Elastic."""


@dataclass(frozen=True, kw_only=True)
class Form:
    """One request, and the features of Elastic that depend on it."""

    name: str
    sender: str
    """Title of the sender."""
    way: str
    """CONNECTOR or INFERENCE_ENDPOINT."""
    versions: str
    source: str
    """Repository and path where the form was read."""
    feature: str
    needed: bool
    """True if the way fails without it."""
    refused: str
    """Consequence for Elastic if vLLM refuses the form, whatever the model; empty if it answers."""
    names_model: bool
    body: Mapping[str, Any] = field(repr=False)

    @property
    def has_tools(self) -> bool:
        """True if the request offers tools, chooses one or contains calls: only with native function calling."""
        return (
            "tools" in self.body or "tool_choice" in self.body or any("tool_calls" in m for m in self.body["messages"])
        )

    def request(self, model: str, max_tokens: int) -> dict[str, Any]:
        """Return the request's body for `model`, whose answer has at most this number of tokens."""
        limit = "max_completion_tokens" if "max_completion_tokens" in self.body else "max_tokens"
        bounded = {**self.body, limit: min(max_tokens, self.body.get(limit, max_tokens))}
        return {"model": model, **bounded} if self.names_model else bounded


@cache
def all_forms() -> tuple[Form, ...]:
    """Every form, in the file's order."""
    document = yaml.safe_load(Path(__file__).with_suffix(".yaml").read_text(encoding="utf-8"))
    return tuple(
        _form(name, entry, document["senders"][entry["sender"]], document["tools"])
        for name, entry in document["forms"].items()
    )


def needed_forms(*, connector: bool, inference_endpoint: bool, native_function_calling: bool) -> list[Form]:
    """Return the forms that the model must answer for these ways to work.

    Without native function calling a connector sends no tools, and an inference endpoint does not work.
    """
    ways = {CONNECTOR} if connector else set()
    if inference_endpoint and native_function_calling:
        ways.add(INFERENCE_ENDPOINT)
    return [
        form
        for form in all_forms()
        if form.needed and form.way in ways and (native_function_calling or not form.has_tools)
    ]


def forms_to_prove(
    elastic: ElasticSettings, *, native_function_calling: bool, client_certificates: bool
) -> tuple[Form, ...]:
    """The forms of the ways that `up` connects Elastic by, or where it connects none, of all that the hand-off offers.

    An inference endpoint has no client certificate, so it is not offered where clients need one.
    """
    by_hand = not (elastic.kibana.url or elastic.elasticsearch.url)
    return tuple(
        needed_forms(
            connector=bool(elastic.kibana.url) or by_hand,
            inference_endpoint=bool(elastic.elasticsearch.url) or (by_hand and not client_certificates),
            native_function_calling=native_function_calling,
        )
    )


def refusals(of_model: Mapping[str, str]) -> dict[str, str]:
    """Consequences of the forms that vLLM refuses, or a model (its `refuses` in the catalogue), by the form's name."""
    found = {form.name: form.refused or of_model.get(form.name, "") for form in all_forms()}
    return {name: follows for name, follows in found.items() if follows}


def _form(name: str, entry: Mapping[str, Any], sender: Mapping[str, Any], tools: Mapping[str, Any]) -> Form:
    body = {**sender["body"], **entry["body"], "messages": [_message(message) for message in entry["body"]["messages"]]}
    offered = {"all": list(tools), "one": ["get_weather"]}.get(str(body.get("tools")))
    if offered:
        body["tools"] = [{"type": "function", "function": {"name": tool, **tools[tool]}} for tool in offered]
    return Form(
        name=name,
        sender=sender["title"],
        way=sender["way"],
        versions=sender["versions"],
        source=entry.get("source", sender["source"]),
        feature=entry["feature"],
        needed=entry["needed"],
        refused=entry.get("refused", ""),
        names_model=entry.get("names_model", True),
        body=body,
    )


def _message(message: Mapping[str, Any]) -> dict[str, Any]:
    """The message with its calls in OpenAI's form."""
    own = {key: value for key, value in message.items() if key != "calls"}
    if "calls" not in message:
        return own
    calls = [
        {"id": call["id"], "type": "function", "function": {"name": call["name"], "arguments": call["arguments"]}}
        for call in message["calls"]
    ]
    return {**own, "tool_calls": calls}

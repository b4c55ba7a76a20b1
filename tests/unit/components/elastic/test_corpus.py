"""The corpus holds every kind of request that Elastic sends, each with its source and its feature."""

import re
from typing import Any

import pytest
from openai.types.chat import completion_create_params
from pydantic import TypeAdapter

from components.catalogue.models import load_catalogue
from components.elastic.corpus import CONNECTOR, INFERENCE_ENDPOINT, Form, all_forms, needed_forms

FORMS = {form.name: form for form in all_forms()}


def calls_of(form: Form) -> list[dict[str, Any]]:
    return [call for message in form.body["messages"] for call in message.get("tool_calls", [])]


def arguments_of(form: Form) -> list[str]:
    return [call["function"]["arguments"] for call in calls_of(form)]


def roles_of(form: Form) -> list[str]:
    return [message["role"] for message in form.body["messages"]]


def holding(check: Any) -> set[str]:
    return {name for name, form in FORMS.items() if check(form)}


@pytest.mark.parametrize(
    ("kind", "found"),
    {
        "six-character ids": holding(lambda form: any(len(call["id"]) == 6 for call in calls_of(form))),
        "vLLM's own ids": holding(lambda form: any(len(call["id"]) > 30 for call in calls_of(form))),
        "several turns": holding(lambda form: roles_of(form).count("user") > 1 and calls_of(form)),
        "content beside calls": holding(
            lambda form: any(m.get("content") and m.get("tool_calls") for m in form.body["messages"])
        ),
        "two calls in one turn": holding(
            lambda form: any(len(m.get("tool_calls", [])) > 1 for m in form.body["messages"])
        ),
        "empty arguments": holding(lambda form: "{}" in arguments_of(form)),
        "arguments of no text": holding(
            lambda form: any(call["function"]["arguments"] == "" for call in calls_of(form))
        ),
        "two system messages": holding(lambda form: roles_of(form)[:2] == ["system", "system"]),
        "a system message later": holding(
            lambda form: "system" in roles_of(form)[1:] and roles_of(form)[1] != "system"
        ),
        "names": holding(lambda form: any("name" in message for message in form.body["messages"])),
        "content parts": holding(lambda form: any(isinstance(m["content"], list) for m in form.body["messages"])),
        "non-ASCII": holding(lambda form: not str(form.body["messages"]).isascii()),
        "special tokens": holding(lambda form: "<|endoftext|> [TOOL_CALLS]" in str(form.body["messages"])),
        "n": holding(lambda form: form.body.get("n") == 1),
        "stop: null": holding(lambda form: form.body.get("stop", "") is None),
        "stream_options": holding(lambda form: form.body.get("stream_options")),
        "max_completion_tokens": holding(lambda form: "max_completion_tokens" in form.body),
        "no model": holding(lambda form: "model" not in form.request("m", 1)),
        "tools: []": holding(lambda form: form.body.get("tools") == []),
        "tool_choice without tools": holding(
            lambda form: form.body.get("tool_choice") == "auto" and "tools" not in form.body
        ),
        "tool_choice none": holding(lambda form: form.body.get("tool_choice") == "none"),
        "a named choice": holding(lambda form: isinstance(form.body.get("tool_choice"), dict)),
        "a required choice": holding(lambda form: form.body.get("tool_choice") == "required"),
        "calls without tools": holding(lambda form: calls_of(form) and "tools" not in form.body),
    }.items(),
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_every_kind_of_request_is_in_the_corpus(kind: str, found: set[str]) -> None:
    assert found, kind


@pytest.mark.parametrize("sender", sorted({form.sender for form in all_forms()}))
def test_each_sender_has_a_first_turn_tools_and_a_tool_result(sender: str) -> None:
    forms = [form for form in all_forms() if form.sender == sender]
    assert any(not form.has_tools for form in forms)
    assert any(form.body.get("tools") and not calls_of(form) for form in forms)
    assert any(calls_of(form) for form in forms)


@pytest.mark.parametrize("form", all_forms(), ids=lambda form: form.name)
def test_each_form_names_feature_versions_and_source_and_is_a_request_of_openais(form: Form) -> None:
    assert re.fullmatch(r"elastic/(kibana|elasticsearch): [\w/.-]+\.(ts|java)", form.source)
    assert form.feature
    assert form.versions[0].isdigit()
    assert form.way in {CONNECTOR, INFERENCE_ENDPOINT}
    assert not (form.needed and form.refused)
    TypeAdapter(completion_create_params.CompletionCreateParams).validate_python({"model": "m"} | form.request("m", 1))


def test_every_result_of_a_tool_belongs_to_a_call() -> None:
    for form in all_forms():
        results = [message["tool_call_id"] for message in form.body["messages"] if message["role"] == "tool"]
        assert sorted(results) == sorted(call["id"] for call in calls_of(form)), form.name


def test_a_request_is_bounded_by_the_field_that_its_sender_uses() -> None:
    assert FORMS["run-first"].request("m", 8) | {"messages": []} == {
        "model": "m",
        "stream": False,
        "max_tokens": 8,
        "messages": [],
    }
    bounded = [FORMS["inference-all-fields"].request("m", limit) for limit in (8, 100)]
    assert [(request["max_completion_tokens"], "max_tokens" in request) for request in bounded] == [
        (8, False),
        (64, False),
    ]


@pytest.mark.parametrize("native", [True, False])
def test_a_way_needs_its_own_forms_and_those_with_tools_only_with_native_calls(native: bool) -> None:
    def ways(**offered: bool) -> set[str]:
        return {form.way for form in needed_forms(native_function_calling=native, **offered)}

    assert ways(connector=True, inference_endpoint=False) == {CONNECTOR}
    assert ways(connector=False, inference_endpoint=True) == ({INFERENCE_ENDPOINT} if native else set())
    forms = needed_forms(connector=True, inference_endpoint=True, native_function_calling=native)
    assert any(form.has_tools for form in forms) is native
    assert {"stream-first", "stream-simulated", "run-first"} <= {form.name for form in forms}


@pytest.mark.parametrize("model", load_catalogue().models.values(), ids=lambda model: model.name)
def test_the_catalogue_refuses_forms_of_the_corpus_and_none_that_a_connector_needs(model: Any) -> None:
    assert set(model.refuses) <= set(FORMS)
    ways = needed_forms(connector=True, inference_endpoint=True, native_function_calling=model.native_function_calling)
    assert not set(model.refuses) & {form.name for form in ways}

"""The catalogue is correct: each model has its own parser, a vLLM that serves it, and its true size."""

import json
import re
from collections.abc import Callable
from typing import Any

import pytest

from components.catalogue.models import Model, load_catalogue
from components.settings import model as model_checks
from components.settings.problems import SECRETS, Problems
from components.settings.stack import SettingsError, defaults, parse_settings

CATALOGUE = load_catalogue()
MODELS = list(CATALOGUE.models.values())
NO_SECRETS: Any = dict.fromkeys(SECRETS)

FITS_TWO_80_GIB_GPUS = {
    "mistralai/Mistral-Small-3.2-24B-Instruct-2506": True,
    "openai/gpt-oss-120b": True,
    "google/gemma-4-31B-it": True,
    "Qwen/Qwen3.6-27B": True,
    "meta-llama/Llama-3.3-70B-Instruct": False,
}

every_model = pytest.mark.parametrize("model", MODELS, ids=lambda model: model.name)


@every_model
def test_the_tool_call_parser_belongs_to_the_models_family(model: Model) -> None:
    assert model.tool_call_parser in CATALOGUE.parsers_for(model.name)


@every_model
def test_the_least_vllm_is_a_version(model: Model) -> None:
    assert re.fullmatch(r"\d+\.\d+\.\d+", model.least_vllm)


@every_model
def test_the_size_is_positive(model: Model) -> None:
    assert model.weights_gb > 0
    assert model.max_model_len is not None
    assert model.max_model_len > 0


@every_model
def test_the_connector_sends_tools_only_where_a_parser_takes_them(model: Model) -> None:
    assert model.tool_call_parser or not model.native_function_calling


@every_model
def test_a_models_arguments_are_none_of_the_programs_own(model: Model) -> None:
    problems = Problems({"vllmExtraArgs": json.dumps(list(model.vllm_extra_args))}, defaults())
    model_checks.vllm_extra_args(problems)
    assert not problems.found


@every_model
def test_a_chat_template_is_a_path_inside_the_image(model: Model) -> None:
    assert model.chat_template is None or model.chat_template.startswith("/vllm-workspace/examples/")


def test_every_model_is_known_to_fit_two_gpus_or_not() -> None:
    assert set(FITS_TWO_80_GIB_GPUS) == {model.name for model in MODELS}


@pytest.mark.parametrize(("name", "fits"), FITS_TWO_80_GIB_GPUS.items())
def test_a_model_is_refused_exactly_where_it_does_not_fit(
    name: str, fits: bool, values_of: Callable[..., dict[str, str]]
) -> None:
    values = values_of("gpu", model=name, gpuCount=2, gpuMemoryGib=80)
    if fits:
        parse_settings(values, "gpu", NO_SECRETS)
        return
    with pytest.raises(SettingsError, match="2 x 80 GiB at 90 % are 144 GiB"):
        parse_settings(values, "gpu", NO_SECRETS)


@pytest.mark.parametrize("name", FITS_TWO_80_GIB_GPUS)
def test_elastics_assistants_have_the_context_they_need(name: str) -> None:
    assert (CATALOGUE.models[name].max_model_len or 0) >= 64_000


def test_a_model_of_an_unknown_family_has_no_parser() -> None:
    assert CATALOGUE.parsers_for("acme/Own") == []

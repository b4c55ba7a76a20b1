"""The check of contexts that fit: computed before there is a machine."""

import dataclasses
from typing import Any

import pytest

from components.catalogue.models import load_catalogue
from components.settings.machine import Gpus
from components.settings.stack import Settings
from scripts.cli.preflight import sizing
from scripts.cli.preflight.report import NotCheckedError, Verdict
from tests.unit.cli.preflight.survey import loaded

GEMMA = load_catalogue().models["google/gemma-4-31B-it"]
LLAMA = load_catalogue().models["meta-llama/Llama-3.3-70B-Instruct"]


def settings(**changes: Any) -> Settings:
    return dataclasses.replace(loaded()[0], **{"model": GEMMA, "vllm_extra_args": (), **changes})


def test_contexts_that_fit_are_listed_up_to_the_longest_served_one() -> None:
    verdict, detail = sizing.contexts(settings(max_model_len=131_072))
    assert verdict is Verdict.OK
    assert detail == (
        "computed, not measured: at most 85.7 GiB of KV cache; contexts at once: 18.9 of 8,000 tokens, "
        "13.5 of 32,000 tokens, 9.7 of 64,000 tokens, 6.3 of 128,000 tokens, 6.2 of 131,072 tokens"
    )


def test_a_context_that_cannot_fit_fails_with_the_longest_one_that_can() -> None:
    verdict, detail = sizing.contexts(settings(model=LLAMA))
    assert verdict is Verdict.FAILED
    assert detail == (
        "computed, not measured: at most 12.6 GiB of KV cache, less than one context of 131,072 tokens needs, so vLLM "
        "won't start: set maxModelLen to 41000 or less, or use more GPU memory"
    )


def test_more_memory_for_vllm_fits_more() -> None:
    gpus = Gpus(count=2, memory_gib=80, memory_utilization=0.95)
    assert "at most 93.7 GiB" in sizing.contexts(settings(gpus=gpus)).detail


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"model": dataclasses.replace(GEMMA, layers=())}, "no source names the layers of google/gemma-4-31B-it"),
        ({"vllm_extra_args": ("--kv-cache-dtype=fp8",)}, "--kv-cache-dtype"),
    ],
)
def test_what_the_formulas_do_not_cover_is_not_checked(changes: dict[str, Any], reason: str) -> None:
    with pytest.raises(NotCheckedError, match=reason):
        sizing.contexts(settings(**changes))

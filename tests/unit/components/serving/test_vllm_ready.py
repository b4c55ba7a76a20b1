"""Conditions that `up` waits for after vLLM's start: it answers, sees its GPUs, and accepts Elastic's requests."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from components import render
from components.elastic.corpus import all_forms
from components.serving.vllm_process import ASK, READY_TOKENS
from tests.support.gpu_machine import succeeded
from tests.support.program import Program
from tests.support.shell import Result, bash, failed

REFUSALS = ("HTTP 400: no such id (Agent Builder)", "HTTP 400: no tools (AI Assistant)")
KIBANA = {"kibanaUrl": "https://kibana.example.com", "kibanaApiKey": "a2V5"}
ELASTICSEARCH = {"elasticsearchUrl": "https://es.example.com", "elasticsearchApiKey": "a2V5"}


def ready(directory: Path, *, gpus: int | None = None, refusals: tuple[str, ...] = ()) -> Result:
    """Run the script with a vLLM whose container sees `gpus` of two GPUs, and whose model refuses these requests."""
    seen = "".join(f"echo 'GPU {number}: a'; " for number in range(gpus or 0))
    lines = "".join(f"echo '{line}'; " for line in refusals)
    programs = {
        "docker": f"""case "$*" in
            *nvidia-smi*) {seen or ":"} ;;
            "exec -i c python3 -c PROGRAM /in") [ "$(cat)" = REQUESTS ] || exit 9; {lines} exit {int(bool(refusals))} ;;
            *) echo 0 ;;
        esac""",
        "curl": "",
    }
    for name, text in programs.items():
        (directory / name).write_text(f"#!/bin/sh\n{text}\n")
        (directory / name).chmod(0o755)
    names: dict[str, str | int] = {"engine": "docker", "container": "c", "socket": "/s", "socket_inside": "/in"}
    count = 0 if gpus is None else 2
    script = render.script("vllm/wait-for-vllm.sh", **names, gpu_count=count, ask="PROGRAM")
    return bash(script, "REQUESTS", PATH=f"{directory}:/usr/bin:/bin")


@pytest.mark.parametrize(("seen", "fine"), [(2, True), (1, False), (0, False)])
def test_vllm_that_answers_without_its_gpus_is_not_ready(seen: int, fine: bool, tmp_path: Path) -> None:
    result = ready(tmp_path, gpus=seen)
    if fine:
        assert succeeded(result, "vLLM is ready")
    else:
        assert failed(result, f"vLLM's container sees {seen} GPUs, 2 are needed (gpuCount)")


def test_a_model_that_refuses_what_elastic_sends_is_not_ready(tmp_path: Path) -> None:
    result = ready(tmp_path, refusals=REFUSALS)
    *shown, cause, fix = result.stderr.splitlines()
    assert result.returncode == 1
    assert tuple(shown) == REFUSALS
    assert cause == f"elastic-vllm: the model does not answer what Elastic will send: {REFUSALS[0]}"
    assert fix.startswith("  fix: take another model, or another tokenizer mode")


def test_a_model_that_answers_is_ready(tmp_path: Path) -> None:
    assert succeeded(ready(tmp_path), "vLLM is ready after 0 s: the model answered what Elastic will send")


@pytest.mark.parametrize(
    ("settings", "ways"),
    [
        ({}, {"connector", "inference-endpoint"}),
        ({"clientCertificates": ["kibana"]}, {"connector"}),
        (KIBANA, {"connector"}),
        (ELASTICSEARCH, {"inference-endpoint"}),
        (KIBANA | ELASTICSEARCH, {"connector", "inference-endpoint"}),
    ],
)
def test_up_asks_what_the_ways_need_that_it_connects_or_else_offers(
    settings: dict[str, Any], ways: set[str], program_of: Callable[..., Program]
) -> None:
    command = program_of("gpu", **settings).resources["vllm-ready"]
    assert ASK in command.script.replace("'\"'\"'", "'")
    asked = json.loads(command.data)
    forms = [form for form in all_forms() if form.needed and form.way in ways]
    assert [question["feature"] for question in asked] == [form.feature for form in forms]
    assert {question["request"].get("model") for question in asked} == {"elastic-llm"}
    bounds = [{"max_tokens", "max_completion_tokens"} & question["request"].keys() for question in asked]
    assert {question["request"][bound] for question, (bound,) in zip(asked, bounds, strict=True)} == {READY_TOKENS}

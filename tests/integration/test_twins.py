"""Every request that Elastic sends, to a twin of every model of the catalogue, on the real vLLM.

A twin has the model's prompt format and its arguments over random weights (tests/support/twin_model.py). That tool
calls have the right content is shown with the trained tiny model alone (test_endpoint.py, test_lifecycle.py).
"""

from collections.abc import Iterator
from pathlib import Path

import pytest

from components import render
from components.catalogue.models import Model, load_catalogue
from components.catalogue.sizing import GIB, Layers, Sizing
from components.elastic.corpus import all_forms, needed_forms
from components.files.vllm import ask_vllm
from components.serving.vllm_process import ASK, SOCKET, questions
from components.settings.stack import defaults
from tests.support import twins
from tests.support.shell import Result, bash
from tests.support.twin_model import TWINS

CATALOGUE = load_catalogue().models
DEFAULT = defaults()["model"]
MISTRAL = CATALOGUE["mistralai/Mistral-Small-3.2-24B-Instruct-2506"]
TOKENS = 32
ID_REFUSED = "must be a-z, A-Z, 0-9, with a length of 9"

pytestmark = pytest.mark.usefixtures("machine")


def answers(twin: twins.Twin) -> dict[str, str | None]:
    """The flaw of the answer to each form; None: none."""
    return {form.name: ask_vllm.ask(str(twin.socket), form.request(twins.ALIAS, TOKENS)) for form in all_forms()}


def ready(model: Model, twin: twins.Twin) -> Result:
    """The outcome of what `up` runs once vLLM is started."""
    native = model.native_function_calling
    forms = tuple(needed_forms(connector=True, inference_endpoint=True, native_function_calling=native))
    names = {"engine": "docker", "container": str(twin.container.id), "socket": str(twin.socket)}
    script = render.script("vllm/wait-for-vllm.sh", **names, socket_inside=SOCKET, gpu_count=0, ask=ASK)
    return bash(script, questions(twins.served(model, forms=forms)), DOCKER_HOST="")


def computed(model: Model) -> str:
    """Line of vLLM's log about the twin's KV cache, by the formulas for real models; a CPU has longer blocks."""
    heads = {"kv_heads": 4, "head_size": 32, "element_bytes": 4}
    layers = [Layers(kind="full", count=2, **heads)]
    if model.name == "openai/gpt-oss-120b":
        layers = [Layers(kind="full", count=1, **heads), Layers(kind="sliding", count=1, window=128, **heads)]
    if model.name == "google/gemma-4-31B-it":
        window = 512  # Gemma4TextConfig's own
        layers = [
            Layers(kind="full", count=1, kv_heads=1, head_size=64, element_bytes=4),
            Layers(kind="sliding", count=1, kv_heads=2, head_size=32, window=window, element_bytes=4),
        ]
    # On a CPU vLLM schedules no batch ahead (vllm/platforms/cpu.py).
    sizing = Sizing(layers, 1, GIB, batch_tokens=2048, least_block=128, batches=1)
    contexts = sizing.contexts(8192)
    size = f"KV cache size: {int(contexts * 8192):,} tokens"
    return f"{size}, Maximum concurrency for 8,192 tokens per request: {contexts:.2f}x"


def test_every_model_of_the_catalogue_has_a_twin() -> None:
    assert set(TWINS) == set(CATALOGUE)


@pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=[] if name == DEFAULT else pytest.mark.slow) for name in TWINS],
)
def test_a_model_answers_what_elastic_sends_but_for_what_the_catalogue_lists(name: str, tmp_path: Path) -> None:
    model = CATALOGUE[name]
    with twins.twin(model, tmp_path) as twin:
        flaws = answers(twin)
        started = ready(model, twin)
        log = twin.container.logs().decode()
    refused = {form for form, flaw in flaws.items() if flaw}
    print(f"{name} ({model.proven}): {len(flaws) - len(refused)} of {len(flaws)} answered; refused: {sorted(refused)}")
    assert refused == {form.name for form in all_forms() if form.refused} | set(model.refuses), flaws
    assert all(str(flaws[form]).startswith("HTTP 400: ") for form in refused)
    assert started.returncode == 0, started.stderr
    assert computed(model) in log, [line for line in log.splitlines() if "KV cache" in line]


@pytest.fixture(scope="module")
def with_short_ids(tmp_path_factory: pytest.TempPathFactory) -> Iterator[twins.Twin]:
    with twins.twin(MISTRAL, tmp_path_factory.mktemp("twin"), longer_ids=False) as twin:
        yield twin


@pytest.mark.slow
def test_mistral_small_refuses_kibanas_ids_where_nothing_lengthens_them(with_short_ids: twins.Twin) -> None:
    flaws = {form: flaw for form, flaw in answers(with_short_ids).items() if flaw and ID_REFUSED in flaw}
    assert "stream-tool-result" in flaws
    short = {form.name for form in all_forms() if any("tool_call_id" in m for m in form.body["messages"])}
    assert set(flaws) == short - {"iterator-tool-result"}


@pytest.mark.slow
def test_up_fails_with_the_cause_where_a_model_refuses_kibanas_ids(with_short_ids: twins.Twin) -> None:
    result = ready(MISTRAL, with_short_ids)
    assert result.returncode == 1
    cause, fix = result.stderr.splitlines()[-2:]
    assert cause.startswith(
        "elastic-vllm: the model does not answer what Elastic will send: HTTP 400: Tool call id was "
    )
    assert ID_REFUSED in cause
    assert fix.startswith("  fix: take another model, or another tokenizer mode")

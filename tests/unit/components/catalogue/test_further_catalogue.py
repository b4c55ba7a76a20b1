"""A further catalogue of models (modelCatalogue): its models are added, and a wrong one is refused."""

from collections.abc import Callable
from pathlib import Path

import pytest

from components.catalogue.models import FIELDS, Model, extended, load_catalogue
from components.settings.stack import Settings
from tests.support.program import ROOT
from tests.unit.conftest import found

Settle = Callable[..., Settings]
LABORATORY = ROOT / "scripts" / "lab" / "models.yaml"
QWEN = "Qwen/Qwen3.6-27B"


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "models.yaml"


def test_a_model_of_the_file_is_served_as_its_entry_says(file: Path, settle: Settle) -> None:
    file.write_text("models: {acme/Own: {weights_gb: 20.5, tool_call_parser: hermes, max_model_len: 65536}}")
    settings = settle("gpu", {"modelCatalogue": str(file), "model": "acme/Own"})
    assert settings.model == Model(name="acme/Own", weights_gb=20.5, tool_call_parser="hermes", max_model_len=65536)
    assert settings.served_max_model_len == 65536


def test_an_entry_of_the_file_wins_over_that_of_the_program(file: Path, settle: Settle) -> None:
    file.write_text(f"models: {{{QWEN}: {{weights_gb: 28, tool_call_parser: qwen3_xml}}}}")
    model = settle("gpu", {"modelCatalogue": str(file), "model": QWEN}).model
    assert (model.tool_call_parser, model.weights_gb) == ("qwen3_xml", 28)


def test_the_models_of_the_program_stay(file: Path, settle: Settle) -> None:
    file.write_text("models: {}")
    assert settle("gpu", {"modelCatalogue": str(file), "model": QWEN}).model == load_catalogue().models[QWEN]


def test_a_relative_path_counts_from_the_project(settle: Settle, monkeypatch: pytest.MonkeyPatch, file: Path) -> None:
    monkeypatch.chdir(file.parent)
    assert settle("local", {}).model.name == "rehearsal/tiny"


@pytest.mark.parametrize(
    ("text", "cause"),
    [
        ("models: [", "is not valid YAML ("),
        ("[]", "does not hold models"),
        ("models: []", "does not hold models"),
        ("models: {}\nparser_families: {}", "does not hold models, by name, under models, and nothing else"),
        ("models: {a/b: null}", "a/b: has no fields"),
        ("models: {a/b: {weights_gb: 1, colour: red}}", "a/b: no such field: colour"),
        ("models: {a/b: {name: b, weights_gb: 1}}", "a/b: no such field: name"),
        ("models: {a/b: {gated: true}}", "a/b: weights_gb is missing"),
        ("models: {a/b: {weights_gb: 0}}", "a/b: weights_gb is not a number above 0"),
        ("models: {a/b: {weights_gb: '48'}}", "a/b: weights_gb is not a number above 0"),
        ("models: {a/b: {weights_gb: true}}", "a/b: weights_gb is not a number above 0"),
        ("models: {a/b: {weights_gb: 1, max_model_len: 64k}}", "a/b: max_model_len is not a whole number above 0"),
        ("models: {a/b: {weights_gb: 1, accelerator: amd}}", "a/b: accelerator is not nvidia or none"),
        ("models: {a/b: {weights_gb: 1, least_vllm: new}}", "a/b: least_vllm is not a version"),
        ("models: {a/b: {weights_gb: 1, vllm_extra_args: --x}}", "a/b: vllm_extra_args is not a list of texts"),
        ("models: {a/b: {weights_gb: 1, unneeded_files: [1]}}", "a/b: unneeded_files is not a list of texts"),
        ("models: {a/b: {weights_gb: 1, environment: {A: 1}}}", "a/b: environment is not texts by name"),
        ("models: {a/b: {weights_gb: 1, tool_call_parser: 1}}", "a/b: tool_call_parser is not text or null"),
        ("models: {a/b: {weights_gb: 1, gated: maybe}}", "a/b: gated is not true or false"),
        ("models: {a/b: {weights_gb: 1, notes: 1}}", "a/b: notes is not text"),
    ],
)
def test_a_wrong_file_is_refused_with_the_entry_and_the_field(
    text: str, cause: str, file: Path, settle: Settle
) -> None:
    file.write_text(text)
    (problem,) = found(lambda: settle("gpu", {"modelCatalogue": str(file)}))
    reason, _, fix = problem.partition("; ")
    assert reason.startswith(f"modelCatalogue = {str(file)!r}: ")
    assert cause in reason
    assert fix == "give a file in the form of components/catalogue/models.yaml"


@pytest.mark.parametrize(
    ("path", "cause"),
    [
        ("/no/such.yaml", "cannot be read (No such file or directory)"),
        (".", "cannot be read (Is a directory)"),
        ("~nobody-of-that-name/models.yaml", "Could not determine home directory"),
        ("@binary", "cannot be read (not a text file)"),
        ("a\0b", "cannot be read (not a text file)"),
    ],
)
def test_a_file_that_cannot_be_read_is_refused(path: str, cause: str, settle: Settle) -> None:
    (problem,) = found(lambda: settle("gpu", {"modelCatalogue": path}))
    assert cause in problem


def test_a_model_is_not_called_unknown_when_its_file_is_wrong(settle: Settle) -> None:
    problems = found(lambda: settle("gpu", {"modelCatalogue": "/no/such.yaml", "model": "acme/Own"}))
    assert [problem.partition(" ")[0] for problem in problems] == ["modelCatalogue"]


def test_every_field_of_a_model_is_checked() -> None:
    assert set(FIELDS) == {name for name in Model.__dataclass_fields__ if name != "name"}


def test_the_laboratorys_models_are_served_on_the_cpu() -> None:
    known = load_catalogue()
    models = {n: m for n, m in extended(known, LABORATORY).models.items() if n not in known.models}
    assert set(models) == {"rehearsal/tiny", "rehearsal/tiny-2", "rehearsal/long-context"}
    assert {model.accelerator for model in models.values()} == {"none"}

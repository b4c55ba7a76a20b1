"""The model catalogue (models.yaml): how vLLM serves each model and what it needs."""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any, Literal, cast

import yaml

from components.catalogue.sizing import Layers

OWN = Path(__file__).with_name("models.yaml")
# CVE floor of a public endpoint: 0.32.0 is the first version without PYSEC-2026-4344
# (a chat template in the request hangs the server) and the CVEs fixed before it.
LEAST_SAFE_VLLM = (0, 32, 0)

# Weights may use this share of vLLM's memory; the rest is for the KV cache and activations.
# A rule of thumb: with less than a tenth left, a 64,000-token conversation (Elastic's minimum) does not fit.
WEIGHTS_SHARE = 0.9


class CatalogueError(ValueError):
    """A catalogue file can't be used; the text names the place and the cause."""


@dataclass(frozen=True, kw_only=True)
class Model:
    """Requirements of one model, and the options to serve it."""

    name: str
    accelerator: str = "nvidia"
    """`nvidia`, or `none` for a model that runs on the CPU even if the server has GPUs."""
    vllm_extra_args: Sequence[str] = ()
    tool_call_parser: str | None = None
    reasoning_parser: str | None = None
    chat_template: str | None = None
    environment: Mapping[str, str] = field(default_factory=dict)
    least_vllm: str = "0.32.0"
    weights_gb: float
    """Size of the weights in 10^9 bytes."""
    max_model_len: int | None = None
    layers: Sequence[Layers] = ()
    """Layers that keep a cache, by kind; empty if unknown."""
    native_function_calling: bool = False
    gated: bool = False
    licence: str | None = None
    """Licence as the hub names it; None if unknown."""
    refuses: Mapping[str, str] = field(default_factory=dict)
    """Requests of Elastic (names in components/elastic/corpus.yaml) that the model refuses, and the consequences."""
    proven: Literal["format", "template", "no"] = "no"
    """Part that was run with all of Elastic's requests: its own tokenizer, only its own template, or neither."""
    unneeded_files: Sequence[str] = ()
    """Patterns of files in the hub's repository that vLLM does not load, e.g. the same weights in another format."""
    notes: str = ""

    @property
    def directory_name(self) -> str:
        """Name of the directory of its weights."""
        return self.name.replace("/", "--")


@dataclass(frozen=True, kw_only=True)
class Catalogue:
    """All models that the program knows, and the model families of each tool-call parser."""

    models: Mapping[str, Model]
    parser_families: Mapping[str, Sequence[str]]
    """Parser -> prefixes of model names."""

    def parsers_for(self, model_name: str) -> list[str]:
        """Return the tool-call parsers for models of this name; none if its family is unknown."""
        return sorted(
            parser
            for parser, prefixes in self.parser_families.items()
            if any(model_name.startswith(prefix) for prefix in prefixes)
        )


@cache
def load_catalogue() -> Catalogue:
    """Read the program's own catalogue."""
    document = yaml.safe_load(OWN.read_text(encoding="utf-8"))
    return Catalogue(models=_models(document), parser_families=document["parser_families"])


def extended(catalogue: Catalogue, file: Path) -> Catalogue:
    """Return `catalogue` with the models of a further file, which replace those of the same name.

    Raises CatalogueError if the file can't be read or an entry is wrong.
    """
    try:
        document = yaml.safe_load(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:  # ValueError: not UTF-8, or NUL in the path
        reason = error.strerror if isinstance(error, OSError) else "not a text file"
        raise CatalogueError(f"cannot be read ({reason})") from error
    except yaml.YAMLError as error:
        raise CatalogueError(f"is not valid YAML ({' '.join(str(error).split())})") from error
    if not isinstance(document, dict) or set(document) != {"models"} or not isinstance(document["models"], dict):
        raise CatalogueError("does not hold models, by name, under models, and nothing else")
    return Catalogue(models={**catalogue.models, **_models(document)}, parser_families=catalogue.parser_families)


def _models(document: Mapping[str, Any]) -> dict[str, Model]:
    return {str(name): _model(str(name), entry) for name, entry in document["models"].items()}


def _model(name: str, entry: object) -> Model:
    if not isinstance(entry, dict):
        raise CatalogueError(f"{name}: has no fields")
    for key, value in entry.items():
        if key not in FIELDS:
            raise CatalogueError(f"{name}: no such field: {key}")
        expected, is_right = FIELDS[key]
        if not is_right(value):
            raise CatalogueError(f"{name}: {key} is not {expected}")
    if "weights_gb" not in entry:
        raise CatalogueError(f"{name}: weights_gb is missing")
    layers = tuple(Layers(**each) for each in entry.get("layers", ()))
    return Model(name=name, **{**entry, "layers": layers})


def _is_text(value: object) -> bool:
    return isinstance(value, str)


def _is_texts(value: object) -> bool:
    return isinstance(value, list) and all(map(_is_text, value))


def _is_texts_by_name(value: object) -> bool:
    return isinstance(value, dict) and _is_texts([*value, *value.values()])


def _is_layers(value: object) -> bool:
    return isinstance(value, list) and all(isinstance(each, dict) and _is_kind(each) for each in value)


def _is_kind(layers: Mapping[str, object]) -> bool:
    needed = LAYER_FIELDS.get(str(layers.get("kind")), {""})
    return set(layers) == {"kind", "count", *needed} and all(
        type(layers[key]) is int and cast(int, layers[key]) > 0 for key in ("count", *needed)
    )


def _is_text_or_null(value: object) -> bool:
    return value is None or isinstance(value, str)


def _is_boolean(value: object) -> bool:
    return isinstance(value, bool)


LAYER_FIELDS = {
    "full": {"kv_heads", "head_size"},
    "sliding": {"kv_heads", "head_size", "window"},
    "state": {"state_bytes"},
}
FIELDS: Mapping[str, tuple[str, Callable[[Any], bool]]] = {
    "accelerator": ("nvidia or none", lambda value: value in {"nvidia", "none"}),
    "vllm_extra_args": ("a list of texts", _is_texts),
    "tool_call_parser": ("text or null", _is_text_or_null),
    "reasoning_parser": ("text or null", _is_text_or_null),
    "chat_template": ("text or null", _is_text_or_null),
    "environment": ("texts by name", _is_texts_by_name),
    "least_vllm": ('a version such as "0.32.0"', lambda value: bool(re.fullmatch(r"\d+\.\d+\.\d+", str(value)))),
    "weights_gb": ("a number above 0", lambda value: type(value) in {int, float} and value > 0),
    "max_model_len": ("a whole number above 0", lambda value: type(value) is int and value > 0),
    "layers": (
        "a list of {kind: full, count, kv_heads, head_size}, {kind: sliding, the same and window} and "
        "{kind: state, count, state_bytes}, with whole numbers above 0",
        _is_layers,
    ),
    "native_function_calling": ("true or false", _is_boolean),
    "gated": ("true or false", _is_boolean),
    "licence": ("text or null", _is_text_or_null),
    "refuses": ("texts by name", _is_texts_by_name),
    "proven": ("format, template or no", lambda value: value in {"format", "template", "no"}),
    "unneeded_files": ("a list of texts", _is_texts),
    "notes": ("text", _is_text),
}
"""Field of an entry -> description of its valid values, and their check."""

"""The model catalogue (models.yaml): how vLLM serves each model and what it needs."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import yaml

# CVE floor of a public endpoint: 0.32.0 is the first version without PYSEC-2026-4344
# (a chat template in the request hangs the server) and the CVEs fixed before it.
LEAST_SAFE_VLLM = (0, 32, 0)

# Weights may take this share of the memory that vLLM uses; the rest is for the KV cache and activations.
# A rule of thumb: below a tenth, a 64,000-token conversation (Elastic's least) has no room.
WEIGHTS_SHARE = 0.9

GIB = 2**30
GB = 10**9


@dataclass(frozen=True, kw_only=True)
class Model:
    """How one model is served."""

    name: str
    vllm_arguments: Sequence[str] = ()
    tool_call_parser: str | None = None
    reasoning_parser: str | None = None
    chat_template: str | None = None
    environment: Mapping[str, str] = field(default_factory=dict)
    least_vllm: str = "0.32.0"
    weights_gb: float
    """Size of the weights in 10^9 bytes."""
    context_tokens: int | None = None
    native_function_calling: bool = False
    gated: bool = False
    unneeded_files: Sequence[str] = ()
    """Patterns of files in the hub's repository that vLLM does not load, e.g. the same weights in another format."""

    @property
    def directory_name(self) -> str:
        """Of its weights, in a directory of models."""
        return self.name.replace("/", "--")

    @property
    def for_rehearsals(self) -> bool:
        """Whether it is one of the tiny models that are served on a CPU, whatever else the machine has."""
        return self.name.startswith("rehearsal/")


@dataclass(frozen=True, kw_only=True)
class Catalogue:
    """All models the program knows, and which tool-call parser is made for whose models."""

    models: Mapping[str, Model]
    parser_families: Mapping[str, Sequence[str]]
    """Parser -> prefixes of model names."""

    def parsers_for(self, model_name: str) -> list[str]:
        """The tool-call parsers made for models of this name; empty where its family is unknown."""
        return sorted(
            parser
            for parser, prefixes in self.parser_families.items()
            if any(model_name.startswith(prefix) for prefix in prefixes)
        )


def _model(name: str, entry: dict[str, Any]) -> Model:
    return Model(name=name, **{key: value for key, value in entry.items() if key not in {"licence", "notes"}})


def licence(name: str) -> str | None:
    """A model's licence as the hub names it; None where the catalogue does not know the model."""
    licence: str | None = _document()["models"].get(name, {}).get("licence")
    return licence


@cache
def _document() -> dict[str, Any]:
    """models.yaml beside this file."""
    document: dict[str, Any] = yaml.safe_load(Path(__file__).with_name("models.yaml").read_text())
    return document


@cache
def load_catalogue() -> Catalogue:
    """Read models.yaml."""
    document = _document()
    return Catalogue(
        models={name: _model(name, entry) for name, entry in document["models"].items()},
        parser_families=document["parser_families"],
    )

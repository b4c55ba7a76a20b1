"""The settings of the model and of vLLM."""

import re
from itertools import pairwise
from pathlib import Path

from components.catalogue.models import (
    Catalogue,
    CatalogueError,
    Model,
    extended,
    load_catalogue,
)
from components.settings.problems import NAME, Problems

REVISION = re.compile(r"[0-9a-f]{40}")

# vLLM arguments that the program gives itself, or that would break what the endpoint promises.
RESERVED_ARGUMENTS = {
    "--model": "model",
    "--served-model-name": "servedModelName",
    "-tp": "gpuCount",
    "--max-model-len": "maxModelLen",
    "--tensor-parallel-size": "gpuCount",
    "--gpu-memory-utilization": "gpuMemoryUtilization",
    "--revision": "modelRevision",
    "--config": None,
    "--host": None,
    "--port": None,
    "--uds": None,
    "--api-key": None,
    "--ssl-keyfile": None,
    "--ssl-certfile": None,
    "--root-path": None,
    "--middleware": None,
    "--enable-log-requests": None,
    "--enable-log-outputs": None,
    "--trust-request-chat-template": None,
}


def vllm_extra_args(problems: Problems) -> tuple[str, ...]:
    """The user's vLLM arguments, none of which may undo what the endpoint promises."""
    key = "vllmExtraArgs"
    arguments = problems.texts(key, 'write ["--option", "value"]')
    for argument in arguments:
        reserved = [name for name in RESERVED_ARGUMENTS if is_option(argument, name)]
        if reserved:
            setting = RESERVED_ARGUMENTS[reserved[0]]
            fix = f"use the setting {setting}" if setting else "remove it: the program decides this"
            problems.add(key, f"{argument} is not yours to give", fix)
    return tuple(arguments)


def alias(problems: Problems) -> str:
    """The stable name of the served model; empty: it has its own name only."""
    if not problems.values["servedModelName"]:
        return ""
    return problems.text("servedModelName", NAME, "use letters, digits, '.', '_', '-' and '/', or leave it empty")


def is_option(argument: str, option: str) -> bool:
    """True if vLLM could read `argument` as `option`: with `_` for `-`, cut short, or with its value behind `=`."""
    name = argument.split("=", 1)[0].replace("_", "-")
    return name == option or (len(name) > len("--") and name.startswith("--") and option.startswith(name))


def argument_value(arguments: tuple[str, ...], option: str) -> str | None:
    """The value given for `option`, behind it or behind `=`."""
    for argument, following in pairwise((*arguments, None)):
        if argument and is_option(argument, option):
            return argument.split("=", 1)[1] if "=" in argument else following
    return None


def catalogue(problems: Problems, project_directory: Path) -> Catalogue:
    """The program's own catalogue, with the models of the file in modelCatalogue."""
    own, value = load_catalogue(), problems.values["modelCatalogue"]
    if not value:
        return own
    try:
        return extended(own, project_directory / Path(value).expanduser())
    except (CatalogueError, RuntimeError) as error:  # expanduser: no such user
        problems.add("modelCatalogue", str(error), "give a file in the form of components/catalogue/models.yaml")
        return own


def model(problems: Problems, catalogue: Catalogue, arguments: tuple[str, ...]) -> Model:
    """A model of the catalogue, or any other with its own arguments and size."""
    name = problems.text("model", NAME, "use ORGANISATION/NAME as on the hub")
    known = catalogue.models.get(name)
    parser = argument_value(arguments, "--tool-call-parser")
    if known:
        if parser and parser != known.tool_call_parser:
            problems.add(
                "vllmExtraArgs",
                f"the tool-call parser {parser} does not belong to {name}",
                f"remove it: the catalogue gives {known.tool_call_parser}",
            )
        return known
    family = catalogue.parsers_for(name)
    if parser and family and parser not in family:
        problems.add(
            "vllmExtraArgs",
            f"the tool-call parser {parser} does not belong to {name}",
            f"use {' or '.join(family)}",
        )
    weights_gb = problems.integer("weightsGb", 0, 100_000)
    if not weights_gb and not {"model", "modelCatalogue"} & problems.keys:
        near = [known for known in catalogue.models if known.lower().split("/")[-1] == name.lower().split("/")[-1]]
        fix = f"if you meant {near[0]}, use that" if near else f"use one of {', '.join(catalogue.models)}"
        problems.add("model", "not in the catalogue", f"{fix}, or set weightsGb (and vllmExtraArgs) for this one")
    return Model(
        name=name,
        tool_call_parser=parser,
        weights_gb=weights_gb,
        native_function_calling=parser is not None,
        max_model_len=None,
    )

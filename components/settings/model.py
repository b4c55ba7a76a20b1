"""What the settings of the model, of vLLM and of the GPUs may be, alone and together."""

import re
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

from components.catalogue.machine_types import MachineType
from components.catalogue.models import (
    GB,
    GIB,
    LEAST_SAFE_VLLM,
    WEIGHTS_SHARE,
    Catalogue,
    CatalogueError,
    Model,
    extended,
    load_catalogue,
)
from components.settings.problems import LOCAL_IMAGE, NAME, PINNED_IMAGE, Problems

LEAST_UTILIZATION, MOST_UTILIZATION = 0.1, 0.99
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
    """vLLM arguments of the user's own, none of which may undo what the endpoint promises."""
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
    """Whether vLLM could take `argument` for `option`: with `_` for `-`, cut short, or with its value behind `=`."""
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


def _version(text: str) -> tuple[int, ...] | None:
    match = re.match(r"v?(\d+)\.(\d+)\.(\d+)(?![\d.]*[-.]?(a|b|rc|dev)\d)", text)
    return tuple(int(part) for part in match.groups()[:3]) if match else None


def _vllm_version(problems: Problems, model: Model) -> None:
    value = problems.values["vllmImage"]
    match = PINNED_IMAGE.fullmatch(value) or LOCAL_IMAGE.fullmatch(value)
    if not match:
        return
    version = _version(match["tag"])
    if version is None:
        problems.add("vllmImage", "its tag does not say a released version of vLLM", "tag it like v0.32.0")
        return
    least = max(LEAST_SAFE_VLLM, _version(model.least_vllm) or LEAST_SAFE_VLLM)
    if version < least:
        wanted = ".".join(str(part) for part in least)
        why = "has known vulnerabilities" if version < LEAST_SAFE_VLLM else f"can't serve {model.name}"
        problems.add("vllmImage", f"a vLLM this old {why}", f"use {wanted} or newer")


@dataclass(frozen=True)
class Gpus:
    """The GPUs of the server."""

    count: int
    memory_gib: int
    """Memory of one GPU, in GiB."""
    memory_utilization: float
    """Share of it that vLLM may use."""


def gpus(problems: Problems, machine_type: MachineType | None) -> Gpus:
    """The GPUs of the machine type, or those that the settings say; these are checked without GPUs as well."""
    utilization = _memory_utilization(problems)
    if machine_type:
        return Gpus(machine_type.gpus, machine_type.gpu_memory_gib, utilization)
    count = problems.integer("gpuCount", 1, 16)
    if count & (count - 1):
        problems.add("gpuCount", "does not divide a model's attention heads", "use 1, 2, 4, 8 or 16")
    return Gpus(count, problems.integer("gpuMemoryGib", 1, 1024), utilization)


def _memory_utilization(problems: Problems) -> float:
    key, fix = "gpuMemoryUtilization", "use 0.1 to 0.99"
    text = problems.values[key]
    if not re.fullmatch(r"\d(\.\d{1,3})?", text):
        problems.add(key, "not a decimal fraction", fix)
    elif not LEAST_UTILIZATION <= float(text) <= MOST_UTILIZATION:
        problems.add(key, "out of range", fix)
    else:
        return float(text)
    return LEAST_UTILIZATION


def _memory(problems: Problems, model: Model, gpus: Gpus) -> None:
    if {"gpuMemoryGib", "gpuMemoryUtilization", "gpuCount", "machineType"} & problems.keys:
        return
    where = "machineType" if problems.values["target"] == "gcp" else "gpuCount, gpuMemoryGib"
    usable = gpus.count * gpus.memory_gib * gpus.memory_utilization
    needed = model.weights_gb * GB / GIB
    if needed > usable * WEIGHTS_SHARE:
        problems.add(
            "model",
            f"its weights take {needed:.0f} GiB, and with room for the KV cache {needed / WEIGHTS_SHARE:.0f} GiB, but "
            f"{gpus.count} x {gpus.memory_gib} GiB at {gpus.memory_utilization * 100:g} % are {usable:.0f} GiB",
            f"take a smaller model or more GPU memory ({where})",
        )


def contradictions(problems: Problems, model: Model, gpus: Gpus | None, source: str) -> None:
    """What is fine by itself but not together; `gpus` is None where the server has none.

    `source` of the weights is hub, host or bundle.
    """
    values = problems.values
    _vllm_version(problems, model)
    if gpus and model.accelerator == "none" and not values["vllmImage"].startswith("localhost/"):
        problems.add("model", "served on the CPU, but a registry's vLLM needs GPUs", "use another model or vllmImage")
    elif gpus and model.weights_gb:
        _memory(problems, model, gpus)
    if source == "hub" and not REVISION.fullmatch(values["modelRevision"]):
        problems.add(
            "modelRevision", "not a commit of 40 hexadecimal digits", "run `scripts/elastic-vllm pin --stack STACK`"
        )
    if source == "hub" and model.gated and not values["hfToken"]:
        problems.add(
            "hfToken",
            f"not set, but {model.name} is gated",
            "accept its licence on the hub, then `pulumi config set --secret hfToken`",
        )
    if source == "host" and values["hfToken"]:
        problems.add("hfToken", "set, but nothing is downloaded with modelSource host", "remove it")
    if source == "host" and values["modelRevision"]:
        problems.add("modelRevision", "set, but nothing is downloaded with modelSource host", "remove it")
    limit, context = model.max_model_len, values["maxModelLen"]
    if limit and context.isdigit() and int(context) > limit:
        problems.add("maxModelLen", f"more than the {limit} that {model.name} was made for", f"use {limit} or less")
    if values["servedModelName"] == model.name:
        problems.add("servedModelName", "the same as model", "choose a name that stays when the model changes")

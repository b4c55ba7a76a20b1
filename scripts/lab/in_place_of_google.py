"""Settings that a rehearsal replaces in a stack for Google Cloud: a tiny model, local images, empty values."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

from scripts.lab import hub
from scripts.lab.emulator.state import ROOT
from scripts.lab.kubernetes.layout import HERE
from scripts.lab.tiny_models import MODELS, recipe_of
from scripts.lib.ports import LOOPBACK
from scripts.lib.stack_config import StackConfig

MODEL = "rehearsal/tiny"
HUB_PORT = 22080
HUB_ADDRESSES = (LOOPBACK, HERE)
"""For a VM, which this machine stands for, and for pods in the laboratory's cluster."""
WHERE = "203.0.113.0/24"  # for documentation (RFC 5737): no real network


def is_for_google(config: StackConfig) -> bool:
    """Return True if the stack's host is a VM in Google Cloud."""
    return str(config.get("target")) == "gcp"


def rehearsed(config: StackConfig, given: set[str]) -> StackConfig:
    """Return the configuration for a rehearsal; settings `given` for this run (full keys) stay unchanged."""
    return with_settings(config, {**_own_settings(config), **_for_empty_ones(config)}, given)


def with_settings(config: StackConfig, values: Mapping[str, Any], given: set[str]) -> StackConfig:
    """Return the configuration with these settings, but for those `given` (full keys)."""
    full = {f"{config.project}:{key}": value for key, value in values.items()}
    return replace(config, values={**config.values, **{key: full[key] for key in full.keys() - given}})


def tiny_model(config: StackConfig, hub_address: str) -> dict[str, Any]:
    """Return the settings of a tiny model, from a hub at an address of this machine's."""
    model = MODEL
    if str(config.get("model")).startswith("rehearsal/"):
        model = config.get("model")
    return {
        "model": model,
        "modelCatalogue": "scripts/lab/models.yaml",
        "modelRevision": revision(model),
        "hfEndpoint": f"http://{hub_address}:{HUB_PORT}",
        "hfToken": "",
        "maxModelLen": 0,
        "vllmExtraArgs": [],
    }


def _own_settings(config: StackConfig) -> dict[str, Any]:
    return {
        **tiny_model(config, LOOPBACK),
        "modelSource": "hub",
        "weightsDirectory": f"/mnt/elastic-vllm-{config.stack}",
        "vllmImage": "localhost/elastic-vllm/vllm-cpu:0.32.0",
        "nginxImage": "localhost/elastic-vllm/nginx:debian",
        "vmImage": "projects/rehearsal/global/images/this-machine",
        # On a real VM cloud-init creates the user; this machine has root.
        "sshUser": "root",
        "sshPrivateKeyPath": str(ROOT / "ssh" / "id_ed25519"),
    }


def _for_empty_ones(config: StackConfig) -> dict[str, Any]:
    values: dict[str, Any] = {"gcpProject": "rehearsal", "httpsSourceRanges": [WHERE]}
    if config.get("sshVia") != "iap":
        values["sshSourceRanges"] = [WHERE]
    return {key: value for key, value in values.items() if not config.get(key)}


def revision(model: str) -> str:
    """Return a stand-in for a commit, which changes with the tiny model."""
    return recipe_of(model)[:40]


@contextmanager
def serving_hub(config: StackConfig) -> Iterator[None]:
    """Serve the tiny model from a hub on this machine until the block ends, if the settings name one."""
    model = str(config.get("model"))
    directory = MODELS / model.replace("/", "--")
    address = next((each for each in HUB_ADDRESSES if config.get("hfEndpoint") == f"http://{each}:{HUB_PORT}"), "")
    if not address or not directory.is_dir():
        yield
        return
    files = {
        str(path.relative_to(directory)): path.read_bytes()
        for path in directory.rglob("*")
        if path.is_file() and not path.name.startswith(".")
    }
    with hub.running(model, files, commit=revision(model), address=address, port=HUB_PORT):
        yield

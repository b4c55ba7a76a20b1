"""Target gke in a rehearsal: the settings that it replaces, and the laboratory's cluster, made ready to be GKE's."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from hashlib import sha256

from scripts.lab import machine, simulated_gke
from scripts.lab.emulator.gke_adapters import Project
from scripts.lab.emulator.state import ROOT, State, stack_directory
from scripts.lab.in_place_of_google import tiny_model, with_settings
from scripts.lab.kubernetes import cluster, images
from scripts.lab.kubernetes.layout import CACHE, HERE, MOST_NODES, NODES
from scripts.lab.tiny_models import MODELS
from scripts.lib.progress import Display
from scripts.lib.stack_config import StackConfig

LOCAL_IMAGES = {
    "vllmImage": "localhost/elastic-vllm/vllm-cpu:0.32.0",
    "nginxImage": "localhost/elastic-vllm/nginx:forky",
}
VERSIONS = {"vllmImage": "0.32.0", "nginxImage": "1.30.6"}
REPOSITORY = "us-docker.pkg.dev/rehearsal/images"
"""Nodes are given the local images under names in here, as if they had pulled them."""


def is_for_gke(config: StackConfig) -> bool:
    """Return True if the stack creates its cluster in Google Cloud."""
    return str(config.get("target")) == "gke"


def rehearsed(config: StackConfig, given: set[str]) -> StackConfig:
    """Return the configuration for a rehearsal; settings `given` for this run (full keys) stay unchanged."""
    here = [f"{HERE}/32"]
    filled_in = {"gcpProject": "rehearsal", "httpsSourceRanges": here, "controlPlaneSourceRanges": here}
    values = {
        **tiny_model(config, HERE),
        "modelCatalogue": "scripts/lab/models-with-gpus.yaml",
        **{key: f"{_name(key)[0]}:{VERSIONS[key]}@{_name(key)[1]}" for key in LOCAL_IMAGES},
        **{key: value for key, value in filled_in.items() if not config.get(key)},
    }
    return with_settings(config, values, given)


def project_of(stack: str) -> Project:
    """Return the stack's simulated project as the run before has left it."""
    return Project(stack_directory(ROOT, stack) / "google.json").load()


def has_project(stack: str) -> bool:
    """Return True if the stack has anything in a simulated project."""
    return project_of(stack).file.exists()


def set_up(config: StackConfig, state: State, display: Display) -> None:
    """Bring up the laboratory's cluster, with the images that a registry would have. Raises UserError."""
    local = {f"{config.project}:{key}": image for key, image in LOCAL_IMAGES.items()}
    machine.set_up(replace(config, values={**config.values, **local}), state, display)
    state.kept["the cluster"] = "scripts/rehearse cluster down"
    state.kept[f"Kubernetes' programs in {CACHE}"] = f"rm -r {CACHE}"
    state.kept[f"the tiny model in {MODELS}"] = f"rm -r {MODELS}"
    state.save()
    cluster.up(MOST_NODES, list(LOCAL_IMAGES.values()), display, enforce=True)
    for key, image in LOCAL_IMAGES.items():
        images.name_on(NODES, image, "@".join(_name(key)))


@contextmanager
def simulated(stack: str) -> Iterator[Project]:
    """Run what of the simulated project acts by itself, until the block ends."""
    project = project_of(stack)
    with simulated_gke.running(project):
        yield project


def _name(key: str) -> tuple[str, str]:
    """Return a local image's name in the simulated registry, and what stands for its digest there."""
    image = LOCAL_IMAGES[key]
    name = image.rpartition("/")[2].partition(":")[0]
    return f"{REPOSITORY}/{name}", f"sha256:{sha256(image.encode()).hexdigest()}"

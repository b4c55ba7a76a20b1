"""The stack's settings: read here and nowhere else, checked as a whole before any resource exists."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import pulumi
import yaml
from pulumi.runtime.config import CONFIG, get_config_env

from components.catalogue.models import Model
from components.containers import podman
from components.machine.host import Host
from components.settings import bundle as bundle_settings
from components.settings import elastic as elastic_settings
from components.settings import gcp as gcp_settings
from components.settings import keys, ssh
from components.settings import limits as limit_settings
from components.settings import model as model_checks
from components.settings import problems as check
from components.settings import tls as tls_settings
from components.settings.bundle import BundleSettings
from components.settings.elastic import ElasticSettings
from components.settings.gcp import GcpSettings
from components.settings.limits import Limits
from components.settings.tls import TlsSettings

PROJECT_DIRECTORY = Path(__file__).resolve().parents[2]
STATE_DIRECTORY = "/var/lib/elastic-vllm"


class SettingsError(pulumi.RunError):
    """All that is wrong with the settings, one line each: the key, the value, the cause and the fix."""

    def __init__(self, stack: str, problems: list[str]) -> None:
        """Join `problems` under one heading."""
        count = "1 setting is" if len(problems) == 1 else f"{len(problems)} settings are"
        lines = "\n".join(f"  - {problem}" for problem in problems)
        super().__init__(f"{count} wrong in stack {stack}; nothing was changed:\n{lines}")


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Everything that a stack can say, checked. Pulumi.yaml describes each setting and holds its default."""

    stack: str
    target: Host | GcpSettings
    """The server that exists already, or what Google Cloud is to provide."""
    ssh_user: str
    ssh_private_key_path: Path
    container_runtime: str
    """`docker` or `podman`"""
    gpu_count: int
    """0 without GPUs."""
    gpu_memory_utilization: float
    """Share of the GPUs' memory that vLLM may use."""
    model: Model
    served_model_name: str
    model_source: str
    """hub, host or bundle."""
    model_revision: str
    weights_directory: str
    hf_endpoint: str
    hf_token: pulumi.Output[str]
    """Secret; empty for models that are not gated."""
    max_model_len: int
    """0: the model's own."""
    vllm_extra_args: tuple[str, ...]
    images: Mapping[str, str]
    """Role (vllm, nginx, and dcgm where its exporter is to run) -> reference, or its name once a bundle brought it."""
    bundle: BundleSettings | None
    """None: images, weights and packages come from the network."""
    endpoint_host: str
    """Empty: the server's own address."""
    https_port: int
    key_versions: Mapping[str, tuple[int, ...]]
    """Name of a key -> its accepted versions, the current one first."""
    limits: Limits
    tls: TlsSettings
    elastic: ElasticSettings

    @property
    def gcp(self) -> GcpSettings | None:
        """What Google Cloud is to provide, if anything."""
        return self.target if isinstance(self.target, GcpSettings) else None

    @property
    def prefix(self) -> str:
        """Of the names of everything on the server."""
        return f"elastic-vllm-{self.stack}"

    @property
    def directory(self) -> str:
        """This stack's own directory on the server."""
        return f"{STATE_DIRECTORY}/{self.stack}"

    @property
    def parked(self) -> bool:
        """Whether nothing is to run now."""
        return self.gcp is not None and self.gcp.parked

    @property
    def vllm_gpu_count(self) -> int:
        """GPUs that vLLM uses."""
        return 0 if self.model.accelerator == "none" else self.gpu_count

    @property
    def connector_model(self) -> str:
        """The name that Elastic asks for: the alias, or the model's own where there is none."""
        return self.served_model_name or self.model.name

    @property
    def served_max_model_len(self) -> int:
        """The longest context that is served: as set, or the model's own; 0 where the catalogue does not know it."""
        return self.max_model_len or self.model.max_model_len or 0

    @property
    def weights_gb(self) -> float:
        """Disk that the weights take, in 10^9 bytes."""
        return (self.bundle.weights_gb if self.bundle else 0) or self.model.weights_gb

    @property
    def weights_path(self) -> str:
        """The model's directory on the server."""
        # Another revision is another directory: the server keeps its own until it is replaced, and a way back stays.
        bundled = self.bundle.weights_directory_name if self.bundle else None
        if bundled:
            return f"{self.weights_directory}/{bundled}"
        revision = f"--{self.model_revision[:12]}" if self.model_revision else ""
        return f"{self.weights_directory}/{self.model.directory_name}{revision}"


@cache
def defaults() -> Mapping[str, str]:
    """All settings with their defaults, from Pulumi.yaml, as texts (see `as_text`)."""
    config = yaml.safe_load((PROJECT_DIRECTORY / "Pulumi.yaml").read_text())["config"]
    return {name: as_text(setting["default"]) for name, setting in config.items()}


def as_text(value: object) -> str:
    """A setting's value as `parse_settings` takes it: text as it is, all else as JSON."""
    return value if isinstance(value, str) else json.dumps(value)


def parse_settings(values: dict[str, str], stack: str, secrets: Mapping[str, pulumi.Output[str]]) -> Settings:
    """Check `values` (setting -> text, arrays as JSON); `secrets` holds those of them that are secret, as outputs.

    Raises SettingsError with every problem found, not only the first.
    """
    said, manifest, contradicted = bundle_settings.said_by_bundle(values, defaults(), PROJECT_DIRECTORY)
    problems = check.Problems(values, defaults())
    problems.unknown_keys()
    for key, cause, fix in contradicted:
        problems.add(key, cause, fix)
    problems.values = values = values | said
    if values["bundle"] and not manifest:
        problems.unasked = frozenset(bundle_settings.SAID_BY_BUNDLE)
    choice, text, integer = problems.choice, problems.text, problems.integer

    check.stack_name(problems, stack)
    target = choice("target", ("existing", "gcp"))
    accelerator = choice("accelerator", ("nvidia", "none"))
    container_runtime = choice("containerRuntime", ("docker", podman.PODMAN))
    if container_runtime == podman.PODMAN:
        podman.refuse(problems)
    gcp_settings.unused(problems, target)
    private_key = ssh.private_key(problems, PROJECT_DIRECTORY)
    gcp = gcp_settings.gcp_settings(problems, stack, private_key, PROJECT_DIRECTORY) if target == "gcp" else None
    gpus = model_checks.gpus(problems, gcp.machine_type if gcp else None)
    gpu_count = gpus.count if accelerator == "nvidia" else 0
    arguments = model_checks.vllm_extra_args(problems)
    model = model_checks.model(problems, model_checks.catalogue(problems, PROJECT_DIRECTORY), arguments)
    bundle = bundle_settings.bundle_settings(problems, manifest, PROJECT_DIRECTORY, gcp=gcp is not None)
    source = choice("modelSource", ("hub", "host"))
    if manifest and "weights" in manifest.parts:
        source = "bundle"
    ssh_user = text("sshUser", check.USER, "use a Linux user name")
    settings = Settings(
        stack=stack,
        target=gcp or _server(problems, stack, ssh_user, private_key, container_runtime),
        ssh_user=ssh_user,
        ssh_private_key_path=private_key,
        container_runtime=container_runtime,
        gpu_count=gpu_count,
        gpu_memory_utilization=gpus.memory_utilization,
        model=model,
        served_model_name=model_checks.alias(problems),
        model_source=source,
        model_revision=values["modelRevision"],
        weights_directory=text("weightsDirectory", check.DIRECTORY, "give an absolute path without spaces"),
        hf_endpoint=text("hfEndpoint", check.URL, "give an https:// address without user and password"),
        hf_token=secrets["hfToken"],
        max_model_len=integer("maxModelLen", 0, 10_000_000),
        vllm_extra_args=arguments,
        images={
            role: bundle.images.get(role, image) if bundle else image for role, image in check.images(problems).items()
        },
        bundle=bundle,
        endpoint_host=text("endpointHost", check.ADDRESS, "set the name or address") if values["endpointHost"] else "",
        https_port=integer("httpsPort", 1, 65535),
        key_versions=keys.key_versions(problems),
        limits=limit_settings.limits(problems),
        tls=tls_settings.tls_settings(
            problems, values["endpointHost"] or ("" if gcp else values["host"]), PROJECT_DIRECTORY
        ),
        elastic=elastic_settings.elastic_settings(problems, secrets, PROJECT_DIRECTORY),
    )
    if values["dcgmImage"] and not gpu_count:
        problems.add("dcgmImage", "set, but there are no GPUs", "remove it, or set accelerator to nvidia")
    model_checks.contradictions(problems, model, gpus if gpu_count else None, source)
    if gcp:
        gcp_settings.room_for_weights(problems, gcp, model)
    if problems.found:
        raise SettingsError(stack, problems.found)
    return settings


def _server(problems: check.Problems, stack: str, user: str, private_key: Path, engine: str) -> Host:
    """The server that exists already."""
    host_key = ssh.host_key(problems, PROJECT_DIRECTORY)
    return Host(
        address=problems.text("host", check.ADDRESS, "set it to the server's address or name"),
        port=problems.integer("sshPort", 1, 65535),
        user=user,
        private_key_path=private_key,
        host_key=host_key,
        identity=host_key,
        prefix=f"elastic-vllm-{stack}",
        directory=f"{STATE_DIRECTORY}/{stack}",
        cleans_up=True,
        engine=engine,
    )


def read_settings() -> Settings:
    """Read the current stack's configuration.

    Raises SettingsError when anything in it is wrong.
    """
    project = pulumi.get_project()
    config = pulumi.Config()
    given = {**get_config_env(), **CONFIG.get()}
    values = {
        key.removeprefix(f"{project}:"): as_text(value) for key, value in given.items() if key.startswith(f"{project}:")
    }
    secrets = {name: config.get_secret(name) or pulumi.Output.secret("") for name in check.SECRETS}
    return parse_settings(values, pulumi.get_stack(), secrets)

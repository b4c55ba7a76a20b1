"""The stack's settings: read here and nowhere else, checked as a whole before any resource exists."""

import json
import os
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import cast

import pulumi
import yaml
from pulumi.runtime.config import CONFIG, get_config_env, is_config_secret

from components.catalogue.models import Model
from components.machine.host import Host
from components.machine.ssh import SshKey
from components.settings import bundle as bundle_settings
from components.settings import downloads as download_checks
from components.settings import elastic as elastic_settings
from components.settings import keys, rules, ssh
from components.settings import limits as limit_settings
from components.settings import model as model_checks
from components.settings import problems as check
from components.settings import tls as tls_settings
from components.settings.bundle import BundleSettings
from components.settings.downloads import DownloadSettings
from components.settings.elastic import ElasticSettings
from components.settings.gcp import GcpSettings, GoogleSettings
from components.settings.gke import GkeSettings
from components.settings.kubernetes import KubernetesSettings, endpoint_name
from components.settings.limits import Limits
from components.settings.machine import STATE_DIRECTORY, Gpus, machine_settings
from components.settings.tls import TlsSettings

PROJECT_DIRECTORY = Path(__file__).resolve().parents[2]


class SettingsError(pulumi.RunError):
    """Every problem with the settings, one line each: the key, the value, the cause and the fix."""

    def __init__(self, stack: str, problems: list[str]) -> None:
        """Join `problems` under one heading."""
        count = "1 setting is" if len(problems) == 1 else f"{len(problems)} settings are"
        lines = "\n".join(f"  - {problem}" for problem in problems)
        super().__init__(f"{count} wrong in stack {stack}; nothing was changed:\n{lines}")


@dataclass(frozen=True, kw_only=True)
class Settings:
    """A stack's settings, checked. Pulumi.yaml describes each setting and holds its default."""

    stack: str
    target: Host | GcpSettings | KubernetesSettings | GkeSettings
    """The server that exists, the VM to create, a cluster's namespace, or the cluster to create."""
    ssh_user: str
    ssh_key: SshKey
    container_runtime: str
    """`docker` or `podman`"""
    gpus: Gpus
    model: Model
    served_model_name: str
    model_source: str
    """hub, host or bundle."""
    model_revision: str
    weights_directory: str
    hf_endpoint: str
    hf_token: pulumi.Output[str]
    """Secret; empty for models that are not gated."""
    downloads: DownloadSettings
    max_model_len: int
    """0: the model's own."""
    vllm_extra_args: tuple[str, ...]
    images: Mapping[str, str]
    """Role (vllm, nginx, and dcgm for its exporter) -> reference, or name on the server of a bundle's image."""
    bundle: BundleSettings | None
    """None: images, weights and packages come from the network."""
    endpoint_host: str
    """Empty: the address of the server, the VM or the load balancer. In a cluster that exists, by default the
    Service's name."""
    ipv6: bool
    """True if the endpoint has IPv6 addresses besides its IPv4 ones."""
    https_port: int
    key_versions: Mapping[str, tuple[int, ...]]
    """Name of a key -> its accepted versions, the current one first."""
    limits: Limits
    tls: TlsSettings
    elastic: ElasticSettings

    @property
    def gcp(self) -> GcpSettings | None:
        """The settings of target gcp; None for the others."""
        return self.target if isinstance(self.target, GcpSettings) else None

    @property
    def kubernetes(self) -> KubernetesSettings | None:
        """The endpoint's settings in a cluster, with target kubernetes or gke; None for servers."""
        if self.gke:
            return self.gke.kubernetes
        return self.target if isinstance(self.target, KubernetesSettings) else None

    @property
    def gke(self) -> GkeSettings | None:
        """The settings of target gke; None for the others."""
        return self.target if isinstance(self.target, GkeSettings) else None

    @property
    def google(self) -> GoogleSettings | None:
        """The settings of target gcp or gke; None for the others."""
        return self.gcp or self.gke

    @property
    def server(self) -> Host:
        """The server that exists; only with target existing."""
        return cast(Host, self.target)

    @property
    def gpu_count(self) -> int:
        """GPUs of the machine, or of each replica; 0 without any."""
        return self.gpus.count

    @property
    def prefix(self) -> str:
        """Prefix of the names of everything on the server."""
        return f"elastic-vllm-{self.stack}"

    @property
    def directory(self) -> str:
        """This stack's own directory on the server."""
        return f"{STATE_DIRECTORY}/{self.stack}"

    @property
    def parked(self) -> bool:
        """True if nothing is to run now."""
        return not isinstance(self.target, Host) and self.target.parked

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
    config = yaml.safe_load((PROJECT_DIRECTORY / "Pulumi.yaml").read_text(encoding="utf-8"))["config"]
    return {name: as_text(setting["default"]) for name, setting in config.items()}


def as_text(value: object) -> str:
    """A setting's value as `parse_settings` takes it: text as it is, all else as JSON."""
    return value if isinstance(value, str) else json.dumps(value)


def parse_settings(
    given: Mapping[str, str],
    stack: str,
    secrets: Mapping[str, pulumi.Output[str]],
    plain: Collection[str] = (),
    *,
    agent_socket: str | None = None,
) -> Settings:
    """Check `given` (setting -> text, lists and objects as JSON).

    `secrets` holds the values of secret settings as outputs; `plain` names those of them that are not encrypted.
    `agent_socket` is the SSH agent's, empty without one; None where no connection is to be made.
    Raises SettingsError with every problem found, not only the first.
    """
    contents = bundle_settings.read_bundle(given, defaults(), PROJECT_DIRECTORY)
    values = {**given, **contents.values}
    problems = check.Problems(values, defaults(), contents.undecided)
    for problem in contents.problems:
        problems.record(problem)
    problems.unknown_keys()
    problems.plain_secrets(plain)
    check.stack_name(problems, stack)
    machine = machine_settings(problems, stack, PROJECT_DIRECTORY)
    if agent_socket is not None and not isinstance(machine.target, KubernetesSettings | GkeSettings):
        ssh.agent(problems, machine.ssh_key, agent_socket)
    bundle = bundle_settings.bundle_settings(problems, contents.manifest, PROJECT_DIRECTORY)
    arguments = model_checks.vllm_extra_args(problems)
    catalogue = model_checks.catalogue(problems, PROJECT_DIRECTORY)
    text, integer = problems.text, problems.integer
    settings = Settings(
        stack=stack,
        target=machine.target,
        ssh_user=machine.ssh_user,
        ssh_key=machine.ssh_key,
        container_runtime=machine.container_runtime,
        gpus=machine.gpus,
        model=model_checks.model(problems, catalogue, arguments),
        served_model_name=model_checks.alias(problems),
        model_source=_model_source(problems, machine.target, bundle),
        model_revision=values["modelRevision"],
        weights_directory=text("weightsDirectory", check.DIRECTORY, "give an absolute path without spaces"),
        hf_endpoint=text("hfEndpoint", check.URL, "give an https:// address without user and password"),
        hf_token=secrets["hfToken"],
        downloads=download_checks.download_settings(problems, secrets["downloadProxy"], PROJECT_DIRECTORY),
        max_model_len=integer("maxModelLen", 0, 10_000_000),
        vllm_extra_args=arguments,
        images={**check.images(problems), **(bundle.images if bundle else {})},
        bundle=bundle,
        endpoint_host=_endpoint_host(problems, machine.target, stack),
        ipv6=problems.boolean("ipv6") or ":" in f"{values['host']}{values['endpointHost']}",
        https_port=integer("httpsPort", 1, 65535),
        key_versions=keys.key_versions(problems),
        limits=limit_settings.limits(problems),
        tls=tls_settings.tls_settings(problems, PROJECT_DIRECTORY, stack),
        elastic=elastic_settings.elastic_settings(problems, secrets, PROJECT_DIRECTORY),
    )
    rules.check(problems, settings)
    if problems.found:
        raise SettingsError(stack, problems.found)
    return settings


def _endpoint_host(problems: check.Problems, target: object, stack: str) -> str:
    if problems.values["endpointHost"]:
        return problems.address("endpointHost")
    return endpoint_name(problems.values, stack) if isinstance(target, KubernetesSettings) else ""


def _model_source(problems: check.Problems, target: object, bundle: BundleSettings | None) -> str:
    kubernetes = target.kubernetes if isinstance(target, GkeSettings) else target
    if isinstance(kubernetes, KubernetesSettings):
        return "hub" if kubernetes.weights_storage_class else "host"
    source = problems.choice("modelSource", ("hub", "host"))
    return "bundle" if bundle and bundle.weights_gb else source


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
    plain = [name for name in check.SECRETS if not is_config_secret(f"{project}:{name}")]
    agent_socket = os.environ.get("SSH_AUTH_SOCK", "")
    return parse_settings(values, pulumi.get_stack(), secrets, plain, agent_socket=agent_socket)

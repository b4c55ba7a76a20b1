"""The stack's settings: read here and nowhere else, checked as a whole before any resource exists."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import pulumi
import yaml
from pulumi.runtime.config import CONFIG, get_config_env

from components import setting_checks as check
from components.host import Host
from components.models import Catalogue, Model, load_catalogue

PROJECT_DIRECTORY = Path(__file__).resolve().parent.parent
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

    server: Host
    gpu_count: int
    """0 without GPUs."""
    gpu_memory_percent: int
    model: Model
    model_alias: str
    model_source: str
    model_revision: str
    weights_directory: str
    hub_endpoint: str
    hub_token: pulumi.Output[str]
    """Secret; empty for models that are not gated."""
    context_tokens: int
    """0: the model's own."""
    vllm_arguments: tuple[str, ...]
    images: Mapping[str, str]
    """Role (vllm, nginx) -> reference."""
    endpoint_host: str
    https_port: int
    key_version: int
    accept_previous_key: bool

    @property
    def weights_path(self) -> str:
        """The model's directory on the server."""
        # Another revision is another directory: the server keeps its own until it is replaced, and a way back stays.
        revision = f"--{self.model_revision[:12]}" if self.model_revision else ""
        return f"{self.weights_directory}/{self.model.name.replace('/', '--')}{revision}"


@cache
def known_settings() -> frozenset[str]:
    """The names of all settings, from Pulumi.yaml."""
    return frozenset(yaml.safe_load((PROJECT_DIRECTORY / "Pulumi.yaml").read_text())["config"])


def parse_settings(
    values: Mapping[str, str], stack: str, hub_token: pulumi.Output[str], catalogue: Catalogue
) -> Settings:
    """Check `values` (setting -> text, arrays as JSON; the token only as present or empty).

    Raises SettingsError with every problem found, not only the first.
    """
    problems = check.Problems(values, known_settings())
    problems.unknown_keys()
    choice, text, integer = problems.choice, problems.text, problems.integer

    check.stack_name(problems, stack)
    choice("target", ("existing",))
    accelerator = choice("accelerator", ("nvidia", "none"))
    gpus = check.gpus(problems)
    gpu_count = gpus.count if accelerator == "nvidia" else 0
    arguments = check.vllm_arguments(problems)
    model = check.model(problems, catalogue, arguments)
    host_key = check.host_key(problems, PROJECT_DIRECTORY)
    host = text("host", check.ADDRESS, "set it to the server's address or name")
    settings = Settings(
        server=Host(
            address=host,
            port=integer("sshPort", 1, 65535),
            user=text("sshUser", check.USER, "use a Linux user name"),
            private_key_path=check.private_key(problems, PROJECT_DIRECTORY),
            host_key=host_key,
            identity=host_key,
            prefix=f"elastic-vllm-{stack}",
            directory=f"{STATE_DIRECTORY}/{stack}",
            cleans_up=True,
        ),
        gpu_count=gpu_count,
        gpu_memory_percent=gpus.memory_percent,
        model=model,
        model_alias=text("modelAlias", check.NAME, "use letters, digits, '.', '_', '-' and '/'"),
        model_source=choice("modelSource", ("hub", "host")),
        model_revision=values["modelRevision"],
        weights_directory=text("weightsDirectory", check.DIRECTORY, "give an absolute path without spaces"),
        hub_endpoint=text("hubEndpoint", check.URL, "give an https:// address without user and password"),
        hub_token=hub_token,
        context_tokens=integer("contextTokens", 0, 10_000_000),
        vllm_arguments=arguments,
        images={role: check.image(problems, f"{role}Image") for role in ("vllm", "nginx")},
        endpoint_host=text("endpointHost", check.ADDRESS, "set the name or address")
        if values["endpointHost"]
        else host,
        https_port=integer("httpsPort", 1, 65535),
        key_version=integer("keyVersion", 1, 1_000_000),
        accept_previous_key=problems.boolean("acceptPreviousKey"),
    )
    check.contradictions(problems, model, gpus if gpu_count else None)
    if problems.found:
        raise SettingsError(stack, problems.found)
    return settings


def read_settings() -> Settings:
    """Read the current stack's configuration.

    Raises SettingsError when anything in it is wrong.
    """
    project = pulumi.get_project()
    config = pulumi.Config()
    given = {**get_config_env(), **CONFIG.get()}
    values = {
        key.removeprefix(f"{project}:"): value if isinstance(value, str) else json.dumps(value)
        for key, value in given.items()
        if key.startswith(f"{project}:")
    }
    token = config.get_secret("hubToken") or pulumi.Output.secret("")
    return parse_settings(values, pulumi.get_stack(), token, load_catalogue())

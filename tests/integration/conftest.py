"""What integration tests share: the stack `test`, up once for all of them, on real SSH, Docker, Nginx and vLLM.

Nothing here skips: a machine without Docker or vLLM fails, with the rehearsal's own words.
"""

import json
import os
import ssl
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import docker
import httpx2
import openai
import pytest
from docker.models.containers import Container

ROOT = Path(__file__).resolve().parents[2]
STACK = "test"
PREFIX = f"elastic-vllm-{STACK}"
REHEARSAL = Path("/var/lib/elastic-vllm-rehearsal")
STACK_DIRECTORY = Path("/var/lib/elastic-vllm") / STACK


def rehearse(*arguments: str, stack: str = STACK, timeout: float = 1500) -> subprocess.CompletedProcess[str]:
    """Run `scripts/rehearse ARGUMENTS --stack STACK` to its end, whatever that is."""
    command = [str(ROOT / "scripts" / "rehearse"), *arguments, "--stack", stack]
    environment = {**os.environ, "TERM": "dumb"}
    return subprocess.run(command, capture_output=True, text=True, timeout=timeout, env=environment, check=False)


def rehearse_up(*arguments: str, stack: str = STACK) -> str:
    """Run `up`, which must succeed; what it printed."""
    done = rehearse("up", *arguments, stack=stack)
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
    return done.stdout


@dataclass(frozen=True)
class Deployment:
    """A stack that is up."""

    url: str
    """The connector's URL, ending in /v1/chat/completions."""
    key: str
    model: str
    ca_certificate: str
    docker: docker.DockerClient

    @property
    def base_url(self) -> str:
        return self.url.removesuffix("/v1/chat/completions")

    @property
    def vllm(self) -> Container:
        return self.docker.containers.get(f"{PREFIX}-vllm")

    @property
    def nginx(self) -> Container:
        return self.docker.containers.get(f"{PREFIX}-nginx")

    def http(self, key: str | None = None) -> httpx2.Client:
        """A plain client that trusts the stack's CA, with `key` as its bearer token where one is given."""
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        context = ssl.create_default_context(cadata=self.ca_certificate)
        return httpx2.Client(base_url=self.base_url, verify=context, headers=headers, timeout=60, trust_env=False)

    def openai(self, key: str | None = None) -> openai.OpenAI:
        """The official client, retries off, with the stack's own key unless another is given."""
        return openai.OpenAI(
            base_url=f"{self.base_url}/v1", api_key=key or self.key, max_retries=0, http_client=self.http()
        )


def deployment(stack: str = STACK) -> Deployment:
    """The stack as its outputs describe it now."""
    done = rehearse("outputs", "--json", "--show-secrets", stack=stack)
    assert done.returncode == 0, done.stderr
    values = json.loads(done.stdout)
    return Deployment(
        url=values["connectorUrl"],
        key=values["connectorApiKey"],
        model=values["model"],
        ca_certificate=values["caCertificate"],
        docker=docker.from_env(timeout=120),
    )


def identity(container: Container) -> tuple[str, str]:
    """Id and start time: both stay while a container is neither replaced nor restarted."""
    container.reload()
    return str(container.id), str(container.attrs["State"]["StartedAt"])


@pytest.fixture(scope="session")
def first_up() -> Iterator[str]:
    """The stack `test` is up and verified; what `up` printed. It goes away at the end."""
    yield rehearse_up("--verify")
    done = rehearse("down")
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"


@pytest.fixture
def deployed(first_up: str) -> Deployment:
    """The stack `test` as it is now."""
    return deployment()

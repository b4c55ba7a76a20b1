"""Shared by tests that run the program under the real Pulumi, which `make prove` does where it is on PATH."""

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from scripts.lab import pulumi_engine
from scripts.lab.pulumi_engine import Installation
from tests.support import docker_server
from tests.support.docker_server import Server
from tests.support.netns_hosts import PATH

ON_PULUMI = ("up", "--engine", "pulumi")


@pytest.fixture(scope="package")
def installation(machine: None) -> Installation:
    """The real Pulumi with its plugins."""
    return pulumi_engine.find("existing")


@contextmanager
def running(installation: Installation, of: str = "") -> Iterator[Server]:
    """Run a server with Docker, of a release (debian_roots.RELEASES), whose stack the real Pulumi brings up."""
    with docker_server.running(of=of) as server:
        server.environment = {
            "PATH": f"{installation.program.parent}{os.pathsep}{PATH}",
            "PULUMI_HOME": str(installation.plugins[0].parent.parent),
        }
        yield server


def up(server: Server, *arguments: str) -> dict[str, int]:
    """Run an `up` with a refresh, which must succeed, and return how many resources were created, unchanged, ..."""
    code, output = server.rehearse(*ON_PULUMI, *arguments)
    assert code == 0, output
    assert output.startswith("engine: Pulumi "), output
    return counts(output)


def counts(output: str) -> dict[str, int]:
    """Return the numbers of Pulumi's last summary, such as {"unchanged": 31}."""
    summary = re.findall(r"^Resources:\n((?: .*\n?)+)", output, re.MULTILINE)[-1]
    return {word: int(number) for number, word in re.findall(r"(\d+) ([a-z]+)$", summary, re.MULTILINE)}

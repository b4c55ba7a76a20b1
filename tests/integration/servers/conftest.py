"""Shared by tests of servers as people have them: one with systemd, Docker, ufw and firewalld, and the stack on it."""

from collections.abc import Iterator

import pytest

from tests.support import docker_server
from tests.support.docker_server import Server


@pytest.fixture(scope="package")
def bare(machine: None) -> Iterator[Server]:
    """The server, without the stack."""
    with docker_server.running("ufw", "firewalld") as server:
        server.shell("systemctl disable --now --quiet firewalld")
        yield server


@pytest.fixture(scope="module")
def server(bare: Server) -> Iterator[Server]:
    """The same with the stack up."""
    bare.configure_docker({})
    bare.up()
    yield bare
    bare.down()

"""Ways to a server: keys, agents and configurations of `ssh` under the real Pulumi, and its server's packet filter."""

import subprocess
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import pytest

from scripts.lab.pulumi_engine import Installation
from tests.integration.engine.conftest import ON_PULUMI, running, up
from tests.integration.test_ssh import HOSTILE
from tests.support.docker_server import PREFIX, Server

pytestmark = pytest.mark.slow

PASSPHRASE = "open, sesame"


@pytest.fixture(scope="module")
def server(installation: Installation) -> Iterator[Server]:
    with running(installation) as server:
        yield server


@pytest.fixture(autouse=True)
def clean(server: Server) -> Iterator[None]:
    environment = server.environment
    yield
    server.environment = environment
    server.down()


def refused(server: Server, *arguments: str) -> str:
    """Run an `up` that must fail before it changes the server, and return its output."""
    before = server.snapshot()
    code, output = server.rehearse(*ON_PULUMI, *arguments)
    assert code == 1, output
    assert server.snapshot() == before
    return output


def comes_up(server: Server, *arguments: str) -> None:
    first = up(server, *arguments)
    assert set(first) == {"created"}
    assert up(server, *arguments) == {"unchanged": first["created"]}


def test_the_servers_rsa_key_is_refused(server: Server) -> None:
    key = server.shell("ssh-keygen -q -t rsa -N '' -f /tmp/rsa && cut -d ' ' -f 1,2 /tmp/rsa.pub")
    output = refused(server, "--set", f"sshHostKey={key.strip()}")
    assert "sshHostKey" in output
    assert "give the server's ed25519 or ecdsa key" in " ".join(output.split())


def test_an_agent_that_is_gone_is_refused_although_a_key_is_given(server: Server) -> None:
    server.environment = {**server.environment, "SSH_AUTH_SOCK": "/nonexistent/agent"}
    output = refused(server)
    assert "SSH_AUTH_SOCK = '/nonexistent/agent': no agent answers there" in " ".join(output.split())


def test_nobodys_configuration_of_ssh_counts(server: Server) -> None:
    config = server.hosts.directory / "config"
    config.write_text(HOSTILE)
    mounted = "/etc/ssh/ssh_config"
    server.hosts.control.run("mount", "--bind", config, mounted)
    try:
        code, _ = server.hosts.control.attempt(*server.hosts.ssh, "true")
        assert code == 255
        comes_up(server)
    finally:
        server.hosts.control.run("umount", mounted)


def test_a_key_with_a_passphrase(server: Server) -> None:
    key, passphrase = server.hosts.directory / "encrypted", server.hosts.directory / "passphrase"
    key.write_bytes(server.hosts.private_key.read_bytes())
    key.chmod(0o600)
    subprocess.run(["ssh-keygen", "-q", "-p", "-a", "1", "-N", PASSPHRASE, "-f", key], check=True)
    passphrase.write_text(PASSPHRASE)
    comes_up(server, "--set", f"sshPrivateKeyPath={key}", "--set-file", f"sshPrivateKeyPassword={passphrase}")


@contextmanager
def agent(server: Server, *keys: Path) -> Iterator[Mapping[str, str]]:
    """An agent on the control machine that holds the keys; the value leads to it."""
    socket = {"SSH_AUTH_SOCK": str(server.hosts.directory / "agent")}
    process = server.hosts.control.start("ssh-agent", "-D", "-a", socket["SSH_AUTH_SOCK"])
    try:
        assert process.stdout
        assert "SSH_AUTH_SOCK" in process.stdout.readline()
        server.hosts.control.run("ssh-add", "-q", *keys, environment=socket)
        yield socket
    finally:
        process.terminate()
        process.wait()


def test_a_key_in_an_agent(server: Server) -> None:
    with agent(server, server.hosts.private_key) as socket:
        server.environment = {**server.environment, **socket}
        comes_up(server, "--set", "sshAgent=true", "--set", "sshPrivateKeyPath=")
        server.down()  # with the agent


def test_an_update_puts_the_flushed_walls_back(server: Server) -> None:
    comes_up(server)
    everything = sum(up(server).values())
    table = f"nft list table inet {PREFIX.replace('-', '_')}"
    server.shell(f"systemctl stop {PREFIX}-egress; nft flush ruleset; ! {table} 2>/dev/null")
    assert up(server) == {"updated": 1, "unchanged": everything - 1}
    server.shell(table)
    assert up(server) == {"unchanged": everything}

"""Servers as people have them, each brought up, seen unchanged by the next `up`, and taken down again."""

import os
import ssl
import subprocess
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import docker
import httpx2
import pytest

from tests.integration.conftest import ROOT, installed, outputs_of, rehearse
from tests.support import far_away, local_sshd, vllm_stand_in
from tests.support.local_sshd import QUIET, UNLIMITED, Server
from tests.support.made_stacks import MODEL, NGINX_IMAGE, make_weights, stack_file, traces

pytestmark = pytest.mark.usefixtures("machine")

STACK = "servers"
PASSPHRASE = "open, sesame"
ROUND_TRIP = 0.15
"""Seconds: from Europe to the west of America."""


@pytest.fixture(scope="module")
def vllm(machine: None) -> Iterator[str]:
    with vllm_stand_in.image() as name:
        yield name


def settings_of(server: Server, weights: Path, vllm: str) -> dict[str, Any]:
    make_weights(weights)
    return {
        "host": "127.0.0.1",
        "sshPort": server.port,
        "sshPrivateKeyPath": str(server.private_key),
        "sshHostKey": str(server.host_key),
        "accelerator": "none",
        "vllmImage": vllm,
        "nginxImage": NGINX_IMAGE,
        "model": MODEL,
        "weightsGb": 1,
        "modelSource": "host",
        "weightsDirectory": str(weights),
        "httpsPort": local_sshd.free_port(),
    }


@contextmanager
def brought_up(
    settings: Mapping[str, Any], *arguments: str, before: str = "", line_end: str = "\n"
) -> Iterator[Mapping[str, Any]]:
    """Bring the stack up and yield its outputs; a second `up` changes nothing, and nothing is left afterwards.

    `before` and `line_end` are those of its file, as editors write them.
    """
    left = traces(STACK)
    with stack_file(STACK, settings) as file:
        file.write_bytes((before + file.read_text().replace("\n", line_end)).encode())
        done = rehearse("up", *arguments, stack=STACK)
        assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
        again = rehearse("up", *arguments, stack=STACK)
        assert again.returncode == 0, f"{again.stdout}\n{again.stderr}"
        changed = [line for line in again.stdout.splitlines() if line.startswith(("created", "updated", "replaced"))]
        assert changed == []
        yield outputs_of(STACK)
    assert traces(STACK) == left


@pytest.mark.slow
def test_a_hardened_server_and_a_key_with_a_passphrase(
    vllm: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Few connections and one session at a time, sudo on a pty, fish, and a name from a directory service.

    On the side of the engineer the locale C, and a stack's file from Windows.
    """
    installed("fish", "fish")
    installed("sudo", "sudo")
    for name, value in {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}.items():
        monkeypatch.setenv(name, value)
    limits = f"MaxStartups 2:50:4\nMaxSessions 1\n{QUIET}"
    rules = "Defaults use_pty, log_output\nJohn.Doe ALL=(ALL) NOPASSWD: ALL\n"
    (tmp_path / "passphrase").write_text(PASSPHRASE)
    with (
        local_sshd.running(limits) as server,
        local_sshd.user("John.Doe", sudo=rules, groups=("docker",), login_shell="/usr/bin/fish") as user,
    ):
        key = server.directory / "encrypted"
        key.write_bytes(server.private_key.read_bytes())
        key.chmod(0o600)
        subprocess.run(["ssh-keygen", "-q", "-p", "-a", "1", "-N", PASSPHRASE, "-f", key], check=True)
        settings = settings_of(server, tmp_path / "models", vllm) | {"sshUser": user, "sshPrivateKeyPath": str(key)}
        secret = ("--set-file", f"sshPrivateKeyPassword={tmp_path / 'passphrase'}")
        with brought_up(settings, *secret, before="\ufeff", line_end="\r\n"):
            command = [str(ROOT / "scripts" / "elastic-vllm"), "diagnose", "--rehearsal", "--stack", STACK]
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            assert "socket " in done.stdout, f"{done.stdout}\n{done.stderr}"
            assert PASSPHRASE not in done.stdout


@pytest.mark.slow
def test_a_server_with_ipv6_and_a_key_in_an_agent(vllm: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its port is on IPv4 and IPv6, and its certificate is for the IPv6 address."""
    agent = tmp_path / "agent"
    with (
        local_sshd.running(UNLIMITED + QUIET) as server,
        subprocess.Popen(["ssh-agent", "-a", agent, "cat"], stdin=subprocess.PIPE),
    ):
        while not agent.exists():
            time.sleep(0.01)
        monkeypatch.setenv("SSH_AUTH_SOCK", str(agent))
        subprocess.run(["ssh-add", "-q", server.private_key], check=True)
        settings = settings_of(server, tmp_path / "models", vllm)
        settings |= {"host": "::1", "sshAgent": True, "sshPrivateKeyPath": ""}
        with brought_up(settings) as outputs:
            port = settings["httpsPort"]
            assert outputs["connectorUrl"] == f"https://[::1]:{port}/v1/chat/completions"
            headers = {"Authorization": f"Bearer {outputs['connectorApiKey']}"}
            trusted = ssl.create_default_context(cadata=outputs["caCertificate"])
            with httpx2.Client(verify=trusted, trust_env=False) as client:
                assert client.get(f"https://[::1]:{port}/v1/models", headers=headers).status_code == 200
            with httpx2.Client(verify=False, trust_env=False) as client:
                assert client.get(f"https://127.0.0.1:{port}/v1/models", headers=headers).status_code == 200
            container = docker.from_env().containers.get(f"elastic-vllm-{STACK}-nginx")
            (bindings,) = container.attrs["NetworkSettings"]["Ports"].values()
            assert {binding["HostIp"] for binding in bindings} == {"0.0.0.0", "::"}  # noqa: S104
            done = subprocess.run(
                [str(ROOT / "scripts" / "elastic-vllm"), "diagnose", "--rehearsal", "--stack", STACK],
                capture_output=True,
                text=True,
                check=False,
                env=dict(os.environ),
            )
            assert "name ::1 verified" in done.stdout, f"{done.stdout}\n{done.stderr}"


@pytest.mark.slow
def test_a_server_far_away_that_lets_few_connections_in(vllm: str, tmp_path: Path) -> None:
    """Each connection takes longer to be let in, so more of them wait at once."""
    with (
        local_sshd.running(f"MaxStartups 2:50:4\nMaxSessions 1\n{QUIET}") as server,
        far_away.relay(server.port, ROUND_TRIP) as port,
    ):
        began = time.monotonic()
        subprocess.run(["ssh-keyscan", "-p", str(port), "-t", "ed25519", "127.0.0.1"], capture_output=True, check=True)
        assert time.monotonic() - began > 2 * ROUND_TRIP  # the relay is really slow
        with brought_up(settings_of(server, tmp_path / "models", vllm) | {"sshPort": port}):
            pass

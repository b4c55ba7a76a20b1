"""Every script of a stack with GPUs, on a bare server whose outgoing packets all end in a trap: none calls out.

Server and bundle both lack everything that the scripts need, so the scripts fail, and their last resort would be the
network.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.support import empty_bundle, netns_hosts
from tests.support.netns_hosts import Hosts
from tests.support.packet_trap import Trap
from tests.support.program import GPU, Program, configuration, run

pytestmark = pytest.mark.usefixtures("machine")

SECONDS = 5
"""Limit for a script that retries: this much of it is enough."""


@pytest.fixture(scope="module")
def hosts() -> Iterator[Hosts]:
    with netns_hosts.running() as both:
        yield both


@pytest.fixture
def trap(hosts: Hosts) -> Iterator[Trap]:
    with hosts.trapped() as trap:
        yield trap


def program(hosts: Hosts, stack: str | None, settings: dict[str, Any]) -> Program:
    reached = {**hosts.settings, "sshUser": "root"}
    return run(configuration(stack, {**settings, **reached}), stack=stack or "gpu")


def scripts(made: Program) -> dict[str, str]:
    """Map each resource to the standard input of bash on the server, data included."""
    remote = {command.name: f"{{\n{command.script}\nexit\n}}\n{command.data}" for command in made.commands}
    local = made.of_type("command:local:Command")
    orders = {command.name: json.loads(command.inputs["stdin"]) for command in local if command.inputs.get("stdin")}
    return remote | {name: f"{order['script']}\n" for name, order in orders.items()}


@dataclass(frozen=True)
class Outcome:
    """Output of a script, and packets that the trap saw meanwhile."""

    output: str
    seen: list[str]


def run_there(hosts: Hosts, trap: Trap, script: str) -> Outcome:
    output = hosts.server.attempt("timeout", str(SECONDS), "bash", "-s", data=script)[1]
    return Outcome(output, trap.seen())


def test_with_a_bundle_no_script_calls_out(hosts: Hosts, trap: Trap, tmp_path: Path) -> None:
    bundle = empty_bundle.write(tmp_path, empty_bundle.parts())
    settings = {"bundle": str(bundle), "bundleKey": str(bundle / "signer.pub")}
    of = scripts(program(hosts, "airgap", settings))
    assert {"runtime-docker", "gpus-install", "bundle-weights", "bundle-packages", "nginx-config"} <= set(of)
    outcomes = {name: run_there(hosts, trap, script) for name, script in of.items()}
    assert {name: each.seen for name, each in outcomes.items() if each.seen} == {}
    assert "missing here: nvidia-container-toolkit" in outcomes["runtime-docker"].output
    assert "; the bundle has no packages" in outcomes["runtime-docker"].output


@pytest.mark.parametrize("name", ["runtime-docker", "weights-download"])
def test_without_a_bundle_the_same_script_calls_out(hosts: Hosts, trap: Trap, name: str) -> None:
    assert run_there(hosts, trap, scripts(program(hosts, None, GPU))[name]).seen

"""NVIDIA's DCGM exporter: only if asked for, and reachable only from the server itself."""

from collections.abc import Callable

import pytest

from components.elastic.agent import DCGM_PORT
from components.settings.stack import Settings
from tests.support.program import Program
from tests.unit.conftest import found

IMAGE = f"nvcr.io/nvidia/k8s/dcgm-exporter:4.5.0@sha256:{'c' * 64}"


@pytest.fixture
def program(program_of: Callable[..., Program]) -> Program:
    return program_of("gpu", dcgmImage=IMAGE)


def test_it_listens_on_loopback_alone(program: Program) -> None:
    inputs = program.resources["dcgm-container"].inputs
    assert f"DCGM_EXPORTER_LISTEN=127.0.0.1:{DCGM_PORT}" in inputs["envs"]
    assert not inputs.get("ports")


def test_it_is_confined(program: Program) -> None:
    inputs = program.resources["dcgm-container"].inputs
    assert (inputs["readOnly"], inputs["capabilities"], inputs["securityOpts"], inputs["memory"]) == (
        True,
        {"drops": ["ALL"]},
        ["no-new-privileges:true"],
        512,
    )
    assert {"max-size", "max-file"} <= set(inputs["logOpts"])


def test_it_waits_for_the_gpus(program: Program) -> None:
    assert {"gpus-proof", "runtime-dcgm-image"} <= program.waits_for("dcgm-container")


def test_the_agent_reads_it(program: Program, program_of: Callable[..., Program]) -> None:
    address = f"http://127.0.0.1:{DCGM_PORT}"
    assert address in program.outputs["elasticAgentPolicy"]
    assert address not in program_of("gpu").outputs["elasticAgentPolicy"]


def test_without_gpus_there_is_nothing_for_it_to_see(settle: Callable[..., Settings]) -> None:
    (problem,) = found(lambda: settle("local", {"dcgmImage": IMAGE}))
    assert problem.startswith("dcgmImage")
    assert "there are no GPUs" in problem

"""What unit tests share: the values of stacks, with SSH keys that exist, and what the program makes of them."""

import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.unit.program import GPU, HOST_KEY, STACKS, Program, configuration, run

BASES = [*STACKS, "gpu"]
"""Where tests start from: each stack file, and a server with GPUs."""


@pytest.fixture(scope="session")
def private_key(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("ssh") / "id_ed25519"
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", path], check=True)
    return path


@pytest.fixture(scope="session")
def values_of(private_key: Path) -> Callable[..., dict[str, str]]:
    """The values of a base, some of them replaced."""

    def values(base: str, **overrides: Any) -> dict[str, str]:
        keys = {"sshPrivateKeyPath": str(private_key), "sshHostKey": HOST_KEY}
        if base == "gpu":
            return configuration(None, GPU | keys | overrides)
        return configuration(base, keys | overrides)

    return values


@pytest.fixture(scope="session")
def program_of(values_of: Callable[..., dict[str, str]]) -> Callable[..., Program]:
    """What the program makes of a base, some values replaced. Each combination is run once."""
    known: dict[tuple[Any, ...], Program] = {}

    def program(base: str, **overrides: Any) -> Program:
        values = values_of(base, **overrides)
        combination = (base, *sorted(values.items()))
        if combination not in known:
            known[combination] = run(values, stack=base)
        return known[combination]

    return program


@pytest.fixture(params=BASES)
def program(request: pytest.FixtureRequest, program_of: Callable[..., Program]) -> Program:
    """Each base in turn."""
    return program_of(request.param)

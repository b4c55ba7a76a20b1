"""Docker from the distribution's packages, whose client may be a package of its own."""

from pathlib import Path

import pytest

from components import render
from tests.support.gpu_machine import Machine, succeeded
from tests.support.shell import Result


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    """A server with neither Docker nor systemd; each package brings the programs of its directory."""
    machine = Machine(tmp_path)
    (machine.bin / "docker").unlink()
    for name in ("curl", "nft"):
        if not (machine.bin / name).exists():
            machine.stand_in(name)
    machine.stand_in(
        "apt-get",
        f'for name in "$@"; do [ ! -d {tmp_path}/"$name" ] || /bin/cp {tmp_path}/"$name"/* {machine.bin}/; done',
    )
    return machine


def install(machine: Machine) -> Result:
    script = render.script("containers/install-runtime.sh", engine="docker", login="root", socket="/nonexistent")
    return machine.run(script.replace("/run/systemd/system", "/nonexistent"))


def installed(machine: Machine) -> list[str]:
    return [call.split(" install ")[-1] for call in machine.calls("apt-get") if " install " in call]


@pytest.mark.parametrize(
    ("client", "packages"), [("docker.io", ["docker.io"]), ("docker-cli", ["docker.io", "docker-cli"])]
)
def test_the_client_comes_with_docker_or_after_it(client: str, packages: list[str], machine: Machine) -> None:
    machine.stand_in("docker", "echo 26.1.5", directory=client)
    assert succeeded(install(machine), "docker 26.1.5 works")
    assert installed(machine) == packages

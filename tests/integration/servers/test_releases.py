"""Other releases of Debian and Ubuntu, with their own Docker, sshd and systemd: the stack comes up and stays so."""

from collections.abc import Iterator

import pytest

from tests.integration.servers.test_docker import DEFAULTS, FINE, NEWER_DEFAULTS, comes_up_and_stays
from tests.support import docker_server
from tests.support.docker_server import Server
from tests.support.netns_hosts import SERVER

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("machine")]

DOCKER = {"debian 13": "26.1", "ubuntu 22.04": "29.1", "ubuntu 24.04": "29.1"}
"""Release -> the version of Docker that its packages have."""
CONTAINERD = "driver-type io.containerd.snapshotter.v1"
"""Description of Docker 29's storage by itself: images are in containerd's directory."""
CONFIGURED: dict[str, tuple[dict[str, object], bool]] = {
    **{name: each for name, each in FINE.items() if each[0] is not DEFAULTS},
    "defaults of logs, limits, networks and more": (NEWER_DEFAULTS, False),
    "containerd's image store": ({"features": {"containerd-snapshotter": True}}, True),
    "no containerd's image store": ({"features": {"containerd-snapshotter": False}}, True),
}


@pytest.fixture(scope="module", params=DOCKER)
def server(request: pytest.FixtureRequest) -> Iterator[tuple[str, Server]]:
    """The release's name and a server of it."""
    with docker_server.running(of=request.param) as server:
        yield request.param, server


def test_its_docker_is_the_releases_own(server: tuple[str, Server]) -> None:
    """Otherwise the other tests would show nothing new."""
    release, host = server
    version, storage = host.shell("docker info --format '{{.ServerVersion}} {{.DriverStatus}}'").split(" ", 1)
    assert version.startswith(DOCKER[release])
    assert (CONTAINERD in storage) == (DOCKER[release] == "29.1")


@pytest.mark.parametrize("name", CONFIGURED)
def test_a_second_and_third_update_change_nothing(name: str, server: tuple[str, Server]) -> None:
    comes_up_and_stays(server[1], *CONFIGURED[name])


def test_nginx_opens_no_connection_after_a_flush_and_a_restart_of_docker(server: tuple[str, Server]) -> None:
    host = server[1]
    host.configure_docker({}, load=True)
    host.up()
    host.shell("nft flush ruleset; systemctl restart docker")
    host.wait_for_nginx()
    assert host.opened_by_nginx(f"{SERVER}:22") == set()
    host.down()

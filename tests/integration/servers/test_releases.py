"""Other releases of Debian and Ubuntu, with their own Docker, sshd and systemd: the stack comes up and stays so."""

import json

import pytest

from tests.integration.servers.test_docker import DEFAULTS, NEWER_DEFAULTS, UNCHANGED
from tests.support import docker_server
from tests.support.docker_server import PREFIX
from tests.support.netns_hosts import SERVER

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("machine")]

DOCKER = {"debian 11": "20.10", "debian 13": "26.1", "ubuntu 22.04": "29.1", "ubuntu 24.04": "29.1"}
"""Release -> the version of Docker that its packages have."""
CONTAINERD = '[["driver-type","io.containerd.snapshotter.v1"]]'
"""Description of Docker 29's storage by itself: images are in containerd's directory."""


@pytest.mark.parametrize("release", DOCKER)
def test_the_stack_comes_up_and_keeps_its_promises(release: str) -> None:
    with docker_server.running(of=release) as server:
        version, status = server.shell("docker info --format '{{.ServerVersion}} {{json .DriverStatus}}'").split(" ", 1)
        assert version.startswith(DOCKER[release])
        newer = DOCKER[release] != "20.10"
        assert (status.strip() == CONTAINERD) == (DOCKER[release] == "29.1")
        server.configure_docker(NEWER_DEFAULTS if newer else DEFAULTS)
        server.up()
        assert set(server.up().values()) == UNCHANGED
        assert set(server.up().values()) == UNCHANGED
        assert "all " in server.verify()
        network = json.loads(server.shell(f"docker network inspect {PREFIX}-edge"))[0]
        assert (network["Options"].get("com.docker.network.driver.mtu") == "1400") == newer
        server.shell("nft flush ruleset; systemctl restart docker")
        server.wait_for_nginx()
        assert server.opened_by_nginx(f"{SERVER}:22") == set()
        server.down()

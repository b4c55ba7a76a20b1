"""Docker as people configure it: an update changes nothing where nothing changed, or the first check refuses it.

Each configuration with Debian's own Docker. Kinds of Docker that Debian does not have are in
unit/components/containers/test_check_engine.py, by recorded answers.
"""

from collections.abc import Iterator, Mapping

import pytest

from tests.support.docker_server import Server

pytestmark = pytest.mark.slow

UNCHANGED = {"unchanged"}
DEFAULTS = {
    "log-opts": {"compress": "true", "labels": "team", "max-size": "1g"},
    "default-ulimits": {
        "memlock": {"Name": "memlock", "Hard": 1048576, "Soft": 1048576},
        "nofile": {"Name": "nofile", "Hard": 4096, "Soft": 1024},
        "core": {"Name": "core", "Hard": 0, "Soft": 0},
    },
    "default-shm-size": "128M",
    "default-ipc-mode": "shareable",
    "init": True,
    "no-new-privileges": True,
    "icc": False,
    "live-restore": True,
    "default-address-pools": [{"base": "10.213.0.0/16", "size": 24}],
    "dns": ["192.0.2.53"],
    "dns-search": ["corp.example"],
}
NEWER_DEFAULTS = DEFAULTS | {"default-network-opts": {"bridge": {"com.docker.network.driver.mtu": "1400"}}}
"""The same and what Docker 24 and newer know."""
FINE: dict[str, tuple[dict[str, object], bool]] = {
    "defaults of logs, limits and more": (DEFAULTS, False),
    "no userland proxy": ({"userland-proxy": False}, False),
    "no iptables": ({"iptables": False}, False),
    "no bridge": ({"bridge": "none"}, False),
    "another log driver": ({"log-driver": "journald"}, False),
    "another data-root": ({"data-root": "/var/lib/elsewhere"}, True),
    "userns-remap": ({"userns-remap": "default"}, True),
}


@pytest.fixture(scope="module", autouse=True)
def as_before(bare: Server) -> Iterator[None]:
    yield
    bare.configure_docker({})
    bare.down()


@pytest.mark.parametrize("name", FINE)
def test_a_second_and_third_update_change_nothing(name: str, bare: Server) -> None:
    comes_up_and_stays(bare, *FINE[name])


def comes_up_and_stays(server: Server, daemon: Mapping[str, object], elsewhere: bool) -> None:
    """Bring the stack up with this daemon.json, update it twice, and take it down."""
    server.configure_docker(daemon, load=elsewhere)
    server.up()
    assert set(server.up().values()) == UNCHANGED
    assert set(server.up().values()) == UNCHANGED
    assert "all " in server.verify()
    server.down()


def test_the_daemons_defaults_are_really_there(bare: Server) -> None:
    """Otherwise the test above would show nothing."""
    bare.configure_docker(DEFAULTS)
    bare.up()
    for role in ("vllm", "nginx"):
        host = bare.inspect(role)["HostConfig"]
        assert host["LogConfig"]["Config"]["compress"] == "true"
        assert {each["Name"] for each in host["Ulimits"]} == {"memlock", "nofile", "core", "nproc"}
    bare.down()


REFUSED = {
    "DOCKER_HOST": (
        "echo DOCKER_HOST=tcp://192.0.2.1:2375 >>/etc/environment",
        "sed -i /DOCKER_HOST/d /etc/environment",
        ["DOCKER_HOST", "/etc/environment"],
    ),
    "a remote context": (
        "docker context create build --docker host=ssh://ops@192.0.2.1 && docker context use build",
        "docker context use default && docker context rm build",
        ["talks to ssh://ops@192.0.2.1", "docker context use default"],
    ),
    "podman-docker": (
        "printf '#!/bin/sh\\necho podman version 4.3.1\\n' >/usr/local/bin/docker && chmod 755 /usr/local/bin/docker",
        "rm /usr/local/bin/docker",
        ["docker on this server is Podman", "set containerRuntime to podman"],
    ),
    "nothing that publishes ports": (
        'echo \'{"iptables": false, "userland-proxy": false}\' >/etc/docker/daemon.json; systemctl restart docker',
        "rm /etc/docker/daemon.json; systemctl restart docker",
        ["Docker publishes no port", "set one of them to true"],
    ),
    "no forwarding": (
        "echo '{\"ip-forward\": false}' >/etc/docker/daemon.json; systemctl restart docker; "
        "echo 0 >/proc/sys/net/ipv4/ip_forward",
        "rm /etc/docker/daemon.json; systemctl restart docker",
        ["forwards nothing to containers", "net.ipv4.ip_forward"],
    ),
    "stopped": (
        "systemctl stop docker.socket docker.service",
        "systemctl start docker",
        ["Docker is installed but does not answer", "systemctl start docker"],
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_run_the_stack_is_refused_before_anything_changes(name: str, bare: Server) -> None:
    break_it, mend_it, words = REFUSED[name]
    bare.shell(f"rm -f /etc/docker/daemon.json; {break_it}")
    try:
        before = bare.snapshot()
        output = bare.refused()
        assert [word for word in words if word not in output] == []
        assert bare.snapshot() == before
    finally:
        bare.shell(f"systemctl reset-failed docker; {mend_it}")

"""Nginx opens no connection, whatever flushes the server's rules, and an update puts back what somebody took away."""

import json
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from tests.support.docker_server import PREFIX, Server
from tests.support.netns_hosts import SERVER
from tests.support.netns_machine import wait_until

pytestmark = pytest.mark.slow  # in short, on this machine: test_isolation.py

HOSTS_TABLE = f"inet {PREFIX.replace('-', '_')}"
SERVICE = f"{PREFIX}-egress"
IN_CONTAINER = f"nsenter --net --target $(docker inspect --format '{{{{.State.Pid}}}}' {PREFIX}-nginx)"
PORT = 9999
TARGETS = (f"{SERVER}:{PORT}", f"172.17.0.1:{PORT}")
"""The server itself, which a container can reach by any of its addresses."""
FIREWALLD = "/etc/firewalld/firewalld.conf"
NFTABLES, IPTABLES = "FirewallBackend=nftables", "FirewallBackend=iptables"
LISTEN = f"import socket, time; server = socket.create_server(('', {PORT})); time.sleep(9999)"


def listen(server: Server) -> None:
    """Have the server answer on TARGETS."""
    server.shell(f'systemd-run --quiet --unit=listener python3 -c "{LISTEN}"')


@pytest.fixture(scope="module", autouse=True)
def listener(server: Server) -> None:
    listen(server)


@pytest.fixture(autouse=True)
def in_place(server: Server) -> Iterator[None]:
    """Both walls stand before each test, and the service that keeps them runs after it."""
    server.shell(f"systemctl start {SERVICE}")
    wait_until(lambda: hosts_table(server) and containers_table(server), 10)
    yield
    server.shell(f"systemctl start {SERVICE}")


def hosts_table(server: Server) -> bool:
    return server.hosts.server.attempt("bash", "-c", f"nft list table {HOSTS_TABLE}")[0] == 0


def containers_table(server: Server) -> bool:
    return server.hosts.server.attempt("bash", "-c", f"{IN_CONTAINER} nft list table {HOSTS_TABLE}")[0] == 0


@contextmanager
def without_keeper(server: Server) -> Iterator[None]:
    """The service does not run: one wall can be looked at by itself."""
    server.shell(f"systemctl stop {SERVICE}")
    yield
    server.shell(f"systemctl start {SERVICE}")


def test_nginx_opens_no_connection(server: Server) -> None:
    assert server.opened_by_nginx(*TARGETS) == set()
    with without_keeper(server):
        server.shell(f"nft delete table {HOSTS_TABLE}; {IN_CONTAINER} nft delete table {HOSTS_TABLE}")
        assert server.opened_by_nginx(*TARGETS) == {*TARGETS}


def test_either_wall_is_enough(server: Server) -> None:
    with without_keeper(server):
        server.shell(f"nft delete table {HOSTS_TABLE}")
        assert server.opened_by_nginx(*TARGETS) == set()
        server.shell(f"systemctl restart {SERVICE}; systemctl stop {SERVICE}")
        wait_until(lambda: hosts_table(server), 10)
        server.shell(f"{IN_CONTAINER} nft delete table {HOSTS_TABLE}")
        assert server.opened_by_nginx(*TARGETS) == set()


def test_no_packet_that_would_begin_anything_leaves_the_container(server: Server) -> None:
    """Neither TCP nor UDP, as seen on the server in front of its own wall."""
    attempts = "echo x >/dev/udp/172.17.0.1/53; timeout 1 bash -c 'echo x >/dev/tcp/172.17.0.1/443'; true"
    bridge = server.shell(f"docker network inspect --format '{{{{json .Options}}}}' {PREFIX}-edge")
    interface = json.loads(bridge)["com.docker.network.bridge.name"]
    chain = f'type filter hook prerouting priority -150; policy accept; iifname "{interface}" ct state new counter'
    server.shell(f"nft -f - <<<'table inet probe {{\nchain begun {{\n{chain}\n}}\n}}'")
    try:
        server.hosts.server.run("docker", "exec", f"{PREFIX}-nginx", "bash", "-c", attempts)
        assert "packets 0 " in server.shell("nft list table inet probe")
        server.shell(f"systemctl stop {SERVICE}; {IN_CONTAINER} nft delete table {HOSTS_TABLE}")
        server.hosts.server.run("docker", "exec", f"{PREFIX}-nginx", "bash", "-c", attempts)
        assert "packets 0 " not in server.shell("nft list table inet probe")
    finally:
        server.shell("nft delete table inet probe")


@pytest.mark.parametrize(
    "flush",
    [
        "nft flush ruleset",
        f"nft delete table {HOSTS_TABLE}",
        f"nft flush table {HOSTS_TABLE}",
        "systemctl restart nftables",
        "systemctl start nftables && systemctl reload nftables",
        "systemctl stop nftables",
        "ufw --force enable",
        "ufw reload",
        "ufw --force reset; ufw disable",
        "systemctl start firewalld",
        "firewall-cmd --quiet --reload",
        "firewall-cmd --quiet --complete-reload",
        "systemctl stop firewalld",
        f"sed -i 's/{NFTABLES}/{IPTABLES}/' {FIREWALLD}; systemctl restart firewalld; firewall-cmd --quiet --reload; "
        f"systemctl stop firewalld; sed -i 's/{IPTABLES}/{NFTABLES}/' {FIREWALLD}",
        "iptables -F; iptables -X; iptables -t nat -F",
        "iptables-legacy -P FORWARD ACCEPT; iptables-legacy -A INPUT -j ACCEPT; iptables-legacy -F",
        "systemctl restart docker",
        f"systemctl restart docker && docker restart {PREFIX}-nginx",
        f"docker kill {PREFIX}-nginx && docker start {PREFIX}-nginx",
    ],
)
def test_nginx_opens_no_connection_after(flush: str, server: Server) -> None:
    """Without an `up` in between; a moment later both walls stand again."""
    server.shell(flush)
    wait_until(lambda: server.inspect("nginx")["State"]["Running"], 30)
    assert server.opened_by_nginx(*TARGETS) == set()
    wait_until(lambda: hosts_table(server) and containers_table(server), 10)
    assert server.opened_by_nginx(*TARGETS) == set()


@pytest.mark.parametrize("seconds", [0, 0.05, 0.1, 0.15, 0.2, 0.3, 0.5])
def test_a_flush_while_the_service_starts_is_seen(seconds: float, server: Server) -> None:
    server.shell(f"systemctl restart {SERVICE}; sleep {seconds}; nft flush ruleset")
    wait_until(lambda: hosts_table(server) and containers_table(server), 10)


def test_firewalld_flushes_what_it_finds_with_nftables(server: Server) -> None:
    """As Debian ships it; otherwise the tests above would show less."""
    settings = server.shell(f"cat {FIREWALLD}").splitlines()
    assert NFTABLES in settings
    assert "FlushAllOnReload=no" not in settings


def test_nginx_opens_no_connection_with_docker_on_legacy_iptables(server: Server) -> None:
    """Beside the walls' own nftables: both kinds of rules are in the kernel at once."""
    restart = "systemctl reset-failed docker; systemctl restart docker"  # more often than systemd lets pass
    server.shell(f"update-alternatives --set iptables /usr/sbin/iptables-legacy; {restart}")
    try:
        server.wait_for_nginx()
        assert "DOCKER" in server.shell("iptables-legacy --list-rules")
        assert server.opened_by_nginx(*TARGETS) == set()
        server.shell("iptables-legacy -F; iptables-legacy -t nat -F; nft flush ruleset")
        assert server.opened_by_nginx(*TARGETS) == set()
        wait_until(lambda: hosts_table(server) and containers_table(server), 10)
    finally:
        server.shell(
            "iptables-legacy -F; iptables-legacy -X; iptables-legacy -t nat -F; iptables-legacy -t nat -X; "
            f"update-alternatives --auto iptables; {restart}"
        )
        server.wait_for_nginx()


def test_nginx_opens_no_connection_after_a_reboot(server: Server) -> None:
    server.hosts.reboot()
    server.wait_for_nginx()
    wait_until(lambda: hosts_table(server) and containers_table(server), 10)
    listen(server)
    assert server.opened_by_nginx(*TARGETS) == set()


def test_the_service_is_well_formed_and_starts_before_docker(server: Server) -> None:
    assert server.shell(f"systemd-analyze verify /etc/systemd/system/{SERVICE}.service 2>&1") == ""
    assert "docker.service" in server.shell(f"systemctl show --property Before --value {SERVICE}")
    assert server.shell(f"systemctl is-enabled {SERVICE}") == "enabled\n"


@pytest.mark.parametrize(
    "damage",
    [
        f"nft delete table {HOSTS_TABLE}",
        f"nft flush table {HOSTS_TABLE}",
        f"{IN_CONTAINER} nft delete table {HOSTS_TABLE}",
        f"nft delete table {HOSTS_TABLE}; {IN_CONTAINER} nft flush ruleset",
        f"rm /etc/elastic-vllm/{SERVICE}.inside",
        "rm -r /etc/elastic-vllm",
        f"systemctl disable {SERVICE}; rm /etc/systemd/system/{SERVICE}.service; systemctl daemon-reload",
    ],
)
def test_an_update_sees_what_is_missing_and_puts_it_back(damage: str, server: Server) -> None:
    server.shell(f"systemctl stop {SERVICE}; {damage}")
    found = server.up()
    assert {name for name, outcome in found.items() if outcome != "unchanged"} == {"nginx-packet-filter"}
    assert found["nginx-packet-filter"] == "updated"
    assert server.opened_by_nginx(*TARGETS) == set()
    assert hosts_table(server)
    assert containers_table(server)
    assert set(server.up().values()) == {"unchanged"}


def test_a_stream_survives_that_the_wall_in_the_container_is_set_again(server: Server) -> None:
    with server.stream(tokens=200) as answer, without_keeper(server):
        server.shell(f"{IN_CONTAINER} nft flush ruleset")
        server.shell(f"systemctl start {SERVICE}")
        wait_until(lambda: containers_table(server), 10)
    assert answer()[-1] == "data: [DONE]"

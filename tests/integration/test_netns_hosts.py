"""The two machines of the air-gap tests are isolated as documented, and the trap sees every leak."""

import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support import netns_hosts, netns_server
from tests.support.netns_hosts import Hosts
from tests.support.netns_machine import wait_until
from tests.support.packet_trap import Trap

pytestmark = pytest.mark.usefixtures("machine")

CALL_OUT = "exec 3<>/dev/tcp/192.0.2.1/443"
LEAKS = {
    "a name": "getent hosts example.com",
    "TCP": CALL_OUT,
    "UDP": "echo >/dev/udp/192.0.2.1/123",
    "IPv6": "exec 3<>/dev/tcp/2001:db8::1/443",
}


@pytest.fixture(scope="module")
def hosts() -> Iterator[Hosts]:
    with netns_hosts.running() as both:
        yield both


@pytest.fixture
def trap(hosts: Hosts) -> Iterator[Trap]:
    with hosts.trapped() as trap:
        yield trap


def test_there_is_no_way_out(hosts: Hosts) -> None:
    for machine in (hosts.control, hosts.server):
        assert "default" not in machine.run("ip", "route") + machine.run("ip", "-6", "route")
        for leak in LEAKS.values():
            assert machine.attempt("bash", "-c", leak)[0] != 0
        assert "unreachable" in machine.attempt("bash", "-c", CALL_OUT)[1]
    assert hosts.control.run(*hosts.ssh, "hostname") == "server\n"


def test_the_server_is_a_separate_machine(hosts: Hosts) -> None:
    name = Path("/proc/sys/kernel/hostname").read_text()
    hosts.server.shell("hostname other; touch /etc/only-there")
    assert Path("/proc/sys/kernel/hostname").read_text() == name
    assert not Path("/etc/only-there").exists()
    assert hosts.server.run("ps", "-o", "comm=", "-p", "1") == "systemd\n"
    assert hosts.server.run("systemctl", "list-units", "--failed", "--no-legend") == ""
    assert "dockerd" not in hosts.server.run("ps", "-eo", "comm=")
    assert hosts.server.attempt("sh", "-c", "command -v docker || command -v podman || command -v curl")[0] != 0


def test_the_programs_machine_has_no_docker_and_no_other_rehearsals(hosts: Hosts) -> None:
    assert hosts.control.attempt("docker", "version")[0] != 0
    assert hosts.control.run("ls", "-A", "/var/lib/elastic-vllm-rehearsal") == ""


def test_nothing_goes_to_the_trap_by_itself(hosts: Hosts, trap: Trap) -> None:
    hosts.control.run(*hosts.ssh, "true")
    time.sleep(2)
    assert trap.seen() == []


@pytest.mark.parametrize("leak", LEAKS)
@pytest.mark.parametrize("machine", ["control", "server"])
def test_the_trap_sees_a_machine_that_calls_out(hosts: Hosts, trap: Trap, machine: str, leak: str) -> None:
    space = hosts.control if machine == "control" else hosts.server
    space.attempt("bash", "-c", LEAKS[leak])
    seen = trap.seen()
    assert seen
    assert {line.partition(":")[0] for line in seen} == {machine}
    assert trap.seen() == []


def test_a_reboot_keeps_files_and_ends_processes(hosts: Hosts, trap: Trap) -> None:
    hosts.server.shell("echo kept | tee /var/lib/kept >/etc/kept; sleep 999 >/dev/null 2>&1 & touch /run/gone")
    hosts.reboot()
    assert hosts.server.run("cat", "/var/lib/kept", "/etc/kept") == "kept\nkept\n"
    assert hosts.server.attempt("pgrep", "sleep")[0] == 1
    assert hosts.server.attempt("ls", "/run/gone")[0] != 0
    hosts.server.attempt("bash", "-c", CALL_OUT)
    assert trap.seen() == ["server: TCP 203.0.113.6 > 192.0.2.1 port 443"]


def test_nothing_of_the_machines_remains() -> None:
    with netns_hosts.running() as hosts:
        processes = [Path(f"/proc/{machine.pid}") for machine in (hosts.control, hosts.server)]
        directory = hosts.directory
        group = hosts._boot.name
        assert list(netns_server.CGROUPS.glob(f"**/{group}"))
    assert not directory.exists()
    assert not list(netns_server.CGROUPS.glob(f"*/{group}"))
    wait_until(lambda: not any(path.exists() for path in processes), 10)

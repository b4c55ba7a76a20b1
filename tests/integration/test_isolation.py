"""Reach of the containers, and access to vLLM: tried from inside, each time with proof that the attempt works."""

import json
import socket
import stat
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

import pytest
import yaml
from docker.models.containers import Container

from components.serving.vllm_process import NGINX_UID, SOCKET_GID, VLLM_UID
from tests.integration.conftest import PREFIX, ROOT, STACK, VLLM_SOCKET, Deployment, rehearse_up, tcp_listeners
from tests.support import packet_filters
from tests.support.netns_machine import outcomes
from tests.support.packet_filters import Wall

METADATA = "169.254.169.254"
TRIES = 3

# Prints the arguments HOST:PORT that a TCP connection could be opened to. 0.9 s: a SYN is not sent twice.
OPEN_TCP = """
for target in "$@"; do
  timeout 0.9 bash -c "exec 3<>/dev/tcp/${target%:*}/${target##*:}" 2>/dev/null && echo "$target" &
done
wait"""
SEND_UDP = 'for target in "$@"; do printf probe >"/dev/udp/${target%:*}/${target##*:}"; done'

# The same in Python, for vLLM's image: the interfaces and routes, and the error of each attempt.
LOOK_AROUND = """
import errno, json, os, socket, sys
def attempt(target):
    host, _, port = target.rpartition(":")
    try:
        socket.create_connection((host, int(port)), 2).close()
    except OSError as error:
        return errno.errorcode.get(error.errno, str(error))
    return "connected"
def lookup(name):
    try:
        return socket.gethostbyname(name)
    except OSError:
        return "unknown"
print(json.dumps({
    "interfaces": os.listdir("/sys/class/net"),
    "routes": open("/proc/net/route").read().splitlines()[1:],
    "tcp": {target: attempt(target) for target in sys.argv[1].split()},
    "names": {name: lookup(name) for name in sys.argv[2].split()},
}))"""


class Listeners:
    """A TCP and a UDP listener on each address of the host that a container might reach."""

    def __init__(self, addresses: list[str], closing: ExitStack) -> None:
        self.tcp = [closing.enter_context(socket.create_server((address, 0))) for address in addresses]
        self.udp = [closing.enter_context(socket.socket(type=socket.SOCK_DGRAM)) for _ in addresses]
        for each, address in zip(self.udp, addresses, strict=True):
            each.bind((address, 0))
            each.settimeout(0.3)

    @property
    def tcp_targets(self) -> set[str]:
        return {target(each) for each in self.tcp}

    @property
    def udp_targets(self) -> set[str]:
        return {target(each) for each in self.udp}

    def udp_received(self) -> set[str]:
        """Return the targets that have received something since the last call."""
        received = set()
        for each in self.udp:
            try:
                each.recv(100)
            except TimeoutError:
                continue
            received.add(target(each))
        return received


def target(listener: socket.socket) -> str:
    host, port = listener.getsockname()
    return f"{host}:{port}"


def own_address() -> str:
    """Return the host's address on the interface of its default route."""
    with socket.socket(type=socket.SOCK_DGRAM) as probe:
        probe.connect(("192.0.2.1", 9))
        return str(probe.getsockname()[0])


@dataclass(frozen=True)
class Neighbour:
    """Another container on Docker's default network, with a web server."""

    server: str
    gateway: str
    """The host's address on that network."""


@pytest.fixture(scope="module")
def neighbour(deployed: Deployment) -> Iterator[Neighbour]:
    container = deployed.docker.containers.run(
        str(deployed.nginx.attrs["Image"]), ["nginx", "-g", "daemon off;"], detach=True, network="bridge"
    )
    try:
        container.reload()
        network = container.attrs["NetworkSettings"]["Networks"]["bridge"]
        end = time.monotonic() + 10
        while True:
            try:
                socket.create_connection((network["IPAddress"], 80), 1).close()
                break
            except OSError:
                assert time.monotonic() < end, "the neighbour's web server does not answer"
        yield Neighbour(f"{network['IPAddress']}:80", network["Gateway"])
    finally:
        container.remove(force=True)


@pytest.fixture(scope="module")
def listeners(deployed: Deployment, neighbour: Neighbour) -> Iterator[Listeners]:
    edge = deployed.nginx.attrs["NetworkSettings"]["Networks"][f"{PREFIX}-edge"]
    with ExitStack() as closing:
        yield Listeners([edge["Gateway"], neighbour.gateway, own_address()], closing)


# --- Nginx


def output_in(container: Container, command: list[str]) -> bytes:
    code, output = container.exec_run(command)
    assert isinstance(output, bytes)
    assert code == 0, output
    return output


def opened_by(container: Container, targets: set[str]) -> set[str]:
    return set(output_in(container, ["bash", "-c", OPEN_TCP, "probe", *targets]).decode().split())


def reached_by_nginx(deployed: Deployment, listeners: Listeners, beyond: set[str]) -> set[str]:
    """Return the targets that a process in Nginx's container reaches."""
    opened = opened_by(deployed.nginx, listeners.tcp_targets | beyond)
    deployed.nginx.exec_run(["bash", "-c", SEND_UDP, "probe", *listeners.udp_targets])
    return opened | listeners.udp_received()


def without(deployed: Deployment, *walls: Wall) -> AbstractContextManager[None]:
    return packet_filters.without(PREFIX, deployed.nginx.attrs["State"]["Pid"], *walls)


@pytest.mark.alone
def test_nginx_opens_no_connection(deployed: Deployment, listeners: Listeners, neighbour: Neighbour) -> None:
    """Either wall is enough, and nothing else is."""
    beyond = {neighbour.server, f"{METADATA}:80", "198.51.100.1:443"}
    on_host = listeners.tcp_targets | listeners.udp_targets
    assert reached_by_nginx(deployed, listeners, beyond) == set()
    with without(deployed, "host"):
        assert reached_by_nginx(deployed, listeners, beyond) == set()
    with without(deployed, "container"):
        for _ in range(TRIES):  # on a busy machine an attempt's time may be over before it begins
            before = packet_filters.dropped_by_host(PREFIX)
            assert reached_by_nginx(deployed, listeners, beyond) == set()
            dropped = packet_filters.dropped_by_host(PREFIX) - before
            if dropped >= len(on_host | beyond):
                break
        # Each of them left the container and was dropped.
        assert dropped >= len(on_host | beyond)
    with without(deployed, "container", "host"):
        assert reached_by_nginx(deployed, listeners, beyond) >= on_host
    assert reached_by_nginx(deployed, listeners, beyond) == set()


def test_an_update_puts_a_missing_wall_back(deployed: Deployment, listeners: Listeners) -> None:
    both: tuple[Wall, ...] = ("host", "container")
    for walls in (both[:1], both[1:], both):
        with without(deployed, *walls):
            changed = {name: outcome for name, outcome in outcomes(rehearse_up()).items() if outcome != "unchanged"}
            assert changed == {"nginx-packet-filter": "updated"}
            assert reached_by_nginx(deployed, listeners, set()) == set()
            for wall in walls:  # there again to be taken away
                with without(deployed, wall):
                    pass


@contextmanager
def name_server(address: str) -> Iterator[list[bytes]]:
    """Run a name server that answers 192.0.2.53 for every name, and yield the list of questions."""
    asked: list[bytes] = []
    with socket.socket(type=socket.SOCK_DGRAM) as server:
        server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        server.bind((address, 53))
        server.settimeout(0.1)
        done = threading.Event()

        def serve() -> None:
            while not done.is_set():
                try:
                    question, client = server.recvfrom(512)
                except TimeoutError:
                    continue
                asked.append(question)
                end = question.index(b"\0", 12) + 5
                counts = b"\x81\x80\0\x01\0\x01\0\0\0\0"
                answer = b"\xc0\x0c\0\x01\0\x01\0\0\0\x3c\0\x04" + socket.inet_aton("192.0.2.53")
                server.sendto(question[:2] + counts + question[12:end] + answer, client)

        thread = threading.Thread(target=serve)
        thread.start()
        try:
            yield asked
        finally:
            done.set()
            thread.join()


def test_nginx_resolves_no_name(deployed: Deployment, neighbour: Neighbour) -> None:
    ask = ["env", "RES_OPTIONS=timeout:1 attempts:1", "getent", "ahostsv4", "canary.example.com"]
    # Docker's resolver could ask on the container's behalf, from the host, which the filter does not cover.
    with name_server("127.0.0.1") as on_host, name_server(neighbour.gateway) as on_bridge:
        image = str(deployed.nginx.attrs["Image"])
        control = deployed.docker.containers.run(image, ask, dns=[neighbour.gateway], network="bridge", remove=True)
        assert (b"192.0.2.53" in control, len(on_bridge)) == (True, 1)
        code, output = deployed.nginx.exec_run(ask)
        assert (code, output, on_host, len(on_bridge)) == (2, b"", [], 1)


def test_nothing_shares_nginxs_network(deployed: Deployment) -> None:
    network = deployed.docker.networks.get(f"{PREFIX}-edge")
    assert [each.name for each in network.containers] == [f"{PREFIX}-nginx"]


# --- vLLM


def test_vllm_reaches_nothing(deployed: Deployment, listeners: Listeners, neighbour: Neighbour) -> None:
    nginx_address = deployed.nginx.attrs["NetworkSettings"]["Networks"][f"{PREFIX}-edge"]["IPAddress"]
    targets = {*listeners.tcp_targets, neighbour.server, f"{METADATA}:80", f"{nginx_address}:8443", "198.51.100.1:443"}
    names = ["example.com", "metadata.google.internal", f"{PREFIX}-nginx"]
    look = ["python3", "-c", LOOK_AROUND, " ".join(targets), " ".join(names)]
    assert json.loads(output_in(deployed.vllm, look)) == {
        "interfaces": ["lo"],
        "routes": [],
        "tcp": dict.fromkeys(targets, "ENETUNREACH"),
        "names": dict.fromkeys(names, "unknown"),
    }
    control = deployed.docker.containers.run(str(deployed.vllm.attrs["Image"]), look, network="bridge", remove=True)
    connected = {target for target, how in json.loads(control)["tcp"].items() if how == "connected"}
    assert connected >= {*listeners.tcp_targets, neighbour.server}


def test_vllm_can_be_reached_over_no_network(deployed: Deployment) -> None:
    settings = deployed.vllm.attrs["NetworkSettings"]
    assert (list(settings["Networks"]), settings["Ports"]) == (["none"], {})
    processes = [row[1] for row in deployed.vllm.top()["Processes"]]
    namespaces = {network_namespace(process) for process in processes}
    assert len(namespaces) == 1
    assert namespaces.isdisjoint({network_namespace("self"), network_namespace(deployed.nginx.attrs["State"]["Pid"])})


def network_namespace(process: int | str) -> Path:
    return Path(f"/proc/{process}/ns/net").readlink()


def test_vllms_socket_is_for_its_user_and_nginxs_group(deployed: Deployment) -> None:
    directory = VLLM_SOCKET.parent.stat()
    assert (stat.filemode(directory.st_mode), directory.st_uid, directory.st_gid) == (
        "drwxr-x---",
        VLLM_UID,
        SOCKET_GID,
    )
    assert [each.name for each in VLLM_SOCKET.parent.iterdir()] == [VLLM_SOCKET.name]


@pytest.mark.parametrize(
    ("user", "group", "answer"), [(NGINX_UID, SOCKET_GID, "200"), (NGINX_UID, NGINX_UID, "000"), (65534, 65534, "000")]
)
def test_vllm_answers_nginx_only(user: int, group: int, answer: str, deployed: Deployment) -> None:
    curl = ["curl", "-s", "-o", "/dev/null", "-w", "%{http_code}"]
    ask = [*curl, "--unix-socket", str(VLLM_SOCKET), "http://vllm/health"]
    done = subprocess.run(
        ask, user=user, group=group, extra_groups=[], cwd="/", capture_output=True, text=True, check=False
    )
    assert done.stdout == answer


# --- The host


def test_only_nginxs_port_is_open_on_the_host(first_up: set[int], deployed: Deployment) -> None:
    settings = yaml.safe_load((ROOT / "stacks" / f"Pulumi.{STACK}.yaml").read_text())["config"]
    rehearsals_sshd = settings["elastic-vllm:sshPort"]
    now, others = tcp_listeners(), others_ports(deployed)
    opened = first_up & now  # what else this machine does comes and goes
    assert opened - {rehearsals_sshd} - others == {urlsplit(deployed.url).port}, (
        f"opened by the first up: {first_up}, open now: {now}, those of other containers: {others}; "
        "the stack must be down before the tests"
    )


def others_ports(deployed: Deployment) -> set[int]:
    """Return the ports of other containers: those of another stack come back by themselves when Docker starts."""
    containers = [each for each in deployed.docker.containers.list() if not (each.name or "").startswith(f"{PREFIX}-")]
    published = [binding for each in containers for bindings in each.ports.values() for binding in bindings or []]
    return {int(binding["HostPort"]) for binding in published}

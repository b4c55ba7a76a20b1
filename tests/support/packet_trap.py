"""A gateway and resolver that leads nowhere and records every packet sent to it."""

import ctypes
import os
import socket
import struct
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

ETH_P_ALL = 3
PACKET_OUTGOING = 4
SO_RCVBUFFORCE = 33
SOL_PACKET, PACKET_STATISTICS = 263, 6
ARP, IPV4, IPV6 = 0x0806, 0x0800, 0x86DD
HOP_BY_HOP, ICMP6 = 0, 58
# Neighbour discovery and multicast listeners: every interface sends these by itself.
OF_THE_LINK = {*range(133, 138), 130, 131, 132, 143}
PROTOCOLS = {1: "ICMP", 2: "IGMP", 6: "TCP", 17: "UDP", 58: "ICMPv6"}


class Trap:
    """Packets that arrive in the trap's namespace."""

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self._socket = _in_network_of(pid)

    def seen(self) -> list[str]:
        """Return the origin and destination of every packet since the last call, except ARP, ND and MLD."""
        found = []
        while True:
            try:
                packet, (machine, kind, direction, *_) = self._socket.recvfrom(65535)
            except BlockingIOError:
                break
            description = _described(kind, packet)
            if direction != PACKET_OUTGOING and machine != "lo" and description:
                found.append(f"{machine}: {description}")
        lost = struct.unpack("II", self._socket.getsockopt(SOL_PACKET, PACKET_STATISTICS, 8))[1]
        assert not lost, f"{lost} packets came too fast"
        return found

    def close(self) -> None:
        self._socket.close()


@contextmanager
def running() -> Iterator[Trap]:
    """Create a namespace that refuses connections to every address; callers connect machines to it."""
    with subprocess.Popen(
        ["setpriv", "--pdeathsig", "KILL", "unshare", "--net", "sh", "-c", NETWORK],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        trap = None
        try:
            assert process.stdout
            assert process.stdout.readline() == "ready\n"
            trap = Trap(process.pid)
            yield trap
        finally:
            if trap:
                trap.close()
            process.kill()


# Every address is local: connections are refused at once instead of waiting for an answer.
NETWORK = """
set -e
ip link set lo up
ip route add local 0.0.0.0/0 dev lo table main
ip -6 route add local ::/0 dev lo table main
echo ready
exec cat
"""


def _in_network_of(pid: int) -> socket.socket:
    """Return a socket that receives all packets of a process's network namespace, from any thread."""
    made: list[socket.socket] = []

    def open_it() -> None:
        libc = ctypes.CDLL(None, use_errno=True)
        descriptor = os.open(Path(f"/proc/{pid}/ns/net"), os.O_RDONLY)
        assert libc.setns(descriptor, 0) == 0, os.strerror(ctypes.get_errno())
        os.close(descriptor)
        made.append(socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(ETH_P_ALL)))

    thread = threading.Thread(target=open_it)  # each thread has its own namespace
    thread.start()
    thread.join()
    (opened,) = made
    opened.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, 64 * 2**20)
    opened.setblocking(False)
    return opened


def _described(kind: int, packet: bytes) -> str:
    """Describe a packet; the text is empty for packets of the link layer."""
    payload = packet[14:]
    if kind == ARP:
        return ""
    if kind == IPV4:
        start = (payload[0] & 15) * 4
        ends = [socket.inet_ntop(socket.AF_INET, payload[at : at + 4]) for at in (12, 16)]
        return _between(payload[9], ends, payload[start:])
    if kind == IPV6:
        protocol, rest = payload[6], payload[40:]
        if protocol == HOP_BY_HOP:
            protocol, rest = rest[0], rest[8 * (rest[1] + 1) :]
        if protocol == ICMP6 and rest[0] in OF_THE_LINK:
            return ""
        ends = [socket.inet_ntop(socket.AF_INET6, payload[at : at + 16]) for at in (8, 24)]
        return _between(protocol, ends, rest)
    return f"ethertype {kind:#06x}, {len(packet)} bytes"


def _between(protocol: int, ends: list[str], rest: bytes) -> str:
    name = PROTOCOLS.get(protocol, f"protocol {protocol}")
    port = f" port {int.from_bytes(rest[2:4], 'big')}" if name in {"TCP", "UDP"} else ""
    return f"{name} {ends[0]} > {ends[1]}{port}"

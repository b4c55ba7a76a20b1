"""Connections that a probe pod can make, for the isolation check.

Usage: python3 -c THIS, with targets in TARGETS: {NAME: [ADDRESS, PORT]}; the address `dns` stands for the pod's own
name server, and `api` for the API server. Prints {NAME: true if it was reached} as one line of JSON.
"""

import json
import os
import socket
import struct
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

SECONDS = 5
TRIES = 2
SETTLE_SECONDS = 5
"""A network may take a moment to apply its policies to a pod that has just started."""
DNS = "dns"


def name_server() -> str:
    """Return the address of the first name server; empty without one."""
    lines = Path("/etc/resolv.conf").read_text(encoding="utf-8").splitlines()
    return next((line.split()[1] for line in lines if line.startswith("nameserver ")), "")


def tcp(address: str, port: int) -> bool:
    """Return True if a connection is accepted. A refusal counts as none: that is how some networks enforce a policy."""
    try:
        socket.create_connection((address, port), SECONDS).close()
    except OSError:
        return False
    return True


def dns(address: str, port: int) -> bool:
    """Return True if the name server answers over UDP, whatever it answers."""
    question = b"\x0akubernetes\x07default\x03svc\x00" + struct.pack(">HH", 1, 1)
    query = struct.pack(">HHHHHH", os.getpid() & 0xFFFF, 0x0100, 1, 0, 0, 0) + question
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with socket.socket(family, socket.SOCK_DGRAM) as client:
        client.settimeout(SECONDS)
        try:
            client.sendto(query, (address, port))
            return bool(client.recv(512))
        except OSError:
            return False


def reached(target: tuple[str, int]) -> bool:
    """Try a target; a packet may be lost once."""
    address, port = target
    address = os.environ["KUBERNETES_SERVICE_HOST"] if address == "api" else address
    tries = (dns(name_server(), port) if address == DNS else tcp(address, port) for _ in range(TRIES))
    return any(tries)


def main(targets: dict[str, tuple[str, int]]) -> None:
    """Try all targets at once."""
    time.sleep(SETTLE_SECONDS)
    with ThreadPoolExecutor(len(targets)) as pool:
        found = pool.map(reached, targets.values())
    print(json.dumps(dict(zip(targets, found, strict=True))))


if __name__ == "__main__":
    main(json.loads(os.environ["TARGETS"]))

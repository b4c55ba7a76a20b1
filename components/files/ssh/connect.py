"""Connects `ssh` to a server (ProxyCommand with ProxyUseFdpass), again where the server drops new connections.

Beyond sshd's MaxStartups, and from an address that PerSourcePenalties holds back, the server closes a connection before
its greeting. `ssh` would give up, and so would Docker's client, which starts one `ssh` for each of its connections.
"""

import array
import random
import socket
import sys
import time

DROPPED_SECONDS, UNREACHABLE_SECONDS, ANSWER_SECONDS = 60, 3, 10

host, port = sys.argv[1:]
began = time.monotonic()
while True:
    try:
        connection = socket.create_connection((host, port), timeout=ANSWER_SECONDS)
        greeting = connection.recv(64, socket.MSG_PEEK).decode("ascii", "replace").strip()
        if greeting.startswith("SSH-"):
            break
        connection.close()
        patience, cause = DROPPED_SECONDS, "sshd drops connections: " + (greeting or "see its MaxStartups")
    except socket.gaierror as error:
        sys.exit(f"Could not resolve hostname {host}: {error.strerror}")
    except OSError as error:
        patience, cause = UNREACHABLE_SECONDS, str(error)
    if time.monotonic() - began > patience:
        sys.exit(f"{host} port {port}: {cause}")
    time.sleep(random.uniform(0.5, 2))  # noqa: S311 - so that those who were dropped together do not meet again
connection.setblocking(True)
descriptor = (socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [connection.fileno()]))
socket.socket(fileno=1).sendmsg([bytes(1)], [descriptor])

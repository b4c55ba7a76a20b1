"""TCP ports of this machine."""

import re
import shutil
import socket
import subprocess

LOOPBACK = "127.0.0.1"


def is_taken(port: int) -> bool:
    """True if a process listens on the port of loopback."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((LOOPBACK, port))
        except OSError:
            return True
    return False


def listener(port: int) -> str:
    """Describe the process that listens on a port, if it can be found."""
    if shutil.which("ss"):
        shown = subprocess.run(["ss", "-Hltnp", f"sport = :{port}"], capture_output=True, text=True, check=False).stdout
        if match := re.search(r'"([^"]+)",pid=(\d+)', shown):
            return f"process {match[2]} ({match[1]})"
    return "another process"

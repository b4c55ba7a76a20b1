"""The two walls that keep Nginx from opening connections, on this machine: taken away for a moment, and looked at."""

import json
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Literal

Wall = Literal["host", "container"]


@contextmanager
def without(prefix: str, nginx_pid: int, *walls: Wall) -> Iterator[None]:
    """These walls of a stack do not stand until the block ends."""
    for wall in walls:
        enter = ["nsenter", "--net", "--target", str(nginx_pid)] if wall == "container" else []
        subprocess.run([*enter, "nft", "delete", "table", "inet", prefix.replace("-", "_")], check=True)
    try:
        yield
    finally:
        subprocess.run(
            ["bash", f"/etc/elastic-vllm/{prefix}-packet-filter.sh", "set", f"{prefix}-egress"],
            stdout=subprocess.DEVNULL,
            check=True,
        )


def dropped_by_host(prefix: str) -> int:
    """Packets that the host's wall has dropped so far."""
    table = prefix.replace("-", "_")
    listed = subprocess.run(["nft", "-j", "list", "table", "inet", table], capture_output=True, check=True)
    rules: list[dict[str, Any]] = [each["rule"] for each in json.loads(listed.stdout)["nftables"] if "rule" in each]
    return sum(part["counter"]["packets"] for rule in rules for part in rule["expr"] if "counter" in part)

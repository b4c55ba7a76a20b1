"""Docker's health check, which runs in vLLM's container and kills a vLLM that hangs.

An engine that hangs (a GPU that does not answer, a deadlock) leaves its API server alive: it keeps accepting requests
and calling itself healthy, and no request is ever answered. So one that makes no step is asked for a token. No token
for PATIENCE seconds, and not one step in that time: then vLLM's processes are killed, their container ends, and Docker
restarts it. One that is busy makes steps. One that loads refuses connections, one that has died ends by itself.

Usage: python3 -c THIS SOCKET MODEL PATIENCE
"""

import http.client
import json
import os
import signal
import socket
import sys
import time
from contextlib import suppress
from pathlib import Path

COUNTERS = ("vllm:iteration_tokens_total_count", "vllm:generation_tokens_total", "vllm:prompt_tokens_total")
METRICS_SECONDS = 5
LOOK_SECONDS = 1
SERVER = b"vllm.entrypoints.openai.api_server"


class _Connection(http.client.HTTPConnection):
    def __init__(self, path: str, timeout: float) -> None:
        super().__init__("vllm", timeout=timeout)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(self.timeout)
        self.sock.connect(self._path)


def steps(path: str) -> float | None:
    """Steps of the engine so far, by its own counters; None if vLLM does not report them."""
    connection = _Connection(path, METRICS_SECONDS)
    try:
        connection.request("GET", "/metrics")
        lines = connection.getresponse().read().decode().splitlines()
    except (OSError, http.client.HTTPException):
        return None
    finally:
        connection.close()
    return sum(float(line.rpartition(" ")[2]) for line in lines if line.startswith(COUNTERS))


def answers(path: str, model: str, patience: float) -> bool:
    """Return True if vLLM answers a request for one token in time, even with an error.

    Raises OSError where nobody listens, or where the connection is closed again.
    """
    connection = _Connection(path, patience)
    question = {"model": model, "messages": [{"role": "user", "content": "."}], "max_tokens": 1}
    try:
        connection.request("POST", "/v1/chat/completions", json.dumps(question), {"Content-Type": "application/json"})
        connection.getresponse().read()
    except TimeoutError:
        return False
    finally:
        connection.close()
    return True


def kill() -> None:
    """End the server and its children: the container runs nothing else except the process that waits for them."""
    for path in Path("/proc").glob("[0-9]*/stat"):
        pid = int(path.parent.name)
        if pid not in {1, os.getpid(), os.getppid()}:
            try:
                os.kill(pid, signal.SIGKILL)
            except OSError:
                continue  # ended meanwhile, or not ours


def say(text: str) -> None:
    """Print a text for `docker inspect` and, if possible, for `docker logs`."""
    print(text)
    with suppress(OSError):
        Path("/proc/1/fd/1").write_text(f"health check: {text}\n")


def main(path: str, model: str, patience: float) -> int:
    """0: healthy; 1: not."""
    earlier = steps(path)
    time.sleep(LOOK_SECONDS)
    before = steps(path)
    if before is not None and before != earlier:
        return 0  # at work: not to be asked for more
    try:
        if answers(path, model, patience):
            return 0
    except (OSError, http.client.HTTPException):
        return 1  # loading, or just ended
    after = steps(path)
    if after is not None and after != before:
        say("no token in time, but the engine is at work: busy")
        return 0
    if SERVER not in Path("/proc/1/cmdline").read_bytes():
        return 1  # this is no container of vLLM's: hands off
    say(f"vLLM hangs, no token and no step for {patience:g} s: it is killed and restarted")
    kill()
    return 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], sys.argv[2], float(sys.argv[3])))

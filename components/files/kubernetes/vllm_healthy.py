"""Readiness of a vLLM pod: its server answers on the socket.

Never by a generation: a pod that is saturated would leave the Service just when it is needed.

Usage: python3 THIS SOCKET
"""

import http.client
import socket
import sys

SECONDS = 9


class _Connection(http.client.HTTPConnection):
    def __init__(self, path: str) -> None:
        super().__init__("vllm", timeout=SECONDS)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(self.timeout)
        self.sock.connect(self._path)


def main(path: str) -> int:
    """Return 0 if vLLM calls itself healthy, else 1."""
    connection = _Connection(path)
    try:
        connection.request("GET", "/health")
        return 0 if connection.getresponse().status == http.client.OK else 1
    except (OSError, http.client.HTTPException) as error:
        print(f"vLLM does not answer: {error}")
        return 1
    finally:
        connection.close()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))

"""Stands for vLLM where only its place in a stack matters: answers the health check on its socket after a second.

`image` makes an image of it from vLLM's, so that everything but the server itself is the real thing.
"""

import argparse
import io
import os
import signal
import socketserver
import tarfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler
from pathlib import Path

IMAGE = "localhost/elastic-vllm/vllm-stand-in:0.32.0"
VLLM_IMAGE = "localhost/elastic-vllm/vllm-cpu:0.32.0"
# In front of the real package.
MODULE = "vllm/entrypoints/openai/api_server.py"
DOCKERFILE = f"FROM {VLLM_IMAGE}\nCOPY vllm /stand-in/vllm\nENV PYTHONPATH=/stand-in\n"
START_SECONDS = 1


class _Handler(BaseHTTPRequestHandler):
    def address_string(self) -> str:
        return "socket"

    def do_GET(self) -> None:
        self.send_response(200)
        self.send_header("Content-Length", "0")
        self.end_headers()


def serve() -> None:
    """Listen on the socket that vLLM's command line names."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--uds", required=True)
    arguments, _ = parser.parse_known_args()
    signal.signal(signal.SIGTERM, lambda *_: os._exit(0))  # the first process of a container has no default
    time.sleep(START_SECONDS)
    socketserver.ThreadingUnixStreamServer(arguments.uds, _Handler).serve_forever()


@contextmanager
def image() -> Iterator[str]:
    """Its name; it is removed at the end."""
    import docker  # noqa: PLC0415 - not there where it serves

    packages = [str(parent / "__init__.py") for parent in list(Path(MODULE).parents)[:-1]]
    files = {"Dockerfile": DOCKERFILE, MODULE: Path(__file__).read_text(), **dict.fromkeys(packages, "")}
    context = io.BytesIO()
    with tarfile.open(fileobj=context, mode="w") as tar:
        for name, text in files.items():
            entry = tarfile.TarInfo(name)
            entry.size, entry.mode = len(text.encode()), 0o644
            tar.addfile(entry, io.BytesIO(text.encode()))
    context.seek(0)
    client = docker.from_env(timeout=120)
    client.images.build(fileobj=context, custom_context=True, tag=IMAGE, rm=True, forcerm=True)
    yield IMAGE
    client.images.remove(IMAGE, force=True)


if __name__ == "__main__":
    serve()

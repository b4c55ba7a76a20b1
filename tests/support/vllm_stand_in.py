"""Stand-in for vLLM in tests of everything around it: ready after a second, it generates a word each 20 ms.

`image` builds an image of it from vLLM's, so that everything except the server itself is real; `small_image` builds one
of a hundredth of that size, with Python alone.
"""

import argparse
import io
import json
import os
import signal
import socketserver
import subprocess
import tarfile
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import docker

# Each process of pytest-xdist has its own, because it is removed after use.
IMAGE = f"localhost/elastic-vllm/vllm-stand-in{os.environ.get('PYTEST_XDIST_WORKER', '')}:0.32.0"
SMALL_IMAGE = "localhost/elastic-vllm/vllm-small:0.32.0"
SMALL = (
    "bin sbin lib lib64 usr/bin/*sh usr/bin/rm usr/bin/env usr/bin/python3* usr/lib64 usr/lib/python3* etc/passwd "
    "usr/lib/*/ld-* usr/lib/*/libc.* usr/lib/*/libm.* usr/lib/*/libz.* usr/lib/*/libexpat.* usr/lib/*/libtinfo.*"
).split()
"""Files of a Debian root file system that Python and a shell need."""
VLLM_IMAGE = "localhost/elastic-vllm/vllm-cpu:0.32.0"
# Python finds the stand-in before the real package.
MODULE = "vllm/entrypoints/openai/api_server.py"
DOCKERFILE = f"FROM {VLLM_IMAGE}\nCOPY vllm /stand-in/vllm\nENV PYTHONPATH=/stand-in\n"
START_SECONDS = 1
PAUSE_SECONDS = 0.02  # before each word
# A request with tools gets the call that `verify` expects.
CALL = {"id": "call-1", "type": "function", "function": {"name": "get_weather", "arguments": '{"city": "Paris"}'}}
NAMES: list[str] = []
"""Names of the served model."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def address_string(self) -> str:
        return "socket"

    def do_GET(self) -> None:
        bodies = {
            "/health": "",
            "/v1/models": json.dumps({"object": "list", "data": [{"id": n, "object": "model"} for n in NAMES]}),
            "/metrics": "# TYPE vllm:num_requests_running gauge\nvllm:num_requests_running 0.0\n",
        }
        known = self.path in bodies
        self._whole(200 if known else 404, bodies.get(self.path, "{}"))

    def do_POST(self) -> None:
        assert isinstance(self.server, _Server)
        self.server.requests += 1
        try:
            self._chat()
        finally:
            self.server.requests -= 1

    def _chat(self) -> None:
        asked = json.loads(self._body())
        model = asked.get("model", NAMES[0])
        if model not in NAMES:
            self._refuse(404, "NotFoundError", f"The model `{model}` does not exist.", "model")
            return
        if asked.get("tools") == []:
            self._refuse(400, "BadRequestError", "`tools` must not be an empty array.", "tools")
            return
        if asked.get("tool_choice", "none") != "none" and "tools" not in asked:
            self._refuse(400, "BadRequestError", "When using `tool_choice`, `tools` must be set.", "tool_choice")
            return
        most = 5000 if asked.get("ignore_eos") else 100
        words = ["word "] * min(int(asked.get("max_tokens") or asked.get("max_completion_tokens") or 5), most)
        parts: list[dict[str, object]] = [{"content": word} for word in words]
        message: dict[str, object] = {"content": "".join(words)}
        if asked.get("tools"):
            message = {"content": None, "tool_calls": [{**CALL, "index": 0}]}
            words, parts = ["call"], [message]
        base = {"id": "chatcmpl-1", "created": int(time.time()), "model": model}
        usage = {"prompt_tokens": 1, "completion_tokens": len(words), "total_tokens": len(words) + 1}
        if not asked.get("stream"):
            time.sleep(PAUSE_SECONDS * len(words))
            choice = {"index": 0, "message": {"role": "assistant", **message}, "finish_reason": "stop"}
            body = {**base, "object": "chat.completion", "choices": [choice], "usage": usage}
            self._whole(200, json.dumps(body))
            return
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        for number, part in enumerate(parts, 1):
            time.sleep(PAUSE_SECONDS)
            reason = "stop" if number == len(parts) else None
            choice = {"index": 0, "delta": {"role": "assistant", **part}, "finish_reason": reason}
            self._event(json.dumps({**base, "object": "chat.completion.chunk", "choices": [choice]}))
        if (asked.get("stream_options") or {}).get("include_usage"):
            self._event(json.dumps({**base, "object": "chat.completion.chunk", "choices": [], "usage": usage}))
        self._event("[DONE]")
        self.wfile.write(b"0\r\n\r\n")

    def _body(self) -> bytes:
        if "chunked" not in self.headers.get("Transfer-Encoding", ""):
            return self.rfile.read(int(self.headers["Content-Length"]))
        body = b""
        while size := int(self.rfile.readline(), 16):
            body += self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()
        return body

    def _event(self, data: str) -> None:
        line = f"data: {data}\n\n".encode()
        self.wfile.write(b"%x\r\n%s\r\n" % (len(line), line))
        self.wfile.flush()

    def _refuse(self, status: int, kind: str, message: str, parameter: str) -> None:
        error = {"message": message, "type": kind, "param": parameter, "code": status}
        self._whole(status, json.dumps({"error": error}))

    def _whole(self, status: int, body: str) -> None:
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body.encode())


class _Server(socketserver.ThreadingUnixStreamServer):
    daemon_threads = True
    request_queue_size = 256
    requests = 0  # of chats that are under way

    def end_when_idle(self, seconds: int) -> None:
        """End as vLLM does with --shutdown-timeout: take no more connections, and let what is under way end."""
        self.socket.close()
        Path(str(self.server_address)).unlink()
        end = time.monotonic() + seconds
        while self.requests and time.monotonic() < end:
            time.sleep(0.05)
        os._exit(0)


def serve() -> None:
    """Listen on the socket that vLLM's command line names."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--uds", required=True)
    parser.add_argument("--served-model-name", nargs="+", default=[])
    parser.add_argument("--shutdown-timeout", type=int, default=0)
    arguments, _ = parser.parse_known_args()
    NAMES.extend(arguments.served_model_name)
    signal.signal(signal.SIGTERM, lambda *_: os._exit(0))  # the first process of a container has no default
    time.sleep(START_SECONDS)
    server = _Server(arguments.uds, _Handler)
    if seconds := arguments.shutdown_timeout:
        signal.signal(signal.SIGTERM, lambda *_: threading.Thread(target=server.end_when_idle, args=[seconds]).start())
    server.serve_forever()


@contextmanager
def image() -> Iterator[str]:
    """Build the image, yield its name, and remove it at the end."""
    import docker  # noqa: PLC0415 - not there where it serves

    client = docker.from_env(timeout=120)
    build(client)
    yield IMAGE
    client.images.remove(IMAGE, force=True)


def build(client: "docker.DockerClient") -> None:
    """Build the image in the Docker that has vLLM's."""
    packages = [str(parent / "__init__.py") for parent in list(Path(MODULE).parents)[:-1]]
    files = {"Dockerfile": DOCKERFILE, MODULE: Path(__file__).read_text(), **dict.fromkeys(packages, "")}
    context = io.BytesIO()
    with tarfile.open(fileobj=context, mode="w") as tar:
        for name, text in files.items():
            _add(tar, name, text.encode())
    context.seek(0)
    client.images.build(fileobj=context, custom_context=True, tag=IMAGE, rm=True, forcerm=True)


@contextmanager
def small_image(root: Path, *, name: str = SMALL_IMAGE, ballast_bytes: int = 0) -> Iterator[str]:
    """Do the same with the Python of `root`, a Debian root file system, plus `ballast_bytes` random bytes."""
    with tempfile.TemporaryFile() as packed:
        with tarfile.open(fileobj=packed, mode="w") as tar:
            for pattern in SMALL:
                for path in sorted(root.glob(pattern)):
                    tar.add(path, path.relative_to(root), filter=lambda entry: None if "/test" in entry.name else entry)
            for parent in list(Path(MODULE).parents)[:-1]:
                _add(tar, f"stand-in/{parent}/__init__.py", b"")
            _add(tar, f"stand-in/{MODULE}", Path(__file__).read_bytes())
            if ballast_bytes:
                _add(tar, "ballast", os.urandom(ballast_bytes))
        packed.seek(0)
        command = ["docker", "import", "--change", "ENV PYTHONPATH=/stand-in", "-", name]
        subprocess.run(command, stdin=packed, stdout=subprocess.DEVNULL, check=True)
    yield name
    subprocess.run(["docker", "image", "rm", "--force", name], stdout=subprocess.DEVNULL, check=True)


def _add(tar: tarfile.TarFile, name: str, content: bytes) -> None:
    entry = tarfile.TarInfo(name)
    entry.size, entry.mode = len(content), 0o644
    tar.addfile(entry, io.BytesIO(content))


if __name__ == "__main__":
    serve()

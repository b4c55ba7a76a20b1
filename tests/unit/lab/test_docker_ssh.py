"""The tunnel to another host's Docker, with a stand-in for ssh."""

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from scripts.lab.emulator import docker_ssh

# As OpenSSH's: there is a moment between its socket's file and its answering.
SSH = """
import http.server, socketserver, sys, time

class Docker(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        body = b'{"ApiVersion": "1.44"}' if self.path.endswith("/version") else b"OK"
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def address_string(self):
        return "client"

path = sys.argv[sys.argv.index("-L") + 1].partition(":")[0]
server = socketserver.ThreadingUnixStreamServer(path, Docker, bind_and_activate=False)
server.server_bind()
time.sleep(0.3)
server.server_activate()
server.serve_forever()
"""


@pytest.fixture
def slow_to_listen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    program = tmp_path / "ssh"
    program.write_text(f"#!{sys.executable}\n{SSH}")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    yield
    docker_ssh.close_all()


@pytest.mark.usefixtures("slow_to_listen")
def test_a_tunnel_whose_socket_is_there_before_it_listens_is_waited_for() -> None:
    assert docker_ssh.client({"host": "ssh://root@192.0.2.1:22"}).ping()

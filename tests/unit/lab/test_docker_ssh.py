"""The way to another host's Docker, with a stand-in for ssh."""

import json
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from scripts.lab.emulator import docker_ssh
from scripts.lab.emulator.resource import NothingDoneError

# What Docker at the other end would answer, and a note of the words that it was started with.
SSH = """
import http.server, json, os, socket, sys

class Docker(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self):
        body = b'{"ApiVersion": "1.44"}' if self.path.endswith("/version") else b"OK"
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    do_HEAD = do_GET

    def address_string(self):
        return "client"

    def log_message(self, *_):
        pass

with open(os.path.join(os.path.dirname(__file__), "words"), "a") as words:
    print(json.dumps(sys.argv[1:]), file=words)
Docker(socket.socket(fileno=0), "client", None)
"""


def write_ssh(directory: Path, program: str) -> None:
    ssh = directory / "ssh"
    ssh.write_text(f"#!{sys.executable}\n{program}")
    ssh.chmod(0o755)


@pytest.fixture(autouse=True)
def stand_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    write_ssh(tmp_path, SSH)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    yield
    docker_ssh.close_all()


@pytest.mark.parametrize(
    ("host", "words"),
    [
        ("ssh://192.0.2.1:22", ["-p", "22", "-x", "-T", "--", "192.0.2.1", "docker system dial-stdio"]),
        (
            "ssh://[::1]:2222/run/podman/podman.sock",
            [
                *["-p", "2222", "-x", "-T", "--", "::1"],
                "docker --host=unix:///run/podman/podman.sock system dial-stdio",
            ],
        ),
    ],
)
def test_each_connection_is_an_ssh_as_dockers_client_starts_it(host: str, words: list[str], tmp_path: Path) -> None:
    assert docker_ssh.client({"host": host, "sshOpts": '["-x"]'}).ping()
    started = [json.loads(line) for line in (tmp_path / "words").read_text().splitlines()]
    assert started
    assert all(each == words for each in started)


def test_what_ssh_prints_is_the_cause(tmp_path: Path) -> None:
    write_ssh(tmp_path, "import sys; sys.exit('kex_exchange_identification: Connection reset by peer')")
    with pytest.raises(NothingDoneError, match=r"cannot reach 192\.0\.2\.1:22: kex_exchange_identification"):
        docker_ssh.client({"host": "ssh://192.0.2.1:22"})

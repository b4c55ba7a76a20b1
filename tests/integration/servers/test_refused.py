"""Refused inputs leave the server as it was and name who holds a port; two stacks on one server are two."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import yaml

from tests.integration.conftest import ROOT
from tests.support.docker_server import MODELS, STACK, Server
from tests.support.made_stacks import NGINX_IMAGE, stack_file

pytestmark = pytest.mark.slow

OTHER = "neighbour"


@contextmanager
def changed(server: Server, **settings: Any) -> Iterator[None]:
    """Write the stack's file with other settings, and the old one at the end."""
    before = server.file.read_text()
    given = {f"elastic-vllm:{key}": value for key, value in (server.settings | settings).items()}
    server.file.write_text(yaml.safe_dump({"config": given}))
    try:
        yield
    finally:
        server.file.write_text(before)


REFUSED: dict[str, tuple[dict[str, Any], str, str, list[str]]] = {
    "an argument that is the program's own": (
        {"vllmExtraArgs": ["--api-key", "x"]},
        "true",
        "true",
        ["vllmExtraArgs", "is not yours to give"],
    ),
    "another host key": (
        {"sshHostKey": f"ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAI{'A' * 43}"},
        "true",
        "true",
        ["sshHostKey"],
    ),
    "a user who is not there": ({"sshUser": "nobody-of-this-name"}, "true", "true", ["sshUser"]),
    "an image that is not there": (
        {"vllmImage": "localhost/elastic-vllm/none:0.32.0"},
        "true",
        "true",
        ["image localhost/elastic-vllm/none:0.32.0 is not on the server"],
    ),
    "no room": (
        {"modelSource": "hub", "weightsGb": 99_999, "modelRevision": "0" * 40, "weightsDirectory": "/var/lib/none"},
        "true",
        "true",
        ["too little disk for the weights"],
    ),
    "weights of a hub's cache": (
        {},
        f"mkdir {MODELS}/blobs && mv WEIGHTS/config.json {MODELS}/blobs && ln -s ../blobs/config.json WEIGHTS",
        f"mv -f {MODELS}/blobs/config.json WEIGHTS && rmdir {MODELS}/blobs",
        ["config.json leads out of", "cp -rL"],
    ),
    "weights for root alone": (
        {},
        "chmod 600 WEIGHTS/tokenizer.json",
        "chmod 644 WEIGHTS/tokenizer.json",
        ["the server's user may not read", "chmod -R o+rX"],
    ),
    "a proxy on the port": (
        {},
        "systemd-run --quiet --unit old-proxy python3 -m http.server 443; "
        "until ss -Hltn 'sport = :443' | grep -q .; do sleep 0.1; done",
        "systemctl stop old-proxy",
        ["port 443 is taken by", "python3", "(httpsPort)"],
    ),
    "a container on the port": (
        {},
        "systemctl restart docker; "  # another test has taken its rules away
        f"docker run --detach --name old-nginx --publish 443:443 --entrypoint sleep {NGINX_IMAGE} 600",
        "docker rm --force old-nginx",
        ["port 443 is taken by the container old-nginx (httpsPort)", "docker stop old-nginx"],
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_refused_changes_nothing_on_the_server(name: str, bare: Server) -> None:
    settings, break_it, mend_it, words = REFUSED[name]
    weights = bare.shell(f"ls -d {MODELS}/*--*").strip()
    bare.shell(break_it.replace("WEIGHTS", weights))
    try:
        with changed(bare, **settings):
            before = bare.snapshot()
            code, output = bare.rehearse("up")
            assert code != 0
            assert output.count("error:") == 1, output
            assert [word for word in words if word not in output] == [], output
            assert bare.snapshot() == before
    finally:
        bare.shell(mend_it.replace("WEIGHTS", weights))


def test_two_stacks_on_one_server_are_two(server: Server) -> None:
    """The second is refused the first one's port, by name; on its own port, either lives without the other."""
    control = server.hosts.control

    def other(*arguments: str) -> tuple[int, str]:
        return control.attempt(ROOT / "scripts" / "rehearse", *arguments, "--stack", OTHER)

    with stack_file(OTHER, server.settings):
        before = server.snapshot()
        code, output = other("up")
        assert code == 1
        assert f"port 443 is taken by the container elastic-vllm-{STACK}-nginx (httpsPort)" in output
        assert server.snapshot() == before
    with stack_file(OTHER, server.settings | {"httpsPort": 8443}):
        code, output = other("up")
        assert code == 0, output
        try:
            assert set(server.up().values()) == {"unchanged"}
            server.shell(f"docker stop elastic-vllm-{STACK}-nginx")
            code, output = other("verify")
            assert code == 0, output
            assert server.rehearse("verify")[0] != 0
            server.shell(f"docker start elastic-vllm-{STACK}-nginx")
        finally:
            code, output = other("down")
            assert code == 0, output
    server.wait_for_nginx()
    assert set(server.up().values()) == {"unchanged"}
    assert "all " in server.verify()

"""Each mistake in settings or server gets one clear message, before anything on the server changes."""

import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from scripts.lab import cli
from tests.integration.conftest import installed, rehearse, tcp_listeners
from tests.support import local_sshd, vllm_stand_in
from tests.support.local_sshd import Server
from tests.support.made_stacks import (
    MODEL,
    NGINX_IMAGE,
    SHARDS,
    make_weights,
    stack_file,
    traces,
)

pytestmark = pytest.mark.usefixtures("machine")

STACK = "host-errors"
Up = Callable[..., "Result"]


@dataclass(frozen=True)
class Result:
    """Outcome of an `up`."""

    exit_code: int
    out: str
    message: str
    """Output on standard error."""

    def refused(self, *words: str) -> bool:
        """Return True if the `up` ended with one message for the user, with these words."""
        assert self.message.count("error:") == 1, self.message
        assert "Traceback" not in self.message
        missing = [word for word in words if word not in self.message]
        assert not missing, f"{missing} not in: {self.message}"
        return self.exit_code == 1

    @property
    def touched(self) -> list[str]:
        """Return the steps that were begun, as lines of the rehearsal: outcome, resource, type."""
        lines = self.out.splitlines()
        return [line for line in lines if len(line.split()) > 3 and not line.startswith("engine: ")]


@pytest.fixture(scope="module")
def server(machine: None) -> Iterator[Server]:
    with local_sshd.running() as server:
        yield server


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Directory for weightsDirectory with a complete model."""
    directory = tmp_path_factory.mktemp("models")
    make_weights(directory)
    return directory


@pytest.fixture(scope="module")
def settings(server: Server, models: Path, vllm: str) -> dict[str, Any]:
    """Settings of a stack that could be up."""
    return {
        "host": "127.0.0.1",
        "sshPort": server.port,
        "sshPrivateKeyPath": str(server.private_key),
        "sshHostKey": str(server.host_key),
        "accelerator": "none",
        "vllmImage": vllm,
        "nginxImage": NGINX_IMAGE,
        "model": MODEL,
        "weightsGb": 1,
        "modelSource": "host",
        "weightsDirectory": str(models),
        "httpsPort": local_sshd.free_port(),
    }


@pytest.fixture(scope="module")
def vllm(machine: None) -> Iterator[str]:
    with vllm_stand_in.image() as name:
        yield name


@pytest.fixture(scope="module")
def stack(settings: dict[str, Any]) -> Iterator[None]:
    handler = signal.getsignal(signal.SIGTERM)  # which the command line, run in this process, replaces
    with stack_file(STACK, settings):
        yield
    signal.signal(signal.SIGTERM, handler)


@pytest.fixture
def up(stack: None, models: Path) -> Up:
    """Function that runs `up` with changed settings in this process, to save a second; the server stays unchanged."""

    def run(**changed: object) -> Result:
        sets = [argument for key, value in changed.items() for argument in ("--set", f"{key}={value}")]
        before = traces(STACK, models)
        done = CliRunner().invoke(cli.app, ["up", "--stack", STACK, *sets])
        if done.exception and not isinstance(done.exception, SystemExit):
            raise done.exception
        assert traces(STACK, models) == before
        return Result(done.exit_code, done.stdout, done.stderr)

    return run


# Settings


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"modle": "x"}, ["modle = 'x': no such setting", "remove it"]),
        ({"httpsPort": "https"}, ["httpsPort = 'https': not a whole number", "use 1 to 65535"]),
        ({"model": "acme/unknown", "weightsGb": 0}, ["model = 'acme/unknown': not in the catalogue", "set weightsGb"]),
        ({"modelRevision": "a" * 40}, ["modelRevision = 'aaaa", "modelSource host", "remove it"]),
    ],
    ids=["unknown", "wrong type", "unknown model", "contradiction"],
)
def test_wrong_settings_are_refused_before_any_resource(changed: dict[str, object], words: list[str], up: Up) -> None:
    result = up(**changed)
    assert result.refused("1 setting is wrong", "nothing was changed", *words)
    assert [line.split()[:2] for line in result.touched] == [["failed", "settings"]]


def test_all_wrong_settings_are_reported_together(up: Up) -> None:
    result = up(target="moon", accelerator="tpu", httpsPort="none")
    assert result.refused("3 settings are wrong", "target = 'moon'", "accelerator = 'tpu'", "httpsPort = 'none'")


def test_a_stack_that_is_not_there_is_refused(machine: None) -> None:
    done = rehearse("up", stack="no-such-stack")
    assert done.returncode == 2
    assert "there is no stack no-such-stack" in done.stderr
    assert "fix: use one of: " in done.stderr


def test_wrong_usage_is_exit_code_2(machine: None) -> None:
    done = rehearse("up", "--no-such-option")
    assert done.returncode == 2
    assert "No such option: --no-such-option" in done.stderr


# The way to the server


def host_check_failed(result: Result, *words: str) -> bool:
    """Return True if the check of the server, on which everything there depends, named the cause."""
    return first_failure_is("host-check", result, *words)


def ssh_check_failed(result: Result, *words: str) -> bool:
    """Return True if the check of the way there, before that, named the cause."""
    return first_failure_is("host-ssh", result, *words)


def first_failure_is(check: str, result: Result, *words: str) -> bool:
    names = {line.split()[1] for line in result.touched if not line.startswith(("done", "started"))}
    on_server = {name for name in names if not name.startswith(("key", "certificate"))}
    return on_server == {"host-ssh", check} and result.refused(check, *words)


def test_a_server_that_does_not_listen_is_named(up: Up) -> None:
    port = local_sshd.free_port()
    assert ssh_check_failed(
        up(sshPort=port), f"root@127.0.0.1:{port} can't be reached", "Connection refused", "sshPort"
    )


def test_a_host_name_without_an_address_is_named(up: Up) -> None:
    assert ssh_check_failed(up(host="server.invalid"), "root@server.invalid:", "has a name that nobody knows", "host")


def test_a_wrong_ssh_key_is_named(server: Server, up: Up) -> None:
    other = server.new_key("other")
    assert ssh_check_failed(up(sshPrivateKeyPath=other), "refuses the private key", "sshPrivateKeyPath", "sshUser")


def test_a_changed_host_key_is_named(server: Server, up: Up) -> None:
    other = server.new_key("other-host").with_suffix(".pub")
    assert ssh_check_failed(up(sshHostKey=other), "shows another host key", "sshHostKey")


# Rights


@pytest.fixture(scope="module")
def sudo() -> None:
    installed("sudo", "sudo")


def test_a_user_without_root_rights_is_named(sudo: None, up: Up) -> None:
    with local_sshd.user("ev-plain", sudo=False) as name:
        assert host_check_failed(up(sshUser=name), f"user {name} has no root rights (sshUser)", "NOPASSWD: ALL")


def test_a_user_without_docker_rights_is_named(sudo: None, up: Up) -> None:
    with local_sshd.user("ev-sudo", sudo=True) as name:
        result = up(sshUser=name)
        assert host_check_failed(result, f"user {name} may not use Docker (sshUser)", f"usermod -aG docker {name}")


def test_a_user_with_sudo_and_docker_rights_is_enough(sudo: None, stack: None) -> None:
    with local_sshd.user("ev-ops", sudo=True, groups=("docker",)) as name:
        before = traces(STACK)
        done = rehearse("up", "--set", f"sshUser={name}", stack=STACK)
        assert done.returncode == 0, done.stderr
        assert rehearse("down", stack=STACK).returncode == 0
        assert traces(STACK) == before


# What the server offers


@pytest.mark.parametrize("address", ["127.0.0.1", "::"])
def test_a_port_that_is_taken_is_named_with_its_process(address: str, up: Up) -> None:
    port = local_sshd.free_port()
    family = "AF_INET6" if ":" in address else "AF_INET"
    listen = f"import socket; s = socket.create_server(({address!r}, {port}), family=socket.{family}); input()"
    with subprocess.Popen(["python3", "-c", listen], stdin=subprocess.PIPE) as listener:
        wait_for(lambda: port in tcp_listeners())
        assert host_check_failed(
            up(httpsPort=port), f"port {port} is taken", f"pid={listener.pid}", "(httpsPort)", "set another httpsPort"
        )


def wait_for(true: Callable[[], bool], seconds: float = 60) -> None:
    """Wait until the condition holds."""
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end
        time.sleep(0.05)


def test_too_little_disk_for_the_weights_is_named(models: Path, up: Up) -> None:
    result = up(modelSource="hub", model="acme/huge", weightsGb=90000, modelRevision="a" * 40)
    assert host_check_failed(result, "too little disk for the weights", "90000 GB needed", "weightsDirectory")


def test_an_image_that_is_not_there_is_named(up: Up) -> None:
    result = up(vllmImage="localhost/none:0.32.0")
    assert host_check_failed(result, "image localhost/none:0.32.0 is not on the server", "vllmImage", "docker load")


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    """Complete model, for a test to damage."""
    return make_weights(tmp_path)


def cut(weights: Path) -> None:
    path = weights / SHARDS[1]
    path.write_bytes(path.read_bytes()[:-1])


@pytest.mark.parametrize(
    ("damage", "cause", "fix"),
    [
        (shutil.rmtree, "no weights in", "copy the model's directory again"),
        (cut, f"{SHARDS[1]} is cut short or damaged", "copy the model's directory again"),
        (lambda weights: (weights / SHARDS[0]).unlink(), f"missing: {SHARDS[0]}", "copy the model's directory again"),
        (lambda weights: (weights / SHARDS[0]).chmod(0o600), "the server's user may not read", "chmod -R o+rX"),
    ],
    ids=["missing", "cut short", "shard missing", "unreadable"],
)
def test_wrong_weights_are_named(damage: Callable[[Path], None], cause: str, fix: str, weights: Path, up: Up) -> None:
    damage(weights)
    assert host_check_failed(up(weightsDirectory=weights.parent), cause, str(weights), fix)

"""Everything between this program and the bash that runs its scripts: real sshd, login shells and sudo."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pulumi
import pytest

from components.machine.host import CLOSING_WORD, Host
from components.machine.ssh import SshKey
from scripts.lab import RehearsalError
from scripts.lab.emulator import command_adapter
from scripts.lab.emulator.resource import Resource
from tests.integration.conftest import installed
from tests.support import local_sshd
from tests.support.local_sshd import Server
from tests.support.program import run
from tests.support.registered import Secret

SECRET = "the-secret-of-the-tests"
LOG_OF_SUDO = Path("/var/log/sudo-io")
Step = Callable[..., str]


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    installed("sshd", "openssh-server")
    installed("sudo", "sudo")
    with local_sshd.running() as server:
        yield server


def step(server: Server, user: str, script: str = "id -u; cat") -> str:
    """Run a step as `up` would, with a secret for its script, and return its output."""
    host = Host(
        address="127.0.0.1",
        port=server.port,
        user=user,
        ssh_key=SshKey(path=server.private_key),
        host_key=server.host_key.read_text(),
        identity="",
        prefix="elastic-vllm-x",
        directory="/var/lib/elastic-vllm/x",
        cleans_up=True,
    )

    def main() -> None:
        host.command("step", script, data=SECRET, parent=pulumi.ComponentResource("elastic-vllm:index:Test", "test"))

    given = run({}, main=main).resources["step"].inputs
    inputs = {name: value.value if isinstance(value, Secret) else value for name, value in given.items()}
    connection = {name: v.value if isinstance(v, Secret) else v for name, v in inputs["connection"].items()}
    resource = Resource(
        name="step",
        type="command:remote:Command",
        inputs={**inputs, "connection": connection},
        outputs={},
        id="",
        provider={},
        say=lambda _line: None,
    )
    try:
        return str(command_adapter.COMMAND.create(resource)[1]["stdout"])
    finally:
        command_adapter.close_all()


RAN_AS_ROOT = f"0\n{SECRET}{CLOSING_WORD}"

# Login shells


@pytest.mark.parametrize("shell", ["bash", "dash", "fish", "tcsh", "bsd-csh", "zsh", "mksh"])
def test_a_step_runs_whatever_the_login_shell_is(shell: str, server: Server) -> None:
    installed(shell, {"bsd-csh": "csh"}.get(shell, shell))
    with local_sshd.user("ev-shell", sudo=True, login_shell=f"/bin/{shell}") as name:
        assert step(server, name) == RAN_AS_ROOT
        with pytest.raises(RehearsalError, match=r"exit code 1:\n(.*\n)*why$"):
            step(server, name, "echo why >&2; exit 7")


# sudo


@pytest.mark.parametrize("defaults", ["use_pty", "!use_pty", "log_output", "log_output, use_pty", "!log_input"])
def test_a_step_runs_by_any_sudo_that_does_not_read_ahead(defaults: str, server: Server) -> None:
    with local_sshd.user("ev-sudo", sudo=f"Defaults {defaults}\nev-sudo ALL=(ALL) NOPASSWD: ALL\n") as name:
        assert step(server, name) == RAN_AS_ROOT


@pytest.mark.parametrize(
    ("rules", "cause", "fix"),
    [
        ("Defaults log_input\nUSER ALL=(ALL) NOPASSWD: ALL\n", "keys would be in its log", "!log_input"),
        ("Defaults log_stdin, use_pty\nUSER ALL=(ALL) NOPASSWD: ALL\n", "keys would be in its log", "!log_input"),
        ("USER ALL=(ALL) NOPASSWD: LOG_INPUT: ALL\n", "keys would be in its log", "!log_input"),
        ("Defaults!/bin/bash log_input\nUSER ALL=(ALL) NOPASSWD: ALL\n", "keys would be in its log", "!log_input"),
        ("Defaults requiretty\nUSER ALL=(ALL) NOPASSWD: ALL\n", "you must have a tty", "!requiretty"),
        ("USER ALL=(ALL) ALL\n", "a password is required", "NOPASSWD: ALL"),
        ("USER ALL=(ALL) NOPASSWD: /usr/bin/true\n", "a password is required", "NOPASSWD: ALL"),
        ("USER ALL=(ALL) NOPASSWD: NOEXEC: ALL\n", "Permission denied", "NOPASSWD: ALL"),
        ("USER ALL=(nobody) NOPASSWD: ALL\n", "a password is required", "NOPASSWD: ALL"),
        ("Defaults runas_default=nobody\nUSER ALL=(ALL) NOPASSWD: ALL\n", "makes it user nobody", "NOPASSWD: ALL"),
        ("Defaults listpw=always\nUSER ALL=(ALL) NOPASSWD: ALL\n", "does not say whether it logs", "listpw=any"),
        (False, "a password is required", "use root"),
    ],
    ids=[
        *["log_input", "log_stdin", "LOG_INPUT", "log_input of bash", "requiretty", "password", "not bash"],
        *["NOEXEC", "not root", "runas_default", "listpw", "no rights"],
    ],
)
def test_a_sudo_that_cannot_be_used_is_refused_with_its_reason(
    rules: str | bool, cause: str, fix: str, server: Server
) -> None:
    own = rules.replace("USER", "ev-sudo") if isinstance(rules, str) else rules
    logged = set(LOG_OF_SUDO.rglob("*"))
    with local_sshd.user("ev-sudo", sudo=own) as name, pytest.raises(RehearsalError) as refusal:
        step(server, name)
    words = str(refusal.value)
    assert cause in words
    assert fix in words
    assert "(sshUser)" in words
    new = [path for path in set(LOG_OF_SUDO.rglob("*")) - logged if path.is_file()]
    assert not [path for path in new if SECRET.encode() in path.read_bytes()]


@pytest.mark.parametrize("other", [[], ["doas"]])
def test_a_server_without_sudo_is_refused(other: list[str], server: Server) -> None:
    """The user's PATH has only these programs, without sudo."""
    programs = server.directory / f"programs-{len(other)}"
    programs.mkdir(mode=0o755)
    for program in ["bash", "id", *other]:
        (programs / program).symlink_to(f"/bin/{'true' if program == 'doas' else program}")
    login = programs / "login"
    login.write_text(f'#!/bin/bash\nPATH={programs} exec bash "$@"\n')
    login.chmod(0o755)
    with (
        local_sshd.user("ev-sudo", sudo=True, login_shell=str(login)) as name,
        pytest.raises(RehearsalError, match=r"there is no sudo on this server\n  fix: use root, or install sudo"),
    ):
        step(server, name)

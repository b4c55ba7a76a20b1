"""Everything between this program and the bash that runs its scripts: real sshd, login shells and sudo."""

import json
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pulumi
import pytest

from components import render
from components.machine import ssh
from components.machine.host import CLOSING_WORD, Host, standard_input
from components.machine.ssh import SshKey, held
from scripts.lab import RehearsalError
from scripts.lab.emulator import command_adapter
from scripts.lab.emulator.resource import Resource
from scripts.lib.ssh import SshError, run_script
from tests.integration.conftest import ROOT, installed
from tests.support import local_sshd
from tests.support.local_sshd import QUIET, UNLIMITED, Server
from tests.support.program import run
from tests.support.registered import Secret

SECRET = "the-secret-of-the-tests"
PASSPHRASE = "open, sesame"
LOG_OF_SUDO = Path("/var/log/sudo-io")


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    installed("sshd", "openssh-server")
    installed("sudo", "sudo")
    with local_sshd.running() as server:
        yield server


def inputs_of(server: Server, user: str, key: SshKey | None = None, script: str = "") -> dict[str, dict[str, Any]]:
    """Return the inputs of the first check and of a step that reads a secret, as the program registers them."""
    host = Host(
        address="127.0.0.1",
        port=server.port,
        user=user,
        ssh_key=key or SshKey(path=server.private_key),
        host_key=server.host_key.read_text(),
        identity="",
        prefix="elastic-vllm-x",
        directory="/var/lib/elastic-vllm/x",
        cleans_up=True,
    )

    def main() -> None:
        parent = pulumi.ComponentResource("elastic-vllm:index:Test", "test")
        host.reached("check", parent=parent, depends_on=[])
        host.command("step", script or "id -u; cat", data=SECRET, parent=parent)

    return {name: plain(resource.inputs) for name, resource in run({}, main=main).resources.items()}


def plain(value: Any) -> Any:
    given = value.value if isinstance(value, Secret) else value
    return {name: plain(each) for name, each in given.items()} if isinstance(given, dict) else given


def step(server: Server, user: str, script: str = "", key: SshKey | None = None) -> str:
    """Return what a step answers that is run as `up` would run it."""
    return answer(inputs_of(server, user, key, script)["step"])


def answer(inputs: dict[str, Any]) -> str:
    resource = Resource(
        name="step",
        type="command:remote:Command",
        inputs=inputs,
        outputs={},
        id="",
        provider={},
        say=lambda _line: None,
    )
    return str(command_adapter.COMMAND.create(resource)[1]["stdout"])


def first_check(server: Server, user: str, key: SshKey | None = None) -> str:
    """Return what the first check reports."""
    inputs = inputs_of(server, user, key)["check"]
    done = subprocess.run(
        ["/bin/sh", "-c", inputs["create"]],
        input=inputs["stdin"],
        capture_output=True,
        text=True,
        cwd=ROOT,
        check=False,
    )
    assert (done.returncode == 0) == (not done.stderr)
    return f"{done.stdout}{done.stderr}"


RAN_AS_ROOT = f"0\n{SECRET}{CLOSING_WORD}"


# Login shells


@pytest.mark.parametrize("shell", ["bash", "dash", "fish", "tcsh", "bsd-csh", "zsh", "mksh"])
def test_a_step_runs_whatever_the_login_shell_is(shell: str, server: Server) -> None:
    installed(shell, {"bsd-csh": "csh"}.get(shell, shell))
    with local_sshd.user("ev-shell", sudo=True, login_shell=f"/bin/{shell}") as name:
        assert first_check(server, name) == f"ev-shell@127.0.0.1:{server.port} answers\n"
        assert step(server, name) == RAN_AS_ROOT
        with pytest.raises(RehearsalError, match=r"exit code 1:\n(.*\n)*why$"):
            step(server, name, "echo why >&2; exit 7")


@contextmanager
def home(server: Server, name: str, file: str, text: str) -> Iterator[str]:
    """A home directory with one file."""
    directory = server.directory / name
    (directory / file).parent.mkdir(parents=True, exist_ok=True)
    (directory / file).write_text(text)
    yield str(directory)


def test_a_login_shell_that_prints_is_refused_before_docker_meets_it() -> None:
    """Bash reads ~/.bashrc for a command over SSH; Docker's client would take the words for an answer."""
    with (
        local_sshd.running(UNLIMITED) as server,
        home(server, "noisy", ".bashrc", "echo Welcome to this server\n") as directory,
        local_sshd.user("ev-noisy", sudo=True, home=directory) as name,
    ):
        report = first_check(server, name)
        assert "prints something before each command, which Docker would take for an answer: Welcome to this" in report
        assert "fix: let .bashrc and the like print in interactive shells only" in report
        assert step(server, name).endswith(RAN_AS_ROOT)


def test_a_login_shell_that_takes_the_input_away_never_counts_as_done() -> None:
    with (
        local_sshd.running(UNLIMITED) as server,
        home(server, "greedy", ".bashrc", "cat >/dev/null\n") as directory,
        local_sshd.user("ev-greedy", sudo=True, home=directory) as name,
    ):
        assert "the script did not run to its end" in first_check(server, name)
        with pytest.raises(RehearsalError, match="the script did not run to its end"):
            step(server, name)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ("ForceCommand echo this server is for others", "it answered: this server is for others"),
        ("ForceCommand internal-sftp", "does not run what it is sent"),
        ("ForceCommand /bin/true", "it answered: nothing"),
    ],
)
def test_a_server_that_runs_something_else_is_refused(options: str, words: str) -> None:
    with local_sshd.running(f"{UNLIMITED}{QUIET}{options}\n") as server:
        report = first_check(server, "root")
        assert words in report
        assert "fix: is there a ForceCommand in its sshd_config, command= in its authorized_keys" in report
        # And where the first check was long ago, the program refuses the answer of a step.
        with suppress(RehearsalError):
            assert not step(server, "root").endswith(CLOSING_WORD)
        described = ssh.server(SshKey(path=server.private_key), "root", "127.0.0.1", server.port, options_of(server))
        with pytest.raises(SshError, match=r"did not run what it was sent|ssh ended with"):
            run_script(described, "true", passphrase="", seconds=60)


@pytest.mark.parametrize("login_shell", ["/usr/sbin/nologin", "/bin/false", "/bin/true"])
def test_a_user_who_may_not_log_in_is_refused(login_shell: str, server: Server) -> None:
    with local_sshd.user("ev-shell", sudo=True, login_shell=login_shell) as name:
        report = first_check(server, name)
        assert f"ev-shell@127.0.0.1:{server.port} does not run what it is sent" in report


def test_a_server_without_bash_is_refused(server: Server) -> None:
    programs = server.directory / "no-bash"
    programs.mkdir(mode=0o755)
    login = programs / "login"
    login.write_text(f'#!/bin/dash\nPATH={programs}\nshift\neval "$1"\n')
    login.chmod(0o755)
    with local_sshd.user("ev-shell", sudo=True, login_shell=str(login)) as name:
        assert "has no bash (" in first_check(server, name)


# The way there


def options_of(server: Server, key: SshKey | None = None, user: str = "root") -> list[str]:
    host_key = " ".join(server.host_key.read_text().split()[:2])
    return ssh.options(key or SshKey(path=server.private_key), user, "127.0.0.1", server.port, host_key)


@pytest.mark.parametrize(
    ("change", "cause", "fix"),
    [
        ({"private_key": "id-of-nobody"}, "refuses the private key", "authorized_keys"),
        ({"host_key": "another.pub"}, "shows another host key than sshHostKey", "if you trust it, set sshHostKey"),
        ({"host_key": "ecdsa.pub"}, "shows another host key than sshHostKey", "if you trust it, set sshHostKey"),
        ({"port": 1}, "can't be reached: 127.0.0.1 port 1: ", "is sshd running there"),
    ],
)
def test_a_way_that_is_wrong_is_named_first(change: dict[str, Any], cause: str, fix: str, server: Server) -> None:
    for name, kind in (("id-of-nobody", "ed25519"), ("another", "ed25519"), ("ecdsa", "ecdsa")):
        if not (server.directory / name).exists():
            subprocess.run(["ssh-keygen", "-q", "-t", kind, "-N", "", "-f", server.directory / name], check=True)

    class Changed(Server):
        private_key = server.directory / change.get("private_key", "id")
        host_key = server.directory / change.get("host_key", "host.pub")

    report = first_check(Changed(change.get("port", server.port), server.directory), "root")
    assert cause.lower() in report.lower()
    assert fix.lower() in report.lower()


HOSTILE = """\
Host *
  ControlMaster auto
  ControlPath /nonexistent/%C
  RemoteCommand echo remote
  RequestTTY force
  ProxyJump nowhere.invalid
  User somebody
  IdentityFile /nonexistent/key
  PasswordAuthentication yes
  SendEnv *
"""


def test_nobodys_ssh_configuration_counts(server: Server, tmp_path: Path) -> None:
    (tmp_path / "config").write_text(HOSTILE)
    command = json.loads(inputs_of(server, "root")["check"]["stdin"])["ssh"]

    def under_it(words: list[str]) -> subprocess.CompletedProcess[str]:
        mounts = f'mount --bind {tmp_path}/config /etc/ssh/ssh_config && exec "$@"'
        return subprocess.run(
            ["unshare", "--mount", "sh", "-c", mounts, "sh", *words], capture_output=True, text=True, check=False
        )

    assert under_it(["ssh", "-p", str(server.port), "root@127.0.0.1"]).returncode == 255
    assert under_it([*command[:-1], "echo there"]).stdout == "there\n"


# Limits


@pytest.fixture(scope="module")
def limited() -> Iterator[Server]:
    with local_sshd.running(f"MaxStartups 2:50:4\nMaxSessions 1\n{QUIET}") as server:
        yield server


def test_connections_that_sshd_drops_are_tried_again(limited: Server) -> None:
    """The test makes as many connections at once as an `up`, by commands and by Docker's client."""
    command = ["ssh", *options_of(limited), "-p", str(limited.port), "--", "127.0.0.1", "true"]
    impatient = [subprocess.Popen(command, stderr=subprocess.PIPE) for _ in range(16)]
    assert [process.communicate() and process.returncode for process in impatient].count(0) < 16
    command[1:1] = ssh.patient_connection()
    patient = [subprocess.Popen(command) for _ in range(16)]
    inputs = inputs_of(limited, "root")["step"]
    with ThreadPoolExecutor(8) as at_once:
        assert list(at_once.map(answer, [inputs] * 8)) == [RAN_AS_ROOT] * 8
    assert [process.wait() for process in patient] == [0] * 16


@pytest.mark.parametrize("words", ["Exceeded MaxStartups", "Not allowed at this time", ""])
def test_a_limit_that_lasts_is_named(words: str, server: Server) -> None:
    """Answers of sshd 9.2 and, with PerSourcePenalties, 9.8; for a shorter time than `ssh` waits there."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]

        def drop() -> None:
            with suppress(OSError):
                while True:
                    connection, _ = listener.accept()
                    connection.sendall(f"{words}\r\n".encode() if words else b"")
                    connection.close()

        threading.Thread(target=drop, daemon=True).start()
        *_, proxy = ssh.patient_connection()
        program = proxy.removeprefix("ProxyCommand=").replace("%h %p", f"127.0.0.1 {port}").replace("%%", "%")
        done = subprocess.run(
            ["/bin/sh", "-c", program.replace("= 60, 3, 10", "= 1, 1, 10")], capture_output=True, text=True, check=False
        )
        listener.shutdown(socket.SHUT_RDWR)
    assert done.returncode == 1
    assert done.stderr == f"127.0.0.1 port {port}: sshd drops connections: {words or 'see its MaxStartups'}\n"


CHECK_OF_THE_SERVER = render.script(
    "weights/check-weights.sh",
    "host/check-host.sh",
    engine="docker",
    login="root",
    prefix="elastic-vllm-x",
    port=1,
    ipv6="no",
    weights="/x",
    weights_gb=1,
    weights_on_host="no",
    images="a",
    images_gb=1,
    bundled_images_mb="",
    proxied_images="",
    store="/x",
)


def test_a_server_that_counts_connections_is_refused(server: Server) -> None:
    """By the rules that `ufw limit ssh` writes, in a network of its own."""
    inside = ["ip", "netns", "exec", "ev-limit"]
    new = ["-p", "tcp", "--dport", str(server.port), "-m", "conntrack", "--ctstate", "NEW", "-m", "recent"]
    subprocess.run(["ip", "netns", "add", "ev-limit"], check=True)
    try:
        subprocess.run([*inside, "ip", "link", "set", "lo", "up"], check=True)
        sshd = subprocess.Popen([*inside, "/usr/sbin/sshd", "-D", "-f", server.directory / "sshd_config"])
        try:
            command = [*inside, *json.loads(inputs_of(server, "root")["check"]["stdin"])["ssh"]]

            def check() -> subprocess.CompletedProcess[str]:
                script = standard_input(CHECK_OF_THE_SERVER, login="root")
                return subprocess.run(command, input=script, capture_output=True, text=True, check=False)

            assert "limits how often" not in check().stderr
            for rule in (["--set"], ["--update", "--seconds", "30", "--hitcount", "6", "-j", "REJECT"]):
                subprocess.run([*inside, "iptables", "-A", "INPUT", *new, *rule], check=True)
            refused = check()
        finally:
            sshd.terminate()
            sshd.wait()
    finally:
        subprocess.run(["ip", "netns", "delete", "ev-limit"], check=True)
    assert refused.returncode == 1
    assert refused.stderr == (
        "elastic-vllm: the server limits how often 127.0.0.1 may connect (ufw limit, or iptables with -m recent)\n"
        "  fix: exempt it: ufw insert 1 allow from 127.0.0.1; echo -127.0.0.1 >/proc/net/xt_recent/DEFAULT\n"
    )


@pytest.mark.parametrize("shell", ["sh", "bash", "fish", "tcsh", "zsh"])
def test_the_patient_connection_is_made_by_any_shell(shell: str, server: Server) -> None:
    """`ssh` passes it to the shell of the user who runs `up`."""
    installed(shell, shell)
    command = ["ssh", *options_of(server), *ssh.patient_connection(), "-p", str(server.port), "--", "127.0.0.1", "true"]
    environment = {**os.environ, "SHELL": f"/bin/{shell}", "HOME": str(server.directory)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


# Keys


@contextmanager
def agent(path: Path, *keys: Path) -> Iterator[str]:
    with subprocess.Popen(["ssh-agent", "-a", path, "cat"], stdin=subprocess.PIPE) as process:
        while not path.exists():
            assert process.poll() is None
            time.sleep(0.01)
        environment = {**os.environ, "SSH_AUTH_SOCK": str(path)}
        subprocess.run(["ssh-add", "-q", *keys], env=environment, check=True)
        yield str(path)


@pytest.mark.parametrize("named", [False, True])
def test_the_users_own_agent_is_asked(
    named: bool, server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Commands and `ssh` ask it; if the settings name one of its keys, `ssh` does not offer the others."""
    others = [server.new_key(f"other-{named}-{number}") for number in range(7)]
    with agent(tmp_path / "agent", *(others if named else []), server.private_key) as path:
        monkeypatch.setenv("SSH_AUTH_SOCK", path)
        key = SshKey(path=server.private_key.with_suffix(".pub") if named else None, agent=True)
        assert first_check(server, "root", key).endswith(" answers\n")
        if not named:
            assert step(server, "root", key=key) == RAN_AS_ROOT


def test_another_agent_is_no_matter_where_a_key_is_given(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with agent(tmp_path / "agent", server.new_key("not-known-there")) as path:
        monkeypatch.setenv("SSH_AUTH_SOCK", path)
        assert first_check(server, "root").endswith(" answers\n")
        assert step(server, "root") == RAN_AS_ROOT


def test_the_embedded_engine_asks_a_dead_agent_as_pulumi_does(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SSH_AUTH_SOCK", "/nonexistent/agent")
    with pytest.raises(RehearsalError, match="dial unix /nonexistent/agent: connect: no such file or directory"):
        step(server, "root")


@pytest.fixture(scope="module")
def encrypted(server: Server) -> Path:
    """The server's client key with a passphrase."""
    path = server.directory / "encrypted"
    path.write_bytes(server.private_key.read_bytes())
    path.chmod(0o600)
    subprocess.run(["ssh-keygen", "-q", "-p", "-a", "1", "-N", PASSPHRASE, "-f", path], check=True)
    return path


def test_a_key_with_a_passphrase_is_used_by_commands_and_by_ssh(
    server: Server, encrypted: Path, tmp_path: Path
) -> None:
    key = SshKey(path=encrypted, passphrase=PASSPHRASE, socket=str(tmp_path / "agent"))
    assert step(server, "root", key=key) == RAN_AS_ROOT
    assert "refuses the private key" in first_check(server, "root", key)
    with held(key.socket, encrypted.read_text(), PASSPHRASE):
        assert first_check(server, "root", key).endswith(" answers\n")
    assert not Path(key.socket).exists()
    described = ssh.server(key, "root", "127.0.0.1", server.port, options_of(server, key))
    assert run_script(described, "echo here", passphrase=PASSPHRASE, seconds=60) == "here\n"


HOLDING = """
import sys, time
from components.machine.ssh import held
with held(sys.argv[1], open(sys.argv[2]).read(), sys.argv[3]):
    print("held", flush=True)
    time.sleep(60)
"""


def test_a_held_key_goes_with_its_process_and_is_never_on_disk(encrypted: Path, tmp_path: Path) -> None:
    path, temporary = tmp_path / "agent", tmp_path / "temporary"
    temporary.mkdir()
    command = [sys.executable, "-c", HOLDING, str(path), str(encrypted), PASSPHRASE]
    environment = {**os.environ, "TMPDIR": str(temporary), "HOME": str(tmp_path)}
    with subprocess.Popen(command, stdout=subprocess.PIPE, cwd=ROOT, env=environment, text=True) as process:
        try:
            assert process.stdout
            assert process.stdout.readline() == "held\n"
            assert path.stat().st_mode & 0o777 == 0o600
            assert [each for each in tmp_path.rglob("*") if each.is_file()] == []
        finally:
            process.kill()
    end = time.monotonic() + 10
    while path.exists():
        assert time.monotonic() < end
        time.sleep(0.05)


def test_two_runs_take_turns_at_holding_a_key(encrypted: Path, tmp_path: Path) -> None:
    path = tmp_path / "agent"
    command = [sys.executable, "-c", HOLDING, str(path), str(encrypted), PASSPHRASE]
    with subprocess.Popen(command, stdout=subprocess.PIPE, cwd=ROOT, text=True) as first:
        assert first.stdout
        assert first.stdout.readline() == "held\n"
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, cwd=ROOT, text=True) as second:
            assert second.stderr
            assert second.stdout
            assert second.stderr.readline() == f"waiting for another run that uses {path}\n"
            first.kill()
            assert second.stdout.readline() == "held\n"
            second.kill()


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
def test_a_sudo_that_can_not_be_used_is_refused_with_its_reason(
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
    """The user's PATH has only these programs."""
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

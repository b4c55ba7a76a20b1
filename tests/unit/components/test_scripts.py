"""Scripts that run on the host, in a real bash, as far as they need no Docker. With Docker: tests/integration."""

import os
import stat
import subprocess
from collections.abc import Callable
from pathlib import Path

import pulumi
import pytest

from components import render
from components.machine.host import CLOSING_WORD, Host, require_closing_word
from components.machine.ssh import SshKey
from tests.support.program import HOST_KEY, Program, run
from tests.support.shell import Result, as_root, bash, failed

# Every script


def scripts_of(program: Program) -> set[str]:
    return {text for command in program.commands for text in (command.script, command.cleanup)} - {""}


def test_every_script_is_valid_bash(program: Program) -> None:
    checked = [subprocess.run(["bash", "-n"], input=text, text=True, check=False) for text in scripts_of(program)]
    assert len(checked) > 8
    assert not [result for result in checked if result.returncode]


def test_every_script_stops_at_its_first_error(program: Program) -> None:
    assert not [text for text in scripts_of(program) if render.script() not in text]
    result = bash(render.script() + "false\necho after")
    assert (result.returncode, result.stdout) == (1, "")


def test_a_failure_names_the_cause_and_the_fix() -> None:
    result = bash(render.script() + "fail '100 % is 50% too much' 'take $half'\necho after")
    assert result.stdout == ""
    assert result.stderr == "elastic-vllm: 100 % is 50% too much\n  fix: take $half\n"
    assert result.returncode == 1


def server(private_key: Path) -> Host:
    return Host(
        address="10.0.0.5",
        port=22,
        user="root",
        ssh_key=SshKey(path=private_key),
        host_key=HOST_KEY,
        identity=HOST_KEY,
        prefix="elastic-vllm-x",
        directory="/var/lib/elastic-vllm/x",
        cleans_up=True,
    )


def test_data_reaches_the_script_and_is_never_run(private_key: Path) -> None:
    host = server(private_key)
    data = "echo run\n}\n'quoted\" $(id) \\ é\nlast line without its end"

    def main() -> None:
        parent = pulumi.ComponentResource("elastic-vllm:index:Test", "test")
        host.command("test-reads", "cat", data=data, parent=parent)
        host.command("test-leaves", "echo left", data=data, parent=parent)

    program = run({}, main=main)
    outputs = [
        subprocess.run(
            ["/bin/sh", "-c", program.resources[name].inputs["create"]],
            input=str(program.resources[name].inputs["stdin"]),
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for name in ("test-reads", "test-leaves")
    ]
    assert outputs == [f"{data}{CLOSING_WORD}\n", f"left\n{CLOSING_WORD}\n"]


# The command that runs them (components/machine/host.py)


@pytest.fixture
def run_as_sent(private_key: Path) -> Callable[..., Result]:
    """Function that runs a script by the command for a login shell; `before` is a script that runs first instead."""

    def run_as_sent(script: str, *, cleanup: str = "", command: str = "create", before: str = 'exec "$@"') -> Result:
        host = server(private_key)

        def main() -> None:
            parent = pulumi.ComponentResource("elastic-vllm:index:Test", "test")
            host.command("sent", script, cleanup=cleanup, parent=parent)

        inputs = run({}, main=main).resources["sent"].inputs
        return subprocess.run(
            ["bash", "-c", before, "bash", "/bin/sh", "-c", inputs[command]],
            input=str(inputs["stdin"]),
            capture_output=True,
            text=True,
            check=False,
        )

    return run_as_sent


@pytest.mark.parametrize("script", ["true", "exit 0\nfalse", "set -e\ntrue", "trap 'true' EXIT"])
def test_a_script_that_runs_to_its_end_says_the_closing_word(script: str, run_as_sent: Callable[..., Result]) -> None:
    result = run_as_sent(script)
    assert (result.returncode, result.stdout, result.stderr) == (0, f"{CLOSING_WORD}\n", "")


@pytest.mark.parametrize(
    "script", ["false", "exit 79", "exit 3", "set -e\nfalse\ntrue", "kill -KILL $BASHPID", "kill $$"]
)
def test_a_script_that_fails_does_not_say_it(script: str, run_as_sent: Callable[..., Result]) -> None:
    result = run_as_sent(script)
    assert (result.returncode, result.stdout) == (1, "")


EATS_INPUT = 'cat >/dev/null; exec "$@"'


@pytest.mark.parametrize("before", [EATS_INPUT, 'head -c 40 >/dev/null; exec "$@"'])
def test_a_script_whose_input_was_taken_away_counts_as_failed(before: str, run_as_sent: Callable[..., Result]) -> None:
    result = run_as_sent("echo ran", before=before)
    assert result.returncode == 1
    assert CLOSING_WORD not in result.stdout


def test_a_script_that_never_arrives_is_named(run_as_sent: Callable[..., Result]) -> None:
    result = run_as_sent("echo ran", before=EATS_INPUT)
    assert result.stderr == "elastic-vllm: the script did not run to its end\n"


def test_the_cleanup_runs_by_its_own_command_alone(run_as_sent: Callable[..., Result]) -> None:
    results = [run_as_sent("echo made", cleanup="echo removed", command=command) for command in ("create", "delete")]
    assert [result.stdout for result in results] == [f"made\n{CLOSING_WORD}\n", f"removed\n{CLOSING_WORD}\n"]
    failing = run_as_sent("true", cleanup="false", command="delete")
    assert (failing.returncode, failing.stdout) == (1, "")


def test_an_output_without_the_closing_word_stops_the_update() -> None:
    """A ForceCommand, for example, replaces the whole command and its output."""
    require_closing_word(f"some lines\n{CLOSING_WORD}", "root@llm.example", "again")
    for output in ("", "This service allows sftp connections only."):
        with pytest.raises(pulumi.RunError, match=r"root@llm\.example did not run .*\n.*ForceCommand.* again"):
            require_closing_word(output, "root@llm.example", "again")


# install-nginx-config.sh

FILES = {"nginx.conf": "events {}\n", "keys.conf": "# é\n", "private-key.pem": "KEY\n"}


@pytest.fixture
def install(tmp_path: Path) -> Callable[..., Result]:
    """Function that installs files without a running container, which would reload them (tests/integration)."""

    def run_install(files: dict[str, str], **environment: str) -> Result:
        script = render.script(
            "nginx/install-nginx-config.sh",
            engine="docker",
            directory=str(tmp_path / "nginx"),
            mounted_at="/etc/elastic-vllm",
            container="elastic-vllm-unit-test-nginx",
            owner=10002,
            gid=10000,
        )
        return bash(script, render.files_as_lines(files), **environment)

    return run_install


@as_root
def test_nginx_config_is_installed_for_nginx_only(install: Callable[..., Result], tmp_path: Path) -> None:
    assert install(FILES).returncode == 0
    current = tmp_path / "nginx" / "current"
    assert {path.name: path.read_text() for path in current.iterdir()} == FILES
    for path in (tmp_path / "nginx", current.resolve(), *current.iterdir()):
        status = path.stat()
        assert (status.st_uid, status.st_gid) == (10002, 10000), path
        assert stat.S_IMODE(status.st_mode) & 0o077 == 0, path
    assert not current.readlink().is_absolute()  # the container has it mounted elsewhere


@as_root
def test_nginx_config_that_is_there_already_is_left_alone(install: Callable[..., Result], tmp_path: Path) -> None:
    install(FILES)
    before = {path: path.stat().st_ino for path in (tmp_path / "nginx").glob("v-*/*")}
    assert install(FILES).returncode == 0
    assert {path: path.stat().st_ino for path in (tmp_path / "nginx").glob("v-*/*")} == before


@as_root
def test_old_keys_do_not_stay_on_disk(install: Callable[..., Result], tmp_path: Path) -> None:
    install(FILES)
    (tmp_path / "nginx" / "new-left-behind").mkdir()
    assert install(FILES | {"keys.conf": "new\n"}).returncode == 0
    assert [path.read_text() for path in tmp_path.glob("nginx/*/keys.conf") if not path.parent.is_symlink()] == [
        "new\n"
    ]
    assert len([*(tmp_path / "nginx").iterdir()]) == 2


@as_root
@pytest.mark.parametrize("files", [{}, {"keys.conf": "x"}, {"nginx.conf": ""}])
def test_without_a_configuration_the_old_one_stays(
    files: dict[str, str], install: Callable[..., Result], tmp_path: Path
) -> None:
    install(FILES)
    assert failed(install(files), "no configuration arrived")
    assert (tmp_path / "nginx" / "current" / "nginx.conf").read_text() == FILES["nginx.conf"]
    assert len([*(tmp_path / "nginx").iterdir()]) == 2


@as_root
def test_a_configuration_that_nginx_refuses_is_taken_away_again(install: Callable[..., Result], tmp_path: Path) -> None:
    """A stand-in for `docker` reports a running container whose `nginx -t` fails. Reloads: tests/integration."""
    install(FILES)
    docker = tmp_path / "bin" / "docker"
    docker.parent.mkdir()
    docker.write_text('#!/bin/sh\ncase "$1" in inspect) echo true ;; *) exit 1 ;; esac\n')
    docker.chmod(0o755)
    result = install(FILES | {"nginx.conf": "broken\n"}, PATH=f"{docker.parent}:{os.environ['PATH']}")
    assert failed(result, "Nginx refuses the new configuration, the old one stays in use")
    assert (tmp_path / "nginx" / "current" / "nginx.conf").read_text() == FILES["nginx.conf"]
    assert len([*(tmp_path / "nginx").iterdir()]) == 2


# make-vllm-directories.sh, remove-directory.sh


@as_root
def test_only_nginx_and_vllm_get_to_the_socket(tmp_path: Path) -> None:
    stack = tmp_path / "stack"
    script = render.script(
        "vllm/make-vllm-directories.sh",
        directory=str(stack),
        socket_directory=f"{stack}/socket",
        cache_directory=f"{stack}/cache",
        owner=10001,
        gid=10000,
    )
    for _ in range(2):
        assert bash(script).returncode == 0
    found = {path.name: path.stat() for path in (stack / "socket", stack / "cache")}
    assert {name: (s.st_uid, s.st_gid, stat.S_IMODE(s.st_mode)) for name, s in found.items()} == {
        "socket": (10001, 10000, 0o750),
        "cache": (10001, 10000, 0o700),
    }


@pytest.mark.parametrize(("sibling", "parent_stays"), [(False, False), (True, True)])
def test_a_directory_is_removed_and_its_parent_if_empty(sibling: bool, parent_stays: bool, tmp_path: Path) -> None:
    stack = tmp_path / "parent" / "my stack"
    (stack / "inside").mkdir(parents=True)
    if sibling:
        (stack.parent / "another").touch()
    for _ in range(2):  # the second time nothing is left to do
        assert bash(render.script("host/remove-directory.sh", directory=str(stack))).returncode == 0
        assert not stack.exists()
    assert stack.parent.exists() == parent_stays
    assert tmp_path.exists()


def test_no_directory_is_not_the_root_directory() -> None:
    assert bash(render.script("host/remove-directory.sh", directory="")).returncode != 0

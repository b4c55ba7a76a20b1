"""The connector's key is only in the rehearsal's state and in Nginx's file, during a rotation and after.

All programs that rotations start are traced, those of a failing one too, and all that they leave is searched.
"""

import base64
import json
import shutil
import stat
import time
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import pytest

from components.serving.vllm_process import NGINX_UID
from tests.integration.conftest import REHEARSAL, STACK, STACK_DIRECTORY, Deployment, rehearse, rehearse_up
from tests.support import process_trace
from tests.support.canaries import changed_files, in_base64

STATE = REHEARSAL / "stacks" / STACK / "state.json"
KEYS = STACK_DIRECTORY / "nginx" / "current" / "keys.conf"


def forms(key: str) -> set[bytes]:
    """Return the forms in which a key could appear: as bytes, or in base64 with any text before and after it."""
    found = set()
    for text in (key.encode(), key.upper().encode(), bytes.fromhex(key)):
        found |= {text, *in_base64(text)}
    return found


@dataclass(frozen=True)
class Run:
    """Traces of two rotations, the second of which failed."""

    keys: list[str]
    """All versions of the key: before, rotated, failed."""
    started: float
    executed: bytes
    """Output of strace: programs, arguments, environments."""
    processes: set[bytes]
    """Arguments and environments that were seen in /proc."""
    output: str
    error: str
    """Output of the rotation that failed."""

    def shows_in(self, texts: Iterable[bytes]) -> set[bytes]:
        """Return the forms of keys that occur in any of these texts."""
        wanted = {form for key in self.keys for form in forms(key)}
        return {form for text in texts for form in wanted if form in text}


@pytest.fixture(scope="module")
def run(deployed: Deployment, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Run]:
    process_trace.install_strace()
    traces = tmp_path_factory.mktemp("traces")
    model = ("--set", f"model={deployed.model}")  # keep the model that earlier tests left
    under = process_trace.launcher(traces / "rehearse")
    started = time.time()
    watcher = process_trace.Watcher()
    watcher.start()
    try:
        with process_trace.attached(process_trace.starters(), traces / "starters"):
            rotated = rehearse("up", *model, "--set", "keys={default: [2, 1]}", under=under)
            deployed.nginx.pause()
            try:
                under = process_trace.launcher(traces / "failing")
                failed = rehearse("up", *model, "--set", "keys={default: [3, 2]}", under=under)
            finally:
                deployed.nginx.unpause()
        watcher.stop()
        executed = b"".join(path.read_bytes() for path in traces.iterdir())
        shutil.rmtree(traces)  # the traces hold the key if an argument does
        assert rotated.returncode == 0, f"{rotated.stdout}\n{rotated.stderr}"
        assert failed.returncode == 1, f"{failed.stdout}\n{failed.stderr}"
        state = json.loads(STATE.read_text())["resources"].values()
        yield Run(
            keys=[each["outputs"]["hex"] for each in state if each["type"] == "random:index/randomBytes:RandomBytes"],
            started=started,
            executed=executed,
            processes=watcher.seen,
            output=rotated.stdout + rotated.stderr,
            error=failed.stdout + failed.stderr,
        )
    finally:
        watcher.stop()
        rehearse_up(*model)


@pytest.mark.parametrize("before", [b"", b"Bearer ", b'if ($bearer_token = "', b"x"])
def test_search_finds_a_key_in_base64(before: bytes) -> None:
    key = "0123456789abcdef" * 4
    text = base64.b64encode(before + key.encode() + b'"\n')
    assert any(form in text for form in forms(key))


def test_key_is_in_no_argument_or_environment(run: Run) -> None:
    # The trace covers programs over SSH, those of the rehearsal itself, and those in Nginx's container.
    for program in (b'["bash", "-s"]', b'"-m", "scripts.lab"', b'["nginx", "-t", "-q"'):
        assert program in run.executed
    assert len(run.keys) == 3
    assert run.shows_in([run.executed]) == set()


def test_key_is_in_no_process_list(run: Run) -> None:
    assert any(b"scripts.lab" in seen for seen in run.processes)
    assert run.shows_in(run.processes) == set()


def test_key_is_in_nothing_that_docker_shows(run: Run, deployed: Deployment) -> None:
    client = deployed.docker
    containers = client.containers.list(all=True, ignore_removed=True)
    everything: list[Any] = [*containers, *client.networks.list(), *client.images.list(), *client.volumes.list()]
    shown = [json.dumps(each.attrs).encode() for each in everything]
    assert any(f"elastic-vllm-{STACK}-nginx".encode() in text for text in shown)
    assert run.shows_in(shown) == set()


def test_key_is_in_no_log(run: Run, deployed: Deployment) -> None:
    assert run.shows_in([deployed.nginx.logs(), deployed.vllm.logs()]) == set()


def test_key_is_not_in_what_the_rehearsal_prints(run: Run) -> None:
    outputs = [rehearse("outputs"), rehearse("outputs", "--json")]
    assert all("[secret]" in done.stdout for done in outputs)
    assert run.shows_in([run.output.encode(), *(done.stdout.encode() for done in outputs)]) == set()


def test_key_is_in_no_error(run: Run) -> None:
    assert "Nginx refuses the new configuration" in run.error
    assert run.shows_in([run.error.encode()]) == set()


def test_key_is_in_two_files_only(run: Run, deployed: Deployment) -> None:
    holding = set()
    for path in changed_files(run.started, [deployed.nginx, deployed.vllm]):
        with suppress(OSError):  # gone meanwhile, or not a file that can be read
            if run.shows_in([path.read_bytes()]):
                holding.add(path)
    assert holding == {STATE, KEYS.resolve()}


def test_state_is_for_root_alone(run: Run) -> None:
    paths = [STATE, STATE.parent, REHEARSAL]
    assert [(stat.filemode(path.stat().st_mode), path.stat().st_uid) for path in paths] == [
        ("-rw-------", 0),
        ("drwx------", 0),
        ("drwx------", 0),
    ]


def test_keys_file_is_for_nginxs_user_alone(run: Run) -> None:
    file = KEYS.resolve()
    paths = [file, file.parent, file.parent.parent]
    assert [(stat.filemode(path.stat().st_mode), path.stat().st_uid) for path in paths] == [
        ("-rw-------", NGINX_UID),
        ("drwx------", NGINX_UID),
        ("drwx------", NGINX_UID),
    ]

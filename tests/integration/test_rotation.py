"""A reload of Nginx applies a new key: no container restarts, keys overlap, a broken configuration is refused."""

import os
import subprocess
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import openai
import pytest

from components import render
from components.serving.nginx_config import CONFIG_DIRECTORY
from components.serving.vllm_process import NGINX_UID, SOCKET_GID
from tests.integration.conftest import PREFIX, STACK_DIRECTORY, Deployment, deployment, identity, rehearse_up
from tests.support.netns_machine import wait_until

CONFIG = STACK_DIRECTORY / "nginx"
LONGEST = 14_000
"""Tokens of a stream: the size of vLLM's context."""


def takes(deployed: Deployment, key: str) -> bool:
    """Return True if the endpoint accepts this key."""
    try:
        deployed.openai(key).models.list()
    except openai.AuthenticationError:
        return False
    return True


def identities(deployed: Deployment) -> list[tuple[str, str]]:
    return [identity(deployed.vllm), identity(deployed.nginx)]


class Stream(threading.Thread):
    """A stream with the official client, from its first event to its end, or until `leave` is set."""

    def __init__(self, deployed: Deployment, tokens: int) -> None:
        super().__init__()
        self._deployed = deployed
        self._tokens = tokens
        self.flows, self.leave = threading.Event(), threading.Event()
        self.events = 0
        self.error: Exception | None = None
        self.finish_reason: str | None = None
        self.tokens = 0
        self.end = 0.0

    def run(self) -> None:
        try:
            self._read()
        except Exception as error:  # any error that ends a stream early; the test reports it
            self.error = error
        self.end = time.time()

    def _read(self) -> None:
        chunks = self._deployed.openai().chat.completions.create(
            model=self._deployed.alias,
            messages=[{"role": "user", "content": "Hello"}],
            max_tokens=self._tokens,
            stream=True,
            stream_options={"include_usage": True},
            # Words must flow to the last token, whatever the model would generate.
            extra_body={"ignore_eos": True, "skip_special_tokens": False},
        )
        for chunk in chunks:
            self.flows.set()
            self.events += 1
            if self.leave.is_set():
                return
            self.tokens = chunk.usage.completion_tokens if chunk.usage else 0
            if chunk.choices:
                self.finish_reason = chunk.choices[0].finish_reason


@dataclass(frozen=True)
class Rotation:
    """Observations of a rotation: before it, with new and previous key accepted, and with the new key only."""

    old_key: str = field(repr=False)
    new_key: str = field(repr=False)
    containers: list[list[tuple[str, str]]]
    """Ids and start times: at first, with both keys, with the new key only."""
    accepted: list[tuple[bool, bool]]
    """True for each of old and new key that works: with both keys, with the new key only."""


@pytest.fixture(scope="module")
def rotation(deployed: Deployment) -> Iterator[Rotation]:
    # Keep the model that earlier tests left: a change would cost a start of vLLM.
    model = ("--set", f"model={deployed.model}")
    containers = [identities(deployed)]
    try:
        rehearse_up(*model, "--set", "keys={default: [2, 1]}")
        rotated = deployment()
        containers.append(identities(rotated))
        both = (takes(rotated, deployed.key), takes(rotated, rotated.key))
        rehearse_up(*model, "--set", "keys={default: [2]}")
        containers.append(identities(rotated))
        alone = (takes(rotated, deployed.key), takes(rotated, rotated.key))
        yield Rotation(deployed.key, rotated.key, containers, [both, alone])
    finally:
        rehearse_up(*model)


def test_new_version_is_another_key(rotation: Rotation) -> None:
    assert rotation.new_key != rotation.old_key
    assert len(bytes.fromhex(rotation.new_key)) == 32


def test_both_keys_work_until_the_previous_one_is_dropped(rotation: Rotation) -> None:
    assert rotation.accepted == [(True, True), (False, True)]


def test_new_key_replaces_and_restarts_no_container(rotation: Rotation) -> None:
    assert rotation.containers[1] == rotation.containers[0]


def test_dropped_key_replaces_and_restarts_no_container(rotation: Rotation) -> None:
    assert rotation.containers[2] == rotation.containers[1]


# --- The reload itself, by the script that `up` runs


def current_files() -> dict[str, str]:
    return {each.name: each.read_text() for each in (CONFIG / "current").iterdir()}


def install(files: dict[str, str]) -> subprocess.CompletedProcess[str]:
    script = render.script(
        "nginx/install-nginx-config.sh",
        engine="docker",
        directory=str(CONFIG),
        mounted_at=CONFIG_DIRECTORY,
        container=f"{PREFIX}-nginx",
        owner=NGINX_UID,
        gid=SOCKET_GID,
    )
    # The environment is sent as by components/machine/host.py.
    stdin = "{\n" + script + "\nexit\n}\n" + render.files_as_lines(files)
    return subprocess.run(["bash", "-s"], input=stdin, capture_output=True, text=True, check=False)


def processes(deployed: Deployment) -> set[str]:
    return {row[1] for row in deployed.nginx.top()["Processes"]}


def started(process: str) -> float:
    """Return the start time of a process, on the clock of time.time()."""
    ticks = int(Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[19])
    uptime = float(Path("/proc/uptime").read_text().split()[0])
    return time.time() - uptime + ticks / os.sysconf("SC_CLK_TCK")


def test_stream_in_flight_survives_the_reload(first_up: set[int]) -> None:
    deployed = deployment()
    stream, reload = reloaded_beside(deployed, LONGEST)
    assert stream.end == 0, "the stream was over before the reload: this proves nothing"
    seen = stream.events
    wait_until(lambda: stream.events > seen + 100 or stream.end)
    stream.leave.set()
    stream.join(60)
    assert stream.error is None
    assert stream.end > reload


@pytest.mark.slow
def test_stream_in_flight_reaches_its_end_after_the_reload(first_up: set[int]) -> None:
    deployed = deployment()
    # A busy machine can take so long to reload that the stream is over: then the test tries a longer one.
    for tokens in (1500, 5000, LONGEST):
        stream, reload = reloaded_beside(deployed, tokens)
        stream.join(300)
        assert (stream.error, stream.finish_reason, stream.tokens) == (None, "length", tokens)
        if stream.end > reload:
            return
    pytest.fail("the stream was over before the reload, each time: this proves nothing")


def reloaded_beside(deployed: Deployment, tokens: int) -> tuple[Stream, float]:
    """Reload Nginx beside a stream; return the stream and the start time of the first new worker."""
    stream = Stream(deployed, tokens)
    stream.start()
    assert stream.flows.wait(30)
    before = processes(deployed)
    done = install(current_files())
    assert done.returncode == 0, done.stderr
    return stream, min(started(process) for process in processes(deployed) - before)


def test_broken_configuration_is_refused_and_the_old_one_serves_on(deployed: Deployment) -> None:
    files = current_files()
    files["nginx.conf"] = files["nginx.conf"].replace("server_tokens off;", "server_tokens perhaps;")
    before = (identities(deployed), (CONFIG / "current").readlink(), sorted(CONFIG.iterdir()))
    processes_before = processes(deployed)
    done = install(files)
    assert done.returncode != 0
    assert 'invalid value "perhaps"' in done.stderr
    assert "the old one stays in use" in done.stderr
    assert (identities(deployed), (CONFIG / "current").readlink(), sorted(CONFIG.iterdir())) == before
    assert processes(deployed) <= processes_before, "Nginx has new workers"
    assert takes(deployed, deployment().key)

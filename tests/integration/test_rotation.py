"""A new key is taken by a reload: what stays, which keys work when, and what a broken configuration does."""

import subprocess
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field

import openai
import pytest

from components import render
from components.nginx_gateway import CONFIG_DIRECTORY
from components.vllm_server import NGINX_UID, SOCKET_GID
from tests.integration.conftest import PREFIX, STACK_DIRECTORY, Deployment, deployment, identity, rehearse_up

CONFIG = STACK_DIRECTORY / "nginx"
STREAM_TOKENS = 3000  # some 15 s, while the fixture takes two keys


def takes(deployed: Deployment, key: str) -> bool:
    """Whether the endpoint takes this key."""
    try:
        deployed.openai(key).models.list()
    except openai.AuthenticationError:
        return False
    return True


def identities(deployed: Deployment) -> list[tuple[str, str]]:
    return [identity(deployed.vllm), identity(deployed.nginx)]


class Stream(threading.Thread):
    """A stream with the official client, from its first event to its end."""

    def __init__(self, deployed: Deployment) -> None:
        super().__init__()
        self._deployed = deployed
        self.flows = threading.Event()
        self.finish_reason: str | None = None
        self.tokens = 0
        self.end = 0.0

    def run(self) -> None:
        chunks = self._deployed.openai().chat.completions.create(
            model=self._deployed.alias,
            messages=[{"role": "user", "content": "Hello"}],
            max_tokens=STREAM_TOKENS,
            stream=True,
            stream_options={"include_usage": True},
            extra_body={"ignore_eos": True},
        )
        for chunk in chunks:
            self.flows.set()
            self.tokens = chunk.usage.completion_tokens if chunk.usage else 0
            if chunk.choices:
                self.finish_reason = chunk.choices[0].finish_reason
        self.end = time.time()


@dataclass(frozen=True)
class Rotation:
    """What was seen before, between and after: a new key with the previous one accepted, then without it."""

    old_key: str = field(repr=False)
    new_key: str = field(repr=False)
    containers: list[list[tuple[str, str]]]
    """Ids and start times: at first, with both keys, with the new key only."""
    accepted: list[tuple[bool, bool]]
    """Whether old and new key work: with both keys, with the new key only."""
    stream: Stream
    reload: float
    """When the new configuration became the current one, while the stream was running."""


@pytest.fixture(scope="module")
def rotation(deployed: Deployment) -> Iterator[Rotation]:
    # The model that is served stays, whichever test was before: a change costs a start of vLLM.
    model = ("--set", f"model={deployed.model}")
    stream = Stream(deployed)
    containers = [identities(deployed)]
    stream.start()
    assert stream.flows.wait(30)
    try:
        rehearse_up(*model, "--set", "keyVersion=2")
        reload = (CONFIG / "current").lstat().st_mtime
        rotated = deployment()
        containers.append(identities(rotated))
        both = (takes(rotated, deployed.key), takes(rotated, rotated.key))
        rehearse_up(*model, "--set", "keyVersion=2", "--set", "acceptPreviousKey=false")
        containers.append(identities(rotated))
        alone = (takes(rotated, deployed.key), takes(rotated, rotated.key))
        stream.join(120)
        yield Rotation(deployed.key, rotated.key, containers, [both, alone], stream, reload)
    finally:
        stream.join(120)
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


def test_stream_in_flight_survives_the_reload(rotation: Rotation) -> None:
    stream = rotation.stream
    assert stream.end > rotation.reload, "the stream was over before the reload: it proves nothing"
    assert (stream.finish_reason, stream.tokens) == ("length", STREAM_TOKENS)


def test_broken_configuration_is_refused_and_the_old_one_serves_on(deployed: Deployment) -> None:
    script = render.script(
        "install-nginx-config.sh",
        directory=str(CONFIG),
        mounted_at=CONFIG_DIRECTORY,
        container=f"{PREFIX}-nginx",
        owner=NGINX_UID,
        gid=SOCKET_GID,
    )
    files = {each.name: each.read_text() for each in (CONFIG / "current").iterdir()}
    files["nginx.conf"] = files["nginx.conf"].replace("server_tokens off;", "server_tokens perhaps;")
    before = (identities(deployed), (CONFIG / "current").readlink(), sorted(CONFIG.iterdir()))
    processes_before = processes(deployed)
    done = subprocess.run(
        ["bash", "-s"],
        # As components/host.py sends it.
        input="{\n" + script + "\nexit\n}\n" + render.files_as_lines(files),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode != 0
    assert 'invalid value "perhaps"' in done.stderr
    assert "the old one stays in use" in done.stderr
    assert (identities(deployed), (CONFIG / "current").readlink(), sorted(CONFIG.iterdir())) == before
    assert processes(deployed) <= processes_before, "Nginx has new workers"
    assert takes(deployed, deployment().key)


def processes(deployed: Deployment) -> set[str]:
    return {row[1] for row in deployed.nginx.top()["Processes"]}

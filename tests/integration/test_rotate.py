"""`scripts/elastic-vllm rotate` on a stack under constant load, by clients that never retry."""

import os
import re
import signal
import subprocess
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx2
import openai
import pytest
import yaml

from tests.integration.conftest import (
    PROVE,
    REHEARSAL,
    ROOT,
    Deployment,
    deployment,
    identity,
    log_once,
    outputs_of,
    rehearse_up,
)
from tests.support import local_sshd, newer_nginx, vllm_stand_in
from tests.support.made_stacks import stack_file
from tests.support.pulumi_stub import LOGIN_ERROR, PulumiStub

STACK = "rotated"
CLIENTS = 50 if PROVE else 20
ROUNDS = 2 if PROVE else 1
KEEPALIVE_MIN_TIMEOUT = (1, 27, 4)
"""First version of Nginx whose reload leaves idle connections open for a while."""


@pytest.fixture(scope="module")
def file(machine: None) -> Iterator[Path]:
    """File of a stack like local, with the stand-in for vLLM, a separate port, and a key besides the connector's."""
    config = yaml.safe_load((ROOT / "stacks" / "Pulumi.local.yaml").read_text())["config"]
    settings = {key.removeprefix("elastic-vllm:"): value for key, value in config.items()}
    with vllm_stand_in.image() as image:
        own = {"httpsPort": local_sshd.free_port(), "vllmImage": image, "keys": {"siem": [1]}}
        own |= {"maxRequestsPerMinute": 600_000}  # the clients below never pause
        own |= {"nginxImage": newer_nginx.image() or settings["nginxImage"]}
        with stack_file(STACK, settings | own) as path:
            rehearse_up(stack=STACK)
            yield path


def rotate(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [str(ROOT / "scripts" / "elastic-vllm"), "rotate", "--rehearsal", "--stack", STACK, *arguments]
    environment = {**os.environ, "TERM": "dumb"}
    return subprocess.run(command, capture_output=True, text=True, timeout=300, env=environment, check=False)


def rotated(*arguments: str) -> str:
    """Run `rotate`, which must succeed, and return its output."""
    done = rotate(*arguments)
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
    return done.stdout


def answer(key: str) -> int:
    with deployment(STACK).http(key) as client:
        return client.get("/v1/models").status_code


class Load:
    """Clients, each on its own connection, half of them with streams; failures are counted by kind."""

    def __init__(self, deployed: Deployment) -> None:
        self.deployed = deployed
        self.key = deployed.key
        """The key that clients send from now on."""
        self.done: Counter[str] = Counter()
        self.failed: Counter[str] = Counter()
        self._stop = threading.Event()
        self._threads = [threading.Thread(target=self._run, args=(n % 2 == 0,)) for n in range(CLIENTS)]

    def __enter__(self) -> "Load":
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()

    def _run(self, streams: bool) -> None:
        with self.deployed.http() as http:
            while not self._stop.is_set():
                try:
                    self._ask(http, streams)
                except openai.APIConnectionError as error:
                    before_any_byte = isinstance(error.__cause__, httpx2.RemoteProtocolError | httpx2.ReadError)
                    self.failed["closed before any byte" if before_any_byte else repr(error.__cause__)] += 1
                except Exception as error:  # any error is a failure that the test reports
                    self.failed[repr(error)] += 1
                time.sleep(0.05)

    def _ask(self, http: httpx2.Client, streams: bool) -> None:
        client = openai.OpenAI(
            base_url=f"{self.deployed.base_url}/v1", api_key=self.key, max_retries=0, http_client=http
        )
        ask: Callable[..., object] = client.chat.completions.create
        question = {"model": self.deployed.alias, "messages": [{"role": "user", "content": "Hello"}]}
        if not streams:
            ask(**question, max_tokens=2)
            self.done["plain"] += 1
            return
        reasons = [
            chunk.choices[0].finish_reason
            for chunk in client.chat.completions.create(
                model=self.deployed.alias,
                messages=[{"role": "user", "content": "Hello"}],
                max_tokens=100,
                stream=True,
            )
        ]
        if len(reasons) == 100 and reasons[-1] == "stop":
            self.done["stream"] += 1
        else:
            self.failed[f"a stream of {len(reasons)} that ended with {reasons[-1:]}"] += 1


def nginx_version(deployed: Deployment) -> tuple[int, ...]:
    container = deployed.docker.containers.get(f"elastic-vllm-{STACK}-nginx")
    output = str(container.exec_run(["nginx", "-v"]).output)
    found = re.search(r"nginx/(\d+)\.(\d+)\.(\d+)", output)
    assert found, output
    return tuple(int(part) for part in found.groups())


def containers(deployed: Deployment) -> list[tuple[str, str]]:
    return [identity(deployed.docker.containers.get(f"elastic-vllm-{STACK}-{role}")) for role in ("vllm", "nginx")]


def test_no_request_fails_while_keys_are_rotated(file: Path, record_property: Callable[[str, object], None]) -> None:
    deployed = deployment(STACK)
    before, old = containers(deployed), [deployed.key]
    with Load(deployed) as load:
        time.sleep(3)
        for _ in range(ROUNDS):
            rotated()
            load.key = deployment(STACK).key
            old.append(load.key)
            time.sleep(3)  # requests with the old key end
            rotated("--drop-now")
    record_property("requests", dict(load.done))
    record_property("failed", dict(load.failed))
    print(f"Nginx {nginx_version(deployed)}: {dict(load.done)}, failed: {dict(load.failed)}")
    print(deployed.docker.containers.get(f"elastic-vllm-{STACK}-nginx").logs(tail=40).decode())
    allowed = set() if nginx_version(deployed) >= KEEPALIVE_MIN_TIMEOUT else {"closed before any byte"}
    assert set(load.failed) <= allowed, load.failed
    assert min(load.done["plain"], load.done["stream"]) > CLIENTS
    assert containers(deployed) == before
    assert [answer(key) for key in old] == [401] * ROUNDS + [200]


@pytest.mark.slow
def test_a_key_in_use_is_dropped_only_with_drop_now(file: Path) -> None:
    rotated("--key", "siem")
    keys = outputs_of(STACK)["_internal"]["acceptedKeys"]
    assert [answer(keys[f"siem-v{version}"]) for version in (1, 2)] == [200, 200]
    done = rotate("--key", "siem")
    assert done.returncode == 3
    assert "siem-v1 was used in the last 60 minutes, by:" in done.stderr
    assert "--drop-now" in done.stderr
    assert answer(keys["siem-v1"]) == 200
    assert "siem-v1 is answered 401, as it should be" in rotated("--key", "siem", "--drop-now")
    assert answer(keys["siem-v1"]) == 401
    assert yaml.safe_load(file.read_text())["config"]["elastic-vllm:keys"]["siem"] == [2]


@pytest.mark.slow
def test_a_key_that_the_log_shows_unused_is_dropped(file: Path) -> None:
    rotated()
    done = rotate("--unused-minutes", "100000")
    assert done.returncode == 3
    if "the log reaches back to" not in done.stderr:
        assert "was used in the last" in done.stderr
    rotated("--drop-now")


@pytest.mark.slow
def test_a_log_that_cannot_be_read_drops_nothing(file: Path) -> None:
    rotated()
    client = deployment(STACK).docker
    container = client.containers.get(f"elastic-vllm-{STACK}-nginx")
    container.rename("elsewhere")
    try:
        done = rotate()
    finally:
        container.rename(f"elastic-vllm-{STACK}-nginx")
    assert done.returncode == 1
    assert "cannot read Nginx's log" in done.stderr
    rotated("--drop-now")


def test_a_killed_rotation_resumes(file: Path) -> None:
    """It is killed at the worst moment: after the change of the file, while `up` runs."""
    before = outputs_of(STACK)["_internal"]["keyVersions"]["siem"]
    version = before[0]
    command = [str(ROOT / "scripts" / "elastic-vllm"), "rotate", "--rehearsal", "--stack", STACK, "--key", "siem"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, start_new_session=True) as running:
        assert running.stdout
        for line in running.stdout:
            if line.startswith("running"):
                os.killpg(running.pid, signal.SIGKILL)
                break
    assert f"wanted: siem-v{version + 1} and siem-v{version}" in rotated("--key", "siem", "--status")
    assert outputs_of(STACK)["_internal"]["keyVersions"]["siem"] == before
    assert "the last run was stopped" in rotated("--key", "siem")
    assert outputs_of(STACK)["_internal"]["keyVersions"]["siem"] == [version + 1, version]


def test_the_log_has_a_keys_label_and_never_the_key(file: Path) -> None:
    found = outputs_of(STACK)
    key, version = found["apiKeys"]["siem"], found["_internal"]["keyVersions"]["siem"][0]
    assert answer(key) == 200
    label = f" - siem-v{version} ["
    nginx = deployment(STACK).docker.containers.get(f"elastic-vllm-{STACK}-nginx")
    log = log_once(nginx, lambda log: label in log)
    assert label in log
    assert key not in log


def test_a_named_key_has_its_own_hand_off(file: Path, tmp_path: Path) -> None:
    command = [
        str(ROOT / "scripts" / "elastic-vllm"),
        "handoff",
        "--rehearsal",
        "--stack",
        STACK,
        "--key",
        "siem",
        "--output",
        str(tmp_path),
    ]
    subprocess.run(command, capture_output=True, check=True)
    assert (tmp_path / "connector-api-key").read_text().strip() == outputs_of(STACK)["apiKeys"]["siem"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--key", "nope"], "--key nope: no such key in stacks/Pulumi.rotated.yaml: there are default, siem"),
        (["--unused-minutes", "0"], "'--unused-minutes'"),
    ],
)
def test_bad_input_is_one_clear_error(file: Path, arguments: list[str], message: str) -> None:
    done = rotate(*arguments)
    assert done.returncode == 2
    assert message in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("command", ["verify", "handoff", "rotate", "diagnose"])
def test_a_pulumi_that_fails_is_shown_although_a_rehearsal_of_that_name_is_up(
    command: str, file: Path, tmp_path: Path
) -> None:
    pulumi = PulumiStub(tmp_path / "bin")
    pulumi.fails()
    settings, state = file.read_text(), (REHEARSAL / "stacks" / STACK / "state.json").read_bytes()
    done = subprocess.run(
        [str(ROOT / "scripts" / "elastic-vllm"), command, "--stack", STACK],
        capture_output=True,
        text=True,
        env={**os.environ, "PATH": pulumi.path},
        check=False,
    )
    assert done.returncode == 2
    assert LOGIN_ERROR in done.stderr
    assert "--rehearsal" not in done.stdout
    assert file.read_text() == settings
    assert (REHEARSAL / "stacks" / STACK / "state.json").read_bytes() == state
    assert not (ROOT / "handoff" / STACK).exists()

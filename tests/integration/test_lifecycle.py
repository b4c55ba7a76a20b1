"""Life cycle of a stack: brought up again, damaged, killed while it comes up, taken down.

The tests that need the real vLLM use the stack of all tests; the others use a stack of this file, where a stand-in
comes up in a second.
"""

import os
import signal
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import docker
import httpx2
import pytest
from docker.models.containers import Container

from tests.integration.conftest import PROVE, REHEARSAL, Deployment, identity, rehearse, rehearse_up
from tests.support import local_sshd, netns_machine, vllm_stand_in
from tests.support.made_stacks import MODEL, NGINX_IMAGE, make_weights, stack_file, traces
from tests.support.netns_machine import Machine, Run, outcomes, wait_until

STACK = "lifecycle"
NOOP_SECONDS = 15
TRIES = 3
"""The machine may be busy with something else during one or two of them."""
RESTART_SECONDS = 5
STEPS = 1 if PROVE else 5
"""Number of new steps of an `up` between one kill and the next."""

# With the real vLLM


@pytest.mark.alone
def test_a_second_up_changes_nothing_and_is_quick(deployed: Deployment) -> None:
    rehearse_up()  # the previous one may have been another test's
    seconds: list[float] = []
    while not seconds or (min(seconds) >= NOOP_SECONDS and len(seconds) < TRIES):
        start = time.monotonic()
        done = rehearse("up", "--verify")
        seconds.append(time.monotonic() - start)
        assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
        assert set(outcomes(done.stdout).values()) == {"unchanged"}
    assert min(seconds) < NOOP_SECONDS


def test_only_a_removed_container_is_created_again(deployed: Deployment) -> None:
    vllm = identity(deployed.vllm)
    deployed.nginx.remove(force=True)
    found = outcomes(rehearse_up())
    # `up` waits again until it answers.
    assert {name: outcome for name, outcome in found.items() if outcome != "unchanged"} == {
        "nginx-container": "created",
        "nginx-packet-filter": "updated",
        "nginx-ready": "replaced",
    }
    assert identity(deployed.vllm) == vllm
    assert deployed.http().get("/healthz").status_code == 200


def test_nginx_comes_back_by_itself(deployed: Deployment) -> None:
    assert comes_back(deployed.nginx, deployed.http())


def comes_back(container: Container, http: httpx2.Client) -> bool:
    """Kill a container's process and return True if the endpoint is healthy again soon.

    Not by `docker kill`: Docker does not restart what its API killed.
    """
    before = identity(container)
    os.kill(container.attrs["State"]["Pid"], signal.SIGKILL)
    wait_until(lambda: identity(container)[1] > before[1], RESTART_SECONDS)
    wait_until(lambda: is_healthy(http), RESTART_SECONDS)
    return identity(container)[0] == before[0]


def is_healthy(http: httpx2.Client) -> bool:
    try:
        return http.get("/healthz").status_code == 200
    except httpx2.TransportError:
        return False


# With the stand-in


@pytest.fixture(scope="module")
def apart(machine: None) -> Iterator[Machine]:
    with netns_machine.running() as apart:
        yield apart


@dataclass(frozen=True)
class Own:
    """The stack of this file."""

    https_port: int
    weights: Path
    """Value of its weightsDirectory."""
    image: str
    before: dict[str, list[str]]
    """State of the server before the stack."""

    @property
    def container_names(self) -> set[str]:
        return {f"elastic-vllm-{STACK}-vllm", f"elastic-vllm-{STACK}-nginx"}

    def http(self) -> httpx2.Client:
        return httpx2.Client(base_url=f"https://127.0.0.1:{self.https_port}", verify=False, trust_env=False)


@pytest.fixture(scope="module")
def own(apart: Machine, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Own]:
    weights = tmp_path_factory.mktemp("models")
    make_weights(weights)
    https_port = local_sshd.free_port()
    with vllm_stand_in.image() as image:
        settings = {
            "host": "127.0.0.1",
            "sshPort": local_sshd.free_port(),
            "sshPrivateKeyPath": str(REHEARSAL / "ssh" / "id_ed25519"),
            "sshHostKey": str(REHEARSAL / "ssh" / "ssh_host_ed25519_key.pub"),
            "accelerator": "none",
            "vllmImage": image,
            "nginxImage": NGINX_IMAGE,
            "model": MODEL,
            "weightsGb": 1,
            "modelSource": "host",
            "weightsDirectory": str(weights),
            "httpsPort": https_port,
        }
        with stack_file(STACK, settings):
            before = traces(STACK, weights)
            yield Own(https_port, weights, image, before)
            apart.run("down", stack=STACK)


@dataclass(frozen=True)
class Survivor:
    """A stack whose `up` was killed after every STEPS steps, until one finished."""

    killed: list[set[str]]
    """Steps that each round began for the first time."""
    finishing: Run
    """The `up` that finished."""


@pytest.fixture(scope="module")
def survivor(own: Own, apart: Machine) -> Survivor:
    killed: list[set[str]] = []
    while True:
        run = apart.start("up", stack=STACK)

        def moved_on(run: Run = run) -> bool:
            return len(steps(apart, run) - set().union(*killed)) >= STEPS or run.process.poll() is not None

        wait_until(moved_on)
        if run.process.poll() is not None:
            return Survivor(killed, run)
        run.send(signal.SIGKILL)
        assert run.exit_code != 0
        killed.append(steps(apart, run) - set().union(*killed))


def steps(apart: Machine, run: Run) -> set[str]:
    """Return the steps that an `up` has begun or done by now: resources, and any set-up of the machine that is new."""
    resources = {urn.rpartition("::")[2] for urn in apart.state(STACK).get("resources", {})}
    set_up = {fields[1] for line in run.text.splitlines() if "set-up" in (fields := line.split())}
    return resources | (set_up & {"sshd"})


def test_an_up_that_was_killed_again_and_again_is_finished_by_the_next(survivor: Survivor, own: Own) -> None:
    assert survivor.finishing.exit_code == 0, survivor.finishing.text
    assert is_healthy(own.http())
    # Fewer than STEPS steps were new in the last run: the killed ones had begun all others.
    assert len(survivor.finishing.outcomes.keys() - set().union(*survivor.killed)) < STEPS


def test_killing_leaves_nothing_twice_and_nothing_undone(survivor: Survivor, own: Own, apart: Machine) -> None:
    again = apart.run("up", stack=STACK)
    assert set(again.outcomes.values()) == {"unchanged"}, again.text
    added = {kind: set(items) - set(own.before[kind]) for kind, items in traces(STACK).items()}
    assert added["containers"] == own.container_names
    assert added["networks"] == {f"elastic-vllm-{STACK}-edge"}
    assert added["packet filters"] == {f"table inet elastic_vllm_{STACK}"}
    # Connections that have just ended take a moment to disappear.
    wait_until(lambda: ["listener" in process for process in apart.processes()] == [True])


def test_vllm_comes_back_by_itself(survivor: Survivor, own: Own) -> None:
    assert comes_back(docker.from_env().containers.get(f"elastic-vllm-{STACK}-vllm"), own.http())


def test_only_one_up_at_a_time(survivor: Survivor, apart: Machine) -> None:
    first = apart.start("up", stack=STACK)
    wait_until(lambda: "settings" in first.text)
    first.send(signal.SIGSTOP)
    second = apart.run("up", stack=STACK)
    first.send(signal.SIGCONT)
    assert second.exit_code == 1
    assert f"error: stack {STACK} is being changed by process " in second.text
    assert second.text.rstrip().endswith("wait for it")
    assert first.exit_code == 0
    assert set(first.outcomes.values()) == {"unchanged"}


# Its end


@dataclass(frozen=True)
class End:
    run: Run
    left: dict[str, list[str]]
    """Traces that remain on the server."""
    processes: list[str]
    files: list[Path]
    """Files of the rehearsal that remain."""


@pytest.fixture(scope="module")
def end(survivor: Survivor, own: Own, apart: Machine) -> End:
    return take_down(own, apart)


def take_down(own: Own, apart: Machine) -> End:
    run = apart.run("down", stack=STACK)
    files = [path.relative_to(apart.directory) for path in apart.directory.rglob("*")]
    return End(run, traces(STACK, own.weights), apart.processes(), files)


def test_down_removes_everything_that_up_created(end: End, own: Own) -> None:
    assert end.run.exit_code == 0, end.run.text
    assert end.left == own.before


def test_down_leaves_no_process(end: End) -> None:
    assert end.processes == []


def test_down_leaves_no_state_and_no_keys(end: End) -> None:
    assert end.files == [Path("machine.lock")] or end.files == []


def test_down_lists_what_it_keeps_and_how_to_remove_it(end: End, own: Own) -> None:
    _, _, kept = end.run.text.partition("kept, and how to remove it:\n")
    assert set(kept.splitlines()) == {
        f"  weights in {own.weights} on 127.0.0.1: rm -r {own.weights}",
        f"  image {own.image}: docker image rm {own.image}",
        f"  image {NGINX_IMAGE}: docker image rm {NGINX_IMAGE}",
    }


def test_a_second_down_has_nothing_to_do(end: End, own: Own, apart: Machine) -> None:
    again = take_down(own, apart)
    assert again.run.exit_code == 0
    assert f"stack {STACK}: there is nothing to take down" in again.run.text
    assert (again.left, again.processes, again.files) == (end.left, end.processes, end.files)


@pytest.mark.slow
def test_what_a_killed_up_and_a_killed_down_leave_is_removed_by_the_next_down(
    end: End, own: Own, apart: Machine
) -> None:
    up = apart.start("up", stack=STACK)
    wait_until(lambda: "nginx-container" in steps(apart, up))
    up.send(signal.SIGKILL)
    assert up.exit_code != 0
    down = apart.start("down", stack=STACK)
    wait_until(lambda: "deleted" in down.outcomes.values())
    down.send(signal.SIGKILL)
    assert down.exit_code != 0
    again = take_down(own, apart)
    assert again.run.exit_code == 0, again.run.text
    assert (again.left, again.processes, again.files) == (end.left, end.processes, end.files)

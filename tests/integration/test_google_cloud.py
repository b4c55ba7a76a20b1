"""The stack prod, rehearsed: Google Cloud is simulated, this machine stands for the VM, everything on it is real."""

import re
import subprocess
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
import yaml

from components.serving.model_weights import DOWNLOAD_UID
from components.serving.vllm_process import NGINX_UID, VLLM_UID
from scripts.lab import simulated_vm
from tests.integration.conftest import PROVE, ROOT, Deployment, deployment, rehearse, rehearse_up
from tests.support import local_sshd, vllm_stand_in
from tests.support.made_stacks import NGINX_IMAGE, stack_file
from tests.support.netns_machine import outcomes

STACK = "google"
NOOP_SECONDS = 10
TRIES = 3
"""The machine may be busy with something else during one or two of them."""
DISK = f"elastic-vllm-{STACK}-weights"
MOUNTED_AT = Path(f"/mnt/elastic-vllm-{STACK}")
METADATA = "169.254.169.254"
TABLE = f"elastic_vllm_{STACK}_metadata"


@pytest.fixture(scope="module")
def prod(machine: None) -> Iterator[tuple[str, ...]]:
    """The stack prod under another name and port, until the end; the value is the options for the stand-in for vLLM."""
    config = yaml.safe_load((ROOT / "stacks" / "Pulumi.prod.yaml").read_text())["config"]
    settings = {key.removeprefix("elastic-vllm:"): value for key, value in config.items()}
    try:
        with vllm_stand_in.image() as image, stack_file(STACK, settings | {"httpsPort": local_sshd.free_port()}):
            yield ("--set", f"vllmImage={image}")
    finally:
        simulated_vm.disk_file(DISK).unlink(missing_ok=True)


def up(*arguments: str) -> dict[str, str]:
    """Bring the stack up and map each resource to what was done."""
    return outcomes(rehearse_up(*arguments, stack=STACK))


def what_clients_have(deployed: Deployment) -> tuple[str, str, str]:
    return deployed.url, deployed.key, deployed.ca_certificate


# With the real vLLM in `make prove`, with the stand-in in `make test`


@pytest.fixture(scope="module")
def arguments(prod: tuple[str, ...]) -> tuple[str, ...]:
    return () if PROVE else prod


@pytest.fixture(scope="module")
def first(arguments: tuple[str, ...]) -> str:
    """Output of the first `up`, with verify's report."""
    done = rehearse("up", "--verify", *arguments, stack=STACK)
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
    return done.stdout


def test_prod_ends_in_the_same_verify_report_as_local(first: str) -> None:
    assert re.search(r"^all \d+ checks passed", first, re.M)
    assert "FAIL" not in first
    assert re.search(r"^URL: +https://203\.0\.113\.\d+:\d+/v1/chat/completions$", first, re.MULTILINE)


def test_the_first_line_names_what_is_simulated(first: str) -> None:
    assert f"rehearsing {STACK}: Google Cloud is simulated, this machine stands for the VM" in first


@pytest.mark.alone
def test_a_second_up_changes_nothing_and_is_quick(first: str, arguments: tuple[str, ...]) -> None:
    seconds: list[float] = []
    while not seconds or (min(seconds) >= NOOP_SECONDS and len(seconds) < TRIES):
        done = rehearse("up", *arguments, stack=STACK)
        assert set(outcomes(done.stdout).values()) == {"unchanged"}
        total = re.search(r"^total ([\d.]+) s$", done.stdout, re.MULTILINE)
        assert total
        seconds.append(float(total[1]))
    assert min(seconds) < NOOP_SECONDS


def test_the_weights_are_on_the_disk_that_outlives_the_vm(first: str) -> None:
    source = subprocess.run(
        ["findmnt", "--noheadings", "--output", "SOURCE", "--mountpoint", str(MOUNTED_AT)],
        capture_output=True,
        text=True,
        check=True,
    ).stdout.strip()
    backing = Path(f"/sys/block/{Path(source).name}/loop/backing_file").read_text().strip()
    assert backing == str(simulated_vm.disk_file(DISK))
    assert list(MOUNTED_AT.glob("rehearsal--tiny--*/.elastic-vllm-complete"))


@contextmanager
def without(*command: str) -> Iterator[None]:
    """A wall of the metadata's guard, taken away with this command until the block ends."""
    subprocess.run(command, check=True)
    prefix = f"elastic-vllm-{STACK}"
    put_back = ["bash", f"/etc/elastic-vllm/{prefix}-packet-filter.sh", "set", f"{prefix}-metadata"]
    try:
        yield
    finally:
        subprocess.run(put_back, stdout=subprocess.DEVNULL, check=True)


def without_routing_rules() -> AbstractContextManager[None]:
    delete = "for p in 1690 1691 1692 1697 1698 1699; do ip -4 rule delete priority $p; done"
    return without("bash", "-e", "-c", delete)


def without_table() -> AbstractContextManager[None]:
    return without("nft", "delete", "table", "inet", TABLE)


def routed(*selector: str) -> bool:
    """True if packets of that kind have a way to the metadata."""
    done = subprocess.run(["ip", "route", "get", METADATA, *selector], capture_output=True, text=True, check=False)
    return "Permission denied" not in done.stderr


def asked_by(user: int) -> str:
    """How asking for the metadata fails."""
    ask = ["curl", "--silent", "--show-error", "--max-time", "0.3", f"http://{METADATA}/"]
    become = ["setpriv", "--reuid", str(user), "--regid", str(user), "--clear-groups"]
    done = subprocess.run([*become, *ask], capture_output=True, text=True, check=False)
    assert done.returncode != 0
    return done.stderr


def asked_by_a_container() -> int:
    """Exit status of a shell in a container that opens a connection to the metadata; 124 when nothing answers."""
    ask = f"exec 3<>/dev/tcp/{METADATA}/80"
    command = ["docker", "run", "--rm", "--name", f"elastic-vllm-{STACK}-asks", "--entrypoint", "timeout", NGINX_IMAGE]
    return subprocess.run([*command, "1", "bash", "-c", ask], capture_output=True, check=False).returncode


@pytest.mark.parametrize("user", [VLLM_UID, NGINX_UID, DOWNLOAD_UID])
def test_either_wall_keeps_a_user_of_ours_from_the_metadata(user: int, first: str) -> None:
    before = dropped("from_users")
    with without_routing_rules():
        assert "Connection timed out" in asked_by(user)
        assert dropped("from_users") > before
    with without_table():
        assert "Couldn't connect" in asked_by(user)
        assert not routed("uid", str(user))
        assert routed("uid", "0")  # Google's guest agent is root


def test_either_wall_keeps_a_container_from_the_metadata(first: str) -> None:
    before = dropped("from_containers")
    with without_routing_rules():
        assert asked_by_a_container() == 124
        assert dropped("from_containers") > before
    with without_table():
        assert asked_by_a_container() != 0
        assert not routed("from", "172.17.0.2", "iif", "docker0")


def test_an_update_puts_the_metadatas_guard_back(first: str, arguments: tuple[str, ...]) -> None:
    for wall in (without_routing_rules, without_table):
        with wall():
            changed = {name: outcome for name, outcome in up(*arguments).items() if outcome != "unchanged"}
            assert changed == {"vm-metadata-guard": "updated"}


def dropped(chain: str) -> int:
    """Packets that the guard has dropped."""
    rules = subprocess.run(
        ["nft", "list", "chain", "inet", TABLE, chain], capture_output=True, text=True, check=True
    ).stdout
    found = re.search(r"counter packets (\d+)", rules)
    assert found, rules
    return int(found[1])


# With the stand-in for vLLM


@dataclass(frozen=True)
class Changes:
    """Values that clients hold at first and after each change, and the outcomes of each `up`."""

    first: tuple[str, str, str]
    after: dict[str, tuple[str, str, str]]
    done: dict[str, dict[str, str]]
    healthy: dict[str, int]


@pytest.fixture(scope="module")
def changes(prod: tuple[str, ...], first: str) -> Changes:
    changes = Changes(what_clients_have(deployment(STACK)), {}, {}, {})

    def bring(name: str, *arguments: str) -> None:
        changes.done[name] = up(*prod, *arguments)
        now = deployment(STACK)
        changes.after[name] = what_clients_have(now)
        if name != "parked":
            changes.healthy[name] = now.http().get("/healthz").status_code

    up(*prod)
    (MOUNTED_AT / "kept").touch()
    bring("replaced", "--set", "machineType=a2-ultragpu-4g")
    lost = rehearse("lose", stack=STACK)
    assert lost.returncode == 0, lost.stderr
    bring("lost", "--set", "machineType=a2-ultragpu-4g")
    lost = rehearse("lose", stack=STACK)
    assert lost.returncode == 0, lost.stderr
    bring("replaced while lost")
    bring("parked", "--set", "parked=true")
    bring("back")
    return changes


@pytest.mark.slow
@pytest.mark.parametrize("name", ["replaced", "lost", "replaced while lost", "parked", "back"])
def test_address_key_and_ca_stay(name: str, changes: Changes) -> None:
    assert changes.after[name] == changes.first


@pytest.mark.slow
@pytest.mark.parametrize("name", ["replaced", "lost", "replaced while lost", "back"])
def test_the_endpoint_is_there_again(name: str, changes: Changes) -> None:
    assert changes.healthy[name] == 200


@pytest.mark.slow
@pytest.mark.parametrize("name", ["replaced", "lost", "replaced while lost"])
def test_everything_is_created_again_on_another_vm(name: str, changes: Changes) -> None:
    done = changes.done[name]
    stays = {"key-v1", "runtime-provider"}
    prefixes = ("network-", "certificate-", "vm-host-key", "vm-weights")
    assert {resource for resource, outcome in done.items() if outcome == "unchanged"} == {
        resource for resource in done if resource in stays or resource.startswith(prefixes)
    }


@pytest.mark.slow
def test_the_weights_survive_every_change(changes: Changes) -> None:
    assert (MOUNTED_AT / "kept").exists()


@pytest.mark.slow
def test_parking_leaves_nothing_running(changes: Changes) -> None:
    done = changes.done["parked"]
    assert {resource for resource, outcome in done.items() if outcome == "deleted"} > {"vm-instance", "vllm-container"}
    assert {done[name] for name in ("network-address", "vm-weights", "key-v1", "certificate-ca")} == {"unchanged"}


@pytest.mark.slow
def test_down_keeps_the_disk_and_the_next_up_uses_it_unchanged(changes: Changes) -> None:
    down = rehearse("down", stack=STACK)
    assert down.returncode == 0, down.stderr
    assert f"--set weightsDisk={DISK}" in down.stdout
    assert not simulated_vm.find(STACK)
    assert not MOUNTED_AT.exists()
    left = [Path("/var/log/elastic-vllm") / STACK, Path(f"/etc/logrotate.d/elastic-vllm-{STACK}")]
    assert not [path for path in left if path.exists()]
    quick = ("--set", f"vllmImage={vllm_stand_in.IMAGE}")
    again = rehearse("up", *quick, stack=STACK)
    assert again.returncode == 1
    assert f"the disk {DISK} exists already: use it with --set weightsDisk={DISK}" in again.stderr
    up(*quick, "--set", f"weightsDisk={DISK}")
    assert (MOUNTED_AT / "kept").exists()
    assert rehearse("down", stack=STACK).returncode == 0


@pytest.mark.slow
def test_a_disk_that_holds_something_unknown_is_not_formatted(prod: tuple[str, ...]) -> None:
    name = f"{DISK}-strange"
    file = simulated_vm.disk_file(name)
    content = b"something" * 1000
    file.write_bytes(content)
    try:
        done = rehearse("up", "--set", f"weightsDisk={name}", stack=STACK)
        assert done.returncode == 1
        assert "the disk for weights is not empty and has no file system that is known" in done.stderr
        assert file.read_bytes() == content
    finally:
        rehearse("down", stack=STACK)
        file.unlink()

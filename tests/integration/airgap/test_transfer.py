"""An interrupted transfer resumes, and a full disk stops it before anything is replaced."""

import random
from collections.abc import Callable
from contextlib import suppress

import pytest

from tests.support import airgap_site
from tests.support.airgap_site import BALLAST, SECOND, STORE, Made, Site, back_to_first, checksums, checksums_on

SEED = 20261125
SENDING = "^ssh .* bash -c 'bash -s; "
"""Pattern of the command lines that send files."""
# Files that arrive meanwhile take some of the disk too.
FILL = f"""
fallocate -l $(($(df --output=avail -B 1 {STORE} | tail -n 1) - 60000000)) {STORE}/fill
dd if=/dev/zero of={STORE}/fill-rest bs=1M status=none || true
"""


@pytest.mark.slow
def test_a_full_disk_stops_it_before_anything_is_replaced(site: Site, made: Made) -> None:
    """The shortage is found at the start or during the transfer; the endpoint stays up, and later `up` resumes."""
    back_to_first(site, made)
    containers, server = site.containers(), site.hosts.server
    site.set(bundle=str(made.large))
    with site.asked_again_and_again() as statuses:
        server.run("mount", "-t", "tmpfs", "-o", "size=100m", "small", STORE)
        code, output = site.rehearse("up")
        server.run("umount", STORE)
        assert code == 1
        assert "too little disk" in output
        assert "free some" in output

        server.run("mount", "-t", "tmpfs", "-o", "size=2500m", "small", STORE)
        process = site.start_up()
        airgap_site.wait_until(lambda: int(server.run("du", "-sm", STORE).split()[0]) > 20, process)
        site.hosts.control.run("pkill", "--signal", "STOP", "--full", SENDING)  # it may be quicker than this test
        server.shell(FILL)
        site.hosts.control.run("pkill", "--signal", "CONT", "--full", SENDING)
        output = process.communicate(timeout=300)[0]
        assert process.returncode == 1, output
        assert f"the disk of {STORE}" in output
        assert "free some" in output
        assert site.containers() == containers
        server.shell(f"rm {STORE}/fill*")
    assert statuses
    assert set(statuses) == {"200"}
    before, there = site.sent_bytes(), int(server.run("du", "-sb", STORE).split()[0])
    site.up()
    # Nginx's image is in the engine already.
    needed = sum(airgap_site.bytes_of(made.large, part) for part in ("image-vllm", "packages", "weights"))
    assert there > 10_000_000
    assert site.sent_bytes() - before < needed - there + airgap_site.CHATTER + needed * 0.02  # SSH's own
    server.run("umount", STORE)


def arriving(site: Site) -> int:
    """Return the bytes that have arrived of the largest file."""
    sizes = [0]
    for path in site.hosts.files(STORE).rglob(".elastic-vllm-parts/*"):
        with suppress(FileNotFoundError):  # it is complete and has just been renamed
            sizes.append(path.stat().st_size)
    return max(sizes)


def receiver(site: Site) -> str:
    """Return the first of the processes on the server that receive the largest file."""
    (group,) = site.hosts.files(STORE).glob("*/vllm-*/.elastic-vllm-parts/group")
    return group.read_text().strip()


def test_a_transfer_that_is_interrupted_three_times_resumes(site: Site, made: Made) -> None:
    """The connection, the program and `ssh` itself are killed, at random points."""
    chance = random.Random(SEED)  # noqa: S311 - the same again if it fails
    points = sorted(chance.randrange(10_000_000, BALLAST - 50_000_000) for _ in range(3))
    back_to_first(site, made)
    before = site.sent_bytes()
    site.set(bundle=str(made.large))

    def arrived(point: int) -> Callable[[], bool]:
        return lambda: arriving(site) > point

    process = site.start_up()
    airgap_site.wait_until(arrived(points[0]), process)
    site.hosts.server.shell(f"kill -KILL $(ps -o ppid= -p {receiver(site)})")
    airgap_site.wait_until(arrived(points[1]), process)  # it resumes by itself
    airgap_site.kill(process)
    process = site.start_up()
    airgap_site.wait_until(arrived(points[2]), process)
    assert "killed" in site.hosts.control.run("pkill", "--signal", "KILL", "--full", "--echo", SENDING)
    output = process.communicate(timeout=300)[0]
    if process.returncode:
        site.up()
    assert checksums(made.large) <= checksums_on(site)
    sent = site.sent_bytes() - before
    assert sent < BALLAST * 1.3, f"{sent} bytes\n{output}"
    assert SECOND in site.served()

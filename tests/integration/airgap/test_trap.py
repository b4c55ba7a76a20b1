"""Nothing calls out: every outgoing packet ends in a trap, which would have seen it."""

import re

import pytest

from tests.support import netns_hosts, vllm_stand_in
from tests.support.airgap_site import FIRST, STACK, Made, Site, copy_of, installed_from
from tests.support.packet_trap import Trap


def assert_silent(trap: Trap) -> None:
    seen = trap.seen()
    assert not seen, "\n".join(seen)


# Where -> a file of the project, and the lines that are inserted before its end.
# The timeout is short because nobody answers.
ASKS = "timeout 0.5 getent hosts example.com || true\n"
LEAKS = {
    "control": ("__main__.py", f"import subprocess\nsubprocess.run({ASKS!r}, shell=True)\n"),
    "server": ("components/files/host/common.sh", ASKS),
}


@pytest.mark.parametrize("where", LEAKS)
def test_a_program_that_asks_the_network_is_caught(site: Site, where: str) -> None:
    """The trap sees a query where there is one: its silence elsewhere is proof."""
    name, leak = LEAKS[where]
    path = site.project / name
    before = path.read_text()
    with site.hosts.trapped() as trap:
        site.up()
        assert_silent(trap)
        path.write_text(f"{before}\n{leak}")
        try:
            site.rehearse("up")
        finally:
            path.write_text(before)
        with pytest.raises(AssertionError, match=f"^{where}: UDP .* port 53"):
            assert_silent(trap)


def test_a_container_that_asks_the_network_is_caught(site: Site) -> None:
    image = site.hosts.server.run("docker", "inspect", "--format", "{{.Image}}", f"elastic-vllm-{STACK}-nginx").strip()
    with site.hosts.trapped() as trap:
        call = ["bash", "-c", "echo started; exec 3<>/dev/tcp/192.0.2.1/443"]
        code, output = site.hosts.server.attempt("docker", "run", "--rm", "--entrypoint", call[0], image, *call[1:])
        assert "started" in output, output
        assert code
        with pytest.raises(AssertionError, match=r"^server: TCP .* > 192\.0\.2\.1 port 443"):
            assert_silent(trap)


@pytest.mark.slow  # takes five minutes; the other tests have a stand-in for vLLM
def test_vllm_itself_comes_up_from_the_bundle_and_nothing_reaches_the_trap(made: Made) -> None:
    """The whole `up` again with the real image, on a bare server, while every outgoing packet ends in the trap."""
    with netns_hosts.running() as hosts, hosts.trapped() as trap:
        copy_of(made.first, made.factory.directory / "real")  # only what differs is collected
        bundle = made.factory.build("real", vllm_stand_in.VLLM_IMAGE, FIRST)
        site = installed_from(bundle, made.factory, hosts)
        site.up()
        report = site.verify()
        assert re.search(r"^all \d+ checks passed", report, re.M)
        assert set(site.up().values()) == {"unchanged"}
        assert_silent(trap)

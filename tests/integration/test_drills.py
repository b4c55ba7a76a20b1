"""Short drills, with a stand-in for vLLM: promises that hold while a part fails, and after. All: `make drills`."""

from collections.abc import Iterator

import pytest

from tests.integration.drills import clocks, faults, notices, ups
from tests.integration.drills.measure import PROXY_SECONDS, STREAMS, Row, Site, site
from tests.integration.drills.server import running
from tests.support import vllm_stand_in
from tests.support.made_stacks import MODEL, NGINX_IMAGE, make_weights

BUSY = 3
"""Factor on promised times: a machine that runs tests may be busy with others."""


@pytest.fixture(scope="module")
def own(machine: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    weights = tmp_path_factory.mktemp("models")
    make_weights(weights)
    settings = {
        "vllmImage": vllm_stand_in.IMAGE,
        "nginxImage": NGINX_IMAGE,
        "model": MODEL,
        "weightsGb": 1,
        "modelSource": "host",
        "weightsDirectory": str(weights),
    }
    with running("drilled", settings) as server:
        vllm_stand_in.build(server.docker)
        server.up()
        yield site(server, real=False)


RESTORED = "updated nginx-packet-filter"
"""A restarted Nginx has a new network, without its inner packet filter. This server has no systemd to watch over it, so
`up` puts it back; with systemd it is back by itself (tests/integration/servers/test_packet_filters.py)."""


def saw_only(row: Row, *words: str) -> bool:
    """Return True if clients saw nothing but these answers, and the proxy was back in time."""
    parts = [part for group in row.saw.split("; ") for part in group.partition(": ")[2].split(", ") if " for " in part]
    assert row.proxy_seconds < PROXY_SECONDS * BUSY, row.line
    return all(part.startswith((*words, "and ")) for part in parts)


def test_vllm_killed_is_503_until_it_is_back(own: Site) -> None:
    row = faults.vllm_killed(own)
    assert saw_only(row, "503 model_unavailable", "connection closed"), row.line
    assert (row.proxy_seconds, row.next_up) == (0, "nothing"), row.line


def test_nginx_killed_is_back_by_itself(own: Site) -> None:
    row = faults.nginx_killed(own)
    assert saw_only(row, "connection refused", "connection closed"), row.line
    assert row.next_up == RESTORED


@pytest.mark.slow
def test_dockerd_killed_leaves_containers_and_streams_alone(own: Site) -> None:
    before = [own.server.container(role).attrs["State"]["StartedAt"] for role in ("vllm", "nginx")]
    row = faults.dockerd_killed(own)
    assert saw_only(row, "connection refused", "connection closed", "no answer", "answered late"), row.line
    assert "cut off" not in row.saw, row.line
    assert row.next_up == "nothing"
    assert [own.server.container(role).attrs["State"]["StartedAt"] for role in ("vllm", "nginx")] == before


def test_a_host_that_lost_power_serves_again_without_help(own: Site) -> None:
    row = faults.reboot(own)
    assert row.next_up == RESTORED


def test_full_log_disk_disturbs_no_client(own: Site) -> None:
    row = faults.logs_full(own)
    assert (row.saw, row.next_up) == ("nothing", "nothing")


@pytest.mark.slow
def test_full_weights_disk_refuses_the_new_model_and_leaves_the_old(own: Site) -> None:
    row = faults.weights_full(own)
    assert (row.saw, row.next_up) == ("nothing", "nothing")


def test_expired_certificate_is_renewed_by_a_reload(own: Site) -> None:
    row = clocks.certificate_expired(own)
    assert row.saw.startswith("certificate has expired")
    assert row.next_up == "replaced certificate-server, updated nginx-config"


def test_notice_of_preemption_lets_streams_end_and_refuses_new_requests(own: Site) -> None:
    row = notices.preempted(own)
    assert f"{STREAMS} of {STREAMS} streams completed" in row.saw, row.line
    assert "new requests: connection " in row.saw, row.line


@pytest.mark.slow
def test_second_up_is_refused_and_disturbs_nothing(own: Site) -> None:
    row = ups.second_up(own)
    assert (row.saw, row.next_up) == ("nothing", "nothing")


@pytest.mark.slow
def test_up_that_lost_its_connection_again_and_again_is_finished_by_the_next(own: Site) -> None:
    assert ups.ssh_cut_at_every_step(own, most=3).next_up == "nothing"

"""The benchmark of gateways (scripts/maintain/price) in seconds: this project's Nginx, the guide's, and none."""

import os
import socket
from collections.abc import Iterator
from pathlib import Path

import docker
import pytest

from components import render
from components.serving.nginx_config import START_SCRIPT
from scripts.lib.progress import Display
from scripts.maintain.price import compare
from scripts.maintain.price.gateways import DIRECT, GUIDE, LABEL, OURS, PORTS, Opened, opened
from tests.support.made_stacks import NGINX_IMAGE

AMOUNT = compare.Amount(rounds=1, requests=50, streams=(4, compare.MOST_STREAMS), events=40, load_seconds=1, leaves=2)
COUNTED = AMOUNT.events - 5
"""Events of a stream after the warm-up."""

MOST_BY_CHANCE, LEAST_BUFFERED = 0.5, 0.9
"""Shares of bunched events: on a busy machine this process itself is late now and then."""

pytestmark = [pytest.mark.usefixtures("machine"), pytest.mark.alone]


@pytest.fixture(scope="module")
def measured() -> Iterator[tuple[Opened, dict[str, compare.Figures]]]:
    cores = os.sched_getaffinity(0)
    said: list[str] = []
    with Display() as display, opened(NGINX_IMAGE, display) as running:
        found = compare.measure(running, AMOUNT, said.append)
        assert any("silent stream" in line for line in said)
        yield running, found
    assert os.sched_getaffinity(0) == cores
    assert not docker.from_env().containers.list(all=True, filters={"label": LABEL})
    for port in PORTS.values():
        with socket.socket() as closed:
            assert closed.connect_ex(("127.0.0.1", port)) != 0, port


Measured = tuple[Opened, dict[str, compare.Figures]]


def test_every_request_and_event_is_counted(measured: Measured) -> None:
    _, found = measured
    assert set(found) == {DIRECT, OURS, GUIDE}
    for name, figures in found.items():
        assert [len(each) for each in figures.latencies] == [AMOUNT.requests]
        for streams, (lags,) in figures.lags.items():
            # Events that come together with those of the warm-up count.
            least = streams * COUNTED
            assert least <= len(lags.seconds) <= streams * AMOUNT.events, (name, streams)
            assert all(0 < seconds < 5 for seconds in lags.seconds)


def test_what_buffers_is_told_from_what_does_not(measured: Measured) -> None:
    _, found = measured
    counts = {name: compare.bunched(figures) for name, figures in found.items()}
    shares = {name: bunched / events for name, (bunched, events) in counts.items()}
    assert max(shares[DIRECT], shares[OURS]) < MOST_BY_CHANCE
    assert shares[GUIDE] > LEAST_BUFFERED
    assert compare.lag_ms(found[GUIDE], 50) > 5 * compare.lag_ms(found[OURS], 50)


def test_a_gateways_costs_are_its_own(measured: Measured) -> None:
    _, found = measured
    for name in (OURS, GUIDE):
        figures = found[name]
        assert figures.events == compare.MOST_STREAMS * AMOUNT.events
        # Between a microsecond and a millisecond for an event.
        assert 0.001 < figures.cpu_seconds / figures.events * 1000 < 1
        resident, proportional = figures.memory_mib
        assert 2 < proportional < resident < 500
        # A gateway in between cannot be faster than none.
        assert 100 < figures.loads[0] < found[DIRECT].loads[0]
        assert compare.latency_ms(figures, 50) > compare.latency_ms(found[DIRECT], 50)
    assert found[DIRECT].memory_mib == (0.0, 0.0)


@pytest.mark.parametrize(("cores", "workers"), [(1, 1), (2, 2), (4, 4), (208, 4)])
def test_nginx_starts_a_worker_for_each_core_and_at_most_four(cores: int, workers: int, tmp_path: Path) -> None:
    (tmp_path / START_SCRIPT).write_text((render.FILES / "nginx" / START_SCRIPT).read_text())
    (tmp_path / "nproc").write_text(f"#!/bin/sh\necho {cores}\n")
    # Asked for its version it is the real one; to start it says with what.
    nginx = 'case $1 in -v | -V) exec /usr/sbin/nginx "$1" ;; *) echo "$@" ;; esac'
    (tmp_path / "nginx").write_text(f"#!/bin/sh\n{nginx}\n")
    for path in (tmp_path, *tmp_path.iterdir()):
        path.chmod(0o755)
    printed = docker.from_env().containers.run(
        NGINX_IMAGE,
        entrypoint=["sh", f"/own/{START_SCRIPT}"],
        environment={"PATH": "/own:/usr/sbin:/usr/bin:/sbin:/bin"},
        volumes={str(tmp_path): {"bind": "/own", "mode": "ro"}},
        remove=True,
    )
    assert printed.decode().strip().endswith(f"-g daemon off; worker_processes {workers};")


def test_behaviours_are_those_of_each_gateway(measured: Measured) -> None:
    _, found = measured
    ours, guide = found[OURS].behaviours, found[GUIDE].behaviours
    for row, (of_ours, of_the_guides) in {
        "wrong key, no key": ("401 JSON, 401 JSON", "401 HTML, 401 HTML"),
        "/metrics, /tokenize with the right key": ("404 JSON, 404 JSON", "200 JSON, 200 JSON"),
        "/metrics, /tokenize with no key": ("401 JSON, 401 JSON", "401 HTML, 401 HTML"),
        "body of 2 MiB": ("200 JSON", "413 HTML"),
        "body of 33 MiB": ("413 JSON", "413 HTML"),
        "the client's key goes on to vLLM": ("no", "yes"),
    }.items():
        assert (ours[row], guide[row]) == (of_ours, of_the_guides), row
    assert ours["vLLM absent"].startswith("503 JSON, Retry-After 5, ")
    assert guide["vLLM absent"].startswith("502 HTML, ")
    for rows in (ours, guide):
        assert rows["first 200 after it is back"].endswith("s")


def test_a_client_that_leaves_is_noticed_at_once(measured: Measured) -> None:
    _, found = measured
    for name, figures in found.items():
        for kind, seconds in figures.notices.items():
            assert len(seconds) == AMOUNT.leaves, (name, kind)
            assert all(each is not None and 0 < each < 2 for each in seconds), (name, kind)


def test_tables_have_a_row_for_each_gateway(measured: Measured) -> None:
    running, found = measured
    text = compare.tables(running, found)
    for gateway in running.gateways.values():
        assert text.count(f"| {gateway.title} |") >= 1
    assert "Promised for what" in text
    rows = [line for line in text.splitlines() if line.startswith("|")]
    widths = {line.count("|") for line in rows[:5]}
    assert len(widths) == 1

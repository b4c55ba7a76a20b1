"""Gateway and doors of target kubernetes, with a real Nginx in each: a gateway never asks a vLLM that is gone."""

import os
import signal
import ssl
import statistics
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from http import HTTPStatus
from pathlib import Path

import docker
import httpx2
import pytest

from tests.support import docker_pods, newer_nginx, vllm_stand_in
from tests.support.docker_pods import Declared, Pod, Pods
from tests.support.netns_machine import wait_until
from tests.support.steady_clients import asking, flaws

STREAM = '{"model": "rehearsal/tiny", "messages": [], "stream": true, "max_tokens": 200, "ignore_eos": true}'
GONE_SECONDS = 2
"""Limit for the door to close: milliseconds after a vLLM that ended, half a second after one that began to."""
MOST_SHARE = 1.2
"""Largest share of a pod in the requests, in means."""
REQUESTS = 300
ADDED_MS = 10
"""Limit of the median: two more TLS connections, which stay."""
CLIENTS = 4
"""Clients of each kind (steady_clients.py)."""


@pytest.fixture(scope="module")
def images(machine: None) -> Iterator[tuple[str, str]]:
    nginx = newer_nginx.image()
    assert nginx, "no Nginx of 1.27.4 or newer"
    with vllm_stand_in.image() as vllm:
        yield nginx, vllm


@pytest.fixture
def made(images: tuple[str, str], tmp_path: Path) -> Iterator[Declared]:
    with docker_pods.declared(tmp_path, *images) as made:
        yield made


@pytest.fixture
def pod(made: Declared) -> Pod:
    return made.pod("pod")


@pytest.fixture(params=[2, 4])
def pods(images: tuple[str, str], tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Pods]:
    network = docker.from_env().networks.create(f"elastic-vllm-pods-{os.getpid()}")
    try:
        with docker_pods.declared(tmp_path, *images) as made:
            yield made.pods(request.param, network)
    finally:
        network.remove()


def test_the_door_is_open_while_vllm_listens_and_no_longer(pod: Pod) -> None:
    assert pod.shut()
    for _ in range(2):  # the second time, a predecessor's socket and pipe are there
        pod.start()
        os.kill(pod.server(), signal.SIGKILL)
        wait_until(pod.shut, GONE_SECONDS)
        assert pod.vllm.wait(timeout=30)["StatusCode"] != 0
    pod.door.reload()
    assert (pod.door.status, pod.door.attrs["RestartCount"]) == ("running", 0)


def test_a_stream_ends_by_itself_while_new_connections_are_refused(pod: Pod) -> None:
    pod.start()
    with ThreadPoolExecutor() as threads:
        stream = threads.submit(pod.curl, "/v1/chat/completions", "--data", STREAM)  # of 4 s
        time.sleep(1)
        pod.vllm.kill("SIGTERM")
        wait_until(pod.shut, GONE_SECONDS)
        assert not stream.done()
    code, text = stream.result()
    assert (code, text.count("word"), text[-3:]) == (0, 200, "200")
    assert pod.vllm.wait(timeout=30)["StatusCode"] == 0


@pytest.mark.parametrize("up", [False, True])
def test_the_door_ends_when_it_is_told_to(pod: Pod, up: bool) -> None:
    if up:
        pod.start()
    else:
        time.sleep(1)  # a signal to a process that is just starting is lost
    start = time.monotonic()
    pod.door.kill("SIGTERM")
    assert pod.door.wait(timeout=30)["StatusCode"] == 0
    assert time.monotonic() - start < 5


@pytest.mark.alone
def test_requests_are_spread_evenly(pods: Pods) -> None:
    with asking(pods.outputs, each=2 * CLIENTS) as answers:
        time.sleep(10)
    assert flaws(answers) == []
    shares = [pod.chats() for pod in pods.each]
    print(f"requests of each pod: {shares}")
    assert sum(shares) >= len(answers)
    assert max(shares) <= MOST_SHARE * sum(shares) / len(shares)


@pytest.mark.alone
@pytest.mark.parametrize("pods", [2], indirect=True)
def test_gateway_and_door_add_little_to_an_answer(pods: Pods) -> None:
    """Each request goes through both and to vLLM's socket directly, in turn, on a connection that stays."""
    socket = httpx2.HTTPTransport(uds=str(pods.each[0].socket))
    headers = {"Authorization": f"Bearer {pods.outputs['connectorApiKey']}"}
    context = ssl.create_default_context(cadata=pods.outputs["caCertificate"])
    address = pods.outputs["connectorUrl"].removesuffix("/v1/chat/completions")
    spent: dict[str, list[float]] = {"direct": [], "through both": []}
    with (
        httpx2.Client(transport=socket, base_url="http://vllm") as direct,
        httpx2.Client(verify=context, headers=headers, base_url=address, trust_env=False) as through,
    ):
        for _ in range(REQUESTS):
            for way, client in (("direct", direct), ("through both", through)):
                start = time.perf_counter()
                assert client.get("/v1/models").status_code == HTTPStatus.OK
                spent[way].append(1000 * (time.perf_counter() - start))
    added = statistics.median(spent["through both"]) - statistics.median(spent["direct"])
    p99 = {way: sorted(each)[int(0.99 * REQUESTS)] for way, each in spent.items()}
    print(f"added, median: {added:.2f} ms; 99th percentiles: {p99}")
    assert added < ADDED_MS


@pytest.mark.parametrize("pods", [2], indirect=True)
def test_a_killed_vllm_costs_its_own_requests_and_no_more(pods: Pods) -> None:
    gone = pods.each[0]
    with asking(pods.outputs, each=CLIENTS) as answers:
        time.sleep(3)
        killed = time.time()
        os.kill(gone.server(), signal.SIGKILL)
        time.sleep(5)
        before = gone.chats()
        gone.start()
        time.sleep(8)
    wrong = [each for each in answers if each.flaw]
    print(f"{len(wrong)} of {len(answers)} requests failed")
    assert len(wrong) <= 2 * CLIENTS
    assert [each for each in wrong if each.start > killed + GONE_SECONDS] == []
    assert gone.chats() > before + 5  # it has its share again

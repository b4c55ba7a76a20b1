"""Target kubernetes on the laboratory's cluster of two nodes: from nothing to a verified endpoint, and back."""

import http.client
import json
import os
import signal
import ssl
import subprocess
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from datetime import UTC, datetime
from http import HTTPStatus
from itertools import product
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx2
import pytest

from scripts.lab.emulator import engine
from scripts.lab.kubernetes import cluster
from scripts.lab.kubernetes.layout import NODES
from scripts.lib.verification.endpoint import CHAT_PATH, Endpoint
from tests.integration.conftest import ROOT
from tests.integration.hostile.cases import KNOWN
from tests.integration.hostile.oracle import ALLOWED, BEHIND, HEALTH, REFUSALS, Plain, entitled
from tests.integration.hostile.test_route_matrix import IN_VLLMS_LOG, METHODS, OTHERS, WATCH
from tests.integration.hostile.twin import CURRENT
from tests.integration.hostile.wire import Server, answers, exchange
from tests.support.steady_clients import asking, flaws

NAMESPACE = "elastic-vllm"
SECONDS = 5400
"""Limit for an `up`; the first builds Kubernetes and vLLM's image."""
pytestmark = [pytest.mark.slow, pytest.mark.timeout(2 * SECONDS)]

UNLIMITED = ("--set", "maxRequestsPerMinute=600000")
"""One key has all clients here, and one gateway most of them."""
NEW_KEY = ("--set", "keys={default: [2]}")
OTHER_MODEL = ("--set", "model=rehearsal/tiny-2")
CHANGE_SECONDS = 900
"""Limit for pods to come and go."""
LOADED_SECONDS = 120
"""Limit for a door to load what has changed in its Secret: a node takes it over within 90 s."""
PROBES = Counter({request: 8 * number for request, number in WATCH.items()})
"""Requests of kubelet's probes in minutes, from two pods."""
MOMENT = 1
"""Seconds in which a kill reaches everybody, on a busy machine."""
GATEWAY_SECONDS = 20
"""Limit for a node to notice that its gateway is gone, and for Nginx to be back."""


def rehearse(*arguments: str) -> str:
    limits = UNLIMITED if arguments[0] == "up" else ()
    command = [str(ROOT / "scripts" / "rehearse"), *arguments, *limits, "--stack", "k8s"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=SECONDS, check=False)
    assert done.returncode == 0, f"{done.stdout[-5000:]}\n{done.stderr}"
    return done.stdout


@pytest.fixture(scope="module")
def stack() -> Iterator[str]:
    """Output of the first `up`; the stack is taken down at the end, whatever happens."""
    yield rehearse("up", "--engine", "embedded", "--verify")
    rehearse("down")


def outputs() -> dict[str, Any]:
    return {name: each["value"] for name, each in engine.outputs("k8s").items()}


def pods(component: str) -> dict[str, Any]:
    selector = f"--selector=app.kubernetes.io/component={component}"
    listed = cluster.kubectl("get", "pods", f"--namespace={NAMESPACE}", selector, "--output=json")
    return {pod["metadata"]["name"]: pod for pod in json.loads(listed)["items"]}


def ready(component: str) -> int:
    """Return the number of a component's pods that are ready and not about to end."""
    found = [pod for pod in pods(component).values() if "deletionTimestamp" not in pod["metadata"]]
    return sum(
        {"type": "Ready", "status": "True"}.items() <= each.items()
        for pod in found
        for each in pod["status"]["conditions"]
    )


def restarts(name: str) -> int:
    found = {**pods("vllm"), **pods("gateway")}[name]["status"]["containerStatuses"]
    return sum(int(each["restartCount"]) for each in found)


def until(true: Callable[[], bool]) -> None:
    end = time.monotonic() + CHANGE_SECONDS
    while not true():
        assert time.monotonic() < end, cluster.kubectl("get", "pods", "--all-namespaces", "--output=wide")
        time.sleep(1)


def kill_all_of(pod: dict[str, Any], command: str) -> None:
    """Kill the processes of a pod whose command line has this word, as the kernel does where memory is short."""
    group = pod["metadata"]["uid"]
    found = 0
    for path in Path("/proc").glob("[0-9]*"):
        try:
            of_pod = group in (path / "cgroup").read_text().replace("_", "-")
            if (
                of_pod
                and command in (path / "cmdline").read_text()
                and not (path / "cmdline").read_text().startswith("/bin/sh")
            ):
                os.kill(int(path.name), signal.SIGKILL)
                found += 1
        except OSError:  # ended meanwhile
            continue
    assert found


def status_with(key: str) -> int:
    values = outputs()
    endpoint = Endpoint(
        url=values["connectorUrl"], key=key, model=values["model"], ca_certificate=values["caCertificate"]
    )
    with httpx2.Client(verify=endpoint.tls_context(), trust_env=False, timeout=60) as client:
        url = endpoint.url.removesuffix(CHAT_PATH) + "/v1/models"
        return int(client.get(url, headers={"Authorization": f"Bearer {key}"}).status_code)


def test_the_endpoint_is_verified_with_two_replicas(stack: str) -> None:
    assert " checks failed" not in stack
    assert len(pods("vllm")) == 2
    assert len(pods("gateway")) == 2


@pytest.mark.usefixtures("stack")
def test_a_second_update_changes_nothing() -> None:
    before = {**pods("vllm"), **pods("gateway")}.keys()
    printed = rehearse("up")
    assert " unchanged" in printed
    assert not [word for word in ("created  ", "updated  ", "replaced  ") if f"\n{word}" in printed]
    assert {**pods("vllm"), **pods("gateway")}.keys() == before


def test_each_node_has_a_vllm_and_a_gateway(stack: str) -> None:
    assert stack
    for component in ("vllm", "gateway"):
        assert {pod["spec"]["nodeName"] for pod in pods(component).values()} == {node.name for node in NODES}


# Under load, by clients that repeat nothing


@pytest.mark.usefixtures("stack")
def test_a_rotated_key_is_loaded_by_the_pods_that_run() -> None:
    old, before = outputs()["connectorApiKey"], pods("gateway").keys()
    with asking(outputs()) as answers:
        rehearse("up", "--set", "keys={default: [2, 1]}")
    assert flaws(answers) == []
    new = outputs()["connectorApiKey"]
    assert (status_with(old), status_with(new)) == (200, 200)
    with asking(outputs()) as answers:
        rehearse("up", *NEW_KEY)
    assert flaws(answers) == []
    assert (status_with(old), status_with(new)) == (401, 200)
    assert pods("gateway").keys() == before


@pytest.mark.usefixtures("stack")
def test_a_rolling_change_of_the_model_fails_no_request() -> None:
    rehearse("up", *NEW_KEY)  # whether or not other tests came first
    before = pods("vllm").keys()
    with asking(outputs()) as answers:
        rehearse("up", *NEW_KEY, *OTHER_MODEL)
    assert outputs()["model"] == "rehearsal/tiny-2"
    assert not pods("vllm").keys() & before
    assert flaws(answers) == []


@pytest.mark.usefixtures("stack")
def test_a_drained_node_fails_no_request() -> None:
    node = NODES[1].name  # clients connect to the first one
    with asking(outputs()) as answers:
        try:
            cluster.kubectl("drain", node, "--ignore-daemonsets", "--delete-emptydir-data", "--timeout=900s")
            time.sleep(20)
        finally:
            cluster.kubectl("uncordon", node)
        until(lambda: ready("vllm") == 2 and ready("gateway") == 2)
    assert flaws(answers) == []


@pytest.mark.usefixtures("stack")
def test_a_killed_vllm_fails_only_what_it_was_answering() -> None:
    name, pod = next(iter(pods("vllm").items()))
    with asking(outputs(), each=4) as answers:
        time.sleep(5)
        killed = time.time()
        kill_all_of(pod, "vllm.entrypoints")
        until(lambda: restarts(name) == 1)
        until(lambda: ready("vllm") == 2)
    wrong = [each for each in answers if each.flaw]
    last = max((each.end for each in wrong), default=killed) - killed
    print(f"{len(wrong)} of {len(answers)} requests failed, the last one {last:.1f} s after the kill")
    assert len(wrong) <= 8, flaws(answers)
    assert [each for each in wrong if not each.start <= killed + MOMENT <= each.end + MOMENT] == [], flaws(answers)


@pytest.mark.usefixtures("stack")
def test_a_killed_gateway_fails_only_what_it_was_passing_on() -> None:
    # Both on the first node, whose port clients know: its network forgets the pod that is gone.
    pod = next(pod for pod in pods("gateway").values() if pod["spec"]["nodeName"] == NODES[0].name)
    with asking(outputs(), each=4) as answers:
        time.sleep(5)
        killed = time.time()
        kill_all_of(pod, "nginx")
        until(lambda: ready("gateway") == 2 and restarts(pod["metadata"]["name"]) == 1)
    wrong = [each for each in answers if each.flaw]
    last = max((each.end for each in wrong), default=killed) - killed
    print(f"{len(wrong)} of {len(answers)} requests failed, the last one {last:.1f} s after the kill")
    assert [each for each in wrong if each.start > killed + GATEWAY_SECONDS] == [], flaws(answers)


# What gets through the Service


def server() -> Server:
    values = outputs()
    address = urlsplit(values["connectorUrl"])
    context = ssl.create_default_context(cadata=values["caCertificate"])
    context.check_hostname = False
    return Server(str(address.hostname), address.port or 443, context)


@contextmanager
def seen_by_vllm() -> Iterator[Counter[tuple[str, str]]]:
    """Count the requests in the logs of vLLM's pods; kubelet's probes send some, too."""
    found: Counter[tuple[str, str]] = Counter()
    since = datetime.now(UTC).isoformat()
    yield found
    time.sleep(2)
    for name in pods("vllm"):
        log = cluster.kubectl(
            "logs", name, "--container=vllm", f"--since-time={since}", f"--namespace={NAMESPACE}", "--tail=-1"
        )
        found.update((match[1], match[2]) for match in IN_VLLMS_LOG.finditer(log))
    del found["GET", "/health"]


@pytest.mark.usefixtures("stack")
def test_only_the_allow_list_with_the_right_key_answers() -> None:
    values, to, wrong, answered = outputs(), server(), list[str](), Counter[tuple[str, str]]()
    right = values["connectorApiKey"]
    request = {"model": values["servedModelName"], "messages": [{"role": "user", "content": "Hi"}], "max_tokens": 1}
    connection = http.client.HTTPSConnection(to.host, to.port, context=to.context, timeout=60)
    with seen_by_vllm() as seen:
        for path, method, key in product((*OTHERS, *ALLOWED, HEALTH), METHODS, (right, right.upper(), "0" * 64, "")):
            headers = {"Content-Type": "application/json", **({"Authorization": f"Bearer {key}"} if key else {})}
            connection.request(
                method, path, json.dumps(request) if method in {"POST", "PUT", "PATCH"} else None, headers
            )
            answer = connection.getresponse()
            text = answer.read()
            if answer.status != (expected := Plain(method, path, key == right, b"").status):
                wrong.append(f"{method} {path}: {answer.status}, not {expected}: {text[:100]!r}")
            if answer.status == HTTPStatus.OK and path != HEALTH:
                answered[method, BEHIND[path]] += 1
    connection.close()
    assert not wrong
    assert answered == {("POST", "/v1/chat/completions"): 1, ("GET", "/v1/models"): 1}
    assert answered <= seen
    assert seen - answered <= PROBES


@pytest.mark.usefixtures("stack")
def test_known_attacks_get_no_further_than_promised() -> None:
    to, key, allowed = server(), outputs()["connectorApiKey"], Counter[tuple[str, str]]()
    with seen_by_vllm() as seen:
        for name, written in KNOWN.items():
            payload = written.replace(CURRENT.encode(), key.encode())
            payload = payload.replace(CURRENT.upper().encode(), key.upper().encode())
            permitted = entitled(payload, [key])
            given = answers(exchange(to, payload))
            assert {each.status for each in given} <= {0, HTTPStatus.OK, *REFUSALS}, name
            assert sum(each.status == HTTPStatus.OK for each in given) <= permitted.total(), name
            allowed += permitted
    assert seen
    assert seen - allowed <= PROBES


# Prompts that are cached already

CONVERSATIONS, TURNS = 12, 5
ASK = """
import http.client, json, socket, sys
class Vllm(http.client.HTTPConnection):
    def connect(self):
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.connect("/run/vllm/vllm.sock")
vllm = Vllm("vllm")
for body in json.load(sys.stdin):
    vllm.request("POST", "/v1/chat/completions", json.dumps(body), {"Content-Type": "application/json"})
    answer = vllm.getresponse()
    text = answer.read()
    assert answer.status == 200, text
vllm.request("GET", "/metrics")
for line in vllm.getresponse().read().decode().splitlines():
    if line.startswith("vllm:prefix_cache_"):
        print(line)
"""


def conversation(model: str, number: str) -> list[dict[str, Any]]:
    """Return the requests of a conversation: all share a system prompt, and each repeats what was said before."""
    messages = [{"role": "system", "content": "You help with Elastic. " * 60}]
    bodies = []
    for turn in range(TURNS):
        messages.append({"role": "user", "content": f"Question {turn} of {number}. " * 30})
        bodies.append({"model": model, "messages": list(messages), "max_tokens": 8})
        messages.append({"role": "assistant", "content": f"Answer {turn} to {number}. " * 20})
    return bodies


def in_pod(name: str, bodies: list[dict[str, Any]]) -> dict[str, float]:
    """Ask a pod's vLLM directly, and return its counters of prompt tokens: all, and those that it had cached."""
    command = ["exec", name, f"--namespace={NAMESPACE}", "--container=vllm", "--stdin", "--", "python3", "-c", ASK]
    lines = [line.split() for line in cluster.kubectl(*command, data=json.dumps(bodies)).splitlines()]
    return {line[0].partition("{")[0].removeprefix("vllm:prefix_cache_"): float(line[1]) for line in lines}


def cached_by(ask: Callable[[], None]) -> float:
    """Return the share of prompt tokens that both vLLM had cached while `ask` ran."""

    def counted(counter: str) -> float:
        return sum(in_pod(name, [])[counter] for name in pods("vllm"))

    before = counted("hits_total"), counted("queries_total")
    ask()
    return (counted("hits_total") - before[0]) / (counted("queries_total") - before[1])


@pytest.mark.usefixtures("stack")
def test_a_pinned_conversation_finds_more_of_its_prompts_cached() -> None:
    """Least_conn, as the gateway does it, beside the best that any router could do."""
    values = outputs()
    model = values["servedModelName"]
    context = ssl.create_default_context(cadata=values["caCertificate"])
    headers = {"Authorization": f"Bearer {values['connectorApiKey']}"}

    def through_the_gateway(number: int) -> None:
        with httpx2.Client(verify=context, headers=headers, timeout=120, trust_env=False) as client:
            for body in conversation(model, f"conversation {number}"):
                assert client.post(values["connectorUrl"], json=body).status_code == HTTPStatus.OK

    def spread() -> None:
        with ThreadPoolExecutor(4) as threads:
            list(threads.map(through_the_gateway, range(CONVERSATIONS)))

    def pinned() -> None:
        for index, name in enumerate(pods("vllm")):
            own = range(index, CONVERSATIONS, len(pods("vllm")))
            in_pod(name, [body for number in own for body in conversation(model, f"pinned {number}")])

    shares = {"least_conn": cached_by(spread), "pinned": cached_by(pinned)}
    print(f"share of prompt tokens found cached: {shares}")
    assert 0 < shares["least_conn"] <= shares["pinned"] < 1


OBSERVERS = ("observing", "strange")
READ = """
import sys, time, urllib.request
opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
for url in sys.argv[1:]:
    end = time.monotonic() + 20  # a policy knows the address of a new pod a moment later
    while True:
        try:
            print(opener.open(url, timeout=5).read().decode())
            break
        except OSError as error:
            if time.monotonic() > end:
                print("none:", error)
                break
            time.sleep(1)
"""


def read_from(namespace: str, *urls: str) -> str:
    """Return what a pod of a namespace reads there."""
    image = next(iter(pods("vllm").values()))["spec"]["containers"][0]["image"]
    pod = ["run", "reader", f"--namespace={namespace}", f"--image={image}", "--image-pull-policy=Never"]
    cluster.kubectl(*pod, "--restart=Never", "--command", "--", "python3", "-c", READ, *urls)
    done = ["wait", "pod/reader", f"--namespace={namespace}", "--for=jsonpath={.status.phase}=Succeeded"]
    cluster.kubectl(*done, "--timeout=120s")
    return cluster.kubectl("logs", "reader", f"--namespace={namespace}")


@pytest.mark.usefixtures("stack")
def test_only_the_agents_namespace_reads_metrics() -> None:
    rehearse("up", *NEW_KEY, *OTHER_MODEL)
    before = {**pods("vllm"), **pods("gateway")}.keys()
    rehearse("up", *NEW_KEY, *OTHER_MODEL, "--set", f"metricsNamespace={OBSERVERS[0]}")
    time.sleep(LOADED_SECONDS)
    vllm, gateway = (next(iter(pods(component).values()))["status"]["podIP"] for component in ("vllm", "gateway"))
    urls = f"http://{vllm}:9090/metrics", f"http://{gateway}:9090/stub_status"
    try:
        for namespace in OBSERVERS:
            cluster.kubectl("create", "namespace", namespace)
        observed, strange = (read_from(namespace, *urls) for namespace in OBSERVERS)
    finally:
        cluster.kubectl("delete", "namespace", *OBSERVERS)
    assert "vllm:num_requests_running" in observed
    assert "Active connections" in observed
    assert strange.count("none:") == 2
    assert {**pods("vllm"), **pods("gateway")}.keys() == before


@pytest.mark.usefixtures("stack")
def test_a_door_lets_nobody_in_without_the_gateways_certificate() -> None:
    node, address = next((pod["spec"]["nodeName"], pod["status"]["podIP"]) for pod in pods("vllm").values())
    url = f"https://{address}:8443/v1/models"
    ask = ["curl", "--silent", "--insecure", "--max-time", "10", "--output", "/dev/null", "--write-out", "%{http_code}"]
    command = [str(ROOT / "scripts" / "rehearse"), "cluster", "run", node, "--", *ask, url]
    printed = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False).stdout
    assert printed == "400"  # Nginx's answer to a client without a certificate


def test_what_is_taken_down_leaves_nothing(stack: str) -> None:
    assert stack
    rehearse("down")
    assert not cluster.kubectl("get", "namespace", NAMESPACE, "--ignore-not-found", "--output=name")

"""Nginx's logs and metrics for an agent on the server: their place, their contents, and who may read them."""

import re
import subprocess
from collections.abc import Iterator
from pathlib import Path
from secrets import token_hex

import httpx2
import pytest
import yaml

from components.serving.vllm_process import NGINX_UID, SOCKET_GID
from tests.integration.conftest import ROOT, Deployment, deployment, identity, rehearse, rehearse_up
from tests.support import local_sshd, vllm_stand_in
from tests.support.made_stacks import stack_file
from tests.support.netns_machine import wait_until

STACK = "observed"
LOGS = Path("/var/log/elastic-vllm") / STACK
SOCKET = Path("/var/lib/elastic-vllm") / STACK / "metrics" / "nginx.sock"
ROTATION = Path(f"/etc/logrotate.d/elastic-vllm-{STACK}")
# The grok pattern of Elastic's Nginx integration (packages/nginx, access/elasticsearch/ingest_pipeline), for the case
# of one address and a user.
ACCESS = re.compile(
    r"(?P<ip>[0-9a-f.:]+) - (?P<user>-|\S+) \[(?P<time>\d{2}/\w{3}/\d{4}:\d{2}:\d{2}:\d{2} [+-]\d{4})\] "
    r'"(?P<method>\w*) (?P<path>.*?) HTTP/(?P<version>[\d.]+)" (?P<status>\d{3}) (?P<bytes>\d+)'
    r'( (?P<seconds>[\d.]+))? "(-|.*?)" "(-|.*?)"'
)


@pytest.fixture(scope="module")
def deployed(machine: None) -> Iterator[Deployment]:
    config = yaml.safe_load((ROOT / "stacks" / "Pulumi.local.yaml").read_text())["config"]
    settings = {key.removeprefix("elastic-vllm:"): value for key, value in config.items()}
    with vllm_stand_in.image() as image, stack_file(STACK, settings | own(image)):
        rehearse_up(stack=STACK)
        yield deployment(STACK)


def own(image: str) -> dict[str, object]:
    return {"httpsPort": local_sshd.free_port(), "vllmImage": image}


def ask(deployed: Deployment, path: str = "/v1/models") -> int:
    with deployed.http(deployed.key) as client:
        return client.get(path).status_code


def all_logged(deployed: Deployment) -> list[str]:
    """Return the access log's lines once the last has arrived: Nginx writes it after the client has its answer."""
    last = f"/{token_hex(16)}"
    assert ask(deployed, last) == 404
    wait_until(lambda: last in (LOGS / "access.log").read_text())
    return (LOGS / "access.log").read_text().splitlines()


def scrape(path: str) -> httpx2.Response:
    with httpx2.Client(transport=httpx2.HTTPTransport(uds=str(SOCKET)), base_url="http://metrics") as client:
        return client.get(path)


def test_a_request_is_in_the_log_file_as_elastics_integration_reads_it(deployed: Deployment) -> None:
    assert ask(deployed) == 200
    # A line follows its answer, and the wait for the stack has produced lines too.
    wait_until(lambda: " /v1/models " in (LOGS / "access.log").read_text())
    line = next(line for line in (LOGS / "access.log").read_text().splitlines() if " /v1/models " in line)
    match = ACCESS.match(line)
    assert match
    assert (match["user"], match["method"], match["path"], match["status"]) == ("v1", "GET", "/v1/models", "200")
    assert float(match["seconds"]) >= 0


def test_the_log_files_hold_no_key_no_query_and_no_prompt(deployed: Deployment) -> None:
    prompt, query = "the-prompt-that-nobody-reads", "the-query-that-nobody-reads"
    with deployed.http(deployed.key) as client:
        client.post("/v1/chat/completions", json={"model": "none", "messages": [{"role": "user", "content": prompt}]})
        client.get(f"/v1/models?{query}=1")
        client.get("/v1/models", headers={"Authorization": f"Bearer {deployed.key} twice"})
    all_logged(deployed)
    written = "".join(path.read_text() for path in LOGS.iterdir())
    assert not [word for word in (deployed.key, prompt, query) if word in written]


def test_only_nginx_and_root_can_read_the_log_files(deployed: Deployment) -> None:
    assert (LOGS.stat().st_mode & 0o777, LOGS.stat().st_uid) == (0o750, 0)
    for path in LOGS.iterdir():
        assert (path.stat().st_mode & 0o777, path.stat().st_uid, path.stat().st_gid) == (0o640, NGINX_UID, SOCKET_GID)


def test_rotation_loses_no_line_and_restarts_nothing(deployed: Deployment) -> None:
    container = deployed.docker.containers.get(f"elastic-vllm-{STACK}-nginx")
    before, lines = identity(container), all_logged(deployed)
    subprocess.run(["logrotate", "--force", str(ROTATION)], check=True)
    for _ in range(5):
        ask(deployed)
    new = all_logged(deployed)
    old = (LOGS / "access.log.1").read_text().splitlines()
    assert old[: len(lines)] == lines
    assert len(old) + len(new) == len(lines) + 6
    assert identity(container) == before


def test_root_gets_the_metrics_of_nginx_and_vllm_by_the_socket(deployed: Deployment) -> None:
    assert re.match(r"Active connections: \d+ \nserver accepts handled requests\n", scrape("/stub_status").text)
    assert "vllm:num_requests_running" in scrape("/metrics").text


@pytest.mark.parametrize("path", ["/v1/models", "/health", "/", "/metrics/", "/v1/chat/completions"])
def test_the_socket_gives_nothing_else(deployed: Deployment, path: str) -> None:
    assert scrape(path).status_code == 404


@pytest.mark.parametrize("path", ["/stub_status", "/metrics"])
def test_clients_get_no_metrics(deployed: Deployment, path: str) -> None:
    assert ask(deployed, path) == 404


def test_no_other_user_gets_to_the_socket(deployed: Deployment) -> None:
    command = ["setpriv", "--reuid", "65534", "--regid", "65534", "--clear-groups", "curl", "-s", "--unix-socket"]
    done = subprocess.run([*command, str(SOCKET), "http://metrics/stub_status"], capture_output=True, check=False)
    assert done.returncode != 0


def test_metrics_stay_after_nginx_was_killed_and_after_a_reload(deployed: Deployment) -> None:
    container = deployed.docker.containers.get(f"elastic-vllm-{STACK}-nginx")
    container.kill("SIGKILL")
    container.start()
    rehearse_up("--set", "keys={default: [2, 1]}", stack=STACK)
    assert scrape("/stub_status").status_code == 200
    assert ask(deployed) == 200


def test_a_log_file_that_somebody_deleted_costs_no_request(deployed: Deployment) -> None:
    container = deployed.docker.containers.get(f"elastic-vllm-{STACK}-nginx")
    (LOGS / "access.log").unlink()
    container.restart()
    rehearse_up(stack=STACK)
    assert ask(deployed) == 200


def test_down_removes_logs_and_rotation(deployed: Deployment) -> None:
    assert rehearse("down", stack=STACK).returncode == 0
    assert not LOGS.exists()
    assert not ROTATION.exists()

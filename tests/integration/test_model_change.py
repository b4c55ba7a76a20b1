"""Another model: replaced resources, unchanged ones, and the answers that clients get in the meantime.

The new model stays: changing it back would cost another start of vLLM, and other tests accept any model.
"""

import threading
from dataclasses import dataclass

import openai
import pytest

from tests.integration.conftest import Deployment, deployment, identity, rehearse, rehearse_up

pytestmark = pytest.mark.slow  # the quick run has airgap/test_site.py, with a stand-in for vLLM

WATCH_SECONDS = 0.2


class Watcher(threading.Thread):
    """A client that keeps asking for the models and for the health."""

    def __init__(self, deployed: Deployment) -> None:
        super().__init__()
        self._deployed = deployed
        self._done = threading.Event()
        self.answers: list[object] = []
        """The models, or the official client's error."""
        self.health: list[int] = []

    def run(self) -> None:
        client = self._deployed.openai()
        with self._deployed.http() as health:
            while not self._done.wait(WATCH_SECONDS):
                try:
                    self.answers.append({model.id for model in client.models.list()})
                except openai.OpenAIError as error:
                    self.answers.append(error)
                self.health.append(health.get("/healthz").status_code)

    def stop(self) -> None:
        self._done.set()
        self.join()


@dataclass(frozen=True)
class Change:
    """A change of the model: the state before, during and after it."""

    before: Deployment
    after: Deployment
    containers_before: dict[str, tuple[str, str]]
    containers_after: dict[str, tuple[str, str]]
    replaced: set[str]
    """Resources that `up` reports as replaced."""
    watcher: Watcher


def containers(deployed: Deployment) -> dict[str, tuple[str, str]]:
    return {"vllm": identity(deployed.vllm), "nginx": identity(deployed.nginx)}


@pytest.fixture(scope="module")
def change(deployed: Deployment) -> Change:
    model = "rehearsal/tiny" if deployed.model == "rehearsal/tiny-2" else "rehearsal/tiny-2"
    before = containers(deployed)
    watcher = Watcher(deployed)
    watcher.start()
    try:
        output = rehearse_up("--set", f"model={model}")
        changed = deployment()
    finally:
        watcher.stop()
    replaced = {line.split()[1] for line in output.splitlines() if line.startswith("replaced ")}
    return Change(deployed, changed, before, containers(changed), replaced, watcher)


def test_vllm_is_replaced(change: Change) -> None:
    assert change.containers_after["vllm"] != change.containers_before["vllm"]
    assert change.replaced == {"vllm-container", "vllm-ready"}


def test_nginx_is_neither_replaced_nor_restarted(change: Change) -> None:
    assert change.containers_after["nginx"] == change.containers_before["nginx"]


def test_new_model_is_served_under_its_name_and_the_alias(change: Change) -> None:
    assert change.after.model != change.before.model
    served = {model.id for model in change.after.openai().models.list()}
    assert served == {change.after.model, change.before.alias}


def test_key_and_ca_stay(change: Change) -> None:
    assert (change.after.key, change.after.ca_certificate) == (change.before.key, change.before.ca_certificate)


def test_meanwhile_clients_are_asked_to_try_again(change: Change) -> None:
    answers = change.watcher.answers
    assert {change.before.model, change.before.alias} == answers[0]
    assert {change.after.model, change.before.alias} == answers[-1]
    errors = [answer for answer in answers if not isinstance(answer, set)]
    assert {type(error) for error in errors} == {openai.InternalServerError}
    for error in errors:
        assert isinstance(error, openai.InternalServerError)
        assert (error.status_code, error.response.headers["retry-after"]) == (503, "5")
        assert error.response.json()["error"].keys() == {"message", "type", "param", "code"}
        assert error.code == "model_unavailable"


def test_meanwhile_health_is_503(change: Change) -> None:
    health = change.watcher.health
    assert (health[0], set(health), health[-1]) == (200, {200, 503}, 200)


def test_verify_finds_nothing_wrong(change: Change) -> None:
    done = rehearse("verify")
    assert (done.returncode, "FAIL" in done.stdout) == (0, False), f"{done.stdout}\n{done.stderr}"

"""A stack that creates its connector and inference endpoint itself, in a strict Kibana and Elasticsearch."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from tests.integration.conftest import ROOT, Deployment, deployment, rehearse
from tests.support import elastic_stand_in, local_sshd, vllm_stand_in
from tests.support.elastic_stand_in import ADMIN, READER, Elastic
from tests.support.made_stacks import stack_file
from tests.support.netns_machine import outcomes

STACK = "elastic"
NAME = f"elastic-vllm-{STACK}"
BOTH = {"connector-kibana", "connector-inference"}


@pytest.fixture(scope="module")
def elastic(machine: None) -> Iterator[Elastic]:
    """Kibana and Elasticsearch that outlive the stack, which is like local, with the stand-in for vLLM."""
    config = yaml.safe_load((ROOT / "stacks" / "Pulumi.local.yaml").read_text())["config"]
    settings = {key.removeprefix("elastic-vllm:"): value for key, value in config.items()}
    with elastic_stand_in.serving(Elastic(calls_endpoint=False)) as serving, vllm_stand_in.image() as image:
        own = {"httpsPort": local_sshd.free_port(), "vllmImage": image}
        with stack_file(STACK, settings | own):
            yield serving


def settings(elastic: Elastic, tmp: Path, kibana_key: str = ADMIN) -> list[str]:
    """Return options that connect the stack to both; the keys are in files, as users provide them."""
    keys = {"kibanaApiKey": kibana_key, "elasticsearchApiKey": ADMIN}
    for name, key in keys.items():
        (tmp / name).write_text(key)
    given = [part for name in keys for part in ("--set-file", f"{name}={tmp / name}")]
    return [*given, "--set", f"kibanaUrl={elastic.address}", "--set", f"elasticsearchUrl={elastic.address}"]


@pytest.fixture(scope="module")
def connected(elastic: Elastic, tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Options of a stack that is up and has created both. From here on Elastic really asks the endpoint."""
    made([])
    elastic.trusts = deployment(STACK).ca_certificate
    elastic.calls_endpoint = True
    options = settings(elastic, tmp_path_factory.mktemp("elastic"))
    done = made(options)
    assert {done[name] for name in BOTH} == {"created"}
    return options


def made(options: list[str]) -> dict[str, str]:
    """Run `up` with these options, which must succeed, and map each resource to what was done."""
    done = rehearse("up", *options, stack=STACK)
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
    return outcomes(done.stdout)


def bodies(elastic: Elastic) -> tuple[dict[str, object], dict[str, object]]:
    """Return the only connector and the only inference endpoint."""
    (connector,) = elastic.connectors.values()
    assert list(elastic.inference) == [NAME]
    return connector, elastic.inference[NAME]


def answers(deployed: Deployment, url: str, key: str, model: str) -> bool:
    """Return True if the official client gets an answer with a connector's values."""
    assert url == deployed.url
    answer = deployed.openai(key).chat.completions.create(model=model, messages=[{"role": "user", "content": "Hi"}])
    return bool(answer.choices[0].message.content)


def test_the_connector_works_with_the_official_client(connected: list[str], elastic: Elastic) -> None:
    connector, inference = bodies(elastic)
    config, secrets, of_inference = connector["config"], connector["secrets"], inference["service_settings"]
    assert isinstance(config, dict)
    assert isinstance(secrets, dict)
    assert isinstance(of_inference, dict)
    deployed = deployment(STACK)
    assert answers(deployed, config["apiUrl"], secrets["apiKey"], config["defaultModel"])
    assert answers(deployed, of_inference["url"], of_inference["api_key"], of_inference["model_id"])


def test_a_second_up_changes_nothing(connected: list[str]) -> None:
    assert set(made(connected).values()) == {"unchanged"}


def test_what_somebody_deleted_is_created_again(connected: list[str], elastic: Elastic) -> None:
    before = bodies(elastic)
    elastic.connectors.clear()
    elastic.inference.clear()
    done = made(connected)
    assert {name for name, outcome in done.items() if outcome != "unchanged"} == BOTH
    assert bodies(elastic) == before


def test_what_somebody_changed_is_reverted(connected: list[str], elastic: Elastic) -> None:
    before = json.dumps(bodies(elastic))
    bodies(elastic)[0]["name"] = "mine"
    assert {name for name, outcome in made(connected).items() if outcome == "updated"} == {"connector-kibana"}
    assert json.dumps(bodies(elastic)) == before


def test_a_changed_model_changes_both_in_place(connected: list[str], elastic: Elastic) -> None:
    ids = list(elastic.connectors), list(elastic.inference)
    done = made([*connected, "--set", "servedModelName=assistant"])
    assert {done[name] for name in BOTH} == {"updated"}
    connector, inference = bodies(elastic)
    assert json.dumps(connector).count('"assistant"') == json.dumps(inference).count('"assistant"') == 1
    assert (list(elastic.connectors), list(elastic.inference)) == ids
    made(connected)


@pytest.mark.slow
def test_a_new_key_reaches_both_in_the_same_up(connected: list[str], elastic: Elastic) -> None:
    made([*connected, "--set", "keys={default: [2, 1]}"])
    key = deployment(STACK).key
    assert [json.dumps(body).count(key) for body in bodies(elastic)] == [1, 1]
    made(connected)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("key", "cause"), [("d3Jvbmc=", "refuses the API key (401"), (READER, "lacks a privilege in Kibana (403")]
)
def test_a_key_that_elastic_does_not_take_fails_with_one_message(
    connected: list[str], elastic: Elastic, tmp_path: Path, key: str, cause: str
) -> None:
    done = rehearse("up", *settings(elastic, tmp_path, key), stack=STACK)
    assert done.returncode == 1
    assert cause in " ".join(done.stderr.split())
    assert "host-check" not in outcomes(done.stdout)  # the first on the server
    assert key not in done.stdout + done.stderr
    assert "Traceback" not in done.stderr
    deployed = deployment(STACK)
    assert answers(deployed, deployed.url, deployed.key, deployed.alias)
    assert bodies(elastic)


@pytest.mark.slow
def test_a_kibana_that_is_down_fails_that_resource_and_the_endpoint_works(
    connected: list[str], elastic: Elastic
) -> None:
    elastic.answers = [(503, {})] * 200
    done = rehearse("up", *connected, stack=STACK)
    elastic.answers = []
    assert done.returncode == 1
    message = " ".join(done.stderr.split())
    assert "still answers 503" in message
    assert "Nothing else is wrong" in message
    deployed = deployment(STACK)
    assert answers(deployed, deployed.url, deployed.key, deployed.alias)
    assert set(made(connected).values()) <= {"unchanged", "updated"}


@pytest.mark.slow
def test_an_address_that_is_not_kibanas_fails_before_anything_else_is_touched(
    connected: list[str], elastic: Elastic
) -> None:
    done = rehearse("up", *connected, "--set", f"kibanaUrl={elastic.address}/elsewhere", stack=STACK)
    assert done.returncode == 1
    assert "is kibanaUrl right" in " ".join(done.stderr.split())
    assert "host-check" not in outcomes(done.stdout)  # the first on the server
    made(connected)


def test_taken_out_of_the_settings_they_go_and_down_takes_both(connected: list[str], elastic: Elastic) -> None:
    done = made([])
    assert {done[name] for name in BOTH} == {"deleted"}
    assert (elastic.connectors, elastic.inference) == ({}, {})
    made(connected)
    assert bodies(elastic)
    down = rehearse("down", stack=STACK)
    assert down.returncode == 0, down.stderr
    assert (elastic.connectors, elastic.inference) == ({}, {})

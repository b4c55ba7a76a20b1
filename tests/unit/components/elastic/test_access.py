"""Check of Elastic's addresses and keys before everything else."""

from typing import Any

import pytest
from pulumi.dynamic import ResourceProvider

from components.elastic import resources
from tests.support.elastic_stand_in import ADMIN, READER, Elastic
from tests.unit.components.elastic.conftest import failure

ACCESS = pytest.mark.parametrize(
    ("provider", "privilege"),
    [
        (resources.KibanaAccessProvider(), "Actions and Connectors"),
        (resources.ElasticsearchAccessProvider(), "manage"),
    ],
    ids=["kibana", "elasticsearch"],
)


def access(elastic: Elastic, **changes: Any) -> dict[str, Any]:
    return {"url": elastic.address, "key": ADMIN, "ca": "", "space": "", "pki": False, **changes}


@ACCESS
def test_a_key_that_is_good_for_it_passes_and_nothing_is_made(
    elastic: Elastic, provider: ResourceProvider, privilege: str
) -> None:
    provider.create(access(elastic))
    assert (elastic.connectors, elastic.inference) == ({}, {})


@ACCESS
def test_a_key_without_the_privilege_is_found_first(
    elastic: Elastic, provider: ResourceProvider, privilege: str
) -> None:
    message = failure(lambda: provider.create(access(elastic, key=READER)))
    assert "lacks a privilege" in message
    assert privilege in message


@ACCESS
@pytest.mark.parametrize("change", [{"key": "d3Jvbmc="}, {"url": "http://no-such-name.invalid"}], ids=["key", "name"])
def test_a_lasting_error_is_found_first(
    elastic: Elastic, provider: ResourceProvider, privilege: str, change: dict[str, str], slept: list[float]
) -> None:
    wanted = access(elastic)
    message = failure(lambda: provider.update("asked", wanted, wanted | change))
    assert "refuses the API key" in message or "there is no such name" in message
    assert slept == []


@ACCESS
@pytest.mark.parametrize("status", [0, 503])
def test_one_that_is_down_now_is_not_held_against_the_settings(
    elastic: Elastic, provider: ResourceProvider, privilege: str, status: int, slept: list[float]
) -> None:
    elastic.answers = [(status, {})] if status else []
    provider.create(access(elastic) if status else access(elastic, url="http://127.0.0.1:9"))
    assert slept == []


KIBANA, ELASTICSEARCH = resources.KibanaAccessProvider(), resources.ElasticsearchAccessProvider()
CAUSES: list[tuple[ResourceProvider, dict[str, Any], dict[str, Any], str, str]] = [
    (KIBANA, {"license": "basic"}, {}, "a license without AI connectors", "need an Enterprise license"),
    (ELASTICSEARCH, {"license": "basic"}, {}, "a license of type 'basic'", "need an Enterprise license"),
    (KIBANA, {"enabled_types": (".email",)}, {}, "OpenAI connector switched off", "add .gen-ai to"),
    (KIBANA, {"encryption_key": False}, {}, "can store no connector", "encryptedSavedObjects.encryptionKey in every"),
    (KIBANA, {}, {"space": "ghost"}, "has no space 'ghost'", "correct kibanaSpace"),
    (KIBANA, {"version": "8.15.2"}, {}, "knows no provider 'Other'", "update it to 8.16 or newer"),
    (KIBANA, {"version": "9.0.8"}, {"pki": True}, "no client certificate", "use Kibana 8.19, 9.1 or newer"),
]


@pytest.mark.parametrize(("provider", "state", "inputs", "cause", "fix"), CAUSES)
def test_each_cause_has_its_own_message_before_anything_is_created(
    elastic: Elastic,
    slept: list[float],
    provider: ResourceProvider,
    state: dict[str, Any],
    inputs: dict[str, Any],
    cause: str,
    fix: str,
) -> None:
    for name, value in state.items():
        setattr(elastic, name, value)
    message = failure(lambda: provider.create(access(elastic, **inputs)))
    assert cause in message
    assert fix in message
    assert "lacks a privilege" not in message
    assert (elastic.connectors, elastic.inference, slept) == ({}, {}, [])


@pytest.mark.parametrize("license_", ["enterprise", "trial"])
@ACCESS
def test_a_license_that_includes_it_passes(
    elastic: Elastic, provider: ResourceProvider, privilege: str, license_: str
) -> None:
    elastic.license = license_
    provider.create(access(elastic))


@ACCESS
def test_the_version_is_an_output(elastic: Elastic, provider: ResourceProvider, privilege: str) -> None:
    elastic.version = "9.1.3"
    assert (provider.create(access(elastic)).outs or {})["version"] == "9.1.3"


def test_another_version_of_kibana_is_a_change(elastic: Elastic) -> None:
    elastic.version = "9.1.3"
    wanted = access(elastic)
    olds = KIBANA.create(wanted).outs or {}
    assert not KIBANA.diff("asked", olds, wanted).changes
    elastic.version = "9.2.0"
    assert KIBANA.diff("asked", olds, wanted).changes
    assert (KIBANA.update("asked", olds, wanted).outs or {})["version"] == "9.2.0"


def test_a_kibana_that_is_down_keeps_the_version_that_it_had(elastic: Elastic, slept: list[float]) -> None:
    olds = KIBANA.create(access(elastic)).outs or {}
    down = access(elastic, url="http://127.0.0.1:9")
    assert not KIBANA.diff("asked", olds | {"url": down["url"]}, down).changes
    assert (KIBANA.update("asked", olds, down).outs or {})["version"] == elastic.version
    assert (KIBANA.create(down).outs or {})["version"] == ""

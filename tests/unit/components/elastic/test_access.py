"""The check of Elastic's addresses and keys that comes before everything else."""

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
    return {"url": elastic.address, "key": ADMIN, "ca": "", "space": "", **changes}


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
    said = failure(lambda: provider.create(access(elastic, key=READER)))
    assert "lacks a privilege" in said
    assert privilege in said


@ACCESS
@pytest.mark.parametrize("change", [{"key": "d3Jvbmc="}, {"url": "http://no-such-name.invalid"}], ids=["key", "name"])
def test_what_time_does_not_mend_is_found_first(
    elastic: Elastic, provider: ResourceProvider, privilege: str, change: dict[str, str], slept: list[float]
) -> None:
    wanted = access(elastic)
    said = failure(lambda: provider.update("asked", wanted, wanted | change))
    assert "refuses the API key" in said or "there is no such name" in said
    assert slept == []


@ACCESS
@pytest.mark.parametrize("status", [0, 503])
def test_one_that_is_down_now_is_not_held_against_the_settings(
    elastic: Elastic, provider: ResourceProvider, privilege: str, status: int, slept: list[float]
) -> None:
    elastic.answers = [(status, {})] if status else []
    provider.create(access(elastic) if status else access(elastic, url="http://127.0.0.1:9"))
    assert slept == []


def test_a_space_that_is_not_there_is_found_first(elastic: Elastic) -> None:
    provider = resources.KibanaAccessProvider()
    assert "is there such a space" in failure(lambda: provider.create(access(elastic, space="nope")))

"""Fixtures for tests of Elastic's resources: the stand-in, a clock without waiting, and the check of a failure."""

from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import pytest

from components.elastic import api
from components.elastic.api import ElasticError
from tests.support import elastic_stand_in
from tests.support.elastic_stand_in import ADMIN, READER, Elastic

KEY = "5" * 64
"""Key of the endpoint."""


@pytest.fixture(autouse=True)
def slept(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Pauses that were made, on a clock that only pauses advance."""
    pauses: list[float] = []
    monkeypatch.setattr(api, "time", SimpleNamespace(sleep=pauses.append, monotonic=lambda: sum(pauses)))
    return pauses


@pytest.fixture
def elastic() -> Iterator[Elastic]:
    with elastic_stand_in.serving(Elastic(calls_endpoint=False)) as serving:
        yield serving


def failure(act: Callable[[], Any]) -> str:
    with pytest.raises(ElasticError) as raised:
        act()
    message = str(raised.value)
    assert "\n" not in message
    assert not [secret for secret in (KEY, ADMIN, READER) if secret in message]
    return message

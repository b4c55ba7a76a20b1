"""Each version of Kibana gets a connector that it accepts: as reviewed, and by schemas written from its sources."""

import json
from collections.abc import Callable
from dataclasses import replace

import pytest

from components.elastic import payloads, versions
from components.elastic.payloads import ElasticEndpoint
from tests.support import elastic_schemas as schemas

VERSIONS = ["8.19.0", "9.1.3", "9.2.0", "9.4.1", "9.6.0-SNAPSHOT", "serverless"]
ENDPOINT = ElasticEndpoint(
    name="elastic-vllm-prod",
    url="https://llm.example.com/v1/chat/completions",
    key="0" * 64,
    model="elastic-llm",
    max_model_len=131072,
    native_function_calling=True,
    ca_certificate="",
)


@pytest.mark.parametrize("version", [*VERSIONS, "8.16.1", "9.0.4", ""])
def test_each_version_of_kibana_accepts_its_connector(version: str) -> None:
    body = payloads.kibana_connector(replace(ENDPOINT, kibana_version=version))
    assert schemas.problems(schemas.connector(version or "serverless"), body) == []


@pytest.mark.parametrize("version", VERSIONS)
def test_the_connector_of_each_version_is_as_reviewed(version: str, golden: Callable[[str, str], None]) -> None:
    body = payloads.kibana_connector(replace(ENDPOINT, kibana_version=version))
    name = "-".join(version.split(".")[:2])
    golden(f"elastic/connector-{name}.json", json.dumps(body["config"], indent=2) + "\n")


@pytest.mark.parametrize(
    ("version", "field", "accepted"),
    [
        ("8.18.0", "verificationMode", False),
        ("8.19.0", "verificationMode", True),
        ("9.0.0", "verificationMode", False),
        ("9.1.0", "verificationMode", True),
        ("9.1.9", "contextWindowLength", False),
        ("9.2.0", "contextWindowLength", True),
        ("10.0.0", "enableNativeFunctionCalling", True),
        ("serverless", "enableNativeFunctionCalling", True),
        ("", "certificateData", True),
    ],
)
def test_a_field_is_known_from_its_version_on(version: str, field: str, accepted: bool) -> None:
    assert versions.accepts(field, versions.parse(version)) is accepted

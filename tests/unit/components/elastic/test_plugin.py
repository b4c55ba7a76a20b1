"""The process that Pulumi starts for dynamic providers, as it starts it, and what it receives over gRPC."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import grpc  # type: ignore[import-untyped]
import pytest
from google.protobuf import struct_pb2  # type: ignore[import-untyped]
from pulumi.dynamic.dynamic import PROVIDER_KEY, serialize_provider
from pulumi.runtime.proto import provider_pb2, provider_pb2_grpc

from components.elastic import payloads, resources
from components.elastic.payloads import ElasticEndpoint
from tests.support import elastic_stand_in
from tests.support.elastic_stand_in import ADMIN, READER, Elastic
from tests.support.program import ROOT
from tests.unit.components.elastic.conftest import KEY

NAME = "elastic-vllm-prod"
ID = payloads.connector_id(NAME)
SECONDS = 30


@pytest.fixture(scope="module")
def plugin() -> Iterator[Any]:
    """Run the command of `pulumi-resource-pulumi-python`, in the project's directory."""
    command = [sys.executable, "-u", "-m", "pulumi.dynamic"]
    environment = {**os.environ, "PULUMI_PROJECT": "elastic-vllm", "PULUMI_CONFIG": "{}"}
    with subprocess.Popen(command, cwd=ROOT, env=environment, text=True, stdout=subprocess.PIPE) as process:
        assert process.stdout
        port = process.stdout.readline().strip()
        with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
            stub = provider_pb2_grpc.ResourceProviderStub(channel)
            stub.Configure(provider_pb2.ConfigureRequest(args=struct_pb2.Struct()), timeout=SECONDS)
            yield stub
        process.kill()


@pytest.fixture
def elastic() -> Iterator[Elastic]:
    with elastic_stand_in.serving(Elastic(calls_endpoint=False)) as serving:
        yield serving


def struct(elastic: Elastic, model: str = "elastic-llm", key: str = ADMIN) -> struct_pb2.Struct:
    """Return a connector's inputs as the engine passes them."""
    endpoint = ElasticEndpoint(
        name=NAME,
        url="https://llm.example.com/v1/chat/completions",
        key=KEY,
        model=model,
        max_model_len=131072,
        native_function_calling=True,
        ca_certificate="",
    )
    body = resources.as_text(payloads.kibana_connector(endpoint))
    props: dict[str, Any] = {"url": elastic.address, "key": key, "ca": "", "id": ID, "space": ""}
    inputs = struct_pb2.Struct()
    inputs.update({**props, "body": body, PROVIDER_KEY: serialize_provider(resources.KibanaConnectorProvider())})
    return inputs


def test_a_connectors_whole_life(plugin: Any, elastic: Elastic) -> None:
    before, after = struct(elastic), struct(elastic, model="assistant")
    checked = plugin.Check(provider_pb2.CheckRequest(news=before), timeout=SECONDS)
    assert not checked.failures
    made = plugin.Create(provider_pb2.CreateRequest(properties=checked.inputs), timeout=SECONDS)
    assert made.id == ID
    assert elastic.connectors["default", ID] == json.loads(before["body"])
    state = {"id": ID, "olds": made.properties}
    assert plugin.Diff(provider_pb2.DiffRequest(**state, news=before), timeout=SECONDS).changes == 1  # no changes
    difference = plugin.Diff(provider_pb2.DiffRequest(**state, news=after), timeout=SECONDS)
    assert (difference.changes, list(difference.replaces)) == (2, [])
    updated = plugin.Update(provider_pb2.UpdateRequest(**state, news=after), timeout=SECONDS)
    assert elastic.connectors["default", ID]["config"]["defaultModel"] == "assistant"
    assert elastic.connectors["default", ID]["config"]["contextWindowLength"] == 131072
    read = provider_pb2.ReadRequest(id=ID, properties=updated.properties)
    assert plugin.Read(read, timeout=SECONDS).id == ID
    elastic.connectors["default", ID]["name"] = "mine"
    seen = plugin.Read(read, timeout=SECONDS).properties
    assert plugin.Diff(provider_pb2.DiffRequest(id=ID, olds=seen, news=after), timeout=SECONDS).changes == 2
    elastic.connectors.clear()
    assert plugin.Read(read, timeout=SECONDS).id == ""
    plugin.Create(provider_pb2.CreateRequest(properties=before), timeout=SECONDS)
    plugin.Delete(provider_pb2.DeleteRequest(id=ID, properties=updated.properties), timeout=SECONDS)
    assert elastic.connectors == {}


def test_a_refusal_keeps_its_message_and_shows_no_key(plugin: Any, elastic: Elastic) -> None:
    with pytest.raises(grpc.RpcError) as raised:
        plugin.Create(provider_pb2.CreateRequest(properties=struct(elastic, key=READER)), timeout=SECONDS)
    message = str(raised.value.details())
    assert message.startswith(
        "Exception calling application: the API key in kibanaApiKey lacks a privilege in Kibana (403"
    )
    assert not [secret for secret in (KEY, READER) if secret in message]


def test_the_plugin_prints_no_traceback(elastic: Elastic) -> None:
    """The test runs a separate plugin, whose output ends."""
    lines = "import logging, components.elastic.resources; logging.getLogger('grpc._server').exception('x')"
    done = subprocess.run([sys.executable, "-c", lines], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stderr == ""

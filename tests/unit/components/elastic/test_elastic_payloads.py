"""Payloads for Elastic are complete, as reviewed (tests/golden/elastic), and accepted by Elastic's own rules."""

import base64
import copy
import json
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pulumi
import pytest
import yaml

from components.catalogue.models import load_catalogue
from components.elastic import payloads
from components.elastic.connector import ElasticConnector, ElasticConnectorArgs
from components.elastic.payloads import ElasticEndpoint
from components.settings.elastic import ElasticProduct, ElasticSettings
from tests.conftest import GOLDEN
from tests.support import elastic_schemas as schemas
from tests.support.program import Program, key_of, run

Golden = Callable[[str, str], None]
Outputs = Callable[..., dict[str, Any]]
CA = (GOLDEN / "elastic" / "ca.pem").read_text()
KEY = key_of("key-v1")
ENDPOINT = ElasticEndpoint(
    name="elastic-vllm-prod",
    url="https://llm.example.com/v1/chat/completions",
    key=KEY,
    model="elastic-llm",
    max_model_len=131072,
    native_function_calling=True,
    ca_certificate=CA,
)
WITH_KEY = {"connectorApiKey", "kibanaConnectorRequest", "inferenceEndpointRequest", "preconfiguredConnectorYml"}


@pytest.mark.parametrize("base", ["local", "prod"])
def test_payloads_are_as_reviewed(base: str, outputs_of: Outputs, golden: Golden) -> None:
    outputs = outputs_of(base)
    golden(f"elastic/{base}-connector.json", json.dumps(outputs["kibanaConnectorRequest"], indent=2) + "\n")
    golden(f"elastic/{base}-inference-endpoint.json", json.dumps(outputs["inferenceEndpointRequest"], indent=2) + "\n")
    golden(f"elastic/{base}-kibana.yml", outputs["kibanaYml"])
    golden(f"elastic/{base}-preconfigured.yml", outputs["preconfiguredConnectorYml"])


def test_elastic_accepts_the_payloads_of_every_stack(program: Program) -> None:
    outputs = program.outputs
    # The mocks' CA is not a real certificate.
    settings = outputs["kibanaYml"].replace("certificate certificate-ca", "-----BEGIN CERTIFICATE-----")
    assert schemas.problems(schemas.CONNECTOR, outputs["kibanaConnectorRequest"]) == []
    assert schemas.problems(schemas.INFERENCE_ENDPOINT, outputs["inferenceEndpointRequest"]) == []
    assert schemas.kibana_yml_problems(settings) == []
    assert schemas.kibana_yml_problems(settings + outputs["preconfiguredConnectorYml"]) == []


def test_every_output_with_the_key_is_secret_and_waits_for_the_endpoint(program: Program) -> None:
    ready = {"vllm-ready", "nginx-ready"}
    with_key = WITH_KEY | {"_internal"}  # this output is not for clients
    assert {name for name, value in program.outputs.items() if KEY in json.dumps(value)} == with_key
    assert program.secret_outputs >= with_key
    assert not [name for name in WITH_KEY | {"kibanaYml"} if not ready <= program.outputs_wait_for[name]]


def test_what_holds_the_key_is_secret_even_where_the_key_came_in_the_clear() -> None:
    def main() -> None:
        product = ElasticProduct(url="", key=pulumi.Output.secret(""))
        nowhere = ElasticSettings(
            deployment="self-managed",
            version="",
            kibana=product,
            space="",
            default_connector=False,
            elasticsearch=product,
            ca="",
        )
        args = ElasticConnectorArgs(
            name="elastic-vllm-prod",
            host="llm.example.com",
            https_port=443,
            key=KEY,
            ca_certificate=CA,
            model="elastic-llm",
            max_model_len=0,
            native_function_calling=True,
            ready=(),
            elastic=nowhere,
            kibana_version="",
            client=None,
        )
        connector = ElasticConnector("connector", args)
        for name, value in vars(connector).items():
            if isinstance(value, pulumi.Output) and not name.startswith("_"):
                pulumi.export(name, value)

    outputs = run({}, main=main)
    with_key = {name for name, value in outputs.outputs.items() if KEY in json.dumps(value)}
    assert with_key == {"key", "kibana_connector", "inference_endpoint", "preconfigured_connector"}
    assert outputs.secret_outputs == with_key


def test_the_outputs_name_what_is_served(outputs_of: Outputs) -> None:
    outputs = outputs_of("prod", keys={"default": [2, 1]}, httpsPort=8443, servedModelName="assistant")
    url = "https://llm.example.com:8443/v1/chat/completions"
    config, settings = (
        outputs["kibanaConnectorRequest"]["config"],
        outputs["inferenceEndpointRequest"]["service_settings"],
    )
    assert (outputs["endpointUrl"], outputs["connectorUrl"]) == ("https://llm.example.com:8443/v1", url)
    assert (config["apiUrl"], config["defaultModel"]) == (url, "assistant") == (settings["url"], settings["model_id"])
    assert outputs["kibanaConnectorRequest"]["secrets"]["apiKey"] == key_of("key-v2") == settings["api_key"]
    assert "url: https://llm.example.com:8443\n" in outputs["kibanaYml"]


@pytest.mark.parametrize(
    ("overrides", "tokens"),
    [
        ({}, 262144),
        ({"maxModelLen": 65536}, 65536),
        ({"model": "acme/Own", "weightsGb": 10}, 0),
        ({"model": "acme/Own", "weightsGb": 10, "maxModelLen": 8192}, 8192),
    ],
)
def test_the_context_length_is_what_is_served(
    overrides: dict[str, Any], tokens: int, program_of: Callable[..., Program]
) -> None:
    outputs = program_of("gpu", **overrides).outputs
    assert outputs["maxModelLen"] == tokens
    assert outputs["kibanaConnectorRequest"]["config"].get("contextWindowLength", 0) == tokens


@pytest.mark.parametrize(
    ("arguments", "expected"), [([], False), (["--enable-auto-tool-choice", "--tool-call-parser=hermes"], True)]
)
def test_tools_are_sent_only_to_a_model_that_has_them(
    arguments: list[str], expected: bool, program_of: Callable[..., Program]
) -> None:
    outputs = program_of("gpu", model="acme/Own", weightsGb=10, vllmExtraArgs=arguments).outputs
    assert outputs["kibanaConnectorRequest"]["config"]["enableNativeFunctionCalling"] is expected


@pytest.mark.parametrize("model", load_catalogue().models.values(), ids=lambda model: str(model.name))
def test_the_catalogue_holds_what_a_connector_needs(model: Any) -> None:
    assert model.max_model_len
    assert model.tool_call_parser or not model.native_function_calling


def test_the_certificate_is_always_verified() -> None:
    preconfigured = yaml.safe_load(payloads.preconfigured_connector(ENDPOINT))["xpack.actions.preconfigured"]
    configs = [payloads.kibana_connector(ENDPOINT)["config"], preconfigured["elastic-vllm-prod"]["config"]]
    (host,) = yaml.safe_load(payloads.kibana_settings(ENDPOINT))["xpack.actions.customHostSettings"]
    assert [each["verificationMode"] for each in (*configs, host["ssl"])] == ["full"] * 3


def test_kibana_gets_the_ca_unchanged_and_for_this_endpoint_alone() -> None:
    (host,) = yaml.safe_load(payloads.kibana_settings(ENDPOINT))["xpack.actions.customHostSettings"]
    assert host["url"] == "https://llm.example.com:443"
    assert host["ssl"]["certificateAuthoritiesData"] == CA


def test_a_certificate_that_everyone_trusts_needs_no_ca() -> None:
    text = payloads.kibana_settings(replace(ENDPOINT, ca_certificate=""))
    assert "customHostSettings" not in text
    assert schemas.kibana_yml_problems(text) == []


def test_no_other_connector_is_locked_out() -> None:
    """allowedHosts with only this host would lock out all other connectors."""
    text = payloads.kibana_settings(ENDPOINT)
    assert "#   - llm.example.com\n" in text
    assert "xpack.actions.allowedHosts" not in yaml.safe_load(text)


def test_a_key_that_looks_like_a_number_stays_a_text() -> None:
    assert 'apiKey: "12e34"\n' in payloads.preconfigured_connector(replace(ENDPOINT, key="12e34"))


def test_ids_stay_and_are_no_other_stacks() -> None:
    assert payloads.connector_id("elastic-vllm-prod") == "52d88edd-46ca-5386-96f1-86ea429a9bad"
    assert payloads.connector_id("elastic-vllm-prod") != payloads.connector_id("elastic-vllm-dev")


def test_an_endpoint_does_not_show_its_key() -> None:
    assert KEY not in repr(ENDPOINT)


# Elastic's rules: each refuses what Elastic refuses.

REMOVE = object()


def altered(document: dict[str, Any], path: str, value: Any) -> dict[str, Any]:
    """Return a copy with the value at `path` replaced, added or (REMOVE) removed."""
    changed = copy.deepcopy(document)
    *ahead, last = path.split(".")
    place = changed
    for part in ahead:
        place = place[part]
    if value is REMOVE:
        del place[last]
    else:
        place[last] = value
    return changed


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("name", REMOVE),
        ("name", ""),
        ("connector_type_id", REMOVE),
        ("connector_type_id", ".openai"),
        ("is_preconfigured", False),
        ("config.apiProvider", "OpenAI"),
        ("config.apiUrl", "https://llm.example.com"),
        ("config.apiUrl", "http://llm.example.com/v1/chat/completions"),
        ("config.defaultModel", REMOVE),
        ("config.defaultModel", 3),
        ("config.verificationMode", "strict"),
        ("config.contextWindowLength", "many"),
        ("config.contextWindowLength", 0),
        ("config.enableNativeFunctionCalling", "true"),
        ("config.headers", {"X-Number": 1}),
        ("config.organizationId", "acme"),
        ("config.caData", "QUJD"),
        ("secrets", REMOVE),
        ("secrets", {}),
        ("secrets.apiKey", ""),
        ("secrets.caData", "QUJD"),
        ("secrets", {"apiKey": "k", "certificateData": "QUJD"}),
        ("secrets", {"certificateData": "-----BEGIN", "privateKeyData": "QUJD"}),
    ],
)
def test_kibana_refuses_a_connector_with(path: str, value: Any) -> None:
    connector = payloads.kibana_connector(ENDPOINT)
    assert schemas.problems(schemas.CONNECTOR, connector) == []
    assert schemas.problems(schemas.CONNECTOR, altered(connector, path, value))


def test_kibana_takes_a_client_certificate_besides_the_key() -> None:
    secrets = {"certificateData": "QUJD", "privateKeyData": "QUJD", "caData": "QUI=", "apiKey": KEY}
    connector = altered(payloads.kibana_connector(ENDPOINT), "secrets", secrets)
    assert schemas.problems(schemas.CONNECTOR, connector) == []


def test_an_update_of_a_connector_names_no_type() -> None:
    connector = payloads.kibana_connector(ENDPOINT)
    assert schemas.problems(schemas.CONNECTOR_UPDATE, connector)
    assert schemas.problems(schemas.CONNECTOR_UPDATE, altered(connector, "connector_type_id", REMOVE)) == []


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("service", REMOVE),
        ("service", "vllm"),
        ("service_settings", REMOVE),
        ("service_settings.api_key", REMOVE),
        ("service_settings.model_id", REMOVE),
        ("service_settings.url", "https://llm.example.com/v1"),
        ("service_settings.dimensions", 3),
        ("service_settings.ssl", {}),
        ("service_settings.rate_limit", 500),
        ("service_settings.rate_limit", {"requests_per_minute": "many"}),
        ("task_settings", {"temperature": 1}),
        ("chunking_settings", {}),
    ],
)
def test_elasticsearch_refuses_an_inference_endpoint_with(path: str, value: Any) -> None:
    endpoint = payloads.inference_endpoint(ENDPOINT)
    assert schemas.problems(schemas.INFERENCE_ENDPOINT, endpoint) == []
    assert schemas.problems(schemas.INFERENCE_ENDPOINT, altered(endpoint, path, value))


@pytest.mark.parametrize("setting", ["model_id", "url"])
def test_an_update_of_an_inference_endpoint_changes_no(setting: str) -> None:
    assert schemas.problems(schemas.INFERENCE_UPDATE, {"service_settings": {"api_key": KEY}}) == []
    assert schemas.problems(schemas.INFERENCE_UPDATE, {"service_settings": {"api_key": KEY, setting: "x"}})


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("xpack.actions.responseTimeout", 600),
        ("xpack.actions.responseTimeout", "600 seconds"),
        ("xpack.actions.maxResponseContentLength", "10 megabytes"),
        ("xpack.actions.allowedHosts", "llm.example.com"),
        ("xpack.actions.allowedHosts", ["https://llm.example.com"]),
        ("xpack.actions.customHostSettings", {"url": "https://llm.example.com:443"}),
        ("xpack.actions.customHostSettings", [{"url": "https://llm.example.com:443/v1/chat/completions"}]),
        ("xpack.actions.customHostSettings", [{"url": "https://llm.example.com:443", "ca": CA}]),
        ("xpack.actions.customHostSettings", [{"url": "https://a:1", "ssl": {"verificationMode": "yes"}}]),
        ("xpack.actions.customHostSettings", [{"url": "https://a:1", "ssl": {"certificateAuthoritiesData": "ABC"}}]),
        ("xpack.actions.preconfigured", {"a": {"name": "a", "actionTypeId": ".gen-ai"}}),
        ("xpack.actions.preconfigured", {"__proto__": {}}),
        ("xpack.actions.timeout", "60s"),
        ("feature_flags.overrides", {"inferenceChatModelDisabled": True}),
    ],
)
def test_kibana_does_not_start_with(path: str, value: Any) -> None:
    settings = yaml.safe_load(payloads.kibana_settings(ENDPOINT))
    assert schemas.kibana_yml_problems(yaml.safe_dump(settings)) == []
    assert schemas.kibana_yml_problems(yaml.safe_dump({**settings, path: value}))


def test_kibana_does_not_start_with_a_repeated_setting() -> None:
    text = payloads.kibana_settings(ENDPOINT)
    assert schemas.kibana_yml_problems(text + text)


@pytest.mark.parametrize(
    "body",
    [
        {"params": {}},
        {"params": {"subAction": "test", "subActionParams": {"body": {"messages": []}}}},
        {"params": {"subAction": "test", "subActionParams": {"body": "{"}}},
        {"params": {"subAction": "test", "subActionParams": {"body": '{"messages": []}'}}},
        {"params": {"subAction": "try", "subActionParams": {"body": "{}"}}},
    ],
)
def test_kibana_refuses_to_test_a_connector_with(body: dict[str, Any]) -> None:
    messages = json.dumps({"messages": [{"role": "user", "content": "Hello"}]})
    good = {"params": {"subAction": "test", "subActionParams": {"body": messages}}}
    assert schemas.connector_test_problems(good) == []
    assert schemas.connector_test_problems(body)


def test_certificates_travel_in_base64_and_variables_as_they_are() -> None:
    with_client = replace(ENDPOINT, client_certificate="${CERTIFICATE}", client_key="-----BEGIN PRIVATE KEY-----")
    secrets = payloads.kibana_connector(with_client)["secrets"]
    assert secrets["certificateData"] == "${CERTIFICATE}"
    assert base64.b64decode(secrets["privateKeyData"]) == b"-----BEGIN PRIVATE KEY-----"
    assert base64.b64decode(secrets["caData"]).decode() == CA

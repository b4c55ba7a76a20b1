"""Settings of the resources that `up` creates in Elastic, and the messages for wrong ones."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from components.settings.stack import Settings
from tests.conftest import GOLDEN
from tests.support.program import Program
from tests.support.registered import Secret
from tests.support.verify_server import new_authority
from tests.unit.conftest import found

KIBANA = {"kibanaUrl": "https://kibana.example.com", "kibanaApiKey": "a2liYW5h"}
ELASTICSEARCH = {"elasticsearchUrl": "https://es.example.com:9200", "elasticsearchApiKey": "ZXM="}
PUBLIC = KIBANA | {"elasticDeployment": "serverless", "tls": "letsencrypt", "endpointHost": "llm.example.com"}
OLD = """-----BEGIN CERTIFICATE-----
MIIBITCByaADAgECAgEBMAoGCCqGSM49BAMCMA4xDDAKBgNVBAMMA29sZDAeFw0x
"""

KEPT = {"key", "body", "__provider"}

Settle = Callable[..., Settings]
Programs = Callable[..., Program]


# Settings, the one that is named, the cause, the fix
WRONG: list[Any] = [
    ({"kibanaUrl": KIBANA["kibanaUrl"]}, "kibanaApiKey", "not set, but kibanaUrl is", "config set --secret"),
    ({"elasticsearchUrl": "https://x"}, "elasticsearchApiKey", "not set, but elasticsearchUrl is", "API key"),
    ({"elasticsearchApiKey": "abc"}, "elasticsearchApiKey", "there is no elasticsearchUrl", "set elasticsearchUrl"),
    ({"elasticCa": str(GOLDEN / "elastic" / "ca.pem")}, "elasticCa", "no kibanaUrl or elasticsearchUrl", "set one of"),
    ({"kibanaApiKey": "abc"}, "kibanaApiKey", "there is no kibanaUrl", "set kibanaUrl"),
    ({"kibanaSpace": "ai"}, "kibanaSpace", "there is no kibanaUrl", "set kibanaUrl"),
    ({**KIBANA, "kibanaUrl": "kibana.example.com"}, "kibanaUrl", "not a URL", "https://HOST"),
    ({**KIBANA, "kibanaUrl": "http://kibana.example.com"}, "kibanaUrl", "unencrypted", "https://"),
    ({**KIBANA, "kibanaUrl": "https://me:pw@k.example.com"}, "kibanaUrl", "has a user", "https://HOST"),
    ({**KIBANA, "kibanaUrl": "https://k.example.com/s/ai"}, "kibanaUrl", "names a space", "kibanaSpace"),
    ({**KIBANA, "kibanaUrl": "https://k/api/actions"}, "kibanaUrl", "address of an API", "the product itself"),
    ({**KIBANA, "kibanaUrl": "https://k:99999"}, "kibanaUrl", "not a URL", "https://HOST"),
    ({**KIBANA, "kibanaSpace": "My Space"}, "kibanaSpace", "invalid format", "/s/SPACE"),
    ({**KIBANA, "kibanaApiKey": "two words"}, "kibanaApiKey", "holds spaces", "`encoded`"),
    ({**KIBANA, "elasticDeployment": "cloud"}, "elasticDeployment", "unknown value", "serverless"),
    ({"elasticVersion": "nine"}, "elasticVersion", "not a version", "such as 9.2"),
    ({"elasticVersion": "8.15"}, "elasticVersion", "knows no provider 'Other'", "8.16 or newer"),
    (
        {"elasticVersion": "9.0.3", "clientCertificates": ["kibana"]},
        "elasticVersion",
        "have no client certificate",
        "use Elastic 8.19, 9.1 or newer",
    ),
    ({**PUBLIC, "elasticVersion": "9.2"}, "elasticVersion", "serverless has no version", "leave it empty"),
    ({"kibanaDefaultConnector": True}, "kibanaDefaultConnector", "there is no kibanaUrl", "set kibanaUrl"),
    ({**KIBANA, "elasticCa": "/no/such.pem"}, "elasticCa", "neither PEM nor a file", "path"),
    ({**KIBANA, "elasticCa": "a\0b"}, "elasticCa", "neither PEM nor a file", "path"),
    ({**KIBANA, "elasticCa": OLD}, "elasticCa", "holds no certificate", "BEGIN CERTIFICATE"),
    (
        {**KIBANA, "elasticDeployment": "serverless"},
        "kibanaUrl",
        "can't be configured to trust a private CA",
        "provided",
    ),
    ({**ELASTICSEARCH, "elasticDeployment": "hosted"}, "elasticsearchUrl", "on hosted can't", "provided"),
    ({**PUBLIC, "acmeServer": "staging"}, "kibanaUrl", "can't be configured to trust a private CA", "provided"),
    ({**ELASTICSEARCH, "elasticDeployment": "serverless"}, "elasticsearchUrl", "on serverless can't", "provided"),
    ({**ELASTICSEARCH, "clientCertificates": ["kibana"]}, "elasticsearchUrl", "no client certificate", "kibanaUrl"),
]


@pytest.mark.parametrize(("given", "key", "problem", "fix"), WRONG)
def test_what_cannot_work_is_refused(settle: Settle, given: dict[str, Any], key: str, problem: str, fix: str) -> None:
    (problem_shown,) = found(lambda: settle("local", given))
    assert problem_shown.startswith(key)
    assert problem in problem_shown
    assert fix in problem_shown.partition("; ")[2]
    assert not [secret for secret in ("a2liYW5h", "two words") if secret in problem_shown]


@pytest.mark.parametrize(
    "given",
    [
        {},
        KIBANA | {"kibanaSpace": "ai"},
        KIBANA | {"kibanaUrl": "http://127.0.0.1:5601/base/"},
        KIBANA | {"elasticDeployment": "hosted"},
        KIBANA | ELASTICSEARCH,
        KIBANA | {"elasticDeployment": "serverless", "clientCertificates": ["kibana"]},
        {**PUBLIC, "acmeServer": "production"},
        {"servedModelName": ""},
    ],
)
def test_what_can_work_is_not(settle: Settle, given: dict[str, Any]) -> None:
    assert found(lambda: settle("local", given)) == []


@pytest.mark.parametrize("as_file", [True, False])
def test_a_ca_is_given_as_text_or_as_a_file(settle: Settle, tmp_path: Path, as_file: bool) -> None:
    pem = new_authority().pem
    (tmp_path / "ca.pem").write_text(pem)
    given = KIBANA | {"elasticCa": str(tmp_path / "ca.pem") if as_file else pem}
    assert settle("local", given).elastic.ca == pem


# Their effect


def test_nothing_is_made_in_elastic_unless_asked_for(program: Program) -> None:
    assert not [resource for resource in program.leaves if "dynamic/elastic" in resource.type]
    assert (program.outputs["kibanaConnectorId"], program.outputs["inferenceEndpointId"]) == ("", "")


def test_what_is_made_waits_for_the_endpoint_and_keeps_its_secrets(program_of: Programs) -> None:
    program = program_of("local", **KIBANA, **ELASTICSEARCH)
    made = {name: program.resources[f"connector-{name}"] for name in ("kibana", "inference")}
    for resource in made.values():
        assert {"vllm-ready", "nginx-ready"} <= program.waits_for(resource.name)
        assert {name for name, value in resource.inputs.items() if isinstance(value, Secret)} == KEPT
    assert program.outputs["kibanaConnectorId"] == made["kibana"].inputs["id"]
    assert program.outputs["inferenceEndpointId"] == made["inference"].inputs["id"] == "elastic-vllm-local"


@pytest.mark.parametrize("stack", ["local", "prod"])
def test_nothing_is_touched_before_the_keys_are_known_to_be_good(program_of: Programs, stack: str) -> None:
    program = program_of(stack, **KIBANA, **ELASTICSEARCH) if stack == "local" else program_of(stack, **KIBANA)
    checks = {resource.name for resource in program.leaves if resource.type.endswith("Access")}
    assert len(checks) == (2 if stack == "local" else 1)
    for resource in [*program.commands, *program.containers, *program.of_type("gcp:compute/instance:Instance")]:
        assert checks <= program.waits_for(resource.name), resource.name


def test_nothing_is_made_in_elastic_while_parked(program_of: Programs) -> None:
    program = program_of("prod", **KIBANA, **ELASTICSEARCH, parked=True)
    made = [resource.name for resource in program.leaves if "dynamic/elastic" in resource.type]
    assert made == ["elastic-kibana", "elastic-elasticsearch"]


def test_without_an_alias_connectors_ask_for_the_model_itself(program_of: Programs) -> None:
    program = program_of("local", servedModelName="")
    model = program.outputs["model"]
    assert program.outputs["kibanaConnectorRequest"]["config"]["defaultModel"] == model
    command = program.resources["vllm-container"].inputs["command"]
    assert command[command.index("--served-model-name") + 1 :][:2] == [model, command[command.index(model) + 1]]
    assert command[command.index(model) + 1].startswith("-")

"""Secrets reach only the resources that need them; keys and certificates are the right ones."""

import base64
import ipaddress
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.program import GPU, HUB_TOKEN, Program, key_of, ssh_key_of, tls_key_of
from tests.support.registered import texts

Programs = Callable[..., Program]
TLS_KEYS = ("certificate-ca-key", "certificate-key")


def forms_of(secret: str) -> list[str]:
    """Return a secret in plain and encoded forms."""
    plain = secret.encode()
    return [secret, base64.b64encode(plain).decode(), plain.hex()]


def secrets_of(private_key: Path) -> list[str]:
    keys = [key_of("key-v1"), key_of("key-v2"), *map(tls_key_of, TLS_KEYS)]
    return [*keys, ssh_key_of("vm-host-key")[0], key_of("vm-host-key"), private_key.read_text(), HUB_TOKEN]


def holders(program: Program, secret: str) -> Iterator[str]:
    """Yield `resource.input` of each input with this secret, encoded or not, marked or not."""
    for resource in program.resources.values():
        for name, value in resource.inputs.items():
            found = "\n".join([*texts(value), *texts(value, secret=True)])
            encoded = re.findall(r"(?m)^[a-z.-]+ ([A-Za-z0-9+/]{40,}=*)$", found)
            decoded = "\n".join(base64.b64decode(line).decode(errors="replace") for line in encoded)
            if any(form in found + decoded for form in forms_of(secret)):
                yield f"{resource.name}.{name}"


def test_no_secret_is_in_an_input_that_pulumi_shows(program: Program, private_key: Path) -> None:
    for resource in program.resources.values():
        shown = "\n".join(texts(resource.inputs))
        for secret in secrets_of(private_key):
            assert not [form for form in forms_of(secret) if form in shown], resource.name


def test_commands_take_secrets_on_standard_input_only(program: Program) -> None:
    secret = {(c.name, key) for c in program.commands for key in c.inputs if [*texts(c.inputs[key], secret=True)]}
    assert {key for _, key in secret} <= {"connection", "stdin"}


def test_docker_resources_hold_no_secret(program: Program) -> None:
    assert not [r.name for r in program.leaves if r.is_docker and [*texts(r.inputs, secret=True)]]


def test_the_keys_and_the_servers_private_key_reach_nginx_config_only(program_of: Programs) -> None:
    program = program_of("local", keys={"default": [2, 1]})
    for secret in (key_of("key-v1"), key_of("key-v2")):
        assert [*holders(program, secret)] == ["nginx-config.stdin"]
    tls = {"certificate-request.privateKeyPem", "nginx-config.stdin"}
    assert {*holders(program, tls_key_of("certificate-key"))} == tls


def test_the_cas_private_key_only_signs(program: Program) -> None:
    found = {*holders(program, tls_key_of("certificate-ca-key"))}
    assert found == {"certificate-ca.privateKeyPem", "certificate-server.caPrivateKeyPem"}


def test_the_hub_token_reaches_the_download_only(program_of: Programs) -> None:
    assert [*holders(program_of("gpu"), HUB_TOKEN)] == ["weights-download.stdin"]


def test_the_ssh_key_is_in_connections_only(program: Program, private_key: Path) -> None:
    found = {*holders(program, private_key.read_text())}
    assert found == {f"{command.name}.connection" for command in program.commands}


def test_the_key_has_256_bits(program: Program) -> None:
    keys = program.of_type("random:index/randomBytes:RandomBytes")
    assert [key.inputs["length"] for key in keys] == [32]


def test_only_the_key_and_what_holds_it_are_secret_outputs(program: Program) -> None:
    with_key = {
        "connectorApiKey",
        "_internal",
        "kibanaConnectorRequest",
        "inferenceEndpointRequest",
        "preconfiguredConnectorYml",
    }
    assert program.secret_outputs == with_key


# Keys


@pytest.mark.parametrize(
    ("overrides", "accepted"),
    [
        ({}, ["v1"]),
        ({"keys": {"default": [2, 1]}}, ["v2", "v1"]),
        ({"keys": {"default": [2]}}, ["v2"]),
        ({"keys": {"default": [3, 1]}}, ["v3", "v1"]),
        ({"keys": {"siem": [1], "soc-2": [4, 3]}}, ["v1", "siem-v1", "soc-2-v4", "soc-2-v3"]),
    ],
)
def test_nginx_accepts_the_versions_in_keys(
    overrides: dict[str, Any], accepted: list[str], program_of: Programs
) -> None:
    keys = program_of("local", **overrides).resources["nginx-config"].files["keys.conf"]
    assert re.findall(r'"(\w+)"\) {\s+set \$key_label ([\w-]+);', keys) == [
        (key_of(f"key-{version}"), version) for version in accepted
    ]


def test_a_named_key_has_its_own_output(program_of: Programs) -> None:
    outputs = program_of("local", keys={"siem": [2, 1]}).outputs
    assert outputs["apiKeys"] == {"siem": key_of("key-siem-v2")}
    assert outputs["_internal"]["keyVersions"] == {"default": [1], "siem": [2, 1]}
    assert outputs["connectorApiKey"] == key_of("key-v1")
    assert "apiKeys" in program_of("local", keys={"siem": [2, 1]}).secret_outputs


def test_the_connector_gets_the_current_key(program_of: Programs) -> None:
    assert program_of("local", keys={"default": [2, 1]}).outputs["connectorApiKey"] == key_of("key-v2")


# Certificate


def test_nginx_shows_the_servers_certificate_and_then_the_cas(program: Program) -> None:
    files = program.resources["nginx-config"].files
    assert re.findall(r"certificate (\S+)", files["certificate.pem"]) == ["certificate-server", "certificate-ca"]
    assert files["private-key.pem"] == tls_key_of("certificate-key")


@pytest.mark.parametrize(
    ("overrides", "name"),
    [({}, GPU["host"]), ({"endpointHost": "llm.other"}, "llm.other"), ({"endpointHost": "10.0.0.5"}, "10.0.0.5")],
)
def test_the_certificate_is_for_the_name_that_elastic_connects_to(
    overrides: dict[str, str], name: str, program_of: Programs
) -> None:
    program = program_of("gpu", **overrides)
    request = program.resources["certificate-request"].inputs
    try:
        ipaddress.ip_address(name)
        kind = "ipAddresses"
    except ValueError:
        kind = "dnsNames"
    names = {key: request.get(key, []) for key in ("ipAddresses", "dnsNames")}
    assert names == {"ipAddresses": [], "dnsNames": [], kind: [name]}
    assert program.outputs["connectorUrl"] == f"https://{name}/v1/chat/completions"


def test_clients_get_the_cas_certificate(program: Program) -> None:
    assert program.outputs["caCertificate"].startswith("certificate certificate-ca ")


def test_another_port_is_in_the_url(program_of: Programs) -> None:
    url = program_of("gpu", httpsPort=8443).outputs["connectorUrl"]
    assert url == f"https://{GPU['host']}:8443/v1/chat/completions"


# Outputs of components


def test_components_register_secrets_as_secrets(program_of: Programs) -> None:
    program = program_of("local", keys={"siem": [2, 1]}, clientCertificates=["kibana"])
    components = [resource for resource in program.resources.values() if resource.is_component]
    clear = "\n".join(text for component in components for text in texts(component.outputs))
    assert [component.name for component in components if [*texts(component.outputs, secret=True)]] == [
        "key",
        "connector",
    ]
    assert not [name for name in program.resources if key_of(name) in clear or tls_key_of(name) in clear]

"""Payloads that describe the endpoint to Elastic: request bodies and blocks for kibana.yml, as pure functions.

Fields and pitfalls are from Elastic's own sources. In elastic/kibana: kbn-connector-schemas/openai/schemas/v1.ts (the
connector), actions/server/config.ts (kibana.yml); in elastic/elasticsearch-specification: inference/put_openai.
"""

import base64
import uuid
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

import yaml

from components.elastic import versions
from components.elastic.versions import SINCE
from components.render import url_host

RESPONSE_SECONDS = 600
"""Time that Kibana waits for an answer that is not streamed: the same as Nginx. Kibana's default is 60 s."""
MOST_RESPONSE_MEGABYTES = 10
"""Kibana's default is 1 MB: less than a long answer with its reasoning and tool calls can have."""
HTTPS_PORT = 443


@dataclass(frozen=True, kw_only=True)
class ElasticEndpoint:
    """The endpoint as Elastic must know it."""

    name: str
    """Name of its connectors and inference endpoints: elastic-vllm-STACK."""
    url: str
    """Up to and with /v1/chat/completions."""
    key: str = field(repr=False)
    model: str
    """Name in requests: the alias, which stays when the model changes."""
    max_model_len: int
    """Longest context that is served; 0 if unknown."""
    native_function_calling: bool
    ca_certificate: str
    """PEM of the CA that signed the endpoint's certificate; empty: one that Elastic trusts anyway."""
    client_certificate: str = ""
    """PEM of what Kibana has to show; empty: nothing."""
    client_key: str = field(default="", repr=False)
    """PEM (PKCS#8) of the private key for it."""
    kibana_version: str = ""
    """Such as 9.1.3 or `serverless`; empty: the newest is assumed."""
    deployment: str = "self-managed"
    """The setting elasticDeployment."""

    @property
    def host(self) -> str:
        """Name or address in the URL."""
        return urlsplit(self.url).hostname or ""

    @property
    def port(self) -> int:
        """TCP port in the URL."""
        return urlsplit(self.url).port or HTTPS_PORT


def connector_id(name: str) -> str:
    """Return the connector's id in Kibana: a UUID, as Kibana demands, and always the same for a name."""
    return str(uuid.uuid5(uuid.NAMESPACE_URL, f"elastic-vllm:{name}"))


def kibana_connector(endpoint: ElasticEndpoint) -> dict[str, Any]:
    """Body of POST /api/actions/connector/ID: an OpenAI connector, with the fields that Kibana's version has.

    Holds the key.
    """
    return {
        "name": endpoint.name,
        "connector_type_id": ".gen-ai",
        "config": _connector_config(endpoint),
        "secrets": _connector_secrets(endpoint),
    }


def inference_endpoint(endpoint: ElasticEndpoint) -> dict[str, Any]:
    """Body of PUT _inference/chat_completion/NAME on Elasticsearch, which tests the URL at once. Holds the key.

    Empty where clients need a certificate: an inference endpoint has no place for one.
    """
    if endpoint.client_certificate:
        return {}
    return {
        "service": "openai",
        "service_settings": {"api_key": endpoint.key, "model_id": endpoint.model, "url": endpoint.url},
    }


def kibana_settings(endpoint: ElasticEndpoint) -> str:
    """Block for kibana.yml that any connector to the endpoint needs. No secret.

    Empty on Serverless, which has no kibana.yml. Elastic Cloud Hosted saves no block with a setting that its list of
    user settings lacks; all of these are on that list.
    """
    if endpoint.deployment == versions.SERVERLESS:
        return ""
    settings: dict[str, Any] = {
        "xpack.actions.responseTimeout": f"{RESPONSE_SECONDS}s",
        "xpack.actions.maxResponseContentLength": f"{MOST_RESPONSE_MEGABYTES}mb",
    }
    if endpoint.ca_certificate:
        # A connector's own caData is used only together with a client certificate.
        ssl = {"verificationMode": "full", "certificateAuthoritiesData": endpoint.ca_certificate}
        url = f"https://{url_host(endpoint.host)}:{endpoint.port}"
        settings["xpack.actions.customHostSettings"] = [{"url": url, "ssl": ssl}]
    # Kibana allows every host unless the list is set: a list of this host alone would lock out all other connectors.
    allowed = (
        "# Only where xpack.actions.allowedHosts is set already (without it every host is allowed), its list needs:\n"
        f"#   - {endpoint.host}\n"
    )
    return _yaml(settings) + allowed


def security_settings() -> str:
    """Block for kibana.yml that Security's AI Assistant needs before 9.2 (elastic/kibana#234931); self-managed only."""
    return _yaml({"feature_flags.overrides": {"securitySolution.inferenceChatModelDisabled": True}})


def preconfigured_connector(endpoint: ElasticEndpoint) -> str:
    """Return a block for kibana.yml instead of a connector made by the API; not for Elastic Cloud. It holds the key."""
    connector = {
        "name": endpoint.name,
        "actionTypeId": ".gen-ai",
        "exposeConfig": True,
        "config": _connector_config(endpoint),
        "secrets": _connector_secrets(endpoint),
    }
    return _yaml({"xpack.actions.preconfigured": {endpoint.name: connector}})


def _connector_secrets(endpoint: ElasticEndpoint) -> dict[str, str]:
    """Return the key, and Kibana's client certificate and private key as PEM in base64."""
    if not endpoint.client_certificate:
        return {"apiKey": endpoint.key}
    pem = {"certificateData": endpoint.client_certificate, "privateKeyData": endpoint.client_key}
    if endpoint.ca_certificate:
        pem["caData"] = endpoint.ca_certificate
    return {"apiKey": endpoint.key, **{name: base64_or_placeholder(text) for name, text in pem.items()}}


def base64_or_placeholder(text: str) -> str:
    """PEM in base64; a variable that stands for it stays what it is."""
    return text if text.startswith("${") else base64.b64encode(text.encode()).decode()


def _connector_config(endpoint: ElasticEndpoint) -> dict[str, Any]:
    version = versions.parse(endpoint.kibana_version)
    config = {
        "apiProvider": "Other",
        "apiUrl": endpoint.url,
        "defaultModel": endpoint.model,
        # Kibana uses certificates only where it is set.
        "verificationMode": "full",
        "contextWindowLength": endpoint.max_model_len,
        "enableNativeFunctionCalling": endpoint.native_function_calling,
    }
    if not endpoint.max_model_len:
        del config["contextWindowLength"]
    return {name: value for name, value in config.items() if name not in SINCE or versions.accepts(name, version)}


class _Dumper(yaml.SafeDumper):
    """Dumper that writes a text of several lines, such as a certificate, as a block."""


def _text(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
    # Kibana's YAML takes 12e34 for a number, PyYAML does not and would leave it bare.
    style = "|" if "\n" in text else '"' if text[:1].isdigit() else None
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style=style)


_Dumper.add_representer(str, _text)


def _yaml(document: dict[str, Any]) -> str:
    return yaml.dump(document, Dumper=_Dumper, sort_keys=False, width=1000)

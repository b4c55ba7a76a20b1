"""Strict schemas of everything that Kibana and Elasticsearch accept, from their sources, for tests and stand-ins.

elastic/kibana: src/platform/packages/shared/kbn-connector-schemas/openai/schemas/v1.ts,
x-pack/platform/plugins/shared/actions/server/config.ts, docs/reference/configuration-reference/alerting-settings.md;
elastic/elasticsearch-specification: specification/inference/{put_openai,update,chat_completion_unified}.
Features that are not used here (other providers, proxies, email) are refused.
"""

import json
import re
from collections.abc import Mapping
from typing import Any
from urllib.parse import urlsplit

import yaml
from jsonschema import Draft202012Validator

Schema = Mapping[str, Any]
TEXT: Schema = {"type": "string", "minLength": 1}
VERIFICATION_MODE: Schema = {"enum": ["full", "certificate", "none"]}
CHAT_PATH = "/v1/chat/completions"


def strict(required: Mapping[str, Schema], optional: Mapping[str, Schema] | None = None) -> Schema:
    """Return the schema of an object with exactly these fields."""
    return {
        "type": "object",
        "properties": {**required, **(optional or {})},
        "required": list(required),
        "additionalProperties": False,
    }


HEADERS: Schema = {"type": "object", "additionalProperties": {"type": "string"}}
PKI_FIELDS: dict[str, Schema] = {"verificationMode": VERIFICATION_MODE}
MODEL_FIELDS: dict[str, Schema] = {
    # Kibana would accept a string of digits as well.
    "contextWindowLength": {"type": "integer", "minimum": 1},
    "enableNativeFunctionCalling": {"type": "boolean"},
}
TEMPERATURE: dict[str, Schema] = {"temperature": {"type": "number"}}


def connector_config(version: str) -> Schema:
    """Strict schema of the connector's configuration in a version such as 9.1.3, or serverless."""
    major, minor = (99, 0) if version == "serverless" else (int(part) for part in version.split(".")[:2])
    known: dict[str, Schema] = {"headers": HEADERS}
    if (major, minor) == (8, 19) or (major, minor) >= (9, 1):
        known |= PKI_FIELDS
    if (major, minor) >= (9, 2):
        known |= MODEL_FIELDS
    if (major, minor) >= (9, 3):
        known |= TEMPERATURE
    return strict({"apiProvider": {"const": "Other"}, "apiUrl": TEXT, "defaultModel": TEXT}, known)


CONNECTOR_CONFIG = connector_config("serverless")
BASE64: Schema = {"type": "string", "pattern": "^[A-Za-z0-9+/]+={0,2}$"}
# The key, or a client certificate with or without the key: "if any PKI field is provided, both are required".
CONNECTOR_SECRETS: Schema = {
    "oneOf": [
        strict({"apiKey": TEXT}),
        strict({"certificateData": BASE64, "privateKeyData": BASE64}, {"caData": BASE64, "apiKey": TEXT}),
    ]
}
# POST /api/actions/connector[/ID]; PUT /api/actions/connector/ID takes no type.
CONNECTOR_UPDATE = strict({"name": TEXT, "config": CONNECTOR_CONFIG, "secrets": CONNECTOR_SECRETS})
CONNECTOR = strict({**CONNECTOR_UPDATE["properties"], "connector_type_id": {"const": ".gen-ai"}})


def connector(version: str, update: bool = False) -> Schema:
    """Body of POST /api/actions/connector/ID, or of PUT (`update`), in a version of Kibana."""
    major, minor = (99, 0) if version == "serverless" else (int(part) for part in version.split(".")[:2])
    pki = (major, minor) == (8, 19) or (major, minor) >= (9, 1)
    secrets = CONNECTOR_SECRETS if pki else strict({"apiKey": TEXT})
    fields = {"name": TEXT, "config": connector_config(version), "secrets": secrets}
    return strict(fields if update else {**fields, "connector_type_id": {"const": ".gen-ai"}})


# POST /api/actions/connector/ID/_execute; `body` is JSON in a text, see connector_test_problems.
CONNECTOR_TEST = strict(
    {"params": strict({"subAction": {"enum": ["test"]}, "subActionParams": strict({"body": TEXT})})}
)
MESSAGES: Schema = {
    "type": "array",
    "minItems": 1,
    "items": strict({"role": {"enum": ["system", "user", "assistant", "tool"]}, "content": TEXT}),
}
# PUT _inference/chat_completion/ID; `dimensions` and chunking_settings are for embeddings only.
INFERENCE_ENDPOINT = strict(
    {
        "service": {"const": "openai"},
        "service_settings": strict(
            {"api_key": TEXT, "model_id": TEXT},
            {
                "url": TEXT,
                "organization_id": TEXT,
                "rate_limit": strict({"requests_per_minute": {"type": "integer", "minimum": 1}}),
            },
        ),
    },
    {"task_settings": strict({}, {"user": TEXT, "headers": HEADERS})},
)
# PUT _inference/chat_completion/ID/_update: "task_settings, secrets (within service_settings)"; not model, not URL.
INFERENCE_UPDATE = strict(
    {},
    {"service_settings": strict({"api_key": TEXT}), "task_settings": strict({}, {"user": TEXT, "headers": HEADERS})},
)
# POST _inference/chat_completion/ID/_stream
INFERENCE_CHAT = strict({"messages": MESSAGES}, {"max_completion_tokens": {"type": "integer", "minimum": 1}})

HOST: Schema = {"type": "string", "pattern": r"^(\*|[A-Za-z0-9]([A-Za-z0-9.-]*[A-Za-z0-9])?)$"}
KIBANA_YML = strict(
    {},
    {
        "xpack": strict(
            {
                "actions": strict(
                    {},
                    {
                        "responseTimeout": {"type": "string", "pattern": r"^\d+(ms|s|m|h|d|w|M|Y)$"},
                        "maxResponseContentLength": {"type": "string", "pattern": r"^\d+(b|kb|mb|gb)$"},
                        "allowedHosts": {"type": "array", "items": HOST},
                        "customHostSettings": {
                            "type": "array",
                            "items": strict(
                                {"url": TEXT},
                                {
                                    "ssl": strict(
                                        {},
                                        {
                                            "verificationMode": VERIFICATION_MODE,
                                            "certificateAuthoritiesFiles": {"type": "array", "items": TEXT},
                                            "certificateAuthoritiesData": {"type": "string", "pattern": "BEGIN CERT"},
                                        },
                                    )
                                },
                            ),
                        },
                        "preconfigured": {
                            "type": "object",
                            "propertyNames": {"not": {"enum": ["", "__proto__", "constructor"]}},
                            "additionalProperties": strict(
                                {
                                    "name": TEXT,
                                    "actionTypeId": {"const": ".gen-ai"},
                                    "config": CONNECTOR_CONFIG,
                                    "secrets": CONNECTOR_SECRETS,
                                },
                                {"exposeConfig": {"type": "boolean"}},
                            ),
                        },
                    },
                )
            }
        ),
        "feature_flags": strict(
            {"overrides": strict({}, {"securitySolution.inferenceChatModelDisabled": {"type": "boolean"}})}
        ),
    },
)


def problems(schema: Schema, document: Any) -> list[str]:
    """Return the reasons why Kibana or Elasticsearch would refuse the document, as `path: cause`; none if accepted."""
    errors = Draft202012Validator(schema).iter_errors(document)
    found = [f"{'.'.join(map(str, error.absolute_path))}: {error.message}" for error in errors]
    return sorted(found + [f"{path}: {cause}" for path, cause in _url_problems(document)])


def connector_test_problems(document: Any) -> list[str]:
    """Return the same for the body of Kibana's own test of a connector."""
    found = problems(CONNECTOR_TEST, document)
    if found:
        return found
    try:
        body = json.loads(document["params"]["subActionParams"]["body"])
    except ValueError:
        return ["params.subActionParams.body: not JSON"]
    chat = strict({"messages": MESSAGES}, {"model": TEXT, "max_tokens": {"type": "integer"}})
    return [f"params.subActionParams.body.{problem}" for problem in problems(chat, body)]


def kibana_yml_problems(text: str) -> list[str]:
    """Return the same for a kibana.yml, where keys with dots equal nested ones and no key may occur twice."""
    try:
        document = yaml.load(text, _Unique)  # noqa: S506 - a safe one
    except yaml.YAMLError as error:
        return [f": {error}"]
    if not isinstance(document, dict):
        return [": no settings"]
    nested: dict[str, Any] = {}
    for key, value in document.items():
        *ahead, last = key.split(".")
        place = nested
        for part in ahead:
            place = place.setdefault(part, {})
        place[last] = value
    return problems(KIBANA_YML, nested)


class _Unique(yaml.SafeLoader):
    """Loader that refuses a repeated key, as Kibana does; PyYAML would use the last."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys = [self.construct_object(key, deep=True) for key, _ in node.value]
        if len(set(keys)) < len(keys):
            raise yaml.constructor.ConstructorError(None, None, "duplicate key", node.start_mark)
        return super().construct_mapping(node, deep)


def _url_problems(document: Any, path: str = "") -> list[tuple[str, str]]:
    """Find bad URLs that the schemas accept: no route answers, or custom host settings match no request."""
    if isinstance(document, list):
        return [each for index, item in enumerate(document) for each in _url_problems(item, f"{path}{index}.")]
    if not isinstance(document, dict):
        return []
    found = [each for key, value in document.items() for each in _url_problems(value, f"{path}{key}.")]
    for key in {"apiUrl", "url"} & set(document):
        url = urlsplit(str(document[key]))
        if "ssl" in document or "customHostSettings" in path:
            right = bool(re.fullmatch(r"https://[^/?#@]+:\d+", str(document[key])))
        else:
            right = url.scheme == "https" and bool(url.hostname) and url.path.endswith(CHAT_PATH) and not url.query
        found += [] if right else [(f"{path}{key}", f"{document[key]!r} is not a usable URL")]
    return found

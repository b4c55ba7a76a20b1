"""The connector in Kibana and the inference endpoint in Elasticsearch, as this program's own Pulumi resources.

The providers run in a process that Pulumi starts for them, from the project's directory. They are pickled by name
only, so that a change of their code changes no resource.
"""

import json
import logging
import uuid
from contextlib import suppress
from dataclasses import replace
from http import HTTPStatus
from typing import Any

import pulumi
from pulumi import dynamic

from components.elastic import versions
from components.elastic.api import ENDPOINT_WORKS, VALIDATION_SECONDS, Answer, DownError, ElasticError, Product

# gRPC would print a traceback for each error that a provider raises; Pulumi shows the error's own words.
logging.getLogger("grpc").setLevel(logging.CRITICAL)

KIBANA_PRIVILEGE = "the Kibana privilege 'Actions and Connectors: all' in the space"
ELASTICSEARCH_PRIVILEGE = "the cluster privilege manage_inference"
NOT_VALIDATED = "validation call to service threw an exception"
"""Text in Elasticsearch's 400 if the model did not answer its question in time, or not at all."""
NO_CONFIG = {"apiProvider": "Other", "apiUrl": "https://localhost/v1/chat/completions", "defaultModel": "none"}
DEFAULT_CONNECTOR = "genAiSettings:defaultAIConnector"
"""Kibana's setting (elastic/kibana: ui-settings, set_many.ts)."""
LICENSES = ("enterprise", "trial")
"""Licenses that include inference endpoints to your own model (Elasticsearch's InferenceLicenceCheck)."""
LOOK_SECONDS = 10
"""Limit for an answer to a look-up: a Kibana that takes longer is asked by the next `up`."""
Props = dict[str, Any]
"""url, key, ca (PEM), id, body (JSON as a string), and for connectors the space."""


def as_text(body: Props) -> str:
    """Return a body as it is stored: equal bodies are equal texts, and numbers keep their type."""
    return json.dumps(body, sort_keys=True)


class _Provider(dynamic.ResourceProvider):
    """Base of the providers, which decides which changes are made in place."""

    replaced_by: tuple[str, ...] = ()
    compared: tuple[str, ...] = ("url", "key", "ca", "body")

    def diff(self, _id: str, olds: Props, news: Props) -> dynamic.DiffResult:
        """Another place is another object; everything else is updated in place."""
        replaces = [name for name in self.replaced_by if olds.get(name) != news.get(name)]
        changed = [name for name in self.compared if olds.get(name) != news.get(name)]
        return dynamic.DiffResult(changes=bool(replaces or changed), replaces=replaces, delete_before_replace=True)


class KibanaConnectorProvider(_Provider):
    """Provider of one OpenAI connector, by Kibana's Connectors API."""

    replaced_by = ("url", "space", "id")

    def create(self, props: Props) -> dynamic.CreateResult:
        """POST with the stable id."""
        kibana, body = _kibana(props), json.loads(props["body"])
        _space_exists(kibana, props["space"])
        self._post(kibana, _connector_path(props), body, props)
        return dynamic.CreateResult(props["id"], outs=dict(props))

    def read(self, id_: str, props: Props) -> dynamic.ReadResult:
        """Read the current state; secrets are those last sent, because Kibana never returns them."""
        kibana, path = _kibana(props), _connector_path(props)
        answer = _look(kibana, path)
        if _no_such_connector(answer):
            return dynamic.ReadResult("", {})
        found = _expect(kibana, answer, "GET", path)
        body = json.loads(props["body"])
        config = found.get("config") or {}
        # Fields that Kibana adds are not compared.
        body["config"] = {key: config.get(key) for key in body["config"]}
        body["name"] = found.get("name")
        if found.get("is_missing_secrets"):
            body["secrets"] = {}
        return dynamic.ReadResult(id_, {**props, "body": as_text(body)})

    def update(self, _id: str, _olds: Props, news: Props) -> dynamic.UpdateResult:
        """PUT; one that somebody deleted is made again."""
        kibana, body, path = _kibana(news), json.loads(news["body"]), _connector_path(news)
        if not self._put(kibana, path, body):
            self._post(kibana, path, body, news)
        return dynamic.UpdateResult(outs=dict(news))

    def delete(self, _id: str, props: Props) -> None:
        """DELETE; one that is gone already is no error."""
        kibana, path = _kibana(props), _connector_path(props)
        answer = kibana.ask("DELETE", path)
        if not _no_such_connector(answer):
            _expect(kibana, answer, "DELETE", path)

    def _post(self, kibana: Product, path: str, body: Props, props: Props) -> None:
        answer = kibana.ask("POST", path, body, hidden=_secrets(body))
        if answer.status == HTTPStatus.CONFLICT:
            # A try whose answer was lost may have made it.
            if answer.tries > 1 and self._put(kibana, path, body):
                return
            raise ElasticError(
                f"Kibana already has a connector {props['id']}, which is not in this stack's state: delete it in "
                f"Kibana, then run the same again. {ENDPOINT_WORKS}"
            )
        _expect(kibana, answer, "POST", path)

    def _put(self, kibana: Product, path: str, body: Props) -> bool:
        """Update the connector, and return False if it does not exist."""
        changed = {key: value for key, value in body.items() if key != "connector_type_id"}
        answer = kibana.ask("PUT", path, changed, hidden=_secrets(body))
        if _no_such_connector(answer):
            return False
        _expect(kibana, answer, "PUT", path)
        return True


class InferenceEndpointProvider(_Provider):
    """Provider of one chat_completion inference endpoint, which Elasticsearch tests at once."""

    replaced_by = ("url", "id")

    def create(self, props: Props) -> dynamic.CreateResult:
        """PUT under the stack's name."""
        elasticsearch, path = _elasticsearch(props), _inference_path(props)
        answer = elasticsearch.ask("GET", path)
        if answer.status != HTTPStatus.NOT_FOUND:
            _expect(elasticsearch, answer, "GET", path)
            raise ElasticError(
                f"Elasticsearch already has an inference endpoint {props['id']}, which is not in this stack's state: "
                f"delete it there, then run the same again. {ENDPOINT_WORKS}"
            )
        self._put(elasticsearch, path, json.loads(props["body"]))
        return dynamic.CreateResult(props["id"], outs=dict(props))

    def read(self, id_: str, props: Props) -> dynamic.ReadResult:
        """Read the current state; the key is the one last sent."""
        elasticsearch, path = _elasticsearch(props), _inference_path(props)
        answer = _look(elasticsearch, path)
        if answer.status == HTTPStatus.NOT_FOUND:
            return dynamic.ReadResult("", {})
        found = _expect(elasticsearch, answer, "GET", path)["endpoints"][0]
        body = json.loads(props["body"])
        body["service"] = found.get("service")
        body["service_settings"] |= {name: found["service_settings"].get(name) for name in ("model_id", "url")}
        return dynamic.ReadResult(id_, {**props, "body": as_text(body)})

    def update(self, _id: str, olds: Props, news: Props) -> dynamic.UpdateResult:
        """Update the key in place; for another model or URL, which Elasticsearch can't change, replace the endpoint.

        The id stays. If the new endpoint is refused at the last moment, the old one is restored.
        """
        elasticsearch, path, body = _elasticsearch(news), _inference_path(news), json.loads(news["body"])
        answer = elasticsearch.ask("GET", path)
        if answer.status == HTTPStatus.NOT_FOUND:
            self._put(elasticsearch, path, body)
            return dynamic.UpdateResult(outs=dict(news))
        found = _expect(elasticsearch, answer, "GET", path)["endpoints"][0]
        try:
            self._change(elasticsearch, path, found, body)
        except ElasticError:
            with suppress(ElasticError):
                if elasticsearch.ask("GET", path).status == HTTPStatus.NOT_FOUND:
                    self._put(elasticsearch, path, json.loads(olds["body"]))
            raise
        return dynamic.UpdateResult(outs=dict(news))

    def delete(self, _id: str, props: Props) -> None:
        """DELETE; one that is gone already is no error."""
        self._remove(_elasticsearch(props), _inference_path(props))

    def _remove(self, elasticsearch: Product, path: str) -> None:
        answer = elasticsearch.ask("DELETE", path)
        if answer.status != HTTPStatus.NOT_FOUND:
            _expect(elasticsearch, answer, "DELETE", path)

    def _change(self, elasticsearch: Product, path: str, found: Props, body: Props) -> None:
        settings, is_now = body["service_settings"], found["service_settings"]
        if found["service"] == body["service"] and all(is_now.get(n) == settings.get(n) for n in ("model_id", "url")):
            secret = {"service_settings": {"api_key": settings["api_key"]}}
            answer = elasticsearch.ask("PUT", f"{path}/_update", secret, hidden=_secrets(body))
            _expect(elasticsearch, answer, "PUT", f"{path}/_update")
            return
        # Under another id first, so that what Elasticsearch refuses costs nothing that works now.
        trial = f"{path}-trial"
        self._remove(elasticsearch, trial)  # of a run that was killed
        self._put(elasticsearch, trial, body)
        self._remove(elasticsearch, trial)
        self._remove(elasticsearch, path)
        self._put(elasticsearch, path, body)

    def _put(self, elasticsearch: Product, path: str, body: Props) -> None:
        patient = f"{path}?timeout={VALIDATION_SECONDS}s"
        answer = elasticsearch.ask("PUT", patient, body, hidden=_secrets(body))
        if answer.status == HTTPStatus.BAD_REQUEST and "unrecognized parameter" in answer.reason:  # before 9.1
            answer = elasticsearch.ask("PUT", path, body, hidden=_secrets(body))
        if answer.status == HTTPStatus.BAD_REQUEST and NOT_VALIDATED in answer.reason:
            raise ElasticError(
                f"Elasticsearch could not validate the endpoint ({answer.reason}): it asks the model one question and "
                f"waits for up to {VALIDATION_SECONDS} s (30 s before 9.1). Can every Elasticsearch node reach the "
                "endpoint, does Java trust the endpoint's CA (hand-off, step 3), and is the model not busy? Then run "
                "the same again"
            )
        # A try whose answer was lost may have made it.
        if answer.status in {HTTPStatus.BAD_REQUEST, HTTPStatus.CONFLICT} and answer.tries > 1:
            found = elasticsearch.ask("GET", path)
            if found.status == HTTPStatus.OK:
                self._change(elasticsearch, path, found.body["endpoints"][0], body)
                return
        _expect(elasticsearch, answer, "PUT", path)


class KibanaDefaultConnectorProvider(_Provider):
    """Provider that makes the connector the default of Kibana's AI features in one space."""

    replaced_by = ("url", "space")
    compared = ("url", "key", "ca", "id")

    def create(self, props: Props) -> dynamic.CreateResult:
        """Keep what was there, for the day of its removal."""
        kibana, path = _kibana(props), _settings_path(props)
        before = _default_connector(kibana, path)
        self._set(kibana, path, props["id"])
        return dynamic.CreateResult("default", outs={**props, "before": before if before != props["id"] else None})

    def read(self, id_: str, props: Props) -> dynamic.ReadResult:
        """Read the current default: another connector is somebody's change."""
        kibana, path = _kibana(props), _settings_path(props)
        return dynamic.ReadResult(id_, {**props, "id": _default_connector(kibana, path)})

    def update(self, _id: str, olds: Props, news: Props) -> dynamic.UpdateResult:
        """Set it again; what was there before this stack stays known."""
        self._set(_kibana(news), _settings_path(news), news["id"])
        return dynamic.UpdateResult(outs={**news, "before": olds.get("before")})

    def delete(self, _id: str, props: Props) -> None:
        """Put back what was there before, unless somebody has chosen another connector since."""
        kibana, path = _kibana(props), _settings_path(props)
        if _default_connector(kibana, path) == props["id"]:
            self._set(kibana, path, props.get("before"))

    def _set(self, kibana: Product, path: str, id_: str | None) -> None:
        answer = kibana.ask("POST", path, {"changes": {DEFAULT_CONNECTOR: id_}})
        _expect(kibana, answer, "POST", path)


class KibanaAccessProvider(_Provider):
    """Provider that checks that Kibana can hold the connector: version, space, license, connector types and key."""

    compared = ("url", "key", "ca", "space", "pki")

    def create(self, props: Props) -> dynamic.CreateResult:
        """Look; Kibana's version is an output, and stays what it was while Kibana does not answer."""
        kibana = replace(_kibana(props), patience=0)
        version = props.get("version") or ""
        with suppress(DownError):
            version = _version(kibana, "/api/status")
            self._fits(version, props)
            _space_exists(kibana, props["space"])
            self._kind(kibana, props["space"])
            # A change of a connector that is not there needs the same privilege as a real one, and changes nothing.
            path = _connector_path({**props, "id": str(uuid.uuid4())})
            nobody = {"name": "elastic-vllm", "config": NO_CONFIG, "secrets": {"apiKey": "none"}}
            answer = kibana.ask("PUT", path, nobody)
            if not _no_such_connector(answer):
                _expect(kibana, answer, "PUT", path)
        return dynamic.CreateResult("asked", outs={**props, "version": version})

    def update(self, _id: str, olds: Props, news: Props) -> dynamic.UpdateResult:
        """Look again."""
        return dynamic.UpdateResult(outs=self.create({**news, "version": olds.get("version")}).outs)

    def diff(self, id_: str, olds: Props, news: Props) -> dynamic.DiffResult:
        """Report another version of Kibana as a change: its connector may have other fields."""
        found = super().diff(id_, olds, news)
        if not found.changes:
            with suppress(ElasticError):
                version = _version(replace(_kibana(news), patience=0, answer_seconds=LOOK_SECONDS), "/api/status")
                found.changes = version != olds.get("version")
        return found

    def _fits(self, text: str, props: Props) -> None:
        version = versions.parse(text)
        least = ".".join(map(str, versions.OTHER_PROVIDER))
        if version < versions.OTHER_PROVIDER:
            raise ElasticError(
                f"Kibana at {props['url']} is {text}, whose OpenAI connector knows no provider 'Other': update it to "
                f"{least} or newer, or leave kibanaUrl empty. {ENDPOINT_WORKS}"
            )
        if props["pki"] and not versions.accepts("certificateData", version):
            raise ElasticError(
                f"Kibana at {props['url']} is {text}, whose connectors have no client certificate, which "
                f"clientCertificates asks for: use Kibana 8.19, 9.1 or newer, or set clientCertificates to []. "
                f"{ENDPOINT_WORKS}"
            )

    def _kind(self, kibana: Product, space: str) -> None:
        path = f"{_space_path(space)}/api/actions/connector_types"
        answer = kibana.ask("GET", path)
        kinds = answer.body if isinstance(answer.body, list) else []
        kind: Props = next((each for each in kinds if each.get("id") == ".gen-ai"), {})
        if kind.get("enabled_in_config") is False:
            raise ElasticError(
                f"Kibana at {kibana.url} has the OpenAI connector switched off: add .gen-ai to "
                f"xpack.actions.enabledActionTypes in kibana.yml and restart Kibana. {ENDPOINT_WORKS}"
            )
        if kind.get("enabled_in_license") is False:
            raise ElasticError(
                f"Kibana at {kibana.url} has a license without AI connectors: they need an Enterprise license or a "
                f"trial (Stack Management > License management), and on Serverless a Complete tier. {ENDPOINT_WORKS}"
            )


class ElasticsearchAccessProvider(_Provider):
    """Provider that checks that Elasticsearch can hold the inference endpoint: its license, and the key."""

    compared = ("url", "key", "ca")

    def create(self, props: Props) -> dynamic.CreateResult:
        """Look; Elasticsearch's version is an output, and stays what it was while it does not answer."""
        elasticsearch, path = replace(_elasticsearch(props), patience=0), "/_security/user/_has_privileges"
        version = props.get("version") or ""
        with suppress(DownError):
            answer = elasticsearch.ask("POST", path, {"cluster": ["manage_inference"]})
            if not _expect(elasticsearch, answer, "POST", path).get("has_all_requested"):
                raise ElasticError(
                    "the API key in elasticsearchApiKey lacks a privilege in Elasticsearch: it needs "
                    f"{ELASTICSEARCH_PRIVILEGE}. {ENDPOINT_WORKS}"
                )
            version = _version(elasticsearch, "/")
            self._licensed(elasticsearch)
        return dynamic.CreateResult("asked", outs={**props, "version": version})

    def update(self, _id: str, olds: Props, news: Props) -> dynamic.UpdateResult:
        """Look again."""
        return dynamic.UpdateResult(outs=self.create({**news, "version": olds.get("version")}).outs)

    def _licensed(self, elasticsearch: Product) -> None:
        try:
            answer = elasticsearch.ask("GET", "/_license")
        except ElasticError:  # Serverless has none, and the key may lack `monitor`: then the creation shows it
            return
        license_ = (answer.body or {}).get("license", {})
        kind, status = license_.get("type", "enterprise"), license_.get("status", "active")
        if kind not in LICENSES or status != "active":
            raise ElasticError(
                f"Elasticsearch at {elasticsearch.url} has a license of type {kind!r} ({status}), which includes no "
                f"inference endpoints to a model of your own: they need an Enterprise license or a trial. "
                f"{ENDPOINT_WORKS}"
            )


class KibanaAccess(dynamic.Resource, module="elastic", name="KibanaAccess"):
    """Kibana can hold the connector; a Kibana that did not answer was accepted."""

    version: pulumi.Output[str]
    """Such as 9.1.3 or `serverless`; empty where it did not answer yet."""

    def __init__(self, name: str, props: dict[str, pulumi.Input[Any]], opts: pulumi.ResourceOptions) -> None:
        super().__init__(KibanaAccessProvider(), name, {**props, "version": None}, _private(opts))


class ElasticsearchAccess(dynamic.Resource, module="elastic", name="ElasticsearchAccess"):
    """Elasticsearch can hold the inference endpoint; an Elasticsearch that did not answer was accepted."""

    version: pulumi.Output[str]
    """Such as 9.1.3 or `serverless`; empty where it did not answer yet."""

    def __init__(self, name: str, props: dict[str, pulumi.Input[Any]], opts: pulumi.ResourceOptions) -> None:
        super().__init__(ElasticsearchAccessProvider(), name, {**props, "version": None}, _private(opts))


class KibanaConnector(dynamic.Resource, module="elastic", name="KibanaConnector"):
    """An OpenAI connector in Kibana that leads to the endpoint."""

    def __init__(self, name: str, props: dict[str, pulumi.Input[Any]], opts: pulumi.ResourceOptions) -> None:
        super().__init__(KibanaConnectorProvider(), name, dict(props), _private(opts))


class KibanaDefaultConnector(dynamic.Resource, module="elastic", name="KibanaDefaultConnector"):
    """Kibana's AI features use the connector by default in the space."""

    before: pulumi.Output[str | None]
    """Id of the connector that was the default before; None: none was."""

    def __init__(self, name: str, props: dict[str, pulumi.Input[Any]], opts: pulumi.ResourceOptions) -> None:
        super().__init__(KibanaDefaultConnectorProvider(), name, {**props, "before": None}, _private(opts))


class InferenceEndpoint(dynamic.Resource, module="elastic", name="InferenceEndpoint"):
    """An inference endpoint in Elasticsearch that leads to the endpoint."""

    def __init__(self, name: str, props: dict[str, pulumi.Input[Any]], opts: pulumi.ResourceOptions) -> None:
        super().__init__(InferenceEndpointProvider(), name, dict(props), _private(opts))


def _private(opts: pulumi.ResourceOptions) -> pulumi.ResourceOptions:
    """Return options that keep the outputs secret: the provider returns its inputs."""
    return pulumi.ResourceOptions.merge(opts, pulumi.ResourceOptions(additional_secret_outputs=["key", "body"]))


def _kibana(props: Props) -> Product:
    return Product(
        name="Kibana",
        url=props["url"],
        url_setting="kibanaUrl",
        key=props["key"],
        key_setting="kibanaApiKey",
        privilege=KIBANA_PRIVILEGE,
        ca=props["ca"],
        headers={"kbn-xsrf": "true"},
    )


def _elasticsearch(props: Props) -> Product:
    return Product(
        name="Elasticsearch",
        url=props["url"],
        url_setting="elasticsearchUrl",
        key=props["key"],
        key_setting="elasticsearchApiKey",
        privilege=ELASTICSEARCH_PRIVILEGE,
        ca=props["ca"],
    )


def _version(product: Product, path: str) -> str:
    """Return the version that Kibana or Elasticsearch reports, or `serverless`."""
    version = _expect(product, product.ask("GET", path), "GET", path).get("version", {})
    return versions.SERVERLESS if version.get("build_flavor") == versions.SERVERLESS else str(version.get("number", ""))


def _space_path(space: str) -> str:
    return f"/s/{space}" if space else ""


def _space_exists(kibana: Product, space: str) -> None:
    """Raise ElasticError for a space that is not there: Kibana's API would create a connector that nobody sees."""
    path = f"/api/spaces/space/{space}"
    if space and kibana.ask("GET", path).status == HTTPStatus.NOT_FOUND:
        raise ElasticError(
            f"Kibana at {kibana.url} has no space {space!r}: correct kibanaSpace to the identifier in the space's "
            f"address (/s/SPACE), or create it. {ENDPOINT_WORKS}"
        )


def _connector_path(props: Props) -> str:
    return f"{_space_path(props['space'])}/api/actions/connector/{props['id']}"


def _settings_path(props: Props) -> str:
    return f"{_space_path(props['space'])}/api/kibana/settings"


def _default_connector(kibana: Product, path: str) -> str | None:
    """Id of the connector that Kibana's AI features use by default; None where none was chosen."""
    settings = _expect(kibana, kibana.ask("GET", path), "GET", path).get("settings", {})
    value = settings.get(DEFAULT_CONNECTOR, {}).get("userValue")
    return str(value) if value else None


def _inference_path(props: Props) -> str:
    return f"/_inference/chat_completion/{props['id']}"


def _look(product: Product, path: str) -> Answer:
    """GET for a refresh, which knows the address and key of the last update only."""
    try:
        return product.ask("GET", path)
    except ElasticError as error:
        raise ElasticError(
            f"{error}. It was asked as the last `pulumi up` did: if its address or key has changed since, or it is to "
            "stay down for now, run `pulumi up` without --refresh"
        ) from error


def _no_such_connector(answer: Answer) -> bool:
    """404 for the connector, and not for a space or a server that is no Kibana."""
    return answer.status == HTTPStatus.NOT_FOUND and "Saved object" in answer.reason


def _expect(product: Product, answer: Answer, method: str, path: str) -> Props:
    """Return the body of an answer that must be a success."""
    if answer.status == HTTPStatus.NOT_FOUND and product.name == "Kibana" and not _no_such_connector(answer):
        raise ElasticError(
            f"Kibana at {product.url} knows no {path} (404): is there such a space (kibanaSpace), and is kibanaUrl "
            f"right? {ENDPOINT_WORKS}"
        )
    if answer.status >= HTTPStatus.BAD_REQUEST:
        raise ElasticError(
            f"{product.name} refuses {method} {path} ({answer.status}): {answer.reason}. {ENDPOINT_WORKS}"
        )
    return answer.body if isinstance(answer.body, dict) else {}


def _secrets(body: Props) -> tuple[str, ...]:
    """Return the secret texts in a body."""
    texts = {**body.get("secrets", {}), **body.get("service_settings", {})}
    return tuple(str(texts[name]) for name in texts if name in {"apiKey", "api_key", "privateKeyData"})

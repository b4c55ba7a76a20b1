"""Stand-in for Kibana and Elasticsearch over real HTTP: it refuses what they refuse, and really calls the endpoint.

Answers have the shapes of elastic/kibana (actions/server/routes, core/http/server-internal) and of
elastic/elasticsearch (rest-api-spec, InferenceAction).
"""

import json
import re
import ssl
import threading
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import httpx2

from tests.support import elastic_schemas as schemas

ADMIN, READER = "YWRtaW46a2V5", "cmVhZGVyOmtleQ=="
"""API keys: one with all privileges, and one without them."""
CONNECTOR = re.compile(r"(?:/s/(?P<space>[^/]+))?/api/actions/connector/(?P<id>[^/]+)(?P<execute>/_execute)?")
TYPES = re.compile(r"(?:/s/[^/]+)?/api/actions/connector_types")
SPACE = re.compile(r"/api/spaces/space/(?P<id>[^/]+)")
INFERENCE = re.compile(
    r"/_inference/chat_completion/(?P<id>[^/?]+)(?P<update>/_update)?(?:\?timeout=(?P<seconds>[0-9]+)s)?"
)
SETTINGS = re.compile(r"(?:/s/(?P<space>[^/]+))?/api/kibana/settings")
DEFAULT_CONNECTOR = "genAiSettings:defaultAIConnector"
PAID = ("enterprise", "trial")
VALIDATION_SECONDS = 30
"""Time that Elasticsearch waits for the endpoint while it creates or updates an inference endpoint."""


@dataclass
class Elastic:
    """Contents of both, and their faults."""

    address: str = ""
    connectors: dict[tuple[str, str], dict[str, Any]] = field(default_factory=dict)
    """(space, id) -> body, secrets included."""
    inference: dict[str, dict[str, Any]] = field(default_factory=dict)
    spaces: tuple[str, ...] = ("default", "ai")
    version: str = "9.4.0"
    license: str = "enterprise"
    enabled_types: tuple[str, ...] = ("*",)
    """xpack.actions.enabledActionTypes."""
    encryption_key: bool = True
    """False: xpack.encryptedSavedObjects.encryptionKey is not set, and Kibana refuses all requests about connectors."""
    answer_seconds: float = 0
    """Time that the endpoint takes for an answer, as Elasticsearch's validation counts it."""
    trusts: str = ""
    """PEM of the CA of endpoints; both trust no other."""
    calls_endpoint: bool = True
    answers: list[tuple[int, dict[str, str]] | None] = field(default_factory=list)
    """Statuses with headers that the next requests get instead of an answer; None: the answer itself."""
    default_connectors: dict[str, str | None] = field(default_factory=dict)
    """space -> genAiSettings:defaultAIConnector."""
    requests: list[str] = field(default_factory=list)
    lock: threading.Lock = field(default_factory=threading.Lock)


NO_ENCRYPTION_KEY = (
    "Unable to create actions client because the Encrypted Saved Objects plugin is missing encryption key. Please set "
    "xpack.encryptedSavedObjects.encryptionKey in the kibana.yml or use the bin/kibana-encryption-keys command."
)


class RefusedError(Exception):
    """An answer that is an error."""

    def __init__(self, status: int, body: dict[str, Any]) -> None:
        super().__init__(status)
        self.status, self.body = status, body


def kibana_error(status: int, message: str) -> RefusedError:
    names = {
        400: "Bad Request",
        401: "Unauthorized",
        403: "Forbidden",
        404: "Not Found",
        409: "Conflict",
        500: "Internal Server Error",
    }
    return RefusedError(status, {"statusCode": status, "error": names[status], "message": message})


def elasticsearch_error(status: int, kind: str, reason: str) -> RefusedError:
    cause = {"type": kind, "reason": reason}
    return RefusedError(status, {"error": {"root_cause": [cause], **cause}, "status": status})


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: "_Server"

    def log_message(self, *_: object) -> None:
        """Log nothing."""

    def do_GET(self) -> None:
        elastic = self.server.elastic
        length = int(self.headers.get("Content-Length") or 0)
        sent = self.rfile.read(length)
        with elastic.lock:
            elastic.requests.append(f"{self.command} {self.path}")
            forced = elastic.answers.pop(0) if elastic.answers else None
        headers: dict[str, str] = {}
        if forced:
            status, headers = forced
            body: Any = {"message": "busy"}
        else:
            try:
                status, body = self._answer(elastic, sent)
            except RefusedError as error:
                status, body = error.status, error.body
        data = b"" if body is None else json.dumps(body).encode()
        self.send_response(status)
        for name, value in {"Content-Type": "application/json", "Content-Length": str(len(data)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(data)

    do_POST = do_PUT = do_DELETE = do_GET  # noqa: N815

    def _answer(self, elastic: Elastic, sent: bytes) -> tuple[int, Any]:
        body: Any = json.loads(sent) if sent else None
        if match := CONNECTOR.fullmatch(self.path):
            return self._kibana(elastic, body, match)
        if match := SETTINGS.fullmatch(self.path):
            return 200, self._settings(elastic, match["space"] or "default", body)
        if found := self._about(elastic):
            return found
        if self.path == "/_security/user/_has_privileges":
            self._authenticated()
            may = self.headers["Authorization"] == f"ApiKey {ADMIN}"
            return 200, {"username": "u", "has_all_requested": may, "cluster": dict.fromkeys(body["cluster"], may)}
        if match := INFERENCE.fullmatch(self.path):
            return self._elasticsearch(elastic, body, match)
        raise kibana_error(404, "Not Found")

    def _about(self, elastic: Elastic) -> tuple[int, Any] | None:
        """Return what both report about themselves: version, license, connector types, spaces."""
        space = SPACE.fullmatch(self.path)
        answers: dict[str, Any] = {
            "/": {"version": {"number": elastic.version, "build_flavor": "default"}},
            "/_license": {"license": {"status": "active", "type": elastic.license}},
            "/api/status": {"name": "kibana", "version": {"number": elastic.version}},
        }
        if TYPES.fullmatch(self.path):
            answers[self.path] = self._types(elastic)
        if space:
            answers[self.path] = {"id": space["id"], "disabledFeatures": []}
        if self.path not in answers:
            return None
        if self.path in {"/", "/_license"}:
            self._authenticated()
        else:
            self._signed_in()
        if space and space["id"] not in elastic.spaces:
            raise kibana_error(404, "Not Found")
        return 200, answers[self.path]

    # Kibana

    def _kibana(self, elastic: Elastic, body: Any, match: re.Match[str]) -> tuple[int, Any]:
        space, id_ = match["space"] or "default", match["id"]
        if self.command != "GET" and not self.headers.get("kbn-xsrf"):
            raise kibana_error(400, "Request must contain a kbn-xsrf header.")
        key = self._signed_in()
        if not elastic.encryption_key:
            raise kibana_error(500, NO_ENCRYPTION_KEY)
        # A space that does not exist is not refused: spaces/server/lib/request_interceptors looks at pages alone.
        if key == f"ApiKey {READER}":
            raise kibana_error(403, "Unauthorized to create actions")
        found = elastic.connectors.get((space, id_))
        if self.command in {"POST", "PUT"}:
            self._allowed(elastic)
        if match["execute"]:
            return 200, self._execute(elastic, self._there(found, id_), id_, body)
        if self.command == "POST":
            return 200, self._create_connector(elastic, (space, id_), found, body)
        found = self._there(found, id_)
        if self.command == "DELETE":
            del elastic.connectors[space, id_]
            return 204, None
        if self.command == "PUT":
            self._check(schemas.connector(elastic.version, update=True), body)
            found = elastic.connectors[space, id_] = {**found, **body}
        return 200, shown(found, id_)

    def _signed_in(self) -> str:
        key = str(self.headers.get("Authorization"))
        if key not in {f"ApiKey {ADMIN}", f"ApiKey {READER}"}:
            raise kibana_error(401, "[security_exception]: unable to authenticate with provided credentials")
        return key

    def _settings(self, elastic: Elastic, space: str, body: Any) -> dict[str, Any]:
        if self._signed_in() == f"ApiKey {READER}" and self.command == "POST":
            raise kibana_error(403, "Unable to save advanced settings")
        if self.command == "POST":
            if set(body) != {"changes"} or set(body["changes"]) != {DEFAULT_CONNECTOR}:
                raise kibana_error(400, "[request body]: unexpected")
            elastic.default_connectors[space] = body["changes"][DEFAULT_CONNECTOR]
        value = elastic.default_connectors.get(space)
        return {"settings": {DEFAULT_CONNECTOR: {"userValue": value}} if value else {}}

    @staticmethod
    def _types(elastic: Elastic) -> list[dict[str, Any]]:
        in_config = "*" in elastic.enabled_types or ".gen-ai" in elastic.enabled_types
        in_license = elastic.license in PAID
        enabled = {
            "enabled": in_config and in_license,
            "enabled_in_config": in_config,
            "enabled_in_license": in_license,
        }
        return [{"id": ".gen-ai", "name": "OpenAI", **enabled, "minimum_license_required": "enterprise"}]

    def _allowed(self, elastic: Elastic) -> None:
        (kind,) = self._types(elastic)
        if not kind["enabled_in_config"]:
            text = 'action type ".gen-ai" is not enabled in the Kibana config xpack.actions.enabledActionTypes'
            raise kibana_error(403, text)
        if not kind["enabled_in_license"]:
            text = f"Action type .gen-ai is disabled because your {elastic.license} license does not support it. "
            raise kibana_error(403, f"{text}Please upgrade your license.")

    def _create_connector(self, elastic: Elastic, place: tuple[str, str], found: Any, body: Any) -> dict[str, Any]:
        try:
            uuid.UUID(place[1])
        except ValueError:
            raise kibana_error(400, "[request params.id]: id must be a UUID") from None
        self._check(schemas.connector(elastic.version), body)
        if found:
            raise kibana_error(409, f"Saved object [action/{place[1]}] conflict")
        elastic.connectors[place] = body
        return shown(body, place[1])

    @staticmethod
    def _there(found: dict[str, Any] | None, id_: str) -> dict[str, Any]:
        if found is None:
            raise kibana_error(404, f"Saved object [action/{id_}] not found")
        return found

    @staticmethod
    def _check(schema: schemas.Schema, body: Any) -> None:
        if problems := schemas.problems(schema, body):
            raise kibana_error(400, f"[request body.{problems[0]}]")

    @staticmethod
    def _execute(elastic: Elastic, connector: dict[str, Any], id_: str, body: Any) -> dict[str, Any]:
        if problems := schemas.connector_test_problems(body):
            raise kibana_error(400, f"[request body.{problems[0]}]")
        config = connector["config"]
        question = json.loads(body["params"]["subActionParams"]["body"])
        # Kibana adds the connector's model to a request without one since elastic/kibana#260747.
        model = "" if elastic.version.startswith(("8.", "9.0", "9.1", "9.2", "9.3")) else config["defaultModel"]
        try:
            problem = ask(elastic, config["apiUrl"], connector["secrets"]["apiKey"], model, question)
        except httpx2.HTTPError as error:
            problem = str(error)
        if problem:
            failed = {"message": "an error occurred while running the action", "service_message": problem}
            return {"status": "error", **failed, "retry": True, "connector_id": id_}
        return {"status": "ok", "data": {}, "connector_id": id_}

    # Elasticsearch

    def _elasticsearch(self, elastic: Elastic, body: Any, match: re.Match[str]) -> tuple[int, Any]:
        id_ = match["id"]
        if self._authenticated() == f"ApiKey {READER}":
            reason = "action [cluster:admin/xpack/inference/put] is unauthorized for API key"
            raise elasticsearch_error(403, "security_exception", reason)
        found = elastic.inference.get(id_)
        if self.command == "PUT" and elastic.license not in PAID:
            raise elasticsearch_error(403, "security_exception", "current license is non-compliant for [inference]")
        if match["seconds"] and elastic.version.startswith(("8.", "9.0")):
            reason = f"request [{self.path}] contains unrecognized parameter: [timeout]"
            raise elasticsearch_error(400, "illegal_argument_exception", reason)
        seconds = float(match["seconds"] or VALIDATION_SECONDS)
        if self.command == "PUT" and not match["update"]:
            return 200, self._create_inference(elastic, id_, found, body, seconds)
        if found is None:
            raise elasticsearch_error(404, "resource_not_found_exception", f"Inference endpoint not found [{id_}]")
        if self.command == "DELETE":
            del elastic.inference[id_]
            return 200, {"acknowledged": True, "pipelines": []}
        if match["update"]:
            self._validate(schemas.INFERENCE_UPDATE, body)
            settings = {**found["service_settings"], **body.get("service_settings", {})}
            self._test(elastic, settings, VALIDATION_SECONDS)
            elastic.inference[id_] = {**found, "service_settings": settings}
        return 200, {"endpoints": [inference_shown(elastic.inference[id_], id_)]}

    def _authenticated(self) -> str:
        key = str(self.headers.get("Authorization"))
        if key not in {f"ApiKey {ADMIN}", f"ApiKey {READER}"}:
            raise elasticsearch_error(401, "security_exception", "unable to authenticate with provided credentials")
        return key

    def _create_inference(self, elastic: Elastic, id_: str, found: Any, body: Any, seconds: float) -> dict[str, Any]:
        self._validate(schemas.INFERENCE_ENDPOINT, body)
        if found:
            reason = f"Inference endpoint [{id_}] already exists"
            raise elasticsearch_error(400, "resource_already_exists_exception", reason)
        self._test(elastic, body["service_settings"], seconds)
        elastic.inference[id_] = body
        return inference_shown(body, id_)

    @staticmethod
    def _validate(schema: schemas.Schema, body: Any) -> None:
        if problems := schemas.problems(schema, body):
            raise elasticsearch_error(400, "validation_exception", f"Validation Failed: 1: {problems[0]};")

    @staticmethod
    def _test(elastic: Elastic, settings: dict[str, Any], seconds: float) -> None:
        if elastic.answer_seconds > seconds:
            reason = f"validation call to service threw an exception: Request timed out after [{seconds:g}s]"
            raise elasticsearch_error(400, "status_exception", reason)
        question = {"messages": [{"role": "user", "content": "how big"}], "stream": True}
        try:
            problem = ask(elastic, settings["url"], settings["api_key"], settings["model_id"], question)
        except httpx2.HTTPError as error:
            problem = str(error)
        if problem:
            reason = f"Unable to validate the endpoint: {problem}"
            raise elasticsearch_error(400, "status_exception", reason)


def ask(elastic: Elastic, url: str, key: str, model: str, question: dict[str, Any]) -> str:
    """Ask the endpoint, and return what went wrong; empty if nothing."""
    if not elastic.calls_endpoint:
        return ""
    context = ssl.create_default_context(cadata=elastic.trusts or None)
    with httpx2.Client(verify=context, timeout=60, trust_env=False) as client:
        answer = client.post(
            url, json={**({"model": model} if model else {}), **question}, headers={"Authorization": f"Bearer {key}"}
        )
    return "" if answer.is_success else f"{answer.status_code} {answer.text[:200]}"


def shown(connector: dict[str, Any], id_: str) -> dict[str, Any]:
    """Return the connector as in Kibana's answers: without secrets."""
    public = {key: value for key, value in connector.items() if key != "secrets"}
    flags = dict.fromkeys(("is_preconfigured", "is_deprecated", "is_missing_secrets", "is_system_action"), False)
    return {"id": id_, **public, **flags, "is_connector_type_deprecated": False}


def inference_shown(endpoint: dict[str, Any], id_: str) -> dict[str, Any]:
    """Return the inference endpoint as in Elasticsearch's answers: without secrets."""
    settings = {key: value for key, value in endpoint["service_settings"].items() if key != "api_key"}
    settings.setdefault("rate_limit", {"requests_per_minute": 500})
    kind = {"inference_id": id_, "task_type": "chat_completion", "service": endpoint["service"]}
    return {**kind, "service_settings": settings}


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self, elastic: Elastic, port: int) -> None:
        super().__init__(("127.0.0.1", port), _Handler)
        self.elastic = elastic


@contextmanager
def serving(elastic: Elastic, port: int = 0, certificate: str = "") -> Iterator[Elastic]:
    """Run both at one address until the block ends; with a `certificate` (file with its key) over TLS."""
    with _Server(elastic, port) as server:
        scheme = "http"
        if certificate:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(certificate)
            server.socket = context.wrap_socket(server.socket, server_side=True)
            scheme = "https"
        elastic.address = f"{scheme}://127.0.0.1:{server.server_address[1]}"
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.005}, daemon=True)
        thread.start()
        try:
            yield elastic
        finally:
            server.shutdown()
            thread.join()

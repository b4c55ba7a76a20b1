"""Command that writes the hand-off for the Elastic admin: a document without secrets, the CA, and the key apart."""

import ipaddress
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import jinja2
import typer

from components.catalogue.models import load_catalogue
from components.elastic import payloads, versions
from components.elastic.api import VALIDATION_SECONDS
from components.elastic.corpus import CONNECTOR, all_forms, refusals
from components.elastic.payloads import ElasticEndpoint
from components.elastic.versions import Version
from components.settings.keys import DEFAULT
from scripts.cli.handoff import ways
from scripts.lib.errors import BadInputError
from scripts.lib.private_files import write_private
from scripts.lib.stack_outputs import Rehearsal, internal, refused_forms, stack_outputs
from scripts.lib.verification.endpoint import CHAT_PATH, Endpoint, InvalidEndpointError

PROJECT = Path(__file__).resolve().parents[3]
DOCUMENT, CA_FILE, KEY_FILE = "handoff.md", "ca.pem", "connector-api-key"
AGENT_FILE = "elastic-agent.yml"
CLIENT_FILES = {"certificate": "client-certificate.pem", "privateKey": "client-key.pem"}
PLACEHOLDER = "${ELASTIC_VLLM_KEY}"
"""Placeholder for the key in the document: a variable of the shell and, in kibana.yml, of Kibana's environment."""
CA_BASE64, CERTIFICATE_BASE64, CLIENT_KEY_BASE64 = (
    "${ELASTIC_VLLM_CA_BASE64}",
    "${ELASTIC_VLLM_CERTIFICATE_BASE64}",
    "${ELASTIC_VLLM_CLIENT_KEY_BASE64}",
)
"""Placeholders for Kibana's client certificate."""
MADE = {"inferenceEndpointId": "the inference endpoint (A)", "kibanaConnectorId": "the connector (B)"}
"""Output that is set where `up` has made something in Elastic -> what it is in the document."""
LEAST_CONTEXT_TOKENS = 64_000
"""Context that Elastic's Observability Assistant requires of a model."""
NEEDED: Mapping[str, type] = {
    "connectorUrl": str,
    "connectorApiKey": str,
    "model": str,
    "nativeFunctionCalling": bool,
    "maxModelLen": int,
    "_internal": dict,
}
"""Outputs without which there is no document."""

templates = jinja2.Environment(
    loader=jinja2.FileSystemLoader(Path(__file__).parent),
    undefined=jinja2.StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
    keep_trailing_newline=True,
    autoescape=False,  # noqa: S701 - Markdown, not HTML; values are checked settings
)


def main(
    *,
    stack: Annotated[str, typer.Option(help="Stack that is up.")],
    rehearsal: Rehearsal = False,
    output: Annotated[Path | None, typer.Option(help="Directory to write to (default: handoff/STACK).")] = None,
    key: Annotated[str, typer.Option(help="Name of the key to hand over, as in the setting keys.")] = DEFAULT,
    show_key: Annotated[bool, typer.Option("--show-key", help="Print the key as well.")] = False,
) -> None:
    """Write what the Elastic admin gets: handoff.md (no secret in it), ca.pem, and the key in a file for you alone."""
    name = stack.rpartition("/")[2]  # Pulumi takes ORGANISATION/PROJECT/STACK as well
    directory = output or PROJECT / "handoff" / name
    typer.echo(f"reading the outputs of stack {stack}")
    outputs = _checked(stack_outputs(stack, rehearsal=rehearsal), stack)
    outputs = {**outputs, "connectorApiKey": _key(outputs, key, stack)}
    clients = outputs.get("clientCertificates") or {}
    endpoint = ElasticEndpoint(
        name=f"elastic-vllm-{name}",
        url=outputs["connectorUrl"],
        key=PLACEHOLDER,
        model=_asked(outputs),
        max_model_len=outputs["maxModelLen"],
        native_function_calling=outputs["nativeFunctionCalling"],
        ca_certificate=outputs.get("caCertificate", ""),
        client_certificate=CERTIFICATE_BASE64 if clients else "",
        client_key=CLIENT_KEY_BASE64 if clients else "",
        kibana_version=internal(outputs).get("elasticVersion", ""),
        deployment=internal(outputs).get("elasticDeployment", "self-managed"),
    )
    made = {title: outputs[output] for output, title in MADE.items() if outputs.get(output)}
    shown = _shown(directory)
    limits = internal(outputs)["limits"]
    model = outputs["model"]
    refuses = refused_forms(outputs)
    if refuses is None:
        known = load_catalogue().models.get(model)
        refuses = known.refuses if known else {}
    text = document(name, endpoint, served_model=model, refuses=refuses, limits=limits, directory=shown, made=made)
    public = {DOCUMENT: text, CA_FILE: endpoint.ca_certificate, AGENT_FILE: outputs.get("elasticAgentPolicy", "")}
    _write(directory, public, outputs["connectorApiKey"], next(iter(clients.values()), {}))
    if show_key:
        typer.echo(f"key: {outputs['connectorApiKey']}")
    given = f"{DOCUMENT} and {CA_FILE}" if endpoint.ca_certificate else DOCUMENT
    private = ", ".join([KEY_FILE, *(CLIENT_FILES.values() if clients else [])])
    typer.echo(f"give {given} to the Elastic admin, and {private} over a separate, secure channel")


def document(
    stack: str,
    endpoint: ElasticEndpoint,
    *,
    served_model: str,
    refuses: Mapping[str, str],
    limits: Mapping[str, int],
    directory: str,
    made: Mapping[str, str] | None = None,
) -> str:
    """Return the document, in Markdown. `endpoint.key` is a placeholder for the key; `directory` holds the files.

    `refuses` are the requests that the model refuses, each with its consequence; `limits` are those of the outputs;
    `made` maps the resources that `up` has created in Elastic to their ids.
    """
    self_managed = endpoint.deployment == "self-managed"
    connector = payloads.kibana_connector(endpoint)
    preconfigured = payloads.preconfigured_connector(endpoint) if self_managed else ""
    if endpoint.client_certificate and endpoint.ca_certificate:
        connector["secrets"]["caData"] = CA_BASE64
        preconfigured = preconfigured.replace(payloads.base64_or_placeholder(endpoint.ca_certificate), CA_BASE64)
    update = {key: value for key, value in connector.items() if key != "connector_type_id"}
    question = {"messages": [{"role": "user", "content": "Say hello."}]}
    # Kibana's own test of a connector takes the request as JSON in a text, and adds no model before 9.4.
    body = json.dumps({"model": endpoint.model, **question})
    test = {"params": {"subAction": "test", "subActionParams": {"body": body}}}
    verify = [f"--ca {directory}/{CA_FILE}"] if endpoint.ca_certificate else []
    verify += [f"--client-pem <(cat {directory}/client-*.pem)"] if endpoint.client_certificate else []
    verify += [f"--key-file {directory}/{KEY_FILE}"] + ([] if endpoint.native_function_calling else ["--no-tools"])
    return templates.get_template("handoff.md.j2").render(
        stack=stack,
        e=endpoint,
        root=endpoint.url.removesuffix(CHAT_PATH),
        served_model=served_model,
        limits=limits,
        directory=directory,
        made=made or {},
        private=_is_private(endpoint.host),
        tls_options=(f" --cacert {CA_FILE}" if endpoint.ca_certificate else "")
        + (" --cert {certificate} --key {privateKey}".format(**CLIENT_FILES) if endpoint.client_certificate else ""),
        verify_options=" ".join(verify),
        least_max_model_len=LEAST_CONTEXT_TOKENS,
        response_seconds=payloads.RESPONSE_SECONDS,
        connector_id=payloads.connector_id(endpoint.name),
        connector=_json(connector),
        connector_update=_json(update),
        connector_test=json.dumps(test),
        inference_endpoint=_json(payloads.inference_endpoint(endpoint)),
        inference_update=json.dumps({"service_settings": {"api_key": endpoint.key}}),
        inference_chat=json.dumps(question),
        chat=json.dumps({"model": endpoint.model, **question, "max_tokens": 50}),
        kibana_settings=payloads.kibana_settings(endpoint),
        security_settings=payloads.security_settings() if self_managed and _before(endpoint, (9, 2)) else "",
        rows=ways.rows(endpoint),
        refused=_refused(endpoint, refuses),
        inference=ways.has_inference(endpoint),
        validation_seconds=VALIDATION_SECONDS,
        by_version=lambda since, now, before: _by_version(endpoint, since, now, before),
        preconfigured_connector=preconfigured,
        client_files=CLIENT_FILES,
    )


def _refused(endpoint: ElasticEndpoint, refuses: Mapping[str, str]) -> list[str]:
    """Requests of the ways in the document that vLLM or the model refuses, each with its consequence."""
    follows = refusals(refuses)
    inference = ways.has_inference(endpoint)
    return [
        f"{form.feature}: {follows[form.name]}."
        for form in all_forms()
        if form.name in follows
        and (endpoint.native_function_calling or not form.has_tools)
        and (inference or form.way == CONNECTOR)
    ]


def _before(endpoint: ElasticEndpoint, version: Version) -> bool:
    """True if Elastic is older than the version, or may be."""
    return not endpoint.kibana_version or versions.parse(endpoint.kibana_version) < version


def _by_version(endpoint: ElasticEndpoint, since: str, now: str, before: str) -> str:
    """Return a value that changed with a version: the one that applies, or both if Elastic's version is unknown."""
    if not endpoint.kibana_version:
        return f"{now} (before {since}: {before})"
    return before if _before(endpoint, versions.parse(since)) else now


def _key(outputs: Mapping[str, Any], name: str, stack: str) -> str:
    named = {DEFAULT: outputs["connectorApiKey"], **outputs.get("apiKeys", {})}
    if name not in named:
        raise BadInputError(
            f"--key {name}: stack {stack} has {', '.join(named)}", "add it to the setting keys, then up"
        )
    return str(named[name])


def _asked(outputs: Mapping[str, Any]) -> str:
    """Return the model's alias, or its own name without one."""
    return str(outputs.get("servedModelName") or outputs["model"])


def _checked(outputs: Mapping[str, Any], stack: str) -> Mapping[str, Any]:
    if internal(outputs).get("parked"):
        raise BadInputError(
            f"--stack {stack}: it is parked, so nothing answers",
            f"pulumi config set parked false --stack {stack}, then pulumi up",
        )
    for name, kind in NEEDED.items():
        if not isinstance(outputs.get(name), kind):
            raise BadInputError(
                f"--stack {stack}: it has no output {name}", "bring it up with this version of the program"
            )
    try:
        Endpoint(
            url=outputs["connectorUrl"],
            key=outputs["connectorApiKey"],
            model=_asked(outputs),
            ca_certificate=outputs.get("caCertificate"),
        )
    except InvalidEndpointError as error:
        raise BadInputError(f"--stack {stack}: its {error.field} {error}", "run pulumi up again") from error
    return outputs


def _write(directory: Path, public: Mapping[str, str], key: str, client: Mapping[str, str]) -> None:
    # These are made without secrets: this is for the day that somebody changes that.
    if any(secret in text for text in public.values() for secret in (key, *client.values())):
        raise BadInputError("a file would hold the key, so none was written", "report this")
    try:
        directory.mkdir(parents=True, exist_ok=True, mode=0o700)
        for name, text in public.items():
            if text:
                (directory / name).write_text(text)
                typer.echo(f"wrote {_shown(directory / name)}")
        write_private(directory / KEY_FILE, f"{key}\n")
        typer.echo(f"wrote {_shown(directory / KEY_FILE)}, readable by you alone")
        for part, pem in client.items():
            write_private(directory / CLIENT_FILES[part], pem)
            typer.echo(f"wrote {_shown(directory / CLIENT_FILES[part])}, readable by you alone")
    except OSError as error:
        raise BadInputError(
            f"--output {directory}: {error.strerror}", "give a directory that can be written"
        ) from error


def _shown(path: Path) -> str:
    """Return a path as the document names it: relative to the project's directory, or absolute."""
    absolute = Path(os.path.abspath(path))  # noqa: PTH100 - resolve() would follow links
    return str(absolute.relative_to(PROJECT)) if absolute.is_relative_to(PROJECT) else str(absolute)


def _is_private(host: str) -> bool:
    """Return True if the host is an address that the internet does not reach; names are not resolved."""
    try:
        return not ipaddress.ip_address(host).is_global
    except ValueError:
        return False


def _json(body: Mapping[str, Any]) -> str:
    return json.dumps(body, indent=2)

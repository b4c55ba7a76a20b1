"""Command that proves an endpoint's promises: TLS, key, allow-list, chat, streams and tool calls, a line for each."""

import json
import os
import sys
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from scripts.lib.errors import BadInputError, ExitCode
from scripts.lib.progress import Display
from scripts.lib.stack_outputs import Rehearsal, first_client, parsed, refused_forms, stack_outputs
from scripts.lib.verification.endpoint import Endpoint, InvalidEndpointError
from scripts.lib.verification.run import CheckResult, Report, format_result, verify

__all__ = ["CheckResult", "Endpoint", "InvalidEndpointError", "Report", "format_result", "verify"]

KEY_VARIABLE = "ELASTIC_VLLM_KEY"
# Placeholder that pulumi prints for a secret without --show-secrets.
HIDDEN = "[secret]"
CLIENT = "clientCertificates"
# Of each field of an Endpoint: the stack's output, and the option that overrides it.
NAMES = {
    "url": ("connectorUrl", "--url"),
    "model": ("model", "--model"),
    "key": ("connectorApiKey", "--key-file"),
    "ca_certificate": ("caCertificate", "--ca"),
    "client_certificate": (CLIENT, "--client-pem"),
}
OPTIONAL = ("ca_certificate", "client_certificate")


def main(
    *,
    url: Annotated[str | None, typer.Option(help="Connector URL: https://HOST[:PORT]/v1/chat/completions.")] = None,
    model: Annotated[str | None, typer.Option(help="Served model's name or alias.")] = None,
    ca: Annotated[Path | None, typer.Option(help="CA certificate to trust, PEM (default: the system's store).")] = None,
    key_file: Annotated[
        Path | None, typer.Option(help=f"File with the key (else ${KEY_VARIABLE}, else a prompt).")
    ] = None,
    client_pem: Annotated[
        Path | None, typer.Option(help="File with a client certificate and its private key, PEM, where one is needed.")
    ] = None,
    outputs: Annotated[
        str | None,
        typer.Option(help="File, or - for stdin, from `pulumi stack output --json --show-secrets`."),
    ] = None,
    stack: Annotated[str | None, typer.Option(help="Stack to take URL, key, model and CA from.")] = None,
    rehearsal: Rehearsal = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON document instead of lines.")] = False,
    quick: Annotated[
        bool, typer.Option("--quick", help="Fewer requests and short answers, for an endpoint in production.")
    ] = False,
    no_tools: Annotated[
        bool, typer.Option("--no-tools", help="Leave out tool calls, for a model without them.")
    ] = False,
) -> None:
    """Prove that an endpoint keeps its promises.

    Give --url and --model, or --outputs, or --stack; --model, --ca and --key-file override what outputs say.
    """
    given = _given(url, outputs, stack, rehearsal=rehearsal)
    if model is not None:
        given["model"] = model
    if ca is not None:
        given["caCertificate"] = _read(ca, "--ca")
    if key_file is not None:
        given["connectorApiKey"] = _read(key_file, "--key-file").strip()
    elif not given.get("connectorApiKey"):
        given["connectorApiKey"] = _key_elsewhere()
    if client_pem is not None:
        given[CLIENT] = _read(client_pem, "--client-pem")
    elif shown := first_client(given):
        given[CLIENT] = shown
    has_tools = given.get("nativeFunctionCalling") is not False
    endpoint = _endpoint(given, supports_tools=has_tools and not no_tools)

    with Display(results_on_stdout=True) as display, display.task("checks") as task:

        def show(result: CheckResult) -> None:
            if not as_json:
                display.line(format_result(result))

        report = verify(endpoint, quick=quick, on_start=task.say, on_result=show)
    if as_json:
        document = {"url": endpoint.url, "model": endpoint.model, "ok": not report.failed, "cost": asdict(report.cost)}
        typer.echo(json.dumps(document | {"checks": [asdict(result) for result in report.results]}, indent=2))
    else:
        typer.echo(report.summary())
    if report.failed:
        raise typer.Exit(ExitCode.FAILED)


def _given(url: str | None, outputs: str | None, stack: str | None, *, rehearsal: bool) -> dict[str, object]:
    """Return the endpoint as the chosen source describes it, under the names of the stack's outputs."""
    if sum(source is not None for source in (url, outputs, stack)) != 1:
        raise BadInputError("the endpoint is not given by one of --url, --outputs and --stack", "give one of them")
    if rehearsal and stack is None:
        raise BadInputError("--rehearsal is given without --stack", "give the rehearsed stack's name")
    if url is not None:
        return {"connectorUrl": url}
    if outputs is not None:
        text = sys.stdin.read() if outputs == "-" else _read(Path(outputs), "--outputs")
        return parsed(text, f"--outputs {outputs}")
    return stack_outputs(str(stack), rehearsal=rehearsal)


def _read(path: Path, option: str) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")  # editors on Windows begin a file with a byte order mark
    except OSError as error:
        raise BadInputError(f"{option} {path}: {error.strerror}", "pass a file that can be read") from error
    except UnicodeDecodeError as error:
        raise BadInputError(f"{option} {path}: not text", "pass PEM, JSON or a key as text") from error


def _key_elsewhere() -> str:
    """Return the key from the environment or a prompt, never from an option: arguments show in process lists."""
    if key := os.environ.get(KEY_VARIABLE, "").strip():
        return key
    if sys.stdin.isatty():
        return str(typer.prompt("Connector key", hide_input=True, err=True)).strip()
    raise BadInputError("no key is given", f"pass --key-file FILE or set {KEY_VARIABLE}")


def _endpoint(given: Mapping[str, object], *, supports_tools: bool) -> Endpoint:
    values: dict[str, str | None] = {}
    for field, (output, option) in NAMES.items():
        value = given.get(output)
        if value is None and field not in OPTIONAL:
            raise BadInputError(f"{option} ({output} of the outputs) is missing", "pass it")
        if value is not None and not isinstance(value, str):
            raise BadInputError(f"{option} ({output} of the outputs) is not a string", "pass it as a string")
        if value == HIDDEN:
            raise BadInputError(f"{option} ({output} of the outputs) is hidden", "add --show-secrets")
        values[field] = value
    try:
        return Endpoint(
            url=values["url"] or "",
            model=values["model"] or "",
            key=values["key"] or "",
            ca_certificate=values["ca_certificate"],
            client_certificate=values["client_certificate"],
            supports_tools=supports_tools,
            refuses=refused_forms(given),
        )
    except InvalidEndpointError as error:
        output, option = NAMES[error.field]
        raise BadInputError(f"{option} ({output} of the outputs) {error}", "correct it") from error

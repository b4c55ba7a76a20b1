"""The endpoint that a command's options describe: by URL, by a stack's outputs in a file, or by a stack's name."""

import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated

import typer

from scripts.lib.errors import BadInputError
from scripts.lib.stack_outputs import first_client, parsed, refused_forms, stack_outputs
from scripts.lib.verification.endpoint import Endpoint, InvalidEndpointError

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


Url = Annotated[str | None, typer.Option(help="Connector URL: https://HOST[:PORT]/v1/chat/completions.")]
ModelName = Annotated[str | None, typer.Option(help="Served model's name or alias.")]
Ca = Annotated[Path | None, typer.Option(help="CA certificate to trust, PEM (default: the system's store).")]
KeyFile = Annotated[Path | None, typer.Option(help=f"File with the key (else ${KEY_VARIABLE}, else a prompt).")]
ClientPem = Annotated[
    Path | None, typer.Option(help="File with a client certificate and its private key, PEM, where one is needed.")
]
Outputs = Annotated[
    str | None, typer.Option(help="File, or - for stdin, from `pulumi stack output --json --show-secrets`.")
]
Stack = Annotated[str | None, typer.Option(help="Stack to take URL, key, model and CA from.")]


def given(
    *,
    url: str | None,
    outputs: str | None,
    stack: str | None,
    rehearsal: bool,
    model: str | None,
    ca: Path | None,
    client_pem: Path | None,
) -> dict[str, object]:
    """Return the endpoint as the chosen source describes it, under the names of the stack's outputs, without a key
    from elsewhere: see `with_key`."""
    found = _source(url, outputs, stack, rehearsal=rehearsal)
    if model is not None:
        found["model"] = model
    if ca is not None:
        found["caCertificate"] = read(ca, "--ca")
    if client_pem is not None:
        found[CLIENT] = read(client_pem, "--client-pem")
    elif shown := first_client(found):
        found[CLIENT] = shown
    return found


def with_key(found: Mapping[str, object], key_file: Path | None) -> dict[str, object]:
    """Return the same with the key of the file, of the source, of the environment or of a prompt."""
    if key_file is not None:
        return {**found, "connectorApiKey": read(key_file, "--key-file").strip()}
    return {**found, "connectorApiKey": found.get("connectorApiKey") or _key_elsewhere()}


def _source(url: str | None, outputs: str | None, stack: str | None, *, rehearsal: bool) -> dict[str, object]:
    """Return the endpoint as the chosen source describes it, under the names of the stack's outputs."""
    if sum(source is not None for source in (url, outputs, stack)) != 1:
        raise BadInputError("the endpoint is not given by one of --url, --outputs and --stack", "give one of them")
    if rehearsal and stack is None:
        raise BadInputError("--rehearsal is given without --stack", "give the rehearsed stack's name")
    if url is not None:
        return {"connectorUrl": url}
    if outputs is not None:
        text = sys.stdin.read() if outputs == "-" else read(Path(outputs), "--outputs")
        return parsed(text, f"--outputs {outputs}")
    return stack_outputs(str(stack), rehearsal=rehearsal)


def read(path: Path, option: str) -> str:
    """Return a file's text. Raises BadInputError that names the option."""
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


def endpoint(found: Mapping[str, object], *, supports_tools: bool) -> Endpoint:
    """Return the endpoint. Raises BadInputError for a field that is missing, hidden or wrong."""
    values: dict[str, str | None] = {}
    for field, (output, option) in NAMES.items():
        value = found.get(output)
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
            refuses=refused_forms(found),
        )
    except InvalidEndpointError as error:
        output, option = NAMES[error.field]
        raise BadInputError(f"{option} ({output} of the outputs) {error}", "correct it") from error

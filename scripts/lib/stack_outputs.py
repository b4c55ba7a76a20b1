"""A stack's outputs, secrets in clear text: from Pulumi or, on request, from a rehearsal."""

import json
import subprocess
from collections.abc import Mapping
from typing import Annotated, Any

import typer

from scripts.lib.errors import BadInputError
from scripts.lib.progress import Display
from scripts.lib.pulumi_cli import PROJECT, ask
from scripts.lib.redaction import environment_secrets, redact

Rehearsal = Annotated[bool, typer.Option("--rehearsal", help="The stack is one of scripts/rehearse, not of Pulumi.")]


def stack_outputs(stack: str, *, rehearsal: bool) -> dict[str, object]:
    """Return the outputs of a stack that is up, without empty ones. Raises BadInputError if there are none."""
    if rehearsal:
        return parsed(_of_rehearsal(stack), f"--stack {stack} --rehearsal")
    with Display(results_on_stdout=True) as display, display.task(f"outputs of stack {stack}"):
        found = parsed(ask(stack, "stack", "output", "--json", "--show-secrets"), f"--stack {stack}")
    if not found:
        raise BadInputError(f"--stack {stack}: it has no outputs", f"bring it up: pulumi up --stack {stack}")
    return found


def _of_rehearsal(stack: str) -> str:
    # In a separate process: the laboratory is no library of these commands, and only root can read its state.
    command = [str(PROJECT / "scripts" / "rehearse"), "outputs", "--json", "--show-secrets", "--stack", stack]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        reported = redact(done.stderr.strip(), environment_secrets())
        cause, _, fix = reported.removeprefix("error: ").partition("\n  fix: ")
        raise BadInputError(
            f"--stack {stack} --rehearsal: {cause or f'scripts/rehearse failed ({done.returncode})'}",
            fix or f"bring it up: scripts/rehearse up --stack {stack}",
        )
    return done.stdout


def parsed(text: str, source: str) -> dict[str, object]:
    """Return the outputs in the output of `pulumi stack output --json`; `source` names it in errors."""
    fix = "use pulumi stack output --json --show-secrets"
    try:
        document = json.loads(text)
    except ValueError as error:
        raise BadInputError(f"{source}: the outputs are not JSON", fix) from error
    if not isinstance(document, dict):
        raise BadInputError(f"{source}: the outputs are not a JSON object", fix)
    # A stack without its own CA may have an empty output for it.
    return {name: value for name, value in document.items() if value not in (None, "", {})}


def internal(outputs: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the part of a stack's outputs that is for the project's own commands; empty if there is none."""
    found = outputs.get("_internal")
    return found if isinstance(found, dict) else {}


def refused_forms(outputs: Mapping[str, Any]) -> Mapping[str, str] | None:
    """Requests that the stack's model refuses, each with its consequence; None from an older stack."""
    found = internal(outputs).get("refuses")
    return found if isinstance(found, dict) else None


def first_client(outputs: Mapping[str, object]) -> str | None:
    """PEM of the first client certificate with its private key; None where clients need none."""
    clients = outputs.get("clientCertificates")
    if not isinstance(clients, dict) or not clients:
        return None
    first = next(iter(clients.values()))
    return f"{first['certificate']}{first['privateKey']}" if isinstance(first, dict) else None

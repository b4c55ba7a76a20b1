"""A stack's outputs, secrets in clear: from Pulumi, or else from a rehearsal."""

import json
import shutil
import subprocess
from collections.abc import Mapping
from pathlib import Path

from scripts.lab import RehearsalError, outputs_of

PULUMI_SECONDS = 300
PROJECT = Path(__file__).resolve().parents[2]


class BadInputError(Exception):
    """An option, file or stack that can't be used; the text names it and the fix."""


def stack_outputs(stack: str) -> dict[str, object]:
    """The outputs of a stack that Pulumi knows, or else of one that was rehearsed; none that is empty.

    Raises BadInputError where neither has any.
    """
    said = "no pulumi on PATH"
    if shutil.which("pulumi"):
        command = ["pulumi", "stack", "output", "--json", "--show-secrets", "--stack", stack, "--non-interactive"]
        try:
            run = subprocess.run(
                command, cwd=PROJECT, capture_output=True, text=True, timeout=PULUMI_SECONDS, check=False
            )
        except subprocess.TimeoutExpired as error:
            raise BadInputError(
                f"--stack {stack}: pulumi stack output took over {PULUMI_SECONDS} s: is its backend up"
            ) from error
        if run.returncode == 0:
            return parsed(run.stdout, f"--stack {stack}")
        said = " ".join(run.stderr.split()) or f"pulumi stack output failed ({run.returncode})"
    try:
        return _without_empty(outputs_of(stack))
    except RehearsalError as error:
        raise BadInputError(
            f"--stack {stack}: no outputs ({said}; rehearsal: {error}): run pulumi up or scripts/rehearse up first"
        ) from error


def is_rehearsed(stack: str) -> bool:
    """Whether the stack is one of a rehearsal: Pulumi is not there, or does not know it."""
    if not shutil.which("pulumi"):
        return True
    command = ["pulumi", "stack", "output", "--stack", stack, "--non-interactive"]
    run = subprocess.run(command, cwd=PROJECT, capture_output=True, timeout=PULUMI_SECONDS, check=False)
    return run.returncode != 0


def parsed(text: str, source: str) -> dict[str, object]:
    """The outputs in what `pulumi stack output --json` printed; `source` is what an error calls it."""
    try:
        document = json.loads(text)
    except ValueError as error:
        raise BadInputError(f"{source}: not JSON: use pulumi stack output --json --show-secrets") from error
    if not isinstance(document, dict):
        raise BadInputError(f"{source}: not a JSON object: use pulumi stack output --json --show-secrets")
    return _without_empty(document)


def first_client(outputs: Mapping[str, object]) -> str | None:
    """PEM of the first client certificate with its private key; None where clients need none."""
    clients = outputs.get("clientCertificates")
    if not isinstance(clients, dict) or not clients:
        return None
    first = next(iter(clients.values()))
    return f"{first['certificate']}{first['privateKey']}" if isinstance(first, dict) else None


def _without_empty(outputs: Mapping[str, object]) -> dict[str, object]:
    """A stack that needs no CA of its own may have an empty output for it."""
    return {name: value for name, value in outputs.items() if value not in (None, "", {})}

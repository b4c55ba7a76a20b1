"""Command that checks a Google Cloud stack before it costs money, with the user's credentials, a line per check."""

import json
import logging
from dataclasses import asdict
from typing import Annotated

import typer

from components.errors import UserError
from components.settings.gcp import GcpSettings
from components.settings.stack import Settings
from scripts.cli.preflight.report import Result, Verdict, format_result, summary
from scripts.cli.preflight.run import checks_of, run
from scripts.lib import stack_settings
from scripts.lib.errors import BadInputError, ExitCode
from scripts.lib.google import Google, find_identity
from scripts.lib.progress import Display

GOOGLE_BASE = ""
"""http://HOST:PORT to use instead of Google's APIs, for tests."""


def main(
    stack: Annotated[str, typer.Option(help="Stack with target gcp.")],
    sets: Annotated[list[str] | None, typer.Option("--set", help="key=value: a setting changed, for this run.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON document instead of lines.")] = False,
) -> None:
    """Check that `pulumi up` of a Google Cloud stack can succeed, and what it will cost. Changes nothing.

    A check that could not be made is reported with the reason, and does not count as failed.

    Credentials: $GOOGLE_OAUTH_ACCESS_TOKEN, else Application Default Credentials, else the login of gcloud. A gated
    or private model needs the hub's token in $HF_TOKEN.
    """
    settings, gcp = load(stack, sets or [])
    for library in ("google", "urllib3"):  # each check reports errors in its own line
        logging.getLogger(library).setLevel(logging.ERROR)
    with Display(results_on_stdout=True) as display, display.task("checks") as task:

        def show(result: Result) -> None:
            if not as_json:
                display.line(format_result(result))

        task.say("credentials")
        google, reason = _google()
        redact = google.redact if google else str
        results = run(checks_of(settings, gcp, google, reason), redact=redact, on_start=task.say, on_result=show)
    failed = any(result.verdict is Verdict.FAILED for result in results)
    if as_json:
        document = {"stack": stack, "project": gcp.project, "ok": not failed, "summary": summary(results)}
        typer.echo(json.dumps(document | {"checks": [asdict(result) for result in results]}, indent=2))
    else:
        typer.echo("\n".join(summary(results)))
    if failed:
        raise typer.Exit(ExitCode.FAILED)


def _google() -> tuple[Google | None, str]:
    """Return Google's APIs, or why they can't be used."""
    try:
        return Google(find_identity(), GOOGLE_BASE), ""
    except UserError as error:
        return None, f"{error.cause}: {error.fix}"


def load(stack: str, overrides: list[str]) -> tuple[Settings, GcpSettings]:
    """Return the settings of a stack as the program reads them; `overrides` are `key=value`.

    Raises BadInputError for a missing stack, another target, and wrong settings.
    """
    settings = stack_settings.load(stack, stack_settings.overrides(overrides))
    if settings.gcp is None:
        raise BadInputError(f"--stack {stack}: its target is not gcp", "check a stack that is in Google Cloud")
    return settings, settings.gcp

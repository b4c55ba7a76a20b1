"""Command that checks a Google Cloud stack before it costs money, with the user's credentials, a line per check."""

import json
import logging
from dataclasses import asdict
from typing import Annotated

import typer

from components.errors import UserError
from components.kubernetes.api import ClusterError
from components.settings.gcp import GoogleSettings
from components.settings.kubernetes import KubernetesSettings
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
    stack: Annotated[str, typer.Option(help="Stack with target gcp, gke or kubernetes.")],
    sets: Annotated[list[str] | None, typer.Option("--set", help="key=value: a setting changed, for this run.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON document instead of lines.")] = False,
) -> None:
    """Check that `pulumi up` can succeed on Google Cloud, and what it will cost, or in a cluster. Changes nothing.

    A check that could not be made is reported with the reason, and does not count as failed.

    Credentials: $GOOGLE_OAUTH_ACCESS_TOKEN, else Application Default Credentials, else the login of gcloud. A gated
    or private model needs the hub's token in $HF_TOKEN.
    """
    settings, target = load(stack, sets or [])
    if isinstance(target, KubernetesSettings):
        _look_at_cluster(stack, settings, target, as_json=as_json)
        return
    gcp = target
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


def _look_at_cluster(stack: str, settings: Settings, kubernetes: KubernetesSettings, *, as_json: bool) -> None:
    """Do what `up` does first. Raises typer.Exit if the cluster lacks something."""
    from components.kubernetes import endpoint, existing_cluster  # noqa: PLC0415 - they bring Kubernetes' libraries

    problem = ""
    with Display(results_on_stdout=True) as display, display.task("checks") as task:
        task.say(f"the cluster of {kubernetes.context}")
        props = {**kubernetes.as_output(), "needs": endpoint.needs_of(settings, kubernetes).as_text()}
        try:
            in_use = existing_cluster.is_in_use(props, f"elastic-vllm-{stack}-vllm")
            existing_cluster.require(props, in_use=in_use)
        except ClusterError as error:
            problem = str(error)
    if as_json:
        typer.echo(json.dumps({"stack": stack, "namespace": kubernetes.namespace, "ok": not problem, "cause": problem}))
    else:
        typer.echo(problem or f"the namespace {kubernetes.namespace} of {kubernetes.context} has what the stack needs")
    if problem:
        raise typer.Exit(ExitCode.FAILED)


def load(stack: str, overrides: list[str]) -> tuple[Settings, GoogleSettings | KubernetesSettings]:
    """Return the settings of a stack as the program reads them; `overrides` are `key=value`.

    Raises BadInputError for a missing stack, another target, and wrong settings.
    """
    settings = stack_settings.load(stack, stack_settings.overrides(overrides))
    target = settings.google or settings.kubernetes
    if target is None:
        raise BadInputError(f"--stack {stack}: its target is existing", "check a stack in Google Cloud or a cluster")
    return settings, target

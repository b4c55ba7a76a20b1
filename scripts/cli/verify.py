"""Command that proves an endpoint's promises: TLS, key, allow-list, chat, streams and tool calls, a line for each."""

import json
from dataclasses import asdict
from typing import Annotated

import typer

from scripts.lib.errors import ExitCode
from scripts.lib.progress import Display
from scripts.lib.stack_outputs import Rehearsal
from scripts.lib.verification import given
from scripts.lib.verification.endpoint import Endpoint, InvalidEndpointError
from scripts.lib.verification.run import CheckResult, Report, format_result, verify

__all__ = ["CheckResult", "Endpoint", "InvalidEndpointError", "Report", "format_result", "verify"]


def main(
    *,
    url: given.Url = None,
    model: given.ModelName = None,
    ca: given.Ca = None,
    key_file: given.KeyFile = None,
    client_pem: given.ClientPem = None,
    outputs: given.Outputs = None,
    stack: given.Stack = None,
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
    found = given.given(
        url=url, outputs=outputs, stack=stack, rehearsal=rehearsal, model=model, ca=ca, client_pem=client_pem
    )
    has_tools = found.get("nativeFunctionCalling") is not False
    endpoint = given.endpoint(given.with_key(found, key_file), supports_tools=has_tools and not no_tools)

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

"""Command that brings back an endpoint whose VM in Google Cloud is gone."""

import os
import re
import subprocess
from typing import Annotated

import typer

from components.errors import UserError
from scripts.lib.pulumi_cli import PROJECT, ask

VM = re.compile(r"urn:pulumi:\S*gcp:compute/instance:Instance::\S*")


def main(
    stack: Annotated[str, typer.Option(help="The stack whose VM is gone.")],
    up_options: Annotated[list[str] | None, typer.Argument(metavar="-- OPTIONS", help="Options of pulumi up.")] = None,
) -> None:
    """Bring back an endpoint whose VM in Google Cloud is gone: a preempted spot VM, or one deleted by hand.

    Refreshes only the VM, then runs `pulumi up`, which creates another with the same address, key, certificate and
    weights. If the VM still exists, only differences are changed. Uses your backend and passphrase.
    """
    typer.echo(f"looking for the VM of stack {stack}")
    os.chdir(PROJECT)
    if vm := VM.search(ask(stack, "stack", "--show-urns")):
        refresh = ["pulumi", "refresh", "--stack", stack, "--target", vm[0], "--yes", "--skip-preview"]
        if subprocess.run(refresh, check=False).returncode:
            raise UserError("the VM can't be refreshed (see above)", "correct the cause, and run this again")
    else:
        typer.echo("the state has no VM")
    os.execvp("pulumi", ["pulumi", "up", "--stack", stack, *(up_options or [])])  # noqa: S606

"""Brings an endpoint back whose VM in Google Cloud is gone."""

import os
import re
import shutil
import subprocess
from pathlib import Path
from typing import Annotated

import typer

PROJECT = Path(__file__).resolve().parents[2]
VM = re.compile(r"urn:pulumi:\S*gcp:compute/instance:Instance::\S*")


def main(
    stack: Annotated[str, typer.Option(help="The stack whose VM is gone.")],
    up_options: Annotated[list[str] | None, typer.Argument(metavar="-- OPTIONS", help="Options of pulumi up.")] = None,
) -> None:
    """Bring an endpoint back whose VM in Google Cloud is gone: a spot VM that was taken, or one deleted by hand.

    Refreshes the VM alone, then runs `pulumi up`, which makes another with the same address, key, certificate and
    weights. Where the VM is there, only what differs is changed. Uses your backend and passphrase.
    """
    if not shutil.which("pulumi"):
        typer.echo("error: no pulumi on PATH\n  fix: install the Pulumi CLI: docs/getting-started/server.md", err=True)
        raise typer.Exit(2)
    os.chdir(PROJECT)
    typer.echo(f"looking for the VM of stack {stack}")
    listed = subprocess.run(
        ["pulumi", "stack", "--show-urns", "--stack", stack, "--non-interactive"],
        stdout=subprocess.PIPE,
        text=True,
        check=False,
    )
    if listed.returncode:
        raise typer.Exit(2)
    if vm := VM.search(listed.stdout):
        refresh = ["pulumi", "refresh", "--stack", stack, "--target", vm[0], "--yes", "--skip-preview"]
        if code := subprocess.run(refresh, check=False).returncode:
            raise typer.Exit(code)
    else:
        typer.echo("the state knows of no VM")
    os.execvp("pulumi", ["pulumi", "up", "--stack", stack, *(up_options or [])])  # noqa: S606

"""The command line: `scripts/rehearse cluster up | run | status | down`."""

import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Annotated

import typer

from components.errors import UserError
from scripts.lab import machine
from scripts.lab.kubernetes import cluster, machines
from scripts.lab.kubernetes.layout import CONTEXT, KUBECONFIG, MACHINES, MOST_NODES, NODES, PROGRAMS, STATE
from scripts.lib.errors import BadInputError, report
from scripts.lib.progress import Display

app = typer.Typer(no_args_is_help=True, rich_markup_mode=None)


@app.callback()
def main() -> None:
    """A real Kubernetes on this machine, in namespaces of its own."""


@app.command()
def up(
    *,
    nodes: Annotated[int, typer.Option(help="Number of nodes.", min=1, max=MOST_NODES)] = 1,
    images: Annotated[
        list[str], typer.Option("--image", help="An image of this machine's Docker, for every node. Repeatable.")
    ] = [],  # noqa: B006 (typer copies it)
    enforce: Annotated[bool, typer.Option(help="Enforce NetworkPolicies, with kube-router.")] = True,
) -> None:
    """Build Kubernetes, which takes ten minutes or more the first time, and bring the cluster up, or up to date."""
    with _user_errors():
        machine.require_root()
        with Display() as display:
            cluster.up(nodes, images, display, enforce=enforce)
        typer.echo(display.timeline())
        typer.echo(f"kubectl      {PROGRAMS}/kubectl --kubeconfig {KUBECONFIG}")
        typer.echo(f"kubeconfig   {KUBECONFIG}, context {CONTEXT}")
        typer.echo(f"nodes        {', '.join(f'{node.name} {node.address}' for node in NODES[:nodes])}")


@app.command(context_settings={"ignore_unknown_options": True})
def run(
    *,
    where: Annotated[str, typer.Argument(metavar="MACHINE", help="control, node-1 or node-2.")],
    command: Annotated[list[str], typer.Argument(help="The command and its arguments.")],
) -> None:
    """Run a command on one of the cluster's machines."""
    with _user_errors():
        machine.require_root()
        found = [each for each in MACHINES if each.name == where]
        if not found:
            raise BadInputError(f"no machine {where}", f"take one of {', '.join(each.name for each in MACHINES)}")
        done = subprocess.run([*machines.enter(found[0]), *command], check=False)
    raise typer.Exit(done.returncode)


@app.command()
def status() -> None:
    """Show what runs; the exit status is 1 unless everything does."""
    with _user_errors():
        machine.require_root()
        found = cluster.status()
        for name, services in found.items():
            typer.echo(
                f"{name:<10} " + ", ".join(f"{each} {'runs' if runs else 'is off'}" for each, runs in services.items())
            )
        if not found:
            typer.echo("the cluster is off")
            raise typer.Exit(1)
        typer.echo(cluster.kubectl("get", "nodes,pods", "--all-namespaces", "--output=wide").rstrip())


@app.command()
def down() -> None:
    """End the cluster and remove everything of it but the built programs."""
    with _user_errors():
        machine.require_root()
        with Display() as display:
            there = cluster.down(display)
        typer.echo(f"removed {STATE}" if there else "there is no cluster")


@contextmanager
def _user_errors() -> Iterator[None]:
    """Show the errors that a user can correct without a traceback."""
    try:
        yield
    except UserError as error:
        raise typer.Exit(report(error)) from error

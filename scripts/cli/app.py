"""The operator's commands: `scripts/elastic-vllm COMMAND`.

The module of a command is imported only when that command runs, so that --help answers at once.
"""

import importlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import typer
from typer.core import TyperGroup

from components.errors import UserError
from scripts.lib.errors import MEANINGS, ExitCode, report

PROGRAM = "scripts/elastic-vllm"


@dataclass(frozen=True)
class Command:
    """A command: the function that runs it, and its line in the list of commands."""

    module: str
    summary: str
    function: str = "main"
    runs_another: bool = False
    """True if everything behind the first argument belongs to a program that the command runs."""
    parses_itself: bool = False
    """True if the function parses its arguments: it needs Python alone, and the launcher runs it without this app."""

    def load(self, name: str) -> Any:
        """Import the command."""
        function = getattr(importlib.import_module(self.module), self.function)
        settings: dict[str, Any] = {"allow_interspersed_args": not self.runs_another}
        if self.parses_itself:
            settings |= {"ignore_unknown_options": True, "allow_extra_args": True, "help_option_names": []}
        app = typer.Typer(add_completion=False, rich_markup_mode=None)
        app.command(name, context_settings=settings)(_with_arguments(function) if self.parses_itself else function)
        return typer.main.get_command(app)


def _with_arguments(function: Callable[[list[str]], None]) -> Callable[[typer.Context], None]:
    def run(context: typer.Context) -> None:
        function(context.args)

    return run


class Commands(TyperGroup):
    """Commands that are listed without being imported, and one form for the errors of all of them."""

    table: Mapping[str, Command]

    def list_commands(self, ctx: Any) -> list[str]:
        """The names, in the order of the table."""
        return [*self.table, *super().list_commands(ctx)]

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        """Import one command."""
        if cmd_name in self.table:
            return self.table[cmd_name].load(cmd_name)
        return super().get_command(ctx, cmd_name)

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        """List the commands in --help."""
        groups = [(name, group.get_short_help_str()) for name, group in self.commands.items()]
        with formatter.section("Commands"):
            formatter.write_dl([(name, command.summary) for name, command in self.table.items()] + groups)

    def invoke(self, ctx: Any) -> Any:
        """Run a command; an error that the user can put right ends it with cause, fix and exit status."""
        try:
            return super().invoke(ctx)
        except UserError as error:
            raise typer.Exit(report(error)) from None
        except KeyboardInterrupt:
            raise typer.Exit(ExitCode.INTERRUPTED) from None


class _Bundle(Commands):
    table: Mapping[str, Command] = {
        "probe": Command("scripts.cli.bundle.command", "Describe the server that the bundle is for", "probe_server"),
        "build": Command("scripts.cli.bundle.command", "Collect everything on a connected machine", "build"),
        "verify": Command(
            "scripts.cli.bundle.verify", "Check that a bundle is complete and signed", parses_itself=True
        ),
        "install": Command("scripts.cli.bundle.install", "Install what this project needs", parses_itself=True),
        "push": Command("scripts.cli.bundle.push", "Send the images to a cluster's registry", parses_itself=True),
    }


class _Operator(Commands):
    table: Mapping[str, Command] = {
        "pin": Command("scripts.cli.pin", "Pin a stack's images, model and VM image"),
        "preflight": Command("scripts.cli.preflight.command", "Check a Google Cloud stack before any money is spent"),
        "tunnel": Command("scripts.cli.tunnel", "Keep the IAP tunnel to a private VM open", runs_another=True),
        "verify": Command("scripts.cli.verify", "Prove that an endpoint keeps its promises"),
        "load": Command("scripts.cli.load.command", "Find out how much of Elastic's work an endpoint carries"),
        "handoff": Command("scripts.cli.handoff.command", "Write what the Elastic admin needs"),
        "rotate": Command("scripts.cli.rotate", "Replace a key without a failed request"),
        "diagnose": Command("scripts.cli.diagnose.command", "Find out why an endpoint does not work"),
        "gke-credentials": Command("scripts.cli.gke_credentials", "Give a Kubernetes client a token (target gke)"),
        "bring-back": Command("scripts.cli.bring_back", "Re-create a lost VM", runs_another=True),
    }


def _exit_codes() -> str:
    # \b keeps the lines of a paragraph as they are.
    return "\b\nExit status:\n" + "\n".join(f"  {code.value:<4} {meaning}" for code, meaning in MEANINGS.items())


# Locals in a traceback would show keys; panels and markup would break messages of one line.
app = typer.Typer(
    cls=_Operator,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    no_args_is_help=True,
    help="Run and look after elastic-vllm endpoints.",
    epilog=_exit_codes(),
)
app.add_typer(
    typer.Typer(
        cls=_Bundle,
        rich_markup_mode=None,
        no_args_is_help=True,
        help="Carry a stack to a site without network.",
    ),
    name="bundle",
)


@app.callback()
def _main() -> None:
    pass


if __name__ == "__main__":
    app(prog_name=PROGRAM)

"""Choice of the engine for a rehearsed stack: the real Pulumi if it is complete, otherwise the embedded one."""

from enum import StrEnum

from scripts.lab import pulumi_engine
from scripts.lab.emulator.state import State
from scripts.lab.pulumi_engine import IncompleteError, Installation
from scripts.lib.errors import BadInputError


class Engine(StrEnum):
    """Name of an engine."""

    PULUMI = "pulumi"
    EMBEDDED = "embedded"


def engine_of(state: State) -> Engine | None:
    """Return the engine that has the stack's resources, or None if there are none."""
    if state.engine:
        return Engine(state.engine)
    return Engine.EMBEDDED if state.resources else None


def choose(stack: str, state: State, asked: Engine | None, target: str) -> tuple[Installation | None, str]:
    """Return the Pulumi to use, or None for the embedded engine, and a line that reports the choice.

    `target` is the stack's, or empty for a stack that is up: its plugins are there.

    Raises BadInputError if another engine has the stack, or if the real Pulumi is requested and incomplete.
    """
    owner = engine_of(state)
    if owner and asked and asked is not owner:
        raise BadInputError(
            f"--engine {asked}: stack {stack} was brought up by the engine {owner}, and one stack has one engine",
            f"take it down first (scripts/rehearse down --stack {stack}), or leave --engine out",
        )
    wanted = asked or owner
    if wanted is Engine.EMBEDDED:
        return None, f"engine: embedded, {'as asked for' if asked else f'which has stack {stack}'}"
    try:
        found = pulumi_engine.find(target)
    except IncompleteError as error:
        if wanted:
            raise BadInputError(
                f"{'--engine pulumi' if asked else f'stack {stack} was brought up by Pulumi'}: missing is {error}",
                "install what is missing (docs/getting-started/server.md, requirements)"
                + (", or use --engine embedded" if owner is not Engine.PULUMI else ""),
            ) from error
        return None, f"engine: embedded, as Pulumi can't be used here: missing is {error}"
    return found, f"engine: Pulumi {found.version} ({found.program})"

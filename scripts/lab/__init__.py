"""The rehearsal: the unmodified Pulumi program run in process, each resource doing the real thing."""

from typing import Any


class RehearsalError(Exception):
    """Something the user can put right; the message names the cause and the fix and is shown as it is."""


def outputs_of(stack: str) -> dict[str, Any]:
    """All outputs of a stack that is up, secrets in clear.

    Raises RehearsalError if the stack isn't up.
    """
    from scripts.lab.emulator import engine  # noqa: PLC0415 (so that importing this package stays cheap)

    return {name: output["value"] for name, output in engine.outputs(stack).items()}

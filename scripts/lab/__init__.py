"""The laboratory: the unmodified Pulumi program on this machine, each resource doing the real thing."""


class RehearsalError(Exception):
    """Error that the user can correct; the message names the cause and the fix and is shown unchanged."""

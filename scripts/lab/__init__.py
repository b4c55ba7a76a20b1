"""The laboratory: the unmodified Pulumi program on this machine, each resource doing the real thing."""


class RehearsalError(Exception):
    """Something the user can put right; the message names the cause and the fix and is shown as it is."""

"""Errors of a rehearsal on an unsuitable machine."""


class SetupError(Exception):
    """The machine lacks something; the message names the cause and the fix and is shown unchanged."""

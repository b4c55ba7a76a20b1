"""What the rehearsal raises when this machine cannot do what is asked of it."""


class SetupError(Exception):
    """The machine lacks something; the message names the cause and the fix and is shown as it is."""

"""Error that a user can correct. Python's own library only: a bundle is checked before anything is installed."""


class UserError(Exception):
    """A failure with its cause and its fix, both shown to the user."""

    def __init__(self, cause: str, fix: str) -> None:
        super().__init__(f"{cause}; fix: {fix}")
        self.cause = cause
        self.fix = fix

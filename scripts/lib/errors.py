"""Report of errors by commands, and their exit statuses. Python's own library only."""

import sys
from enum import IntEnum

from components.errors import UserError


class ExitCode(IntEnum):
    """Exit status of a command; MEANINGS explains each."""

    DONE = 0
    FAILED = 1
    BAD_INPUT = 2
    IN_USE = 3
    NETWORK = 10
    TLS = 11
    KEY = 12
    REQUEST = 13
    CONTAINERS = 14
    SERVER = 15
    KIBANA = 16
    LOADING = 17
    INTERRUPTED = 130


MEANINGS = {
    ExitCode.DONE: "done, and nothing is wrong",
    ExitCode.FAILED: "a check failed, or a step of the work did",
    ExitCode.BAD_INPUT: "an option, file, setting or stack can't be used; nothing was changed",
    ExitCode.IN_USE: "rotate: the old version of the key is still in use",
    ExitCode.NETWORK: "diagnose: the network",
    ExitCode.TLS: "diagnose: TLS or the server's certificate",
    ExitCode.KEY: "diagnose: the key or the client certificate",
    ExitCode.REQUEST: "diagnose: the URL, the model, or a stream that is cut or buffered",
    ExitCode.CONTAINERS: "diagnose: a container",
    ExitCode.SERVER: "diagnose: the server",
    ExitCode.KIBANA: "diagnose: Kibana or its connector",
    ExitCode.LOADING: "diagnose: vLLM is still loading the model",
    ExitCode.INTERRUPTED: "interrupted",
}


class BadInputError(UserError):
    """An option, file, setting or stack that can't be used."""


def report(error: UserError) -> ExitCode:
    """Print an error to standard error; the exit status that stands for it."""
    print(f"error: {error.cause}\n  fix: {error.fix}", file=sys.stderr, flush=True)
    return ExitCode.BAD_INPUT if isinstance(error, BadInputError) else ExitCode.FAILED

"""Shared helpers to run preflight on the stack of conftest.py."""

import dataclasses
from functools import cache
from typing import Any

from typer.testing import Result

from components.settings.gcp import GcpSettings
from components.settings.stack import Settings
from scripts.cli.preflight import command, run
from scripts.cli.preflight.report import Outcome
from scripts.lib.google import Google, find_identity
from tests.support.commands import invoke
from tests.support.google_stand_in import HUB_TOKEN, TOKEN, Cloud


@cache
def loaded(*overrides: str) -> tuple[Settings, GcpSettings]:
    settings, target = command.load("cloud", list(overrides))
    assert isinstance(target, GcpSettings)
    return settings, target


def report(cloud: Cloud, *only: str, **changes: Any) -> dict[str, Outcome]:
    """Map each check, or only those in `only`, to its outcome, with some Google Cloud settings changed."""
    settings, gcp = loaded()
    asked = Google(find_identity(), cloud.base, backoff=0)
    checks = run.checks_of(settings, dataclasses.replace(gcp, **changes), asked)
    chosen = [check for check in checks if not only or check.name in only]
    return {result.name: Outcome(result.verdict, result.detail) for result in run.run(chosen, redact=asked.redact)}


def invoked(*arguments: str, stack: str = "cloud") -> Result:
    result = invoke("preflight", "--stack", stack, *arguments)
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    assert TOKEN not in result.output
    assert HUB_TOKEN not in result.output
    return result

"""The operator's commands, run in this process: `scripts/elastic-vllm` without its launcher."""

from typing import Any

from typer.testing import CliRunner, Result

from scripts.cli.app import app


def invoke(*arguments: str, **options: Any) -> Result:
    """Run a command; `options` are those of CliRunner.invoke, such as `input` and `env`."""
    return CliRunner().invoke(app, [*arguments], **options)

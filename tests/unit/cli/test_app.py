"""The entry point of the operator's commands: its list, its errors and its exit statuses."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from scripts.cli.app import _Bundle, _Operator
from scripts.lib.errors import MEANINGS, ExitCode
from tests.support.commands import invoke
from tests.support.program import ROOT

COMMANDS = [(name,) for name in _Operator.table] + [("bundle", name) for name in _Bundle.table]
HEAVY = ("openai", "pulumi", "httpx2", "huggingface_hub", "google", "requests", "cryptography")


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_every_command_answers_help(command: tuple[str, ...]) -> None:
    done = invoke(*command, "--help")
    assert done.exit_code == 0, done.output
    assert "usage: " in done.output.lower()
    assert " ".join(command) in done.output


def test_the_list_of_commands_shows_each_with_its_summary_and_imports_none() -> None:
    heavy = f"[name for name in {HEAVY} if name in sys.modules]"
    code = f"import sys; from scripts.cli.app import app\ntry: app(['--help'])\nfinally: print({heavy})"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"
    width = max(map(len, _Operator.table)) + 2
    for name, command in _Operator.table.items():
        assert f"{name:<{width}}{command.summary}" in done.stdout


def test_commands_are_modules_of_the_operators_commands() -> None:
    """No linter checks imports by name."""
    commands = [*_Operator.table.values(), *_Bundle.table.values()]
    assert not [command.module for command in commands if not command.module.startswith("scripts.cli.")]


def test_help_lists_every_exit_status_with_its_meaning() -> None:
    shown = invoke("--help").output
    assert set(MEANINGS) == set(ExitCode)
    for code, meaning in MEANINGS.items():
        assert f"    {code.value:<4} {meaning}\n" in shown


def exits(path: Path) -> Iterator[ast.expr]:
    """Yield the arguments of calls that end a program."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Call) and ast.unparse(node.func) in {"typer.Exit", "sys.exit", "SystemExit", "exit"}:
            yield from node.args


@pytest.mark.parametrize("area", ["cli", "lib"])
def test_no_command_ends_with_a_status_that_the_table_lacks(area: str) -> None:
    literal = {
        f"{path.relative_to(ROOT)}: {ast.unparse(status)}"
        for path in (ROOT / "scripts" / area).rglob("*.py")
        for status in exits(path)
        if isinstance(status, ast.Constant)
    }
    assert not literal


def test_an_unknown_command_names_the_like() -> None:
    done = invoke("verfy")
    assert done.exit_code == ExitCode.BAD_INPUT
    assert "No such command 'verfy'" in done.output

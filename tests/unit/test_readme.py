"""No command in README is untested without README saying so."""

import pytest

from tests.support import readme


@pytest.mark.parametrize("command", sorted(readme.commands()))
def test_a_command_is_run_by_a_test_or_needs_what_tests_do_not_have(command: str) -> None:
    run = {*readme.ON_LOCAL, *readme.ON_PROD, *readme.BY_CI}
    needs = [beginning for beginning in readme.NEEDS if command.startswith(beginning) or command == beginning.strip()]
    on_prod = command.replace("--stack server", "--stack prod")
    named_only = any(other.startswith(f"{command} ") for other in run)
    assert (on_prod in run) or (command in run) or needs or named_only


@pytest.mark.parametrize("command", [*readme.ON_LOCAL, *readme.ON_PROD, *readme.BY_CI])
def test_what_tests_run_stands_in_readme(command: str) -> None:
    assert command in readme.commands()

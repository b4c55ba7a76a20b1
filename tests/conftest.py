"""Fixtures of all tests: golden files, which `pytest --update-golden` rewrites."""

import difflib
import gc
import signal
from collections.abc import Callable
from pathlib import Path

import pytest

from components.settings import limits as limit_settings
from components.settings.problems import Problems
from components.settings.stack import defaults

GOLDEN = Path(__file__).with_name("golden")
LIMITS = limit_settings.limits(Problems(defaults(), defaults()))
"""Limits with the defaults of Pulumi.yaml."""

# A shell starts background processes with SIGINT ignored; their children inherit that, and a shell among them could not
# trap it.
signal.signal(signal.SIGINT, signal.default_int_handler)

# The collected tests, thousands of objects, stay until the end: the garbage collector need not search them.
gc.disable()


def pytest_collection_finish() -> None:
    gc.freeze()
    gc.enable()


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--update-golden", action="store_true", help="rewrite tests/golden; review the result with git diff"
    )


@pytest.fixture
def update_golden(request: pytest.FixtureRequest) -> bool:
    return bool(request.config.getoption("--update-golden"))


@pytest.fixture
def golden(update_golden: bool) -> Callable[[str, str], None]:
    """Function that compares a text with the golden file of that name and shows the difference."""

    def compare(name: str, text: str) -> None:
        path = GOLDEN / name
        if update_golden:
            path.write_text(text)
        kept = path.read_text() if path.exists() else ""
        difference = difflib.unified_diff(
            kept.splitlines(keepends=True), text.splitlines(keepends=True), f"tests/golden/{name}", "now"
        )
        if kept != text:
            pytest.fail(f"{''.join(difference)}\nif that is right: pytest --update-golden", pytrace=False)

    return compare

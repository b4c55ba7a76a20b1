"""What all tests share: golden files, which `pytest --update-golden` writes anew."""

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
"""As Pulumi.yaml sets them by default."""

# A shell starts what runs in its background with SIGINT ignored, and what that starts inherits it: a shell among them
# can't trap it then.
signal.signal(signal.SIGINT, signal.default_int_handler)

# What collecting makes stays until the end: thousands of tests, which nobody need look through for garbage.
gc.disable()


def pytest_collection_finish() -> None:
    gc.freeze()
    gc.enable()


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--update-golden", action="store_true", help="write tests/golden anew; then look at git diff")


@pytest.fixture
def update_golden(request: pytest.FixtureRequest) -> bool:
    return bool(request.config.getoption("--update-golden"))


@pytest.fixture
def golden(update_golden: bool) -> Callable[[str, str], None]:
    """Compares a text with the golden file of that name, and shows the difference."""

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

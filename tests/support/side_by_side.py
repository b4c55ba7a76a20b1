"""`make test`'s three processes (pytest-xdist), for two cores: much of what integration tests do is to wait.

One has the stacks that share this machine, one the site without network; the third begins with what needs nothing of
what set-up makes, and what has a stack or a machine to itself goes to who is through first. They share Docker and what
set-up makes. `-p tests.support.side_by_side --numprocesses 3`.
"""

import os

import pytest
from xdist.scheduler import LoadScopeScheduling

HERE = "here"
FIRST = ("integration/test_secrets.", "integration/test_soak.")
"""Of those: the first traces Docker, which slows down whoever has containers meanwhile, and the others have none yet.
The second is one long test, and the last two of a part are not waited for before the next is handed out."""
SITE = "integration/airgap/"
NO_IMAGES = tuple(f"integration/test_{name}." for name in ("gpu_install", "cloud_init", "tunnel"))
"""They and the unit tests need nothing of what set-up makes, which takes minutes where it is not there yet."""
UNIT = "unit/"
APART = tuple(
    f"integration/test_{name}."
    for name in ("diagnose", "rotate", "elastic", "bundle", "google_cloud", "certificates", "hub", "own_hosts")
)
"""What has a stack or a machine to itself, the longest first. None may leave anything on this machine that has not its
stack's name, be it only for a while: packages, groups or containers, which others look for after a stack is gone."""
ORDER = (HERE, SITE, *NO_IMAGES, UNIT, *APART)
POLITE = 5
"""Niceness of all but the stacks that share this machine, above theirs: tests of those look at the clock."""
NICENESS = os.getpriority(os.PRIO_PROCESS, 0)


def _path(nodeid: str) -> str:
    return nodeid.removeprefix("tests/")


def _part(nodeid: str) -> str:
    return next((part for part in ORDER if _path(nodeid).startswith(part)), HERE)


class Scheduling(LoadScopeScheduling):  # type: ignore[misc]
    """Hands out parts in their order; unit tests file by file."""

    def _split_scope(self, nodeid: str) -> str:
        part = _part(nodeid)
        return nodeid.partition("::")[0] if part == UNIT else part


def pytest_configure(config: pytest.Config) -> None:
    """Parts are handed out as they are sorted below, not the one with the most tests first."""
    config.option.loadscopereorder = False


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """In that order."""
    items.sort(key=lambda item: (ORDER.index(_part(item.nodeid)), not _path(item.nodeid).startswith(FIRST)))


def pytest_xdist_make_scheduler(config: pytest.Config, log: object) -> Scheduling:
    """What pytest-xdist asks for where it is given a number of processes."""
    return Scheduling(config, log)


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    """Whatever the test starts inherits it."""
    os.setpriority(os.PRIO_PROCESS, 0, NICENESS + (0 if _part(item.nodeid) == HERE else POLITE))

"""Schedule of `make test`'s three processes (pytest-xdist) on two cores: integration tests mostly wait.

One process runs the tests of stacks that share this machine, one those of the site without network; the third begins
with tests that need no set-up. Tests with a stack or a machine to themselves go to the first process that is free. All
share Docker and the set-up. Use: `-p tests.support.side_by_side --numprocesses 3`.
"""

import os

import pytest
from xdist.scheduler import LoadScopeScheduling

HERE = "here"
FIRST = ("integration/test_secrets.", "integration/test_soak.")
"""First files of the shared part. The first traces Docker, which would slow down other containers, but none exist yet.
The second is one long test: xdist hands out the next part before the last two tests of a part have ended."""
SITE = "integration/airgap/"
NO_IMAGES = tuple(f"integration/test_{name}." for name in ("gpu_install", "cloud_init", "tunnel"))
"""Like the unit tests, these need no set-up, which takes minutes on a new machine."""
UNIT = "unit/"
APART = tuple(
    f"integration/test_{name}."
    for name in ("diagnose", "rotate", "elastic", "bundle", "google_cloud", "certificates", "hub", "netns_hosts")
)
"""Tests with a stack or a machine to themselves, the longest first. None may leave anything on this machine, even for a
while, that does not have its stack's name: other tests search packages, groups and containers after a stack is gone."""
ORDER = (HERE, SITE, *NO_IMAGES, UNIT, *APART)
POLITE = 5
"""Added niceness of all other parts than the shared stacks, whose tests measure time."""
NICENESS = os.getpriority(os.PRIO_PROCESS, 0)


def _path(nodeid: str) -> str:
    return nodeid.removeprefix("tests/")


def _part(nodeid: str) -> str:
    return next((part for part in ORDER if _path(nodeid).startswith(part)), HERE)


class Scheduling(LoadScopeScheduling):  # type: ignore[misc]
    """Scheduler that hands out parts in their order; unit tests file by file."""

    def _split_scope(self, nodeid: str) -> str:
        part = _part(nodeid)
        return nodeid.partition("::")[0] if part == UNIT else part


def pytest_configure(config: pytest.Config) -> None:
    """Hand out parts as they are sorted below, not the one with the most tests first."""
    config.option.loadscopereorder = False


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Sort the tests by their part."""
    items.sort(key=lambda item: (ORDER.index(_part(item.nodeid)), not _path(item.nodeid).startswith(FIRST)))


def pytest_xdist_make_scheduler(config: pytest.Config, log: object) -> Scheduling:
    """Return the scheduler for pytest-xdist."""
    return Scheduling(config, log)


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    """Set the niceness, which all processes of the test inherit."""
    os.setpriority(os.PRIO_PROCESS, 0, NICENESS + (0 if _part(item.nodeid) == HERE else POLITE))

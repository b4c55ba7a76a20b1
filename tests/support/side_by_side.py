"""Schedule of `make test`'s three processes (pytest-xdist) on two cores: integration tests mostly wait.

One process runs the tests of stacks that share this machine, one those of the site without network; the third begins
with tests that need no set-up. Tests with a stack or a machine to themselves go to the first process that is free. All
share Docker and the set-up. A test marked `alone`, which measures time, runs while the others pause between two tests.
Use: `-p tests.support.side_by_side --numprocesses 3`.
"""

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

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
    for name in (
        "diagnose",
        "rotate",
        "elastic",
        "bundle",
        "bundle_push",
        "google_cloud",
        "certificates",
        "hub",
        "netns_hosts",
    )
)
"""Tests with a stack or a machine to themselves, the longest first. None may leave anything on this machine, even for a
while, that does not have its stack's name: other tests search packages, groups and containers after a stack is gone."""
ORDER = (HERE, SITE, *NO_IMAGES, UNIT, *APART)
POLITE = 5
"""Added niceness of all other parts than the shared stacks, whose tests measure time."""
NICENESS = os.getpriority(os.PRIO_PROCESS, 0)
TURN = Path(__file__).with_name("__init__.py")
ROOM = Path(__file__)
"""Locked: the room by each test, shared, and by one that is alone for itself; the turn by whoever waits for the room,
so that a test that wants to be alone waits for the running tests and not for those that come after it."""


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


@contextmanager
def _in_the_room(how: int) -> Iterator[None]:
    with TURN.open() as turn, ROOM.open() as room:
        fcntl.flock(turn, fcntl.LOCK_EX)
        fcntl.flock(room, how)
        if how == fcntl.LOCK_SH:
            fcntl.flock(turn, fcntl.LOCK_UN)
        yield


def _is_alone(item: pytest.Item) -> bool:
    return item.get_closest_marker("alone") is not None


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Iterator[None]:
    """Run a test, with the set-up of its fixtures, beside other tests; one to be alone has only its set-up there."""
    if _is_alone(item):
        return (yield)
    with _in_the_room(fcntl.LOCK_SH):
        return (yield)


@pytest.hookimpl(wrapper=True)
def pytest_pyfunc_call(pyfuncitem: pytest.Function) -> Iterator[None]:
    """Run a test that is to be alone once no other runs."""
    if not _is_alone(pyfuncitem):
        return (yield)
    with _in_the_room(fcntl.LOCK_EX):
        return (yield)

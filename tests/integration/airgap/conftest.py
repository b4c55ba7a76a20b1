"""Fixtures for tests of a site without network: its server, bundles that were built outside, and the stack up.

The server is bare at first, and everything on it comes from a bundle. A small image stands for vLLM to keep the tests
quick; test_trap.py has the real one.
"""

from collections.abc import Iterator
from contextlib import ExitStack

import pytest

from tests.support import airgap_site, debian_roots, netns_hosts, vllm_stand_in
from tests.support.airgap_site import BALLAST, FIRST, LARGE_IMAGE, SECOND, Made, Site, copy_of, installed_from
from tests.support.netns_hosts import Hosts


@pytest.fixture(scope="package")
def hosts() -> Iterator[Hosts]:
    with netns_hosts.running() as both:
        yield both


@pytest.fixture(scope="package")
def made(machine: None, hosts: Hosts) -> Iterator[Made]:
    with ExitStack() as closing:
        directory = hosts.directory / "outside"
        directory.mkdir()
        factory = airgap_site.factory(directory, hosts)
        root = debian_roots.root()
        small = closing.enter_context(vllm_stand_in.small_image(root))
        large = closing.enter_context(vllm_stand_in.small_image(root, name=LARGE_IMAGE, ballast_bytes=BALLAST))
        first = factory.build("first", small, FIRST)
        for name in ("second", "large"):  # only the differences are collected
            copy_of(first, directory / name)
        yield Made(
            factory,
            small,
            first,
            factory.build("second", small, SECOND),
            factory.build("large", large, SECOND),
        )


@pytest.fixture(scope="package")
def first_up(made: Made, hosts: Hosts) -> tuple[Site, dict[str, str]]:
    site = installed_from(made.first, made.factory, hosts)
    return site, site.up()


@pytest.fixture(scope="package")
def site(first_up: tuple[Site, dict[str, str]]) -> Site:
    """The site with the stack up from the first bundle."""
    return first_up[0]

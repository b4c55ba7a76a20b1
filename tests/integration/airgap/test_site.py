"""A site without network: from a bare server to a verified endpoint and then another model, from bundles alone."""

import re
import shutil

import pytest

from components.elastic.corpus import all_forms
from scripts.lib.verification import run as verification
from tests.support import airgap_site, netns_hosts
from tests.support.airgap_site import CHATTER, FIRST, SECOND, Made, Site, copy_of

REPLACED = {"bundle-check", "vllm-container", "vllm-ready"}
"""Resources that another model replaces: the check of the other bundle, vLLM's container and the wait for it."""
REFUSED = {form.name for form in all_forms() if form.refused}
CHECKS = [
    ["limit" if check.name in REFUSED else "ok", check.name]
    for check in verification.CHECKS
    if not check.shows_certificate
]


def replaced(outcomes: dict[str, str]) -> set[str]:
    return {name for name, outcome in outcomes.items() if outcome == "replaced"}


def test_it_comes_up_and_keeps_its_promises_without_any_route(first_up: tuple[Site, dict[str, str]]) -> None:
    site, made = first_up
    for machine in (site.hosts.control, site.hosts.server):
        assert "default" not in machine.run("ip", "route", "show", "table", "all")
    assert set(made.values()) == {"created"}
    report = site.verify()
    assert re.search(r"^all \d+ checks passed", report, re.M)
    assert [line.split()[:2] for line in report.splitlines() if line.startswith(("ok ", "limit "))] == CHECKS
    assert FIRST in site.served()


def test_a_second_up_changes_nothing_and_sends_nothing(site: Site) -> None:
    site.up()  # another test may have left something
    before, containers = site.sent_bytes(), site.containers()
    assert set(site.up().values()) == {"unchanged"}
    assert site.containers() == containers
    assert site.sent_bytes() - before < CHATTER


@pytest.mark.slow
def test_another_model_is_one_setting_and_so_is_the_way_back(site: Site, made: Made) -> None:
    """Only the differences between the bundles are sent, and only vLLM's container is replaced."""
    site.up()  # another test may have left something
    before, containers = site.sent_bytes(), site.containers()
    weights = sum(path.stat().st_size for path in (made.second / "weights").rglob("*"))
    site.set(bundle=str(made.second))
    changed = site.up()
    assert replaced(changed) == REPLACED
    assert site.sent_bytes() - before < weights + CHATTER
    assert SECOND in site.served()
    assert site.containers()["nginx"] == containers["nginx"]
    assert site.containers()["vllm"] != containers["vllm"]
    before = site.sent_bytes()
    site.set(bundle=str(made.first))
    site.up()
    assert site.sent_bytes() - before < CHATTER
    assert FIRST in site.served()
    assert site.containers()["nginx"] == containers["nginx"]


@pytest.mark.slow
def test_a_disk_that_is_plugged_in_at_the_server_is_taken_from_there(site: Site, made: Made) -> None:
    """The control machine has only the bundle's lists."""
    airgap_site.back_to_first(site, made)
    copy_of(made.large, site.hosts.files("/var/lib/disk"))
    lists = made.factory.directory / "lists"
    lists.mkdir()
    for name in ("manifest.json", "SHA256SUMS", "SHA256SUMS.sig"):
        shutil.copy(made.large / name, lists)
    before = site.sent_bytes()
    site.set(bundle=str(lists), bundleOnHost="/var/lib/disk")
    site.up()
    site.set(bundle=str(made.first), bundleOnHost=None)
    assert site.sent_bytes() - before < CHATTER
    assert SECOND in site.served()
    assert airgap_site.checksums(made.large) <= airgap_site.checksums_on(site)


def test_podman_does_what_docker_does(site: Site, made: Made) -> None:
    """On a bare server: the same report, a second `up` without changes, and another model replaces only vLLM."""
    bundles = []
    for name, model in (("first", FIRST), ("second", SECOND)):
        copy_of(made.factory.directory / name, made.factory.directory / f"podman-{name}")
        bundles.append(made.factory.build(f"podman-{name}", made.small, model, runtime="podman"))
    with netns_hosts.running() as hosts:
        other = Site(hosts, site.project, {**site.settings, **hosts.settings})
        other.set(bundle=str(bundles[0]), bundleOnHost=None, containerRuntime="podman")
        assert set(other.up().values()) == {"created"}
        assert [
            line.split()[:2] for line in other.verify().splitlines() if line.startswith(("ok ", "limit "))
        ] == CHECKS
        containers = other.containers()
        assert set(other.up().values()) == {"unchanged"}
        assert other.containers() == containers
        other.set(bundle=str(bundles[1]))
        changed = other.up()
        # With Podman a command starts vLLM's container, and an update of the command creates another container.
        assert replaced(changed) | {"vllm-container"} == REPLACED
        assert changed["vllm-container"] == "updated"
        assert other.containers()["vllm"] != containers["vllm"]
        assert other.containers()["nginx"] == containers["nginx"]
        assert SECOND in other.served()
    site.set()

"""Docker as people configure it, with the real provider: two further updates with a refresh find nothing to change."""

import pytest

from scripts.lab.pulumi_engine import Installation
from tests.integration.engine.conftest import running, up
from tests.integration.servers.test_docker import DEFAULTS, NEWER_DEFAULTS

pytestmark = pytest.mark.slow

ELSEWHERE: dict[str, object] = {"data-root": "/var/lib/elsewhere"}
REMAPPED: dict[str, object] = {"userns-remap": "default"}
NO_CONTAINERD: dict[str, object] = {"features": {"containerd-snapshotter": False}}
CONTAINERD: dict[str, object] = {"features": {"containerd-snapshotter": True}}
# Release (this machine's where it is empty), daemon.json, and whether its images are kept elsewhere than before.
CONFIGURED = {
    "defaults of logs, limits and more": ("", DEFAULTS, False),
    "another data-root": ("", ELSEWHERE, True),
    "userns-remap": ("", REMAPPED, True),
    "Docker 26: defaults of logs, limits, networks and more": ("debian 13", NEWER_DEFAULTS, False),
    "Docker 26: another data-root": ("debian 13", ELSEWHERE, True),
    "Docker 26: userns-remap": ("debian 13", REMAPPED, True),
    "Docker 26: containerd's image store": ("debian 13", CONTAINERD, True),
    "Docker 29: defaults of logs, limits, networks and more": ("ubuntu 24.04", NEWER_DEFAULTS, False),
    "Docker 29: another data-root": ("ubuntu 24.04", ELSEWHERE, True),
    "Docker 29: userns-remap": ("ubuntu 24.04", REMAPPED, True),
    "Docker 29: without containerd's image store": ("ubuntu 24.04", NO_CONTAINERD, True),
}


@pytest.mark.parametrize("name", CONFIGURED)
def test_a_second_and_third_update_change_nothing(name: str, installation: Installation) -> None:
    release, daemon, elsewhere = CONFIGURED[name]
    with running(installation, release) as server:
        server.configure_docker(daemon, load=elsewhere)
        first = up(server)
        assert set(first) == {"created"}
        assert up(server) == {"unchanged": first["created"]}
        assert up(server) == {"unchanged": first["created"]}
        assert "all " in server.verify()
        server.down()

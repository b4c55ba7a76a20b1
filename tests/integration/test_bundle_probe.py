"""A stack's server is probed over real SSH, as any user who may log in there, and no other server is asked."""

import json
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from scripts.cli.bundle import probe
from tests.integration.test_bundle import project
from tests.support import local_sshd
from tests.support.local_sshd import Server

STACK = "probed"


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with local_sshd.running() as found:
        yield found


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return project(tmp_path_factory.mktemp("probe") / "project")


def probed(checkout: Path, server: Server, **settings: object) -> subprocess.CompletedProcess[str]:
    known = {
        "host": "127.0.0.1",
        "sshPort": server.port,
        "sshPrivateKeyPath": str(server.private_key),
        "sshHostKey": str(server.host_key),
        **settings,
    }
    config = {f"elastic-vllm:{key}": value for key, value in known.items()}
    (checkout / "stacks" / f"Pulumi.{STACK}.yaml").write_text(yaml.safe_dump({"config": config}))
    command = [str(checkout / "scripts" / "elastic-vllm"), "bundle", "probe", "--stack", STACK]
    return subprocess.run(command, capture_output=True, text=True, check=False, cwd=checkout.parent)


@pytest.mark.parametrize("root", [True, False])
def test_it_is_this_machine_that_answers(checkout: Path, server: Server, root: bool) -> None:
    """No rights are needed: a user without sudo gets the same answer."""
    with local_sshd.user("bundle-probe", sudo=False) as name:
        done = probed(checkout, server, sshUser="root" if root else name, weightsDirectory="/srv/elsewhere")
    assert (done.returncode, done.stderr) == (0, "")
    document = json.loads(done.stdout)
    assert [disk["path"] for disk in document["disks"]] == ["/", "/var/lib", "/srv/elsewhere"]
    found = probe.parse(document)
    assert found.kernel == os.uname().release
    here = probe.this_machine()
    assert (found.distribution, found.codename, found.dpkg_status) == (
        here.distribution,
        here.codename,
        here.dpkg_status,
    )


def test_another_machine_is_not_asked(checkout: Path, server: Server) -> None:
    other = server.new_key("other").with_suffix(".pub")
    done = probed(checkout, server, sshHostKey=str(other))
    assert (done.returncode, done.stdout) == (1, "")
    assert "can't be probed: " in done.stderr
    assert "fix: check host, sshUser, sshPort and sshHostKey" in done.stderr
    assert "Traceback" not in done.stderr


def test_settings_that_lead_nowhere_are_all_named(checkout: Path, server: Server) -> None:
    done = probed(checkout, server, host="", sshPrivateKeyPath="/nonexistent", sshUser="a b")
    assert done.returncode == 2
    for name in ("host: ", "sshPrivateKeyPath = ", "sshUser = "):
        assert f"  - {name}" in done.stderr

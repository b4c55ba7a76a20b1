"""Packages for a bare server: probed there, fetched here by the real apt, installed there without network."""

import json
import re
import subprocess
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
from cyclonedx.schema import SchemaVersion
from cyclonedx.validation.json import JsonStrictValidator

from components.bundle import manifest
from components.errors import UserError
from scripts.cli.bundle import collect, making, packages, probe
from scripts.cli.bundle.making import Base
from scripts.cli.bundle.probe import Probe
from scripts.cli.bundle.verify import problems
from scripts.cli.bundle.wanted import Wanted
from tests.integration.conftest import installed

pytestmark = pytest.mark.slow  # the quick run covers them with the server of airgap/test_site.py

NAMES = ["docker.io", "ca-certificates", "curl", "nftables", "logrotate"]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Root of a minimal Debian of this machine's release."""
    installed("debootstrap", "debootstrap")
    root = tmp_path_factory.mktemp("server")
    codename = probe.this_machine().codename
    subprocess.run(["debootstrap", "--variant=minbase", codename, root], check=True, capture_output=True)
    yield root
    subprocess.run(["rm", "-rf", "--one-file-system", root], check=True)


def inside(root: Path, *command: str, script: bytes = b"") -> str:
    """Run a command in that root without any network, and return its output."""
    around = ["unshare", "--net", "--mount", "--pid", "--fork", f"--mount-proc={root}/proc", "chroot", str(root)]
    environment = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "DEBIAN_FRONTEND": "noninteractive"}
    done = subprocess.run([*around, *command], input=script, env=environment, capture_output=True, check=False)
    assert done.returncode == 0, (done.stdout + done.stderr).decode()
    return done.stdout.decode()


@pytest.fixture(scope="module")
def probed(server: Path) -> Probe:
    return probe.parse(json.loads(inside(server, "bash", "-s", script=probe.SCRIPT.read_bytes())))


def part(probed: Probe, runtime: str = "docker") -> Wanted:
    found = packages.part(probed, runtime=runtime, gpus=False)
    assert found
    return found


def build(output: Path, wanted: Wanted, base: Base | None = None) -> None:
    def finish(parts: list[Wanted]) -> list[Wanted]:
        return [collect.bill_of_materials(output, parts)]

    with making.alone(output):
        making.build(output, making.about("x", "commit", base), [wanted], finish, base)


@pytest.fixture(scope="module")
def built(probed: Probe, tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("bundle")
    build(output, part(probed))
    return output


def machine() -> dict[str, tuple[int, int]]:
    """Return the state of all files that apt keeps on this machine."""
    places = [path for top in ("/etc/apt", "/var/lib/apt", "/var/cache/apt") for path in Path(top).rglob("*")]
    return {str(path): (path.lstat().st_mtime_ns, path.lstat().st_size) for path in places}


def test_a_bare_server_is_distinguished_from_this_machine(probed: Probe) -> None:
    assert set(probed.programs.values()) == {None}
    assert packages.names(probed, runtime="docker", gpus=False) == NAMES


def test_they_are_a_good_part_with_a_valid_bill_of_materials(built: Path) -> None:
    assert list(problems(built, None)) == []
    text = (built / "sbom" / "elastic-vllm.cdx.json").read_text()
    assert JsonStrictValidator(SchemaVersion.V1_6).validate_str(text) is None
    components = json.loads(text)["components"]
    assert Counter(each["type"] for each in components) == {"library": len(list((built / "packages").iterdir()))}
    (curl,) = (each for each in components if each["name"] == "curl")
    assert re.fullmatch(r"pkg:deb/debian/curl@[\w.%+~-]+\?arch=amd64&distro=debian-\d+", curl["purl"])


def test_one_bit_of_a_package_is_found(built: Path) -> None:
    package = next((built / "packages").glob("curl_*.deb"))
    good = package.read_bytes()
    package.write_bytes(good[:1000] + bytes([good[1000] ^ 1]) + good[1001:])
    try:
        assert list(problems(built, None)) == [f"packages/{package.name}: altered"]
    finally:
        package.write_bytes(good)


def test_a_second_build_fetches_nothing_and_a_lost_package_is_fetched_alone(
    built: Path, probed: Probe, monkeypatch: pytest.MonkeyPatch
) -> None:
    same = part(probed)
    with monkeypatch.context() as without_apt:
        without_apt.setenv("PATH", "/nonexistent")
        build(built, same)
    before = machine()
    (lost,) = (built / "packages").glob("curl_*.deb")
    lost.unlink()
    progress: list[str] = []
    part(probed).make(built / "packages", progress.append)
    fetched = {found[1] for line in progress if (found := re.match(r"Get:\d+ \S+ \S+ amd64 (\S+) amd64 ", line))}
    assert fetched == {"curl"}
    assert list(problems(built, None)) == []
    assert machine() == before, "apt's own files of this machine are left alone"


def test_a_delta_leaves_out_what_was_carried_before(built: Path, probed: Probe, tmp_path: Path) -> None:
    base = Base.read(built / manifest.MANIFEST)
    build(tmp_path / "delta", part(probed), base)
    assert not (tmp_path / "delta" / "packages").exists()
    assert list(problems(tmp_path / "delta", None)) == []


def test_podman_comes_with_its_network(probed: Probe, tmp_path: Path) -> None:
    found = part(probed, "podman")
    assert found.about["names"].split()[:4] == ["podman", "iptables", "containernetworking-plugins", "podman-docker"]
    found.make(tmp_path / "packages", lambda _: None)
    names = {path.name.partition("_")[0] for path in (tmp_path / "packages").iterdir()}
    assert {"podman", "podman-docker", "containernetworking-plugins", "iptables", "conmon", "curl", "nftables"} <= names
    assert "docker.io" not in names


def test_an_unknown_package_is_refused_with_a_fix(probed: Probe, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"Unable to locate package no-such-package.* fix: the packages must"):
        packages.download(probed, ["no-such-package"], tmp_path / "packages", lambda _: None)


def test_they_are_installed_there_without_network_and_nothing_is_missing(built: Path, server: Path) -> None:
    policy = server / "usr/sbin/policy-rc.d"
    policy.write_text("#!/bin/sh\nexit 101\n")  # no service starts in a chroot
    policy.chmod(0o755)
    there = server / "packages"
    subprocess.run(["cp", "-r", built / "packages", there], check=True)
    subprocess.run(["rm", "-rf", server / "var/lib/apt/lists"], check=True)
    (server / "etc/apt/sources.list").unlink()
    install = "apt-get install -q -y --no-install-recommends /packages/*.deb && dpkg --audit"
    inside(server, "bash", "-c", install)
    again = probe.parse(json.loads(inside(server, "bash", "-s", script=probe.SCRIPT.read_bytes())))
    assert packages.names(again, runtime="docker", gpus=False) == []

"""The GPU scripts with real apt, dpkg, gpg and curl, on a copy of this machine's files, from a repository made here.

Stand-ins replace only what needs a GPU: the kernel's module, /sys and the contents of the packages.
"""

import os
import shutil
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from components import render
from components.machine.gpu_driver import LEAST_DRIVER, TOOLKIT, kernel_script
from tests.support import machine_copy
from tests.support.machine_copy import Copy
from tests.support.shell import failed

KERNEL = os.uname().release
NVIDIA_CTK = """\
#!/bin/sh
case "$*" in
--version) echo 'NVIDIA Container Toolkit CLI version 1.19.1' ;;
'runtime configure --runtime=docker')
  mkdir -p /etc/docker
  echo '{"runtimes": {"nvidia": {}}}' >/etc/docker/daemon.json ;;
*) exit 2 ;;
esac
"""
NVIDIA_SMI = """\
#!/bin/sh
case "$*" in
*=driver_version*) printf '580.95.05\\n580.95.05\\n' ;;
-L) printf 'GPU 0: A (UUID: a)\\nGPU 1: A (UUID: b)\\n' ;;
*=persistence_mode*) if [ -e /persistent ]; then echo Enabled; else echo Disabled; fi ;;
'-pm 1') touch /persistent ;;
*) exit 2 ;;
esac
"""
# A machine with two GPUs whose only source of packages is the repository that the test serves. Its systemd knows one
# unit.
TWO_GPUS = """\
mkdir -p /tmp/none /run/systemd/system
cat >/etc/apt/apt.conf.d/zz-only <<'CONF'
Dir::Etc::sourcelist "sources.list.d/nvidia-container-toolkit.list";
Dir::Etc::sourceparts "/tmp/none";
CONF
printf '#!/bin/sh\\n' >/usr/local/bin/modprobe
cat >/usr/local/bin/systemctl <<'SYSTEMCTL'
#!/bin/sh
unit=/etc/systemd/system/elastic-vllm-gpu.service
[ "$*" != 'restart elastic-vllm-gpu.service' ] || $(sed -n 's/^ExecStart=//p' "$unit")
SYSTEMCTL
chmod +x /usr/local/bin/modprobe /usr/local/bin/systemctl
for gpu in 0 1; do
  mkdir -p /sys/bus/pci/devices/$gpu
  echo 0x10de >/sys/bus/pci/devices/$gpu/vendor
  echo 0x030200 >/sys/bus/pci/devices/$gpu/class
done
"""


@pytest.fixture
def machine(tmp_path: Path) -> Iterator[Copy]:
    with machine_copy.running(tmp_path) as copy:
        yield copy


@dataclass(frozen=True)
class Repository:
    """Package repository served over loopback, signed with a key made for the test."""

    url: str
    fingerprint: str

    def variables(self, **others: str) -> dict[str, str]:
        own = {
            "toolkit_repository": f"{self.url}/deb",
            "toolkit_key": f"{self.url}/gpgkey",
            "toolkit_fingerprint": self.fingerprint,
        }
        return {**TOOLKIT, **own, **others}

    def toolkit(self, **others: str) -> str:
        return render.script("gpu/install-nvidia-toolkit.sh", engine="docker", **self.variables(**others))


class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *_: object) -> None:
        pass


@contextmanager
def serving(directory: Path) -> Iterator[str]:
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(directory))) as server:
        threading.Thread(target=server.serve_forever).start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()


def build(directory: Path, name: str, version: str, program: str = "", text: str = "", depends: str = "") -> None:
    """Build a package with at most one program."""
    source = directory / "source" / name
    (source / "DEBIAN").mkdir(parents=True)
    lines = [f"Package: {name}", f"Version: {version}", "Architecture: all", "Maintainer: test", "Description: test"]
    (source / "DEBIAN/control").write_text("\n".join([*lines, *([f"Depends: {depends}"] if depends else []), ""]))
    if program:
        (source / program).parent.mkdir(parents=True)
        (source / program).write_text(text)
        (source / program).chmod(0o755)
    deb = directory / f"{name}_{version}.deb"
    subprocess.run(
        ["dpkg-deb", "--root-owner-group", "-Znone", "--build", source, deb], check=True, capture_output=True
    )


def index(directory: Path, sign: list[str]) -> None:
    """Write the Packages and InRelease files that apt expects in a flat repository."""
    entries = []
    for deb in sorted(directory.glob("*.deb")):
        control = subprocess.run(["dpkg-deb", "--field", deb], check=True, capture_output=True, text=True).stdout
        entries.append(f"{control}Filename: ./{deb.name}\nSize: {deb.stat().st_size}\nSHA256: {sha256(deb)}\n")
    packages = directory / "Packages"
    packages.write_text("\n".join(entries))
    release = f"Date: Thu, 01 Jan 2026 00:00:00 UTC\nSHA256:\n {sha256(packages)} {packages.stat().st_size} Packages\n"
    subprocess.run([*sign, "--clearsign", "--output", directory / "InRelease"], input=release, check=True, text=True)


def sha256(path: Path) -> str:
    return subprocess.run(["sha256sum", path], check=True, capture_output=True, text=True).stdout.split()[0]


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Repository]:
    """Repository with the toolkit's four packages, each older, pinned and newer, and the running kernel's driver."""
    top = tmp_path_factory.mktemp("repository")
    home = top / "keys"
    home.mkdir(mode=0o700)
    gpg = [
        "gpg",
        "--homedir",
        str(home),
        "--batch",
        "--quiet",
        "--no-tty",
        "--passphrase",
        "",
        "--pinentry-mode",
        "loopback",
    ]
    try:
        subprocess.run([*gpg, "--quick-generate-key", "test@localhost", "ed25519", "sign", "never"], check=True)
        listed = subprocess.run(
            [*gpg, "--with-colons", "--list-keys"], check=True, capture_output=True, text=True
        ).stdout
        fingerprint = next(line.split(":")[9] for line in listed.splitlines() if line.startswith("fpr:"))
        served = top / "served"
        architecture = subprocess.run(
            ["dpkg", "--print-architecture"], check=True, capture_output=True, text=True
        ).stdout.strip()
        directory = served / "deb" / architecture
        directory.mkdir(parents=True)
        pinned = TOOLKIT["toolkit_version"]
        for version in (pinned, "9.0.0-1"):
            build(directory, "libnvidia-container1", version)
            build(directory, "libnvidia-container-tools", version, depends=f"libnvidia-container1 (>= {version})")
            build(directory, "nvidia-container-toolkit-base", version, "usr/bin/nvidia-ctk", NVIDIA_CTK)
            base = f"nvidia-container-toolkit-base (= {version}), libnvidia-container-tools (= {version})"
            build(directory, "nvidia-container-toolkit", version, depends=base)
            shutil.rmtree(directory / "source")
        build(directory, f"linux-modules-nvidia-{LEAST_DRIVER}-server-open-{KERNEL}", "1")
        build(directory, f"nvidia-headless-no-dkms-{LEAST_DRIVER}-server-open", "580.95.05-1")
        build(directory, f"nvidia-utils-{LEAST_DRIVER}-server", "580.95.05-1", "usr/bin/nvidia-smi", NVIDIA_SMI)
        shutil.rmtree(directory / "source")
        index(directory, gpg)
        exported = subprocess.run([*gpg, "--armor", "--export"], check=True, capture_output=True, text=True).stdout
        (served / "gpgkey").write_text(exported)
        with serving(served) as url:
            yield Repository(url, fingerprint)
    finally:
        subprocess.run(["gpgconf", "--homedir", home, "--kill", "all"], check=False)


def test_the_toolkit_is_installed_once(machine: Copy, repository: Repository) -> None:
    first = machine.run(repository.toolkit())
    assert first.returncode == 0, first.stderr
    assert "toolkit 1.19.1 is installed for docker" in first.stdout
    names = "nvidia-container-toolkit nvidia-container-toolkit-base libnvidia-container-tools libnvidia-container1"
    versions = machine.run(f"dpkg-query -W -f '${{Version}} ' {names}; apt-get upgrade --simulate | grep -c nvidia")
    assert versions.stdout == f"{TOOLKIT['toolkit_version']} " * 4 + "0\n"  # the newer version does not come by itself
    assert "nvidia" in machine.read("/etc/docker/daemon.json")
    before = machine.changes()
    second = machine.run(repository.toolkit())
    assert (second.returncode, second.stderr) == (0, "")
    assert second.stdout == first.stdout.splitlines(keepends=True)[-1]
    assert machine.changes() == before


def test_docker_alone_is_configured_where_only_that_is_missing(machine: Copy, repository: Repository) -> None:
    assert machine.run(repository.toolkit()).returncode == 0
    machine.run("rm /etc/docker/daemon.json")
    # Nothing needs to be fetched: the repository is gone.
    again = machine.run(repository.toolkit(toolkit_key="http://127.0.0.1:1/gpgkey"))
    assert (again.returncode, again.stderr) == (0, "")
    assert "nvidia" in machine.read("/etc/docker/daemon.json")


def test_a_key_other_than_the_known_one_is_not_installed(machine: Copy, repository: Repository) -> None:
    known = TOOLKIT["toolkit_fingerprint"]
    result = machine.run(repository.toolkit(toolkit_fingerprint=known))
    assert failed(result, "not the known one", repository.fingerprint, known)
    assert "nvidia" not in machine.changes()


def test_a_second_key_beside_the_known_one_is_refused(machine: Copy, repository: Repository, tmp_path: Path) -> None:
    gpg = ["gpg", "--homedir", str(tmp_path / "home"), "--batch", "--quiet", "--no-tty", "--passphrase", ""]
    (tmp_path / "home").mkdir(mode=0o700)
    try:
        subprocess.run([*gpg, "--quick-generate-key", "other@localhost", "ed25519", "sign", "never"], check=True)
        other = subprocess.run([*gpg, "--armor", "--export"], check=True, capture_output=True, text=True).stdout
    finally:
        subprocess.run(["gpgconf", "--homedir", tmp_path / "home", "--kill", "all"], check=False)
    both = tmp_path / "served"
    both.mkdir()
    first = subprocess.run(
        ["curl", "-sf", f"{repository.url}/gpgkey"], check=True, capture_output=True, text=True
    ).stdout
    (both / "gpgkey").write_text(first + other)
    with serving(both) as url:
        result = machine.run(repository.toolkit(toolkit_key=f"{url}/gpgkey"))
    assert failed(result, "not the known one", repository.fingerprint)
    assert "nvidia" not in machine.changes()


def test_a_repository_out_of_reach_leaves_nothing_behind(machine: Copy, repository: Repository) -> None:
    result = machine.run(repository.toolkit(toolkit_key="http://127.0.0.1:1/gpgkey"))
    assert result.returncode == 1
    assert "NVIDIA's package repository can't be reached: http://127.0.0.1:1/gpgkey\n  fix: " in result.stderr
    assert "nvidia" not in machine.changes()


@pytest.mark.slow
@pytest.mark.parametrize("place", ["{url}/elsewhere", "http://127.0.0.1:1/deb"])
def test_a_repository_that_can_not_be_read_is_reported(machine: Copy, repository: Repository, place: str) -> None:
    url = place.format(url=repository.url)
    result = machine.run(repository.toolkit(toolkit_repository=url))
    assert result.returncode == 1
    assert f"NVIDIA's package repository can't be read: {url}\n  fix: " in result.stderr


def test_the_driver_is_installed_once(machine: Copy, repository: Repository) -> None:
    """Stand-ins replace only PCI and the kernel's modules; the real apt decides what can be installed."""
    assert machine.run(repository.toolkit()).returncode == 0  # for the repository's entry in apt's lists
    prepare = kernel_script()
    assert machine.run(TWO_GPUS).returncode == 0
    prepared = machine.run(prepare)
    assert f"driver 580 is offered for kernel {KERNEL}" in prepared.stdout
    install = render.script(
        "gpu/gpu-driver.sh", "gpu/install-gpu-driver.sh", gpu_count=2, least_driver=LEAST_DRIVER, may_replace="yes"
    )
    first = machine.run(install)
    assert first.returncode == 0, first.stderr
    assert "driver 580.95.05 installed\npersistence mode set\n" in first.stdout
    unit = machine.read("/etc/systemd/system/elastic-vllm-gpu.service")
    assert "Before=docker.service podman-restart.service\n" in unit
    assert "ExecStartPre=-/usr/local/bin/modprobe -a nvidia nvidia_uvm\nExecStart=/usr/bin/nvidia-smi -pm 1\n" in unit
    before = machine.changes()
    second = machine.run(install)
    assert (second.returncode, second.stdout, second.stderr) == (0, "driver 580.95.05 is there\n", "")
    assert machine.run(prepare).stdout == f"driver 580.95.05 works with kernel {KERNEL}\n"
    assert machine.changes() == before

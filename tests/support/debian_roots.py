"""Root file systems of small Debian and Ubuntu machines, made once from package mirrors and kept."""

import fcntl
import hashlib
import shutil
import subprocess
import tempfile
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from scripts.lab import base_system
from scripts.lab.base_system import Release
from tests.integration.conftest import installed

DIRECTORY = Path("/var/cache/elastic-vllm-tests")
BARE = ("apt", "systemd-sysv", "dbus", "openssh-server", "python3", "iproute2", "procps")
"""A server as Debian's installer leaves it: systemd, SSH, no container runtime, no curl, no nftables."""
DEBIAN, UBUNTU = "http://deb.debian.org/debian", "http://archive.ubuntu.com/ubuntu"
UBUNTU_KEYS = (
    f"{DEBIAN}/pool/main/u/ubuntu-keyring/ubuntu-keyring_2023.11.28.1-0.2_all.deb",
    "b2e7ed48431bf9e7978ae810bbdaf253093570d6e3f864e575b7c13554b81174",
)
"""Debian's package of the keys that sign Ubuntu's, and its SHA-256 digest."""
RELEASES = {
    "debian 13": "trixie",
    "ubuntu 22.04": "jammy",
    "ubuntu 24.04": "noble",
}
RUNTIMES = {
    "docker": ("docker.io", "curl", "ca-certificates", "iptables", "nftables", "logrotate"),
    "podman": ("podman", "curl", "ca-certificates", "iptables", "nftables", "logrotate"),
}
# The source list of a server that once had a network. The product must not touch it.
SOURCES = f"deb {DEBIAN} {{suite}} main\n"
# Units that change the shared kernel or use the network on timers: no stack depends on them.
MASKED = (
    "systemd-sysctl.service systemd-modules-load.service systemd-random-seed.service systemd-remount-fs.service "
    "systemd-hwdb-update.service getty.target console-getty.service apt-daily.timer apt-daily-upgrade.timer "
    "e2scrub_all.timer e2scrub_reap.service fstrim.timer dpkg-db-backup.timer"
)


@contextmanager
def alone() -> Iterator[None]:
    """Keep other processes from creating anything in DIRECTORY until the block ends."""
    DIRECTORY.mkdir(exist_ok=True)
    with (DIRECTORY / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def release(name: str) -> Release:
    """Return a release of RELEASES, such as "ubuntu 24.04"."""
    suite = RELEASES[name]
    if name.startswith("debian"):
        return Release(suite, (f"deb {DEBIAN} {suite} main",))
    return Release(
        suite, tuple(f"deb {UBUNTU} {each} main universe" for each in (suite, f"{suite}-updates")), _ubuntu_keys()
    )


def docker(of: str = "") -> tuple[str, ...]:
    """Packages of a server with Docker; from Debian 13 on, its client is one of its own."""
    return (*RUNTIMES["docker"], *(["docker-cli"] if of == "debian 13" else []))


def _ubuntu_keys() -> Path:
    """Return the file of the keys that sign Ubuntu's packages."""
    url, digest = UBUNTU_KEYS
    directory = DIRECTORY / f"keys-{digest[:12]}"
    with alone():
        if not directory.exists():
            with urllib.request.urlopen(url, timeout=60) as answer:  # noqa: S310
                package = answer.read()
            assert hashlib.sha256(package).hexdigest() == digest, url
            with tempfile.TemporaryDirectory(dir=DIRECTORY) as scratch:
                (Path(scratch) / "deb").write_bytes(package)
                subprocess.run(["dpkg-deb", "--extract", f"{scratch}/deb", f"{scratch}/keys"], check=True)
                (Path(scratch) / "keys").rename(directory)
    return directory / "usr/share/keyrings/ubuntu-archive-keyring.gpg"


def root(*packages: str, of: str = "") -> Path:
    """Return a directory with a bare server's files and these packages; nobody may change anything in it.

    `of` is one of RELEASES; empty for this machine's.
    """
    other = release(of) if of else None
    name, suite = (of.partition(" ")[0], other.suite) if other else base_system.distribution()
    wanted = sorted({*BARE, *packages})
    mark = hashlib.sha256(repr((name, suite, wanted, SOURCES, MASKED)).encode()).hexdigest()[:12]
    made = DIRECTORY / f"root-{mark}"
    with alone():
        if not made.exists():
            installed("mmdebstrap", "mmdebstrap")
            half_made = Path(tempfile.mkdtemp(dir=DIRECTORY))
            try:
                _make(half_made, wanted, suite, other)
                (half_made / "root").rename(made)
            finally:
                shutil.rmtree(half_made)
    return made


def _make(directory: Path, packages: Sequence[str], suite: str, other: Release | None) -> None:
    with (DIRECTORY / "lock").open() as held:
        tarball = base_system.build_base(directory, packages, lambda _line: None, held, other)
    target = directory / "root"
    target.mkdir()
    subprocess.run(["tar", "-C", target, "-xf", tarball], check=True)
    (target / "etc/apt/sources.list").write_text(SOURCES.format(suite=suite))
    (target / "etc/hostname").write_text("server\n")
    for unit in MASKED.split():
        (target / "etc/systemd/system" / unit).symlink_to("/dev/null")

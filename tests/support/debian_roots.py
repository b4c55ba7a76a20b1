"""Root file systems of small Debian machines, made once from this machine's package sources and kept."""

import fcntl
import hashlib
import shutil
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from scripts.lab import base_system
from tests.integration.conftest import installed

DIRECTORY = Path("/var/cache/elastic-vllm-tests")
BARE = ("apt", "systemd-sysv", "dbus", "openssh-server", "python3", "iproute2", "procps")
"""A server as Debian's installer leaves it: systemd, SSH, no container runtime, no curl, no nftables."""
RUNTIMES = {
    "docker": ("docker.io", "curl", "ca-certificates", "iptables", "nftables", "logrotate"),
    "podman": ("podman", "curl", "ca-certificates", "iptables", "nftables", "logrotate"),
}
# The source list of a server that once had a network. The product must not touch it.
SOURCES = "deb http://deb.debian.org/debian {suite} main\n"
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


def root(*packages: str) -> Path:
    """Return a directory with a bare server's files and these packages; nobody may change anything in it."""
    name, suite = base_system.distribution()
    wanted = sorted({*BARE, *packages})
    mark = hashlib.sha256(repr((name, suite, wanted, SOURCES, MASKED)).encode()).hexdigest()[:12]
    made = DIRECTORY / f"root-{mark}"
    with alone():
        if not made.exists():
            installed("mmdebstrap", "mmdebstrap")
            half_made = Path(tempfile.mkdtemp(dir=DIRECTORY))
            try:
                _make(half_made, wanted, suite, lock_file=DIRECTORY / "lock")
                (half_made / "root").rename(made)
            finally:
                shutil.rmtree(half_made)
    return made


def _make(directory: Path, packages: Sequence[str], suite: str, lock_file: Path) -> None:
    with lock_file.open() as held:
        tarball = base_system.build_base(directory, packages, lambda _line: None, held)
    target = directory / "root"
    target.mkdir()
    subprocess.run(["tar", "-C", target, "-xf", tarball], check=True)
    (target / "etc/apt/sources.list").write_text(SOURCES.format(suite=suite))
    (target / "etc/hostname").write_text("server\n")
    for unit in MASKED.split():
        (target / "etc/systemd/system" / unit).symlink_to("/dev/null")

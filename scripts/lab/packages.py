"""Debian and Ubuntu packages for the programs that this machine lacks."""

import os
import shutil
import subprocess
import time
from collections.abc import Callable, Mapping
from pathlib import Path

from components.errors import UserError

# A program (or file) -> the package that contains it.
PROGRAMS = {
    "ssh": "openssh-client",
    "/usr/sbin/sshd": "openssh-server",
    "nft": "nftables",
    "iptables": "iptables",
    "curl": "curl",
    "mmdebstrap": "mmdebstrap",
    "/etc/ssl/certs/ca-certificates.crt": "ca-certificates",
}
SBIN = "/usr/local/sbin:/usr/sbin:/sbin"
LOCK_SECONDS = 300  # how long apt waits for another apt


def install_missing(
    say: Callable[[str], None],
    *,
    need_docker: bool,
    need_podman: bool = False,
    also: Mapping[str, str] | None = None,
    log: Path,
) -> list[str]:
    """Install what is missing, without starting a service, and return the installed packages.

    `also` is like PROGRAMS, for what only this caller needs.
    Raises UserError. Apt's output goes to `log`, so that apt survives this process.
    """
    wanted = (
        PROGRAMS
        | ({"dockerd": "docker.io"} if need_docker else {})
        | ({"podman": "podman"} if need_podman else {})
        | dict(also or {})
    )
    missing = [package for program, package in wanted.items() if not _is_there(program)]
    if not missing:
        return []
    if not shutil.which("apt-get"):
        raise UserError(f"this machine lacks {', '.join(missing)} and is not Debian or Ubuntu", "install them by hand")
    say(f"installing {' '.join(missing)}")
    options = ["-q", "-o", f"DPkg::Lock::Timeout={LOCK_SECONDS}", "-o", "Acquire::Retries=2"]
    install = ["apt-get", *options, "install", "-y", "--no-install-recommends", *missing]
    _run(["apt-get", *options, "update"], say, log)
    code, output = _run(install, say, log)
    if "dpkg was interrupted" in output:
        _run(["dpkg", "--configure", "-a"], say, log)
        code, output = _run(install, say, log)
    if code != 0:
        cause, fix = _cause(output)
        raise UserError(f"apt-get can't install {', '.join(missing)}: {cause}", f"{fix}; its output: {log}")
    return missing


def _is_there(program: str) -> bool:
    path = f"{os.environ.get('PATH', os.defpath)}:{SBIN}"
    return shutil.which(program, path=path) is not None or Path(program).is_file()


def _run(command: list[str], say: Callable[[str], None], log: Path) -> tuple[int, str]:
    # RUNLEVEL and SYSTEMD_OFFLINE keep a package's scripts from starting its service.
    quiet = {"DEBIAN_FRONTEND": "noninteractive", "RUNLEVEL": "1", "SYSTEMD_OFFLINE": "1", "LC_ALL": "C.UTF-8"}
    log.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    with log.open("w+b") as file:
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=file, stderr=subprocess.STDOUT, env=os.environ | quiet
        )
        while process.poll() is None:
            time.sleep(0.2)
            say(log.read_text(errors="replace")[-300:])
    return process.returncode, log.read_text(errors="replace")


def _cause(output: str) -> tuple[str, str]:
    """Return cause and fix."""
    if "Could not get lock" in output or "Unable to acquire the dpkg" in output:
        return f"another apt or dpkg has been running for over {LOCK_SECONDS} s", "wait until it is done"
    if any(sign in output for sign in ("Temporary failure resolving", "Could not connect", "Failed to fetch")):
        return "the package servers can't be reached", "check the network, or install these packages by hand"
    if "Unable to locate package" in output or "has no installation candidate" in output:
        return "no apt source has such a package", "check /etc/apt/sources.list.d"
    errors = [line for line in output.splitlines() if line.startswith("E:")]
    return " ".join(errors) or output[-300:].strip(), "put that right"

"""A small root file system of this machine's distribution, from this machine's package sources."""

import shutil
import subprocess
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from components.errors import UserError

_ENTRY_FORMAT = "$(SOURCESENTRY)|$(RELEASE)|$(ORIGIN)|"
# Removed from an image: apt's own needs, and everything that names this machine or its mirrors.
_FORGET = (
    "etc/apt/sources.list etc/apt/sources.list.d etc/apt/apt.conf.d/99mmdebstrap etc/dpkg/dpkg.cfg.d/99mmdebstrap "
    "etc/hostname etc/resolv.conf var/log/apt var/cache/debconf"
)
_NO_DOCS = (
    "path-exclude=/usr/share/doc/*",
    "path-include=/usr/share/doc/*/copyright",
    "path-exclude=/usr/share/man/*",
    "path-exclude=/usr/share/info/*",
    "path-exclude=/usr/share/locale/*",
    "force-unsafe-io",  # a file system that is thrown away after a crash needs no fsync
)


@dataclass(frozen=True)
class Release:
    """Another release than this machine's, and where its packages come from."""

    suite: str
    sources: tuple[str, ...]
    """Lines of sources.list."""
    keyring: Path | None = None
    """Keys that sign them; None for those of this machine's apt."""


def distribution() -> tuple[str, str]:
    """Return this machine's distribution and suite, such as ("debian", "bookworm"), from /etc/os-release."""
    text = Path("/etc/os-release").read_text()
    release = dict(line.split("=", 1) for line in text.splitlines() if "=" in line)
    name, suite = (release.get(key, "").strip('"') for key in ("ID", "VERSION_CODENAME"))
    if name not in {"debian", "ubuntu"} or not suite:
        raise UserError(
            f"no image registry can be reached, and building images needs Debian or Ubuntu; this is {name or '?'}",
            "load the two images that the stack file names with `docker load`, or use Debian 12 or Ubuntu 24.04",
        )
    return name, suite


def build_base(
    directory: Path,
    packages: Sequence[str],
    say: Callable[[str], None],
    lock: IO[str],
    release: Release | None = None,
) -> Path:
    """Bootstrap the essential packages of this machine's release, or another's, and `packages` into a tar.

    The lock is inherited by the children, so that it stays held until the last of them is gone even if this
    process is killed. Raises UserError with mmdebstrap's message.
    """
    if not shutil.which("mmdebstrap"):
        raise UserError("mmdebstrap is missing", "apt-get update && apt-get install -y mmdebstrap")
    suite = release.suite if release else distribution()[1]
    tarball, options = directory / "base.tar", directory / "apt.conf"
    scratch = directory / "tmp"
    scratch.mkdir()
    options.write_text(_apt_options())
    # In a separate mount namespace: its mounts below the new root disappear with it, however it ends.
    command = [
        "unshare",
        "--mount",
        "mmdebstrap",
        "--mode=root",
        "--variant=essential",
        f"--include={','.join(packages)}",
    ]
    command += [f"--aptopt={options}", *(f"--dpkgopt={option}" for option in _NO_DOCS)]
    command += ["--customize-hook=" + "; ".join(f'rm -rf "$1"/{path}' for path in _FORGET.split())]
    if release:
        # Outdated mirrors offer other releases as well.
        command += ["--aptopt=Acquire::Check-Valid-Until false"]
        command += [f"--keyring={release.keyring}"] if release.keyring else []
    command += [suite, str(tarball), *(release.sources if release else _source_files(*distribution()))]
    env = {"TMPDIR": str(scratch), "DEBIAN_FRONTEND": "noninteractive"}
    lines: list[str] = []
    with subprocess.Popen(
        ["env", *(f"{key}={value}" for key, value in env.items()), *command],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        pass_fds=[lock.fileno()],
    ) as process:
        for line in process.stdout or ():
            lines.append(line.rstrip())
            say(line)
    if process.returncode:
        wrong = [line for line in lines if line.startswith(("E:", "W:", "Err"))] or lines
        raise UserError(
            f"no base system of {suite} can be built from this machine's package sources: {'; '.join(wrong[-3:])}",
            "`apt-get update` on this machine must succeed first; then run this again",
        )
    return tarball


def _source_files(name: str, suite: str) -> list[str]:
    """Return the apt source files of the distribution itself, without other vendors' where possible."""
    command = ["apt-get", "indextargets", "--format", _ENTRY_FORMAT, "Created-By: Packages"]
    listed = subprocess.run(command, capture_output=True, text=True, check=False).stdout
    entries = [line.split("|") for line in listed.splitlines() if line.count("|") == _ENTRY_FORMAT.count("|")]
    fitting = [entry for entry in entries if entry[1] == suite or entry[1].startswith(f"{suite}-")]
    # Some vendors name their suites after the distribution's. apt knows an origin once it has its lists.
    own = [entry for entry in fitting if entry[2].lower() == name] or fitting
    files = sorted({entry[0].rsplit(":", 1)[0] for entry in own})
    if not files:
        raise UserError(f"no apt source of this machine offers {suite}", "check /etc/apt/sources.list.d")
    return files


def mirror() -> str:
    """Return the address of this machine's mirror. Raises UserError."""
    suite = distribution()[1]
    command = ["apt-get", "indextargets", "--format", "$(SITE)|$(RELEASE)", "Created-By: Packages"]
    listed = subprocess.run(command, capture_output=True, text=True, check=False).stdout
    sites = [line.rpartition("|")[0] for line in listed.splitlines() if line.endswith(f"|{suite}")]
    if not sites:
        raise UserError(f"no apt source of this machine offers {suite}", "check /etc/apt/sources.list.d")
    return sites[0]


def _apt_options() -> str:
    """Return this machine's apt settings for reaching its mirrors: proxies, certificates, credentials."""
    dump = subprocess.run(["apt-config", "dump"], capture_output=True, text=True, check=True).stdout
    about_indexes = ("IndexTargets", "Languages", "GzipIndexes", "CompressionTypes", "cdrom", "Changelogs")
    kept = [
        line
        for line in dump.splitlines()
        if line.startswith("Acquire::") and not line.startswith(tuple(f"Acquire::{word}" for word in about_indexes))
    ]
    # mmdebstrap's apt looks for these below the new root; its sandbox user cannot enter our directory.
    kept += [
        'Dir::Etc::netrc "/etc/apt/auth.conf";',
        'Dir::Etc::netrcparts "/etc/apt/auth.conf.d";',
        'APT::Sandbox::User "root";',
    ]
    return "\n".join(kept) + "\n"

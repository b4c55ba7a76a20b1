"""Debian packages that a probed server lacks, with all their dependencies, fetched by apt itself.

apt works on the server's list of installed packages and in separate directories: this machine's lists, caches and
settings are only read. It checks the repositories' signatures and each package's checksum.
"""

import os
import shutil
import subprocess
import tempfile
import urllib.request
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from components.errors import UserError
from components.machine.gpu_driver import LEAST_DRIVER, TOOLKIT
from scripts.cli.bundle import probe
from scripts.cli.bundle.probe import Probe
from scripts.cli.bundle.wanted import Say, Wanted

DISTRIBUTIONS = ("debian", "ubuntu")
NETAVARK = {"debian": 13, "ubuntu": 23.04}
"""First releases whose Podman publishes ports with netavark: netavark 1.4 does not publish a port that the API asks
for on 0.0.0.0 (observed), so older releases get CNI's plugins."""
DOCKER_CLIENT = {"debian": 13}
"""First releases whose docker.io only recommends its client."""


class Package(NamedTuple):
    """A package that a server needs if it lacks the program."""

    name: str
    program: str
    runtime: str = ""
    """Container runtime that needs it; empty for both."""
    since: Mapping[str, float] | None = None
    """First releases that need it."""
    before: Mapping[str, float] | None = None
    """First releases that no longer need it."""
    for_gpus: bool = False

    def is_needed(self, server: Probe, runtime: str, *, gpus: bool) -> bool:
        """Return True if the server lacks it."""
        return (
            server.programs[self.program] is None
            and self.runtime in {"", runtime}
            and (gpus or not self.for_gpus)
            and (self.since is None or _is_since(server, self.since))
            and (self.before is None or not _is_since(server, self.before))
        )


PACKAGES = (
    Package("podman", "podman", "podman"),
    # netavark runs iptables to publish ports, and Debian's packages only suggest it.
    Package("iptables", "podman", "podman"),
    Package("netavark", "podman", "podman", since=NETAVARK),
    Package("aardvark-dns", "podman", "podman", since=NETAVARK),
    Package("containernetworking-plugins", "podman", "podman", before=NETAVARK),
    Package("podman-docker", "docker", "podman"),
    Package("runc", "runc", "podman", for_gpus=True),  # components/files/containers/podman-with-gpus.sh
    Package("docker.io", "docker", "docker"),
    Package("docker-cli", "docker", "docker", since=DOCKER_CLIENT),
    Package("ca-certificates", "curl"),
    Package("curl", "curl"),
    Package("nftables", "nft"),
    Package("logrotate", "logrotate"),
)
TOOLKIT_PACKAGES = tuple(TOOLKIT["toolkit_packages"].split())
PACKAGES_BYTES, DRIVER_BYTES = 400_000_000, 1_000_000_000
"""Rough upper bound of their size."""
KEY_SECONDS = 60
HOOKS = (
    "APT::Update::Pre-Invoke",
    "APT::Update::Post-Invoke",
    "APT::Update::Post-Invoke-Success",
    "DPkg::Pre-Install-Pkgs",
    "DPkg::Post-Invoke",
)


def names(server: Probe, *, runtime: str | None, gpus: bool) -> list[str]:
    """Return the packages that the server lacks, or without `runtime`, a machine that pushes images to a registry.

    Raises UserError if there are none for it.
    """
    if runtime is None:
        lacking = ["skopeo"] if server.programs.get("skopeo") is None else []
    else:
        lacking = [package.name for package in PACKAGES if package.is_needed(server, runtime, gpus=gpus)]
    if gpus and not _has_driver(server):
        lacking += _driver(server)
    if gpus and not _has_toolkit(server):
        lacking += [f"{package}={TOOLKIT['toolkit_version']}" for package in TOOLKIT_PACKAGES]
    known = server.distribution.startswith(DISTRIBUTIONS) and server.dpkg_status is not None
    if lacking and not known:
        raise UserError(
            f"the probed server ({server.distribution or 'unknown'}) lacks {', '.join(lacking)}, and only Debian and "
            "Ubuntu are supported",
            "install them there by hand, then probe it again",
        )
    return lacking


def _is_since(server: Probe, first: Mapping[str, float]) -> bool:
    """Return True if the server has the named release of its distribution, or a newer one: testing has no number."""
    kind, _, release = server.distribution.partition(" ")
    return kind in first and (not release or float(release) >= first[kind])


def _has_driver(server: Probe) -> bool:
    return server.nvidia_driver is not None and int(server.nvidia_driver.partition(".")[0]) >= LEAST_DRIVER


def _has_toolkit(server: Probe) -> bool:
    def numbers(version: str) -> list[int]:
        return [int(part) for part in version.split(".")]

    there = server.programs["nvidia-ctk"]
    return there is not None and numbers(there) > numbers(TOOLKIT["toolkit_above"])


def _driver(server: Probe) -> list[str]:
    """Return Ubuntu's signed modules for exactly the running kernel, as install-gpu-driver.sh needs them."""
    if server.nvidia_driver:
        raise UserError(
            f"the probed server has NVIDIA's driver {server.nvidia_driver}, which is too old: {LEAST_DRIVER} is needed",
            "replace it there by hand, then probe it again",
        )
    if not server.distribution.startswith("ubuntu "):
        raise UserError(
            f"the probed server ({server.distribution}) has no NVIDIA driver, and only Ubuntu's can be bundled",
            f"install {LEAST_DRIVER} or newer there by hand, then probe it again",
        )
    branch = f"{LEAST_DRIVER}-server"
    found = [f"linux-modules-nvidia-{branch}-open-{server.kernel}", f"nvidia-headless-no-dkms-{branch}-open"]
    found.append(f"nvidia-utils-{branch}")
    return found + ([f"nvidia-fabricmanager-{LEAST_DRIVER}"] if server.switches else [])


def part(server: Probe, *, runtime: str | None, gpus: bool, here: Probe | None = None) -> Wanted | None:
    """Return the packages that `names` finds, or None. Raises UserError if this machine can't get them."""
    asked = names(server, runtime=runtime, gpus=gpus)
    if not asked:
        return None
    here = here or probe.this_machine()
    for what in ("distribution", "codename", "architecture"):
        if (ours := getattr(here, what)) != (theirs := getattr(server, what)):
            raise UserError(
                f"the probed server's {what} is {theirs!r}, this machine's is {ours!r}, so its packages can't be had"
                " here",
                "build on a machine (or in a container) of the server's kind, or leave --probe out",
            )

    def make(path: Path, say: Say) -> None:
        download(server, asked, path, say)

    return Wanted(
        name="packages",
        directory="packages",
        source=f"{' '.join(asked)}, for probe {server.digest[:16]}",
        bytes=lambda: PACKAGES_BYTES + (DRIVER_BYTES if gpus else 0),
        make=make,
        about={
            "distribution": server.distribution,
            "architecture": server.architecture,
            "names": " ".join(name.partition("=")[0] for name in asked),
        },
    )


def download(server: Probe, asked: Sequence[str], path: Path, say: Say) -> None:
    """Fetch exactly these packages and their dependencies into a directory. Raises UserError."""
    (path / "partial").mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="elastic-vllm-apt-") as directory:
        apt = _Apt(Path(directory), server, say)
        if any(name.startswith(TOOLKIT_PACKAGES) for name in asked):
            apt.add_toolkit()
        apt.run("update")
        needed = apt.install(asked, Path(directory) / "none", "--print-uris")
        # 'URL' FILE BYTES CHECKSUM
        files = {line.split()[1] for line in needed if line.startswith("'")}
        for name in files:
            if (path / _stored(name)).is_file():
                (path / _stored(name)).rename(path / name)  # the name that apt looks for
        for stranger in [each for each in path.iterdir() if each.is_file() and each.name not in files]:
            stranger.unlink()
        apt.install(asked, path.resolve(), "--download-only")
    shutil.rmtree(path / "partial")
    for package in sorted(path.iterdir()):
        package.rename(path / _stored(package.name))


def _stored(file: str) -> str:
    """Return a package's file name in a bundle: apt writes an epoch's colon as %3a, repositories omit the epoch."""
    name, version, rest = file.split("_")
    return f"{name}_{version.rpartition('%3a')[2]}_{rest}"


class _Apt:
    """apt with separate directories, on another machine's list of packages."""

    def __init__(self, work: Path, server: Probe, say: Say) -> None:
        self._work, self._say = work, say
        for name in ("lists/partial", "none/partial", "cache", "state", "preferences", "sources.list.d"):
            (work / name).mkdir(parents=True)
        (work / "status").write_bytes(server.dpkg_status or b"")
        sources = Path("/etc/apt/sources.list.d")
        for source in [*sources.glob("*.list"), *sources.glob("*.sources")]:
            (work / "sources.list.d" / source.name).symlink_to(source)
        settings = {
            "Dir::State": work / "state",
            "Dir::State::lists": work / "lists",
            "Dir::State::status": work / "status",
            "Dir::State::extended_states": work / "state" / "extended_states",
            "Dir::Cache": work / "cache",
            "Dir::Cache::pkgcache": "",
            "Dir::Cache::srcpkgcache": "",
            "Dir::Etc::sourceparts": work / "sources.list.d",
            "Dir::Etc::preferences": "/dev/null",
            "Dir::Etc::preferencesparts": work / "preferences",
            "Dir::Log": work / "state",
            "APT::Architecture": server.architecture,
            "APT::Sandbox::User": "root",
            "APT::Keep-Downloaded-Packages": "true",
            "Acquire::Retries": "3",
            "Acquire::Languages": "none",
            "Debug::NoLocking": "true",
        }
        lines = [f'{name} "{value}";' for name, value in settings.items()]
        # Hooks would change this machine's directories.
        lines += [f"#clear {group};" for group in HOOKS]
        (work / "apt.conf").write_text("\n".join([*lines, ""]))

    def install(self, asked: Sequence[str], archives: Path, how: str) -> list[str]:
        """Resolve the dependencies, and fetch them into `archives` or list them. Raises UserError."""
        options = ("--yes", "--no-install-recommends", "--allow-change-held-packages", how)
        return self.run("install", *options, "-o", f"Dir::Cache::archives={archives}", *asked)

    def run(self, *arguments: str) -> list[str]:
        """Run apt-get, show its output and return it. Raises UserError."""
        command = ["apt-get", "-q", "-c", str(self._work / "apt.conf"), *arguments]
        environment = {**os.environ, "LC_ALL": "C", "DEBIAN_FRONTEND": "noninteractive"}
        lines: list[str] = []
        pipe, same = subprocess.PIPE, subprocess.STDOUT
        try:
            with subprocess.Popen(command, stdout=pipe, stderr=same, text=True, env=environment) as process:
                assert process.stdout  # noqa: S101 - asked for
                for line in process.stdout:
                    lines.append(line.strip())
                    self._say(line)
        except FileNotFoundError as error:
            raise UserError("there is no apt-get here", "build on a machine of the server's kind") from error
        if process.returncode:
            errors = [line[3:] for line in lines if line.startswith("E: ")] or lines[-1:]
            unmet = [line for line in lines if "Depends:" in line]
            raise UserError(
                f"apt-get {arguments[0]}: {'; '.join([*errors, *unmet])[:400]}",
                "the packages must be in this machine's apt sources, reachable and up to date",
            )
        return lines

    def add_toolkit(self) -> None:
        """Add NVIDIA's repository if its key is the known one. Raises UserError."""
        url = TOOLKIT["toolkit_key"]
        self._say(url)
        key = self._work / "key"
        try:
            with urllib.request.urlopen(url, timeout=KEY_SECONDS) as answer:  # noqa: S310 - https
                key.write_bytes(answer.read())
        except OSError as error:
            raise UserError(
                f"NVIDIA's package repository can't be reached: {url}: {error}",
                "let this machine reach it, or"
                f" install nvidia-container-toolkit above {TOOLKIT['toolkit_above']} on the server and probe it again",
            ) from error
        keyring = self._work / "keyring.gpg"
        check_key(key, TOOLKIT["toolkit_fingerprint"], keyring)
        line = f"deb [signed-by={keyring}] {TOOLKIT['toolkit_repository']}/$(ARCH) /\n"
        (self._work / "sources.list.d" / "nvidia-container-toolkit.list").write_text(line)


def check_key(key: Path, fingerprint: str, keyring: Path) -> None:
    """Write the keyring if the file's only primary key is the known one. Raises UserError."""
    with tempfile.TemporaryDirectory(prefix="elastic-vllm-gpg-") as home:
        gpg = ["gpg", "--batch", "--quiet", "--homedir", home]
        try:
            shown = subprocess.run(
                [*gpg, "--with-colons", "--show-keys", str(key)], capture_output=True, text=True, check=False
            )
        except FileNotFoundError as error:
            raise UserError("there is no gpg here, which checks keys", "apt-get install gpg") from error
        found, primary = [], False
        for line in shown.stdout.splitlines():
            fields = line.split(":")
            primary = primary or fields[0] == "pub"
            if fields[0] == "fpr" and primary:
                found.append(fields[9])
                primary = False
        if found != [fingerprint]:
            raise UserError(
                f"the key of NVIDIA's package repository is not the known one: {' '.join(found) or 'none'} instead of"
                f" {fingerprint}",
                "find out whether NVIDIA has announced a new key",
            )
        subprocess.run([*gpg, "--yes", "--dearmor", "--output", str(keyring), str(key)], check=True)


def of_file(path: Path) -> tuple[str, str, str]:
    """Return the name, version and architecture of a package. Raises UserError."""
    command = ["dpkg-deb", "--show", "--showformat", "${Package} ${Version} ${Architecture}", str(path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    words = done.stdout.split()
    if done.returncode or len(words) != 3:  # noqa: PLR2004
        raise UserError(f"{path.name}: {' '.join(done.stderr.split())}", "run the same again")
    return words[0], words[1], words[2]

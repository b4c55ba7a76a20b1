"""Access of this machine's pip to packages, made usable inside a build container and nowhere else."""

import os
import shutil
from dataclasses import dataclass
from pathlib import Path

from scripts.lib.uv_install import pip_settings

MOUNT = "/tmp/host"  # noqa: S108 - in the container, below a tmpfs: no mount point stays in the image
CA_BUNDLE = Path("/etc/ssl/certs/ca-certificates.crt")
_PROXIES = ("http_proxy", "https_proxy", "no_proxy", "all_proxy")


@dataclass(frozen=True)
class PipAccess:
    """Bind mounts (host path -> container path, all read-only) and environment for one pip run."""

    mounts: dict[str, str]
    environment: dict[str, str]


def pip_access(directory: Path) -> PipAccess:
    """Write the host's effective pip settings to `directory` (0700; the caller deletes it) and return how to use them.

    Credentials stay in files: the environment of a container, even of an exec, can be read with `inspect`.
    Sources: pip's configuration files, PIP_* and *_proxy variables, ~/.netrc, the system's CA bundle.
    """
    directory.mkdir(mode=0o700, parents=True)
    settings = _settings()
    mounts = {str(directory): MOUNT}
    if "cert" not in settings and CA_BUNDLE.is_file():
        settings["cert"] = str(CA_BUNDLE)
    for key in ("cert", "client-cert"):
        if key in settings and Path(settings[key]).expanduser().is_file():
            shutil.copy(Path(settings[key]).expanduser(), directory / key)
            settings[key] = f"{MOUNT}/{key}"
    links: list[str] = []
    for link in settings.pop("find-links", "").split():
        folder = Path(link.removeprefix("file://")).expanduser()
        if folder.is_dir():
            mounts[str(folder.resolve())] = target = f"{MOUNT}-links-{len(links)}"
            links.append(target)
        elif "://" in link and not link.startswith("file:"):
            links.append(link)
    if links:
        settings["find-links"] = "\n" + "\n".join(f"  {link}" for link in links)
    lines = [f"{key} = {value}" for key, value in sorted(settings.items())]
    (directory / "pip.conf").write_text("\n".join(["[global]", *lines, ""]))
    environment = {"PIP_CONFIG_FILE": f"{MOUNT}/pip.conf"}
    netrc = Path(os.environ.get("NETRC") or "~/.netrc").expanduser()
    if netrc.is_file():
        shutil.copy(netrc, directory / "netrc")
        environment["NETRC"] = f"{MOUNT}/netrc"
    environment |= {key: value for key, value in os.environ.items() if key.lower() in _PROXIES}
    return PipAccess(mounts, environment)


def _settings() -> dict[str, str]:
    """Return pip's settings for the source of packages, without those for installs on this machine."""
    local = {"config-file", "target", "user", "prefix", "root", "require-virtualenv", "cache-dir", "log", "no-index"}
    # pip.conf holds several values as indented continuation lines.
    return {key: value.replace("\n", "\n  ") for key, value in pip_settings().items() if key not in local}

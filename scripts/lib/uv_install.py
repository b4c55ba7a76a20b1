"""`pip install` into the environment of PYTHON, by uv: it takes a third of the time, but reads no pip settings.

    python3 scripts/lib/uv_install.py UV PYTHON ARGUMENT...

This program passes them to uv. If uv has no counterpart for one, or fails, pip does the work. It runs before there
is a .venv and inside image builds, so it needs only Python.
"""

import configparser
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

COUNTERPARTS = {
    "index-url": "UV_DEFAULT_INDEX",
    "extra-index-url": "UV_INDEX",
    "find-links": "UV_FIND_LINKS",
    "trusted-host": "UV_INSECURE_HOST",
    "cert": "SSL_CERT_FILE",
    "client-cert": "SSL_CLIENT_CERT",
    "proxy": "ALL_PROXY",
    "timeout": "UV_HTTP_TIMEOUT",
    "default-timeout": "UV_HTTP_TIMEOUT",
}
BY_COMMA = {"find-links"}
NOT_ABOUT_PACKAGES = set(
    "break-system-packages cache-dir config-file debug disable-pip-version-check log no-cache-dir no-color no-input "
    "no-python-version-warning no-warn-script-location progress-bar python quiet require-virtualenv root-user-action "
    "verbose".split()
)


def pip_settings() -> dict[str, str]:
    """Return the settings of `pip install` here, later sources winning: machine, user, environment's file, PIP_*."""
    home = Path.home()
    files = [
        Path("/etc/xdg/pip/pip.conf"),
        Path("/etc/pip.conf"),
        home / ".pip/pip.conf",
        home / ".config/pip/pip.conf",
        Path(sys.prefix) / "pip.conf",
        Path(os.environ.get("PIP_CONFIG_FILE") or os.devnull),
    ]
    parser = configparser.RawConfigParser()
    parser.read([file for file in files if file.is_file()])
    found: dict[str, str] = {}
    for section in ("global", "install"):
        if parser.has_section(section):
            found |= {key.replace("_", "-"): value for key, value in parser.items(section)}
    for key, value in os.environ.items():
        if key.startswith("PIP_") and value:
            found[key.removeprefix("PIP_").lower().replace("_", "-")] = value
    return found


def as_environment(settings: Mapping[str, str]) -> dict[str, str]:
    """Return the equivalent variables of uv. Raises KeyError with the first setting that has no counterpart."""
    # All indexes count alike, as for pip, and so do the system's certificates where none are given.
    found = {"UV_INDEX_STRATEGY": "unsafe-best-match", "UV_SYSTEM_CERTS": "true"}
    for key, value in settings.items():
        if key in NOT_ABOUT_PACKAGES:
            continue
        found[COUNTERPARTS[key]] = ("," if key in BY_COMMA else " ").join(value.split())
    return found


def main(uv: str, python: str, *arguments: str) -> int:
    """Install with uv, or else with pip, and return the exit status of the last one."""
    try:
        environment = as_environment(pip_settings())
    except (KeyError, configparser.Error) as error:
        print(f"pip has a setting that uv has not: {error}; pip, which takes longer, does it", file=sys.stderr)
    else:
        command = [uv, "pip", "install", "--python", python, "--require-hashes", *arguments]
        if subprocess.run(command, env={**os.environ, **environment}, check=False).returncode == 0:
            return 0
        print("uv could not; pip, which takes longer, tries", file=sys.stderr)
    # All cores compile faster, after it, than pip does on one.
    options = ["--disable-pip-version-check", "--no-compile", "--require-hashes"]
    command = [python, "-m", "pip", "install", *options, *arguments]
    return subprocess.run(command, check=False).returncode


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))

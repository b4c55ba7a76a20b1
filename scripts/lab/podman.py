"""Podman on this machine, beside Docker: its API's service, and the images that Docker has."""

import io
import json
import os
import stat
import subprocess
import tarfile
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

import docker
import requests
from docker.models.images import Image

from components.containers.podman import PODMAN, SOCKET
from components.errors import UserError
from scripts.lab import processes
from scripts.lab.emulator.state import ROOT, Record
from scripts.lib.progress import Task
from scripts.lib.stack_config import StackConfig

START_SECONDS = 30
FROM_DOCKER = "elastic-vllm.from-docker"
"""Label of an image copied from Docker: the id of Docker's image."""
PID_FILE = ROOT / "podman.pid"
LOG = ROOT / "podman.log"
MARKER = ROOT / "podman-started-with-systemctl"


def is_wanted(config: StackConfig) -> bool:
    """Return True if the stack's containers are Podman's."""
    return bool(config.get("containerRuntime") == PODMAN)


def is_used(resources: Mapping[str, Record]) -> bool:
    """True if containers among these resources are Podman's."""
    return any(is_behind(record.inputs) for record in resources.values())


def is_behind(provider: dict[str, object]) -> bool:
    """Return True if a docker provider with these inputs uses Podman."""
    return str(provider.get("host", "")).endswith(SOCKET)


def start(task: Task) -> None:
    """Start Podman's API unless it answers. Raises UserError."""
    if _answers():
        return
    task.outcome = "started"
    if Path("/run/systemd/system").exists():
        done = subprocess.run(["systemctl", "start", "podman.socket"], capture_output=True, text=True, check=False)
        if done.returncode != 0:
            raise UserError(f"systemctl start podman.socket: {done.stderr.strip()}", "see `journalctl -u podman`")
        MARKER.touch()
    else:
        Path(SOCKET).parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        with LOG.open("wb") as log:
            service = subprocess.Popen(
                ["podman", "system", "service", "--time=0", f"unix://{SOCKET}"],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # it outlives this process, until `down`
            )
        PID_FILE.write_text(str(service.pid))
    end = time.monotonic() + START_SECONDS
    while not _answers():
        if time.monotonic() > end:
            raise UserError(f"Podman's API doesn't answer at {SOCKET} after {START_SECONDS} s", f"see {LOG}")
        time.sleep(0.1)


def is_running() -> bool:
    """Return True if a service of ours runs."""
    return _pid() is not None or MARKER.exists()


def stop() -> None:
    """Stop the service that `start` started; containers are not its children and keep running."""
    if pid := _pid():
        processes.end([pid], START_SECONDS)
        Path(SOCKET).unlink(missing_ok=True)
    elif MARKER.exists():
        subprocess.run(["systemctl", "stop", "podman.socket", "podman.service"], check=False)


def take_image(client: docker.DockerClient, name: str, task: Task) -> None:
    """Give Podman the image that Docker has under this name, unless it has the same. Raises UserError."""
    image = client.images.get(name)
    has = _podman("image", "inspect", "--format", "{{.Id}} {{range .Config.Labels}}{{.}} {{end}}", name).split()
    if image.id and image.id.removeprefix("sha256:") in has:
        return
    task.outcome = "copied"
    task.say("copying it from Docker to Podman")
    if not _link(image, name):
        _copy(name)
    if has:
        _podman("image", "rm", has[0])


def _link(image: Image, name: str) -> bool:
    """Copy an image by links to Docker's files, which takes seconds; return False if that is impossible.

    `save` and `load` would write an image three times, and vLLM's has 5 GB. Nothing writes to the files of an image.
    """
    driver, store = image.attrs["GraphDriver"], Path(_podman("info", "--format", "{{.Store.GraphRoot}}"))
    if driver["Name"] != "overlay2":
        return False
    # The top one first.
    layers = [driver["Data"]["UpperDir"], *filter(None, driver["Data"].get("LowerDir", "").split(":"))]
    if any(Path(layer).stat().st_dev != store.stat().st_dev or _hides_others(layer) for layer in layers):
        return False
    config, own = image.attrs["Config"], str(image.id).removeprefix("sha256:")
    changes = [f"LABEL {FROM_DOCKER}={own}", *(f"ENV {each}" for each in config.get("Env") or [])]
    changes += [f"LABEL {key}={value}" for key, value in (config.get("Labels") or {}).items()]
    for word, key in (("CMD", "Cmd"), ("ENTRYPOINT", "Entrypoint")):
        changes += [f"{word} {json.dumps(config[key])}"] if config.get(key) else []
    changes += [
        f"{word} {config[key]}" for word, key in (("WORKDIR", "WorkingDir"), ("USER", "User")) if config.get(key)
    ]
    options = [each for change in changes for each in ("--change", change)]
    # With unique content: Podman identifies layers by their content, and would treat two empty ones as the same.
    made = subprocess.run(
        ["podman", "import", "--quiet", *options, "-"], input=_tar(FROM_DOCKER, own), capture_output=True, check=False
    )
    if made.returncode:
        return False
    identity = made.stdout.decode().split()[-1]
    target = _podman("image", "inspect", "--format", "{{.GraphDriver.Data.UpperDir}}", identity)
    # Podman's store is a mount of itself, and links between mounts are impossible: a third mount shows both.
    by_way = ["unshare", "--mount", "sh", "-c", 'mount --bind / /mnt && exec cp "$@"', "cp"]
    for layer in reversed(layers):
        link = ["--archive", "--link", "--remove-destination", f"/mnt{layer}/.", f"/mnt{target}"]
        if subprocess.run([*by_way, *link], capture_output=True, check=False).returncode:
            _podman("image", "rm", identity)
            return False
    _podman("tag", identity, name)
    return True


def _hides_others(layer: str) -> bool:
    """Return True if a file in a layer hides files of the layers below."""
    for directory, _, files in os.walk(layer):
        with suppress(OSError):
            if os.getxattr(directory, "trusted.overlay.opaque") == b"y":
                return True
        for file in files:
            found = Path(directory, file).lstat()
            if stat.S_ISCHR(found.st_mode) and found.st_rdev == 0:
                return True
    return False


def _tar(name: str, text: str) -> bytes:
    """Return an archive with one file."""
    archive = io.BytesIO()
    with tarfile.open(fileobj=archive, mode="w") as tar:
        entry = tarfile.TarInfo(f".{name}")
        entry.size = len(text)
        tar.addfile(entry, io.BytesIO(text.encode()))
    return archive.getvalue()


def _copy(name: str) -> None:
    with subprocess.Popen(["docker", "save", name], stdout=subprocess.PIPE) as save:
        load = subprocess.run(["podman", "load", "--quiet"], stdin=save.stdout, capture_output=True, check=False)
    if load.returncode or save.returncode:
        reason = load.stderr.decode(errors="replace").strip()
        raise UserError(f"image {name} can't be copied to Podman: {reason}", "put that right, and run this again")


def _podman(*arguments: str) -> str:
    """Run Podman and return its output, or an empty text if it fails."""
    done = subprocess.run(["podman", *arguments], capture_output=True, text=True, check=False)
    return done.stdout.strip() if done.returncode == 0 else ""


def _pid() -> int | None:
    return processes.pid_of(PID_FILE, PODMAN, f"unix://{SOCKET}")


def _answers() -> bool:
    if not Path(SOCKET).exists():
        return False
    try:
        return bool(docker.DockerClient(base_url=f"unix://{SOCKET}", timeout=10).ping())
    except (docker.errors.DockerException, requests.RequestException):
        return False

"""The container images of a rehearsal: pulled where a registry can be reached, else built on this machine.

Built images hold this machine's own distribution and, for vLLM, the pinned packages of requirements-vllm-cpu.txt.
All state of a build is below WORK and in images and containers labelled STAGE; each build begins by removing
what an interrupted one left there.
"""

import fcntl
import hashlib
import shutil
import socket
import subprocess
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import IO, Any

import docker
from docker.errors import DockerException, ImageNotFound
from docker.types import Mount
from docker.utils import parse_repository_tag

from components.errors import UserError
from scripts.lab.base_system import Release, build_base, distribution, mirror
from scripts.lab.pip_access import MOUNT, pip_access
from scripts.lib import uv_install

VLLM_REGISTRY_IMAGE = "public.ecr.aws/q9t5s3a7/vllm-cpu-release-repo:v0.32.0"
NGINX_REGISTRY_IMAGE = "docker.io/library/nginx:1.30.6"
NEWER_SUITE = "forky"
"""Debian's next release, whose Nginx resolves names in upstreams and leaves idle connections open during a reload."""

WORK = Path("/var/cache/elastic-vllm/image-build")
RECIPE = "elastic-vllm.recipe"  # label: what a built image was made from
STAGE = "elastic-vllm.stage"  # label: base, build or final
_HERE = Path(__file__).parent
_GIB = 2**30
_REGISTRY_SECONDS = 20  # for one answer of a registry that accepts connections

Say = Callable[[str], None]


@dataclass(frozen=True, kw_only=True)
class _Image:
    """Source of one image: where to pull it from, and how to build it."""

    title: str
    registry_image: str
    packages: tuple[str, ...]
    changes: tuple[str, ...]  # Dockerfile instructions
    disk_gib: int  # free space that a build needs at its peak, measured and rounded up
    newer: str = ""  # another release of the distribution, which the packages come from
    script: str = ""  # runs in the container after the packages, with `stdin` as its input
    stdin: str = ""

    def recipe(self) -> str:
        """Identify everything that decides what a build puts into the image."""
        newer = (self.newer,) if self.newer else ()
        parts = (*distribution(), *newer, *self.packages, *self.changes, self.script, self.stdin)
        return hashlib.sha256("\0".join(parts).encode()).hexdigest()


def ensure_vllm_image(client: docker.DockerClient, name: str, say: Say) -> None:
    """Ensure that image `name` is a vLLM for CPUs with `python3 -m vllm.entrypoints.openai.api_server`.

    This takes seconds if the image exists, otherwise a pull (about 2 GB) or a build (about 6 minutes on two cores).
    Raises UserError.
    """
    _ensure(
        client,
        name,
        say,
        _Image(
            title="vLLM for CPUs",
            registry_image=VLLM_REGISTRY_IMAGE,
            packages=("python3", "python3-venv", "libgomp1", "libnuma1", "libstdc++6"),
            changes=("ENV PATH=/opt/vllm/bin:/usr/sbin:/usr/bin:/sbin:/bin", 'CMD ["python3"]', "WORKDIR /"),
            disk_gib=16,
            script=(_HERE / "vllm-cpu-image.sh").read_text(),
            stdin=(_HERE / "requirements-vllm-cpu.txt").read_text(),
        ),
    )


def ensure_nginx_image(client: docker.DockerClient, name: str, say: Say) -> None:
    """Ensure that image `name` is an Nginx; like `ensure_vllm_image`, by a pull of 60 MB or a build of one minute.

    With the tag NEWER_SUITE it is built from that release's package.
    """
    _ensure(
        client,
        name,
        say,
        _Image(
            title="Nginx",
            registry_image=NGINX_REGISTRY_IMAGE,
            packages=("nginx",),
            changes=('CMD ["nginx", "-g", "daemon off;"]',),
            disk_gib=1,
            newer=NEWER_SUITE if parse_repository_tag(name)[1] == NEWER_SUITE else "",
        ),
    )


def _ensure(client: docker.DockerClient, name: str, say: Say, image: _Image) -> None:
    try:
        if _is_there(client, name, image):
            return
        if _pull(client, name, image, say):
            return
        with _lock(say) as lock:
            if not _is_there(client, name, image):  # another run may have built it meanwhile
                _build(client, name, image, say, lock)
    except OSError as error:  # requests' errors are OSErrors too
        raise UserError(f"the image {name} can't be made: {error}", "put that right, and run this again") from error
    except DockerException as error:
        fix = "free some disk space" if "no space left" in str(error) else "look at `docker info`"
        raise UserError(f"Docker can't make the image {name}: {error}", f"{fix}, and run this again") from error


def _is_there(client: docker.DockerClient, name: str, image: _Image) -> bool:
    """Return True if `name` was pulled from the registry or built from this exact recipe."""
    try:
        found = client.images.get(name)
    except ImageNotFound:
        return False
    repository, _ = parse_repository_tag(image.registry_image)
    digests: list[str] = found.attrs.get("RepoDigests") or []
    if any(digest.startswith(f"{_familiar(repository)}@") for digest in map(_familiar, digests)):
        return True
    label = found.labels.get(RECIPE)
    # An image from `docker load` has no label of ours: it was given this name in order to be used.
    return label is None or bool(label == image.recipe())


def _familiar(reference: str) -> str:
    """Return the short name of a Docker Hub image: Docker uses short names, Podman full ones."""
    return reference.removeprefix("docker.io/").removeprefix("library/")


# --- pull ---


def _pull(client: docker.DockerClient, name: str, image: _Image, say: Say) -> bool:
    """Pull by digest and tag as `name`; report why and return False if the registry has no answer or no image."""
    repository, tag = parse_repository_tag(image.registry_image)
    registry = repository.split("/")[0]
    if not client.info().get("HttpsProxy") and not _answers(registry):
        say(f"{image.title}: {registry} cannot be reached from here, so the image is built on this machine")
        return False
    try:
        with _time_limit(client, _REGISTRY_SECONDS):
            digest = str(client.images.get_registry_data(f"{repository}:{tag}").id)
        say(f"{image.title}: pulling {repository}@{digest}")
        _show_pull(client.api.pull(repository, tag=digest, stream=True, decode=True), say)
    except (DockerException, OSError) as error:
        if "no space left" in str(error):
            raise
        say(f"{image.title}: {registry} refused ({error}), so the image is built on this machine")
        return False
    client.images.get(f"{repository}@{digest}").tag(*parse_repository_tag(name))
    say(f"{image.title}: {name} is {image.registry_image} at {digest}")
    return True


def _show_pull(events: Iterator[dict[str, Any]], say: Say) -> None:
    """Show the megabytes downloaded and unpacked over all layers. Raises errors that the daemon reports."""
    done: dict[tuple[str, str], int] = {}
    for event in events:
        if "error" in event:
            raise DockerException(event["error"])
        status, detail = event.get("status", ""), event.get("progressDetail") or {}
        if status in {"Downloading", "Extracting"} and "current" in detail:
            done[status, event.get("id", "")] = detail["current"]
        totals = (
            f"{verb.lower()} {sum(n for (s, _), n in done.items() if s == verb) // 10**6} MB"
            for verb in ("Downloading", "Extracting")
        )
        say(", ".join(totals))


@cache
def _answers(registry: str) -> bool:
    """Return True if the registry's host accepts a connection within 3 s; cached for the process."""
    host, _, port = ("registry-1.docker.io" if registry == "docker.io" else registry).partition(":")
    connected = threading.Event()

    def connect() -> None:
        with suppress(OSError), socket.create_connection((host, int(port or 443)), timeout=2):
            connected.set()

    # In a thread, because resolving a name has no time limit.
    thread = threading.Thread(target=connect, daemon=True)
    thread.start()
    thread.join(3)
    return connected.is_set()


@contextmanager
def _time_limit(client: docker.DockerClient, seconds: int) -> Iterator[None]:
    before, client.api.timeout = client.api.timeout, seconds
    try:
        yield
    finally:
        client.api.timeout = before


# --- build ---


@contextmanager
def _lock(say: Say) -> Iterator[IO[str]]:
    """Allow one build at a time on this machine; the lock ends with its last holder, so it is never stale."""
    WORK.mkdir(mode=0o700, parents=True, exist_ok=True)
    with (WORK.parent / "image-build.lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            say("waiting for another image build on this machine")
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield lock


def _build(client: docker.DockerClient, name: str, image: _Image, say: Say, lock: IO[str]) -> None:
    _clean(client)
    _check_disk(client, image)
    try:
        say(f"{image.title}: building {name}")
        labels = {RECIPE: image.recipe(), STAGE: "final" if not image.script else "base"}
        release = Release(image.newer, (f"deb {mirror()} {image.newer} main",)) if image.newer else None
        tarball = build_base(WORK, image.packages, say, lock, release)
        say("importing the base system")
        base = _import(client, tarball, image.changes, labels)
        tarball.unlink()
        if image.script:
            base = _run_script(client, base, image, say)
        client.images.get(base).tag(*parse_repository_tag(name))
    finally:
        _clean(client)


def _clean(client: docker.DockerClient) -> None:
    """Remove the remains of this build and of killed ones, and images that lost their name to a newer one."""
    for container in client.containers.list(all=True, filters={"label": f"{STAGE}=build"}):
        container.remove(force=True, v=True)
    client.images.prune(filters={"dangling": True, "label": STAGE})
    # rm, because it has an option to leave other file systems alone.
    subprocess.run(["rm", "-rf", "--one-file-system", str(WORK)], check=False)
    WORK.mkdir(mode=0o700, parents=True, exist_ok=True)


def _check_disk(client: docker.DockerClient, image: _Image) -> None:
    for path, need in ((Path(client.info().get("DockerRootDir", "/")), image.disk_gib), (WORK, 1)):
        free = shutil.disk_usage(path if path.exists() else "/").free / _GIB
        if free < need:
            raise UserError(
                f"building the image of {image.title} needs {need} GiB at {path}, and {free:.1f} GiB are free",
                "free some space (`docker system df` shows what Docker holds), and run this again",
            )


def _import(client: docker.DockerClient, tarball: Path, changes: tuple[str, ...], labels: Mapping[str, str]) -> str:
    """Stream the root file system into an untagged image and return its id."""
    instructions = [*changes, *(f'LABEL {key}="{value}"' for key, value in labels.items())]
    with tarball.open("rb") as stream:
        answer = client.api.import_image(src=stream, changes=instructions)
    words = answer.replace('"', " ").split()
    identities = [word for word in words if word.startswith("sha256:")]
    if not identities:
        raise DockerException(f"import failed: {answer[-300:]}")
    return str(identities[-1])


def _run_script(client: docker.DockerClient, base: str, image: _Image, say: Say) -> str:
    """Run the image's script in a container of `base` with pip's access to packages; commit; return the id.

    The access is given to the exec and to bind mounts below a tmpfs, never to the container's own
    configuration or file system: those are what a commit keeps.
    """
    access = pip_access(WORK / "pip")
    (WORK / "pip" / "script").write_text(image.script)
    (WORK / "pip" / "stdin").write_text(image.stdin)
    shutil.copy(uv_install.__file__, WORK / "pip" / "uv_install.py")
    container = client.containers.run(
        base,
        ["sleep", "infinity"],
        detach=True,
        labels={STAGE: "build"},
        network_mode="host",
        hostname="build",  # otherwise a commit would record this machine's
        tmpfs={"/tmp": "rw,exec,mode=1777"},  # noqa: S108 - in the container
        # Not `volumes=`: it would enter the configuration of the container, and so of the image.
        mounts=[Mount(inside, host, type="bind", read_only=True) for host, inside in access.mounts.items()],
    )
    try:
        run = ["sh", "-c", f"exec sh {MOUNT}/script <{MOUNT}/stdin 2>&1"]
        started = client.api.exec_create(container.id, run, environment=access.environment)["Id"]
        lines: list[str] = []
        for chunk in client.api.exec_start(started, stream=True):
            lines += chunk.decode(errors="replace").splitlines()
            say(lines[-1] if lines else "")
        if client.api.exec_inspect(started)["ExitCode"]:
            raise _script_failed(lines)
        container.stop(timeout=0)
        say("committing the image (no output for a while)")
        return _commit(client, str(container.id), image)
    finally:
        container.remove(force=True, v=True)


def _commit(client: docker.DockerClient, container: str, image: _Image) -> str:
    labels = (f'LABEL {RECIPE}="{image.recipe()}"', f'LABEL {STAGE}="final"')
    with _time_limit(client, 1800):
        answer = client.api.commit(container, changes=[*image.changes, *labels])
    return str(answer["Id"])


def _script_failed(lines: list[str]) -> UserError:
    last = "\n  ".join(line for line in lines[-8:] if line.strip())
    if any("No space left" in line for line in lines[-20:]):
        return UserError(f"the disk is full:\n  {last}", "free some space, and run this again")
    return UserError(
        f"pip could not install vLLM's packages in the build container:\n  {last}",
        "`pip download --no-deps torch==2.13.0` must get PyPI's build on this machine, whose pip settings are used: "
        "requirements-vllm-cpu.txt has the hashes of no other",
    )

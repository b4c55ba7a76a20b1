"""Nginx from Debian's next release: 1.27.4 or newer, which leaves idle connections open during a reload."""

import tempfile
from pathlib import Path

import docker

from components.errors import UserError
from scripts.lab.base_system import Release, build_base, distribution, mirror

IMAGE = "localhost/elastic-vllm/nginx:forky"
SUITE = "forky"


def image() -> str:
    """Return the image's name and build it if missing; empty where it can't be built, as on Ubuntu."""
    client = docker.from_env(timeout=120)
    if client.images.list(name=IMAGE):
        return IMAGE
    if distribution()[0] != "debian":
        return ""
    with tempfile.TemporaryDirectory() as directory, (Path(directory) / "lock").open("w") as lock:
        try:
            release = Release(SUITE, (f"deb {mirror()} {SUITE} main",))
            tarball = build_base(Path(directory), ["nginx"], lambda _line: None, lock, release)
        except UserError as error:
            print(f"no newer Nginx: {error}")
            return ""
        with tarball.open("rb") as stream:
            client.api.import_image(src=stream, repository=IMAGE.rpartition(":")[0], tag=SUITE)
    return IMAGE

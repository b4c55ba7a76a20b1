"""A real registry of container images (Debian's), on loopback."""

import hashlib
import io
import json
import subprocess
import tarfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import docker
import requests

from scripts.cli import pin
from tests.integration.conftest import installed
from tests.support.local_sshd import free_port

CONFIG = """\
version: 0.1
storage: {{filesystem: {{rootdirectory: {directory}/data}}}}
http: {{addr: "{host}"}}
"""
INDEX_TYPE = "application/vnd.oci.image.index.v1+json"
ANY = {"Accept": pin.MANIFEST_TYPES}


class Registry:
    """A running registry, and methods to push images."""

    def __init__(self, host: str) -> None:
        self.host = host
        self.docker = docker.from_env(timeout=120)

    def push(self, name: str, content: bytes) -> str:
        """Push an image with one file as HOST/NAME and return the digest that the registry reports to Docker."""
        stream = io.BytesIO()
        with tarfile.open(fileobj=stream, mode="w") as tar:
            entry = tarfile.TarInfo("file")
            entry.size = len(content)
            tar.addfile(entry, io.BytesIO(content))
        repository, _, tag = f"{self.host}/{name}".rpartition(":")
        self.docker.api.import_image_from_data(stream.getvalue(), repository, tag)
        events = list(self.docker.api.push(repository, tag, stream=True, decode=True))
        digests = [str(event["aux"]["Digest"]) for event in events if "aux" in event]
        assert digests, events
        self.docker.images.remove(f"{repository}:{tag}")
        return digests[-1]

    def push_index(self, name: str, *digests: str) -> str:
        """Push an index (one image for many platforms) over images of the same repository and return its digest."""
        repository, _, tag = name.rpartition(":")
        platforms = [{"architecture": "amd64", "os": "linux"}, {"architecture": "arm64", "os": "linux"}]
        manifests = []
        for digest, platform in zip(digests, platforms, strict=True):
            found = requests.get(f"http://{self.host}/v2/{repository}/manifests/{digest}", headers=ANY, timeout=10)
            kind = found.headers["Content-Type"]
            manifests.append({"mediaType": kind, "digest": digest, "size": len(found.content), "platform": platform})
        index = json.dumps({"schemaVersion": 2, "mediaType": INDEX_TYPE, "manifests": manifests}).encode()
        url = f"http://{self.host}/v2/{repository}/manifests/{tag}"
        requests.put(url, data=index, headers={"Content-Type": INDEX_TYPE}, timeout=10).raise_for_status()
        return f"sha256:{hashlib.sha256(index).hexdigest()}"


@contextmanager
def running(directory: Path) -> Iterator[Registry]:
    """Run an empty registry until the block ends."""
    installed("docker-registry", "docker-registry")
    host = f"127.0.0.1:{free_port()}"
    (directory / "config.yml").write_text(CONFIG.format(directory=directory, host=host))
    with (directory / "log").open("wb") as log:
        process = subprocess.Popen(["docker-registry", "serve", directory / "config.yml"], stdout=log, stderr=log)
    try:
        _wait_for(host, process)
        yield Registry(host)
    finally:
        process.terminate()
        process.wait(10)


def _wait_for(host: str, process: subprocess.Popen[bytes]) -> None:
    limit = time.monotonic() + 20
    while True:
        try:
            requests.get(f"http://{host}/v2/", timeout=5).raise_for_status()
        except requests.ConnectionError:
            assert process.poll() is None
            assert time.monotonic() < limit
            time.sleep(0.05)
        else:
            return

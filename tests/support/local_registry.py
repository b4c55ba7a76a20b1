"""A real registry of container images (Debian's), on loopback or another address of this machine."""

import base64
import hashlib
import io
import json
import re
import socket
import subprocess
import tarfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from ipaddress import ip_address
from pathlib import Path
from secrets import token_hex

import bcrypt
import docker
import requests
from cryptography import x509

from scripts.cli import pin
from tests.integration.conftest import installed
from tests.support import verify_server
from tests.support.local_sshd import free_port

CONFIG = """\
version: 0.1
storage: {{filesystem: {{rootdirectory: {directory}/data}}}}
http: {{addr: "{host}"}}
"""
SECURE = """\
version: 0.1
storage: {{filesystem: {{rootdirectory: {directory}/data}}}}
http: {{addr: "{host}", tls: {{certificate: {directory}/server.pem, key: {directory}/server.pem}}}}
auth: {{htpasswd: {{realm: registry, path: {directory}/users}}}}
"""
USER, PASSWORD = "pusher", token_hex(16)
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


@dataclass(frozen=True)
class SecureRegistry:
    """A running registry with TLS, whose users log in."""

    host: str
    directory: Path
    ca: Path

    def login(self, file: Path, password: str = PASSWORD) -> Path:
        """Write the file that `docker login` writes."""
        secret = base64.b64encode(f"{USER}:{password}".encode()).decode()
        file.write_text(json.dumps({"auths": {self.host: {"auth": secret}}}))
        return file

    def requests(self, method: str) -> list[str]:
        """Return the paths of the requests by that method that were answered so far."""
        log = (self.directory / "log").read_text()
        return re.findall(rf'"{method} (/v2/\S*) HTTP/[\d.]+" 20\d', log)


@contextmanager
def running(directory: Path, address: str = "127.0.0.1") -> Iterator[Registry]:
    """Run an empty registry until the block ends."""
    host = f"{address}:{free_port()}"
    with _serving(directory, CONFIG, host):
        yield Registry(host)


@contextmanager
def secure(directory: Path, address: str = "127.0.0.2") -> Iterator[SecureRegistry]:
    """Run one with TLS and a login; programs treat 127.0.0.1 as a registry without TLS."""
    authority = verify_server.new_authority()
    verify_server.issue(authority, directory / "server.pem", names=[x509.IPAddress(ip_address(address))])
    (directory / "ca.pem").write_text(authority.pem)
    (directory / "users").write_bytes(f"{USER}:".encode() + bcrypt.hashpw(PASSWORD.encode(), bcrypt.gensalt(4)))
    host = f"{address}:{free_port()}"
    with _serving(directory, SECURE, host):
        yield SecureRegistry(host, directory, directory / "ca.pem")


@contextmanager
def _serving(directory: Path, configuration: str, host: str) -> Iterator[None]:
    installed("docker-registry", "docker-registry")
    (directory / "config.yml").write_text(configuration.format(directory=directory, host=host))
    with (directory / "log").open("wb") as log:
        process = subprocess.Popen(["docker-registry", "serve", directory / "config.yml"], stdout=log, stderr=log)
    try:
        _wait_for(host, process)
        yield
    finally:
        process.terminate()
        process.wait(10)


def _wait_for(host: str, process: subprocess.Popen[bytes]) -> None:
    limit = time.monotonic() + 20
    address, _, port = host.partition(":")
    while True:
        try:
            socket.create_connection((address, int(port)), timeout=5).close()
        except ConnectionError:
            assert process.poll() is None
            assert time.monotonic() < limit
            time.sleep(0.05)
        else:
            return

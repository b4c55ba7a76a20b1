"""The door of vLLM's pods, with a real Nginx: it listens while vLLM does, so a gateway never asks one that is gone."""

import base64
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import docker
import pytest
from docker.models.containers import Container

from components.serving.nginx_config import CONFIG_DIRECTORY, CONTAINER_PORT
from components.serving.vllm_process import SOCKET_DIRECTORY
from tests.support import newer_nginx, vllm_stand_in
from tests.support.netns_machine import wait_until
from tests.support.program import configuration, run

REFUSED = 7
"""curl's exit status for a connection that nobody accepts."""
STREAM = '{"model": "rehearsal/tiny", "messages": [], "stream": true, "max_tokens": 200, "ignore_eos": true}'
GONE_SECONDS = 1
"""Limit for the door to close after vLLM ends: milliseconds, on a machine that is not busy."""


@dataclass(frozen=True)
class Pod:
    """Both containers of a pod, in one network namespace as there."""

    directory: Path
    door: Container
    vllm: Container

    def curl(self, path: str = "/v1/models", *options: str) -> tuple[int, str]:
        """Ask the door as a gateway would, and return curl's exit status and the answer with its HTTP status."""
        self.door.reload()
        url = f"https://127.0.0.1:{CONTAINER_PORT}{path}"
        pair = ("--cert", str(self.directory / "certificate.pem"), "--key", str(self.directory / "private-key.pem"))
        done = subprocess.run(
            [
                "nsenter",
                "--net",
                "--target",
                str(self.network),
                "curl",
                "-sk",
                "-w",
                "%{http_code}",
                *pair,
                url,
                *options,
            ],
            capture_output=True,
            text=True,
            check=False,
        )
        return done.returncode, done.stdout

    def start(self) -> None:
        """Start vLLM, and wait until it answers through the door."""
        self.vllm.start()
        wait_until(self.open, 60)

    @property
    def network(self) -> int:
        """A process in the pod's network namespace: the door's, which stays."""
        return int(self.door.attrs["State"]["Pid"])

    def open(self) -> bool:
        return self.curl()[1].endswith("}200")

    def shut(self) -> bool:
        return self.curl()[0] == REFUSED


def mounted(places: dict[str, tuple[Path, str]]) -> dict[str, dict[str, str]]:
    return {str(path): {"bind": place, "mode": mode} for place, (path, mode) in places.items()}


@pytest.fixture(scope="module")
def images(machine: None) -> Iterator[tuple[str, str]]:
    nginx = newer_nginx.image()
    assert nginx, "no Nginx of 1.27.4 or newer"
    with vllm_stand_in.image() as vllm:
        yield nginx, vllm


@pytest.fixture
def pod(images: tuple[str, str], tmp_path: Path) -> Iterator[Pod]:
    """The two containers, made of what the program declares, the door first and vLLM not yet started."""
    kubeconfig = tmp_path / "kubeconfig"
    kubeconfig.write_text("contexts: []\n")
    registered = run(configuration("k8s", {"kubeconfig": str(kubeconfig)}), stack="k8s").resources
    spec = registered["vllm-pods"].inputs["spec"]["template"]["spec"]
    (declared_door,), (declared_vllm,) = spec["initContainers"], spec["containers"]
    files, socket = tmp_path / "files", tmp_path / "socket"
    (files / "..data").mkdir(parents=True)
    socket.mkdir()
    os.chown(socket, 10001, 10000)
    socket.chmod(0o770)
    secret: dict[str, Any] = registered["vllm-door-files"].inputs["data"].value
    for name, content in secret.items():
        (files / name).write_bytes(base64.b64decode(content))
    make = ["openssl", "req", "-x509", "-nodes", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1"]
    pair = ["-keyout", str(files / "private-key.pem"), "-out", str(files / "certificate.pem")]
    subprocess.run([*make, *pair, "-subj", "/CN=pod"], capture_output=True, check=True)
    shutil.copy(files / "certificate.pem", files / "internal-ca.pem")
    for path in files.iterdir():
        path.chmod(0o755 if path.is_dir() else 0o644)
    client = docker.from_env(timeout=120)

    def create(declared: dict[str, Any], image: str, network: str, places: dict[str, tuple[Path, str]]) -> Container:
        user = int(declared["securityContext"]["runAsUser"])
        return client.containers.create(
            image,
            declared.get("args", []),
            entrypoint=declared["command"],
            environment={each["name"]: each["value"] for each in declared["env"]},
            user=f"{user}:10000",
            read_only=True,
            tmpfs={"/tmp": "mode=1777"},
            network=network,
            volumes=mounted(places),
        )

    door = create(declared_door, images[0], "none", {CONFIG_DIRECTORY: (files, "ro"), SOCKET_DIRECTORY: (socket, "ro")})
    door.start()
    vllm = create(declared_vllm, images[1], f"container:{door.id}", {SOCKET_DIRECTORY: (socket, "rw")})
    try:
        yield Pod(files, door, vllm)
    finally:
        for container in (vllm, door):
            print(container.logs().decode())  # pytest shows it where a test fails
            container.remove(force=True)


def server_of(container: Container) -> int:
    """Return the process id of vLLM's server, which is not the container's first process."""
    listed = subprocess.run(["docker", "top", str(container.id)], capture_output=True, text=True, check=True).stdout
    rows = [line.split(maxsplit=7) for line in listed.splitlines()]
    return max(int(row[1]) for row in rows if row[-1].startswith("python3 -m vllm.entrypoints"))


def test_the_door_is_open_while_vllm_listens_and_no_longer(pod: Pod) -> None:
    assert pod.shut()
    for _ in range(2):  # the second time, a predecessor's socket and pipe are there
        pod.start()
        os.kill(server_of(pod.vllm), signal.SIGKILL)
        wait_until(pod.shut, GONE_SECONDS)
        assert pod.vllm.wait(timeout=30)["StatusCode"] != 0
    pod.door.reload()
    assert (pod.door.status, pod.door.attrs["RestartCount"]) == ("running", 0)


def test_a_stream_ends_by_itself_while_new_connections_are_refused(pod: Pod) -> None:
    pod.start()
    with ThreadPoolExecutor() as threads:
        stream = threads.submit(pod.curl, "/v1/chat/completions", "--data", STREAM)  # of 4 s
        time.sleep(1)
        pod.vllm.kill("SIGTERM")
        wait_until(pod.shut, 5)
        assert not stream.done()
    code, text = stream.result()
    assert (code, text.count("word"), text[-3:]) == (0, 200, "200")
    assert pod.vllm.wait(timeout=30)["StatusCode"] == 0


@pytest.mark.parametrize("up", [False, True])
def test_the_door_ends_when_it_is_told_to(pod: Pod, up: bool) -> None:
    if up:
        pod.start()
    else:
        time.sleep(1)  # a signal to a process that is just starting is lost
    start = time.monotonic()
    pod.door.kill("SIGTERM")
    assert pod.door.wait(timeout=30)["StatusCode"] == 0
    assert time.monotonic() - start < 5

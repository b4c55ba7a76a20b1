"""Pods of target kubernetes in Docker, made of what the program declares: both Nginx are real, and vLLM is a stand-in.

Two containers of a pod share a network namespace, as there. Docker's DNS gives the addresses of all doors for one name,
as a headless Service does, but with those that are not ready.
"""

import base64
import os
import re
import shutil
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import docker
from docker.models.containers import Container
from docker.models.networks import Network

from components.serving.nginx_config import CONFIG_DIRECTORY, CONTAINER_PORT
from components.serving.vllm_process import SOCKET_DIRECTORY, SOCKET_GID, SOCKET_NAME, VLLM_UID
from tests.support.netns_machine import wait_until
from tests.support.program import configuration, run
from tests.support.registered import Registered

REFUSED = 7
"""curl's exit status for a connection that nobody accepts."""


@dataclass(frozen=True)
class Pod:
    """A pod of vLLM."""

    files: Path
    socket: Path
    door: Container
    vllm: Container

    def curl(self, path: str = "/v1/models", *options: str) -> tuple[int, str]:
        """Ask the door as a gateway would, and return curl's exit status and the answer with its HTTP status."""
        self.door.reload()
        url = f"https://127.0.0.1:{CONTAINER_PORT}{path}"
        pair = ("--cert", str(self.files / "certificate.pem"), "--key", str(self.files / "private-key.pem"))
        network = str(self.door.attrs["State"]["Pid"])
        done = subprocess.run(
            ["nsenter", "--net", "--target", network, "curl", "-sk", "-w", "%{http_code}", *pair, url, *options],
            capture_output=True,
            text=True,
            check=False,
        )
        return done.returncode, done.stdout

    def start(self) -> None:
        """Start vLLM, and wait until it answers through the door."""
        self.vllm.start()
        wait_until(self.open, 60)

    def open(self) -> bool:
        return self.curl()[1].endswith("}200")

    def shut(self) -> bool:
        return self.curl()[0] == REFUSED

    def server(self) -> int:
        """Return the process id of vLLM's server, which is not the container's first process."""
        command = ["docker", "top", str(self.vllm.id)]
        listed = subprocess.run(command, capture_output=True, text=True, check=True).stdout
        rows = [line.split(maxsplit=7) for line in listed.splitlines()]
        return max(int(row[1]) for row in rows if row[-1].startswith("python3 -m vllm.entrypoints"))

    def chats(self) -> int:
        """Return the number of chats that vLLM has answered."""
        return self.vllm.logs().decode().count('"POST /v1/chat/completions')


@dataclass(frozen=True)
class Pods:
    """Pods of vLLM behind a gateway."""

    gateway: Container
    each: Sequence[Pod]
    outputs: Mapping[str, Any]
    """Those outputs of the stack that a client needs."""


class Declared:
    """Containers and files as the program declares them for stack k8s."""

    def __init__(self, directory: Path, nginx: str, vllm: str) -> None:
        kubeconfig = directory / "kubeconfig"
        kubeconfig.write_text("contexts: []\n")
        values = {"kubeconfig": str(kubeconfig), "maxRequestsPerMinute": 600_000}
        self._registered = run(configuration("k8s", values), stack="k8s").resources
        self._directory, self._images = directory, {"nginx": nginx, "vllm": vllm}
        self._made: list[Container] = []
        self._pair = directory / "pair"
        self._pair.mkdir()
        names = ",".join(f"DNS:{name}" for name in ("elastic-vllm-k8s-vllm", "localhost"))
        make = ["openssl", "req", "-x509", "-nodes", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1"]
        pair = ["-keyout", str(self._pair / "key"), "-out", str(self._pair / "certificate")]
        subject = ["-subj", "/CN=pod", "-addext", f"subjectAltName={names}"]
        subprocess.run([*make, *pair, *subject], capture_output=True, check=True)

    def _spec(self, name: str) -> dict[str, Any]:
        spec: dict[str, Any] = self._registered[name].inputs["spec"]["template"]["spec"]
        return spec

    def _files(self, secret: Registered, directory: Path) -> Path:
        """Write a Secret's files as kubelet does; one pair is certificate, key and CA of all."""
        (directory / "..data").mkdir(parents=True)
        for name, content in secret.inputs["data"].value.items():
            (directory / name).write_bytes(base64.b64decode(content))
            if name.endswith(".pem"):
                shutil.copy(self._pair / ("key" if "key" in name else "certificate"), directory / name)
        for path in (directory, *directory.iterdir()):
            path.chmod(0o755 if path.is_dir() else 0o644)
        return directory

    def _create(
        self, declared: dict[str, Any], image: str, places: Mapping[str, tuple[Path, str]], **more: Any
    ) -> Container:
        container = docker.from_env(timeout=120).containers.create(
            self._images[image],
            declared.get("args", []),
            entrypoint=declared["command"],
            environment={each["name"]: each["value"] for each in declared["env"]},
            user=f"{int(declared['securityContext']['runAsUser'])}:{SOCKET_GID}",
            read_only=True,
            tmpfs={"/tmp": "mode=1777"},
            volumes={str(path): {"bind": place, "mode": mode} for place, (path, mode) in places.items()},
            **more,
        )
        self._made.append(container)
        return container

    def pod(self, name: str, network: Network | None = None) -> Pod:
        """Create a pod whose door is started and whose vLLM is not; its doors share a name in `network`."""
        spec = self._spec("vllm-pods")
        files = self._files(self._registered["vllm-door-files"], self._directory / name / "files")
        socket = self._directory / name / "socket"
        socket.mkdir()
        os.chown(socket, VLLM_UID, SOCKET_GID)
        socket.chmod(0o770)
        places = {CONFIG_DIRECTORY: (files, "ro"), SOCKET_DIRECTORY: (socket, "ro")}
        where: dict[str, Any] = {"network": "none"}
        if network:
            aliased = docker.from_env().api.create_endpoint_config(aliases=[f"{self._doors()}.svc.cluster.local"])
            where = {"network": network.name, "networking_config": {str(network.name): aliased}}
        door = self._create(spec["initContainers"][0], "nginx", places, **where)
        door.start()
        socket_of_vllm = {SOCKET_DIRECTORY: (socket, "rw")}
        vllm = self._create(spec["containers"][0], "vllm", socket_of_vllm, network=f"container:{door.id}")
        return Pod(files, socket / SOCKET_NAME, door, vllm)

    def _doors(self) -> str:
        (gateway,) = self._spec("gateway-pods")["containers"]
        return str({each["name"]: each["value"] for each in gateway["env"]}["DOORS"])

    def pods(self, number: int, network: Network) -> Pods:
        """Start so many pods, and a gateway that has them all."""
        each = [self.pod(f"pod-{index}", network) for index in range(number)]
        for pod in each:
            pod.start()
        (declared,) = self._spec("gateway-pods")["containers"]
        files = self._files(self._registered["gateway-files"], self._directory / "gateway")
        places = {CONFIG_DIRECTORY: (files, "ro")}
        ports = {f"{CONTAINER_PORT}/tcp": ("127.0.0.1", None)}
        gateway = self._create(declared, "nginx", places, network=network.name, ports=ports)
        gateway.start()
        wait_until(lambda: b"elastic-vllm: loaded" in gateway.logs())
        gateway.reload()
        (binding,) = gateway.ports[f"{CONTAINER_PORT}/tcp"] or []
        key = re.search(r"[0-9a-f]{64}", (files / "keys.conf").read_text())
        assert key
        outputs = {
            "connectorUrl": f"https://localhost:{binding['HostPort']}/v1/chat/completions",
            "connectorApiKey": key[0],
            "caCertificate": (self._pair / "certificate").read_text(),
            "servedModelName": "rehearsal/tiny",
        }
        return Pods(gateway, each, outputs)

    def remove(self) -> None:
        for container in reversed(self._made):
            print(container.logs().decode()[-5000:])  # pytest shows it where a test fails
            container.remove(force=True)


@contextmanager
def declared(directory: Path, nginx: str, vllm: str) -> Iterator[Declared]:
    """Yield what makes pods of these images, and remove them at the end."""
    pods = Declared(directory, nginx, vllm)
    try:
        yield pods
    finally:
        pods.remove()

"""A stack on a separate server: a Debian booted by systemd, whose Docker and packet filter tests may change.

The program runs in the namespaces beside it, as an engineer's machine would. A small image stands for vLLM.
"""

import json
import shlex
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.integration.conftest import ROOT
from tests.support import debian_roots, netns_hosts, vllm_stand_in
from tests.support.made_stacks import MODEL, NGINX_IMAGE, make_weights, stack_file
from tests.support.netns_hosts import Hosts
from tests.support.netns_machine import outcomes

STACK = "served"
PREFIX = f"elastic-vllm-{STACK}"
MODELS = "/var/lib/models"
DAEMON_JSON = "/etc/docker/daemon.json"
DOCKER_SECONDS = 60
# Prints the arguments HOST:PORT that a TCP connection could be opened to.
OPEN_TCP = """
for target in "$@"; do
  timeout 0.9 bash -c "exec 3<>/dev/tcp/${target%:*}/${target##*:}" 2>/dev/null && echo "$target" &
done
wait"""


@dataclass
class Server:
    """The server, and the stack on it; `settings` are those of its stack file."""

    hosts: Hosts
    file: Path
    images: Path
    """Archive of the stack's images, written by `docker save`."""
    settings: dict[str, Any] = field(default_factory=dict)
    environment: Mapping[str, str] = field(default_factory=dict)
    """Environment variables of the commands on the stack."""

    def shell(self, script: str) -> str:
        """Run a script of bash on the server, which must succeed."""
        return self.hosts.server.shell(script)

    def rehearse(self, *arguments: str) -> tuple[int, str]:
        """Run a command on the stack and return its exit code and output."""
        program = ROOT / "scripts" / "rehearse"
        return self.hosts.control.attempt(program, *arguments, "--stack", STACK, environment=self.environment)

    def up(self, *arguments: str) -> dict[str, str]:
        """Run `up`, which must succeed, and map each resource to created, unchanged, ..."""
        code, output = self.rehearse("up", *arguments)
        assert code == 0, output
        return outcomes(output)

    def refused(self, *arguments: str) -> str:
        """Run an `up` that must fail with one message, and return its output."""
        code, output = self.rehearse("up", *arguments)
        assert code == 1, output
        assert output.count("error:") == 1, output
        return output

    def verify(self) -> str:
        """The report of its checks, which must all pass."""
        code, output = self.rehearse("verify")
        assert code == 0, output
        return output

    def snapshot(self) -> dict[str, str]:
        """Files, packages, units, rules, containers and networks of the server."""
        return {
            "files": self.shell(
                "find /etc /var/lib/elastic-vllm /usr/local -printf '%p %m %U %s %T@\n' 2>/dev/null; true"
            ),
            "packages": self.shell("dpkg-query --show"),
            "units": self.shell("systemctl list-unit-files --no-legend --no-pager"),
            "running": self.shell(
                "systemctl list-units --no-legend --no-pager --plain --type service,timer,socket "
                "| grep -v ^user | cut -c 1-60"  # a login's own
            ),
            "rules": self.shell(
                "nft -s list ruleset; iptables-legacy-save 2>&1 | grep -v '^#'; ip rule; ip -brief link"
            ),
            "containers": self.shell(
                "[ ! -S /run/docker.sock ] || for kind in ps container image volume network; do "
                'docker "$kind" ls --all --quiet --no-trunc 2>&1; done; true'
            ),
        }

    def down(self) -> None:
        code, output = self.rehearse("down")
        assert code == 0, output

    @contextmanager
    def stream(self, tokens: int) -> Iterator[Callable[[], list[str]]]:
        """A streamed answer under way; afterwards its lines can be had."""
        outputs = self.outputs()
        secret = self.hosts.directory / "curl"
        secret.write_text(f'header = "Authorization: Bearer {outputs["connectorApiKey"]}"\n')
        body = {"model": MODEL, "stream": True, "max_tokens": tokens, "ignore_eos": True, "messages": []}
        command = ["curl", "-skN", "--config", str(secret), "--json", json.dumps(body), outputs["connectorUrl"]]
        client = self.hosts.control.start(*command)
        time.sleep(1)
        yield lambda: [line for line in client.communicate(timeout=60)[0].splitlines() if line]

    def outputs(self) -> dict[str, Any]:
        """The stack's outputs, secrets in clear."""
        code, output = self.rehearse("outputs", "--json", "--show-secrets")
        assert code == 0, output
        return dict(json.loads(output))

    def configure_docker(self, daemon: Mapping[str, object], *, load: bool = False) -> None:
        """Restart Docker with this daemon.json; `load` loads the images again, for a changed data directory."""
        self.hosts.server.run(
            "bash", "-c", f"mkdir -p /etc/docker && printf %s {shlex.quote(json.dumps(daemon))} >{DAEMON_JSON}"
        )
        self.shell("systemctl reset-failed docker; systemctl restart docker")
        if load:
            self.load_images()

    def load_images(self) -> None:
        with self.images.open("rb") as packed:
            subprocess.run(
                [*self.hosts.server.enter, "docker", "load"], stdin=packed, stdout=subprocess.DEVNULL, check=True
            )

    def inspect(self, role: str) -> dict[str, Any]:
        """Return the container as Docker describes it."""
        (found,) = json.loads(self.hosts.server.run("docker", "inspect", f"{PREFIX}-{role}"))
        return dict(found)

    def wait_for_nginx(self) -> None:
        """Wait until Nginx answers its health check again; vLLM may need longer."""
        limit = time.monotonic() + DOCKER_SECONDS
        ask = [
            "curl",
            "-sk",
            "--max-time",
            "2",
            "-o",
            "/dev/null",
            f"https://127.0.0.1:{self.settings['httpsPort']}/healthz",
        ]
        while self.hosts.server.attempt(*ask)[0] != 0:
            assert time.monotonic() < limit, self.shell(f"docker ps -a; docker logs {PREFIX}-nginx")
            time.sleep(0.2)

    def opened_by_nginx(self, *targets: str) -> set[str]:
        """Return the targets HOST:PORT that a process in Nginx's container can connect to."""
        return set(
            self.hosts.server.run(
                "docker", "exec", f"{PREFIX}-nginx", "bash", "-c", OPEN_TCP, "probe", *targets
            ).split()
        )


def save_images(file: Path) -> None:
    """Write the stack's images to a file, out of this machine's Docker."""
    with vllm_stand_in.small_image(debian_roots.root()) as image:
        subprocess.run(["docker", "save", "--output", file, image, NGINX_IMAGE], check=True)


@contextmanager
def running(*packages: str, of: str = "") -> Iterator[Server]:
    """Run the server until the block ends, with Docker, these packages, and a stack that is not up yet.

    `of` is its release, one of debian_roots.RELEASES; empty for this machine's.
    """
    with ExitStack() as closing:
        wanted = (*debian_roots.docker(of), *packages)
        hosts = closing.enter_context(netns_hosts.running(*wanted, of=of))
        images = hosts.directory / "images.tar"
        save_images(images)
        make_weights(hosts.files(MODELS))
        settings = {
            **hosts.settings,
            "accelerator": "none",
            "vllmImage": vllm_stand_in.SMALL_IMAGE,
            "nginxImage": NGINX_IMAGE,
            "model": MODEL,
            "weightsGb": 1,
            "modelSource": "host",
            "weightsDirectory": MODELS,
            "httpsPort": 443,
        }
        file = closing.enter_context(stack_file(STACK, settings))
        server = Server(hosts, file, images, settings)
        server.load_images()
        yield server

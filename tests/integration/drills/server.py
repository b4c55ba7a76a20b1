"""A server that a drill may break in any way: separate processes, files, network and Docker, in namespaces.

Clients reach it from this machine over a virtual cable (veth), as they would from elsewhere. There is no systemd: this
module does what its units do at boot and when dockerd dies.
"""

import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import docker
import yaml
from docker.models.containers import Container

from tests.integration.conftest import REHEARSAL, ROOT
from tests.support.netns_machine import INIT, wait_until

DISKS = Path("/var/lib")  # not /tmp: Docker's layers are hard links to those of this machine
IMAGES = Path("/var/lib/docker")
MODELS = Path("/var/lib/elastic-vllm/models")
HTTPS_PORT = 8443
DOCKERD_RESTART_SECONDS = 2  # RestartSec of docker.service

# $1: the server's disk. The server's own directories are bound over this machine's; the rest is shared.
MOUNTS = """
set -e
bind() { mkdir -p "$1" "$2"; mount --rbind "$1" "$2"; }
[ ! -d {models} ] || bind {models} "$1/lib/models"
bind "$1/rehearsal" {rehearsal}
bind "$1/docker" /var/lib/docker
bind "$1/lib" /var/lib/elastic-vllm
bind "$1/etc" /etc/elastic-vllm
bind "$1/etc-docker" /etc/docker
bind "$1/logrotate" /etc/logrotate.d
mkdir -p /var/log/elastic-vllm
# A small disk, which is soon full.
[ -e "$1/logs.img" ] || { truncate -s 16M "$1/logs.img"; mkfs.ext4 -q -m 0 "$1/logs.img"; }
mount -o loop "$1/logs.img" /var/log/elastic-vllm
mount -t tmpfs run /run
mkdir -p /run/sshd /run/lock
exec "$2" -c "$3"
"""
# As the units that `up` installs, and docker.service with Restart=always.
SERVICES = """
ip link set lo up
for rules in /etc/elastic-vllm/*.nft; do [ ! -e "$rules" ] || nft -f "$rules"; done
while :; do
  dockerd --pidfile /run/dockerd.pid >>"$1/dockerd.log" 2>&1
  sleep {seconds}
done
"""

# $1: Docker's layers, $2: target directory, then their names. Docker has mounted that directory over itself, and links
# between mounts are impossible, so the script goes through a mount of the whole disk.
LINK = """
set -e
mount --bind / /mnt
from=$1 to=$2
shift 2
for layer; do
  mkdir "/mnt$to/$layer"
  for part in diff link lower committed; do
    [ ! -e "/mnt$from/$layer/$part" ] || cp -al "/mnt$from/$layer/$part" "/mnt$to/$layer/"
  done
done
"""


@dataclass
class Server:
    """A server that is off until `boot`. Its disk, `directory`, outlives `power_off`."""

    stack: str
    directory: Path
    number: int
    """Number of its network, 10.211.NUMBER.0/30."""
    pid: int = 0
    _init: subprocess.Popen[str] | None = None

    @property
    def address(self) -> str:
        return f"10.211.{self.number}.2"

    @property
    def network(self) -> str:
        return f"10.211.{self.number}.0/30"

    @property
    def enter(self) -> list[str]:
        return ["nsenter", "--target", str(self.pid), "--mount", "--pid", "--net", "--"]

    @property
    def docker(self) -> docker.DockerClient:
        files = Path("/proc", str(self.pid), "root")  # as the server sees them
        return docker.DockerClient(base_url=f"unix://{files}/run/docker.sock", timeout=120)

    def container(self, role: str) -> Container:
        """Return the container with this role, vllm or nginx."""
        return self.docker.containers.get(f"elastic-vllm-{self.stack}-{role}")

    def boot(self) -> None:
        """Power the server on: mounts, cable, packet filters, Docker, and sshd if it ran before."""
        for name in ("rehearsal", "docker", "lib", "etc", "etc-docker", "logrotate"):
            (self.directory / name).mkdir(exist_ok=True, mode=0o755)
        # As keep-containers.sh leaves it where `up` installs Docker.
        (self.directory / "etc-docker" / "daemon.json").write_text('{"live-restore": true}')
        REHEARSAL.mkdir(mode=0o700, exist_ok=True)
        apart = ["unshare", "--mount", "--pid", "--net", "--fork", "--kill-child", "--mount-proc"]
        script = MOUNTS.replace("{models}", str(MODELS)).replace("{rehearsal}", str(REHEARSAL))
        command = [*apart, "sh", "-c", script, "sh", str(self.directory), sys.executable, INIT]
        self._init = subprocess.Popen(["setpriv", "--pdeathsig", "KILL", *command], stdout=subprocess.PIPE, text=True)
        assert self._init.stdout
        assert self._init.stdout.readline() == "ready\n"
        children = Path(f"/proc/{self._init.pid}/task/{self._init.pid}/children").read_text().split()
        self.pid = int(children[0])
        self._connect()
        services = SERVICES.replace("{seconds}", str(DOCKERD_RESTART_SECONDS))
        subprocess.Popen([*self.enter, "sh", "-c", services, "sh", str(self.directory)])
        config = REHEARSAL / "ssh" / "sshd_config"
        self.shell(f"[ ! -e {config} ] || {{ rm -f {config.parent}/sshd.pid; /usr/sbin/sshd -f {config}; }}")

    def power_off(self) -> None:
        """Pull the plug: every process ends at the same moment, and unsaved data is lost."""
        if self._init:
            subprocess.run(["kill", "-9", str(self.pid)], check=False)
            self._init.wait(60)
            self._init = None
        subprocess.run(["ip", "link", "delete", f"drill{self.number}"], capture_output=True, check=False)

    def wait_for_docker(self, seconds: float = 60) -> None:
        wait_until(self._docker_answers, seconds)

    def _docker_answers(self) -> bool:
        return self.run("docker", "version").returncode == 0

    def _connect(self) -> None:
        """Connect this machine and the server by a cable."""
        cable, net = f"drill{self.number}", f"10.211.{self.number}"
        subprocess.run(["ip", "link", "delete", cable], capture_output=True, check=False)
        for line in (
            f"link add {cable} type veth peer name eth0 netns {self.pid}",
            f"address add {net}.1/30 dev {cable}",
            f"link set {cable} up",
        ):
            subprocess.run(["ip", *line.split()], check=True)
        self.shell(f"ip address add {net}.2/30 dev eth0; ip link set eth0 up; ip route add default via {net}.1")

    def run(self, *command: str) -> subprocess.CompletedProcess[str]:
        """Run a command on the server."""
        return subprocess.run([*self.enter, *command], capture_output=True, text=True, timeout=900, check=False)

    def shell(self, script: str) -> str:
        """Run a script on the server, which must succeed, and return its output."""
        done = self.run("sh", "-ec", script)
        assert done.returncode == 0, f"{script}\n{done.stdout}\n{done.stderr}"
        return done.stdout

    def start(self, *command: str) -> subprocess.Popen[bytes]:
        """Start a command that runs in the background until `end`."""
        return subprocess.Popen([*self.enter, *command], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)

    def end(self, process: subprocess.Popen[bytes]) -> None:
        """End a command that `start` has started."""
        # nsenter only waits for it.
        for child in Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split():
            subprocess.run(["kill", "-9", child], check=False)
        process.kill()
        process.wait(10)

    def rehearse(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Run `scripts/rehearse ARGUMENTS --stack STACK`."""
        return self.run("env", "TERM=dumb", str(ROOT / "scripts" / "rehearse"), *arguments, "--stack", self.stack)

    def up(self, *arguments: str) -> str:
        """Run `up`, which must succeed, and return its output."""
        done = self.rehearse("up", *arguments)
        assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
        return done.stdout


def carry_images(directory: Path) -> None:
    """Link this machine's Docker images into the Docker of a server that is off, instead of copying them.

    This needs Docker's overlay2 storage, as on all machines that run tests.
    """
    layers, kept = directory / "docker" / "overlay2", directory / "docker" / "image"
    (layers / "l").mkdir(parents=True)
    shutil.copytree(IMAGES / "image", kept, ignore=shutil.ignore_patterns("mounts"))
    names = [name.read_text() for name in kept.glob("overlay2/layerdb/sha256/*/cache-id")]
    done = subprocess.run(
        ["unshare", "--mount", "sh", "-c", LINK, "sh", IMAGES / "overlay2", layers, *names],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-1000:]
    for name in names:
        (layers / "l" / (layers / name / "link").read_text()).symlink_to(f"../{name}/diff")


@contextmanager
def running(stack: str, settings: Mapping[str, Any]) -> Iterator[Server]:
    """Yield a booted server and write the file of a stack for it, which is not up yet; both are removed at the end."""
    directory = Path(tempfile.mkdtemp(prefix="elastic-vllm-drills-", dir=DISKS))
    directory.chmod(0o755)
    server = Server(stack, directory, os.getpid() % 250)
    path = ROOT / "stacks" / f"Pulumi.{stack}.yaml"
    all_settings = {
        "host": "127.0.0.1",
        "sshPort": 22022,
        "sshPrivateKeyPath": str(REHEARSAL / "ssh" / "id_ed25519"),
        "sshHostKey": str(REHEARSAL / "ssh" / "ssh_host_ed25519_key.pub"),
        "endpointHost": server.address,
        "httpsPort": HTTPS_PORT,
        "accelerator": "none",
        **settings,
    }
    path.write_text(yaml.safe_dump({"config": {f"elastic-vllm:{key}": each for key, each in all_settings.items()}}))
    # While the server is off, no other machine may answer at its address.
    subprocess.run(["ip", *f"route replace unreachable {server.network} metric 4000".split()], check=True)
    try:
        carry_images(directory)
        server.boot()
        server.wait_for_docker()
        yield server
    finally:
        path.unlink()
        server.power_off()
        subprocess.run(["ip", *f"route delete unreachable {server.network} metric 4000".split()], check=False)
        _remove(directory)


def _remove(directory: Path) -> None:
    """Remove the server's disk once its last process and mount are gone."""
    limit = time.monotonic() + 60
    while directory.exists():
        with suppress(OSError):
            shutil.rmtree(directory)
        assert time.monotonic() < limit, f"{directory} can't be removed"

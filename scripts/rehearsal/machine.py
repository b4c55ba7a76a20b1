"""This machine as the target host: packages, dockerd, a private sshd on a loopback port, images, the tiny model."""

import fcntl
import os
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import docker
import requests

from scripts.rehearsal import RehearsalError, processes
from scripts.rehearsal.config import StackConfig
from scripts.rehearsal.display import Display, Task
from scripts.rehearsal.packages import install_missing
from scripts.rehearsal.ssh_keys import write_keys
from scripts.rehearsal.state import ROOT, State, is_locked

DOCKER_SOCKET = Path("/var/run/docker.sock")
START_SECONDS = 60
LOOPBACK = "127.0.0.1"
SESSION_MARK = "ELASTIC_VLLM_REHEARSAL=session"

SSHD_CONFIG = """\
# The rehearsal's own sshd; scripts/rehearse writes and removes it.
Port {port}
ListenAddress 127.0.0.1
HostKey {ssh}/ssh_host_ed25519_key
AuthorizedKeysFile {ssh}/authorized_keys
PidFile {ssh}/sshd.pid
PermitRootLogin prohibit-password
AllowUsers root
PubkeyAuthentication yes
PasswordAuthentication no
KbdInteractiveAuthentication no
UsePAM {pam}
PrintMotd no
X11Forwarding no
UseDNS no
MaxStartups 100
MaxSessions 100
SetEnv {mark}
"""


def require_root() -> None:
    """Raises RehearsalError unless this process is root's."""
    if os.geteuid() != 0:
        raise RehearsalError("the rehearsal needs root (packages, dockerd, sshd): run it with sudo")


def is_private(config: StackConfig) -> bool:
    """Whether the stack's host is the sshd that the rehearsal runs itself; else it is a real host."""
    key = str(config.get("sshPrivateKeyPath") or "")
    return config.get("host") in {LOOPBACK, "localhost"} and Path(key).is_relative_to(ROOT)


def set_up(config: StackConfig, state: State, display: Display) -> None:
    """All that the stack finds on its host. Each step is quick when it was done before.

    Raises RehearsalError or SetupError with cause and fix.
    """
    ssh_port = int(config.get("sshPort") or 22)
    with _machine_lock(), display.task("packages", "set-up") as task:
        installed = install_missing(task.say, need_docker=not _docker_answers(), log=ROOT / "apt.log")
        if installed:
            state.kept[f"packages {' '.join(installed)}"] = f"apt-get remove {' '.join(installed)}"
            state.save()
    start_daemons(ssh_port, display)
    state.ssh_port = ssh_port
    state.save()
    # These bring the larger libraries along, and only a private host needs them.
    from scripts.rehearsal.images import ensure_nginx_image, ensure_vllm_image  # noqa: PLC0415

    client = docker.DockerClient(base_url=f"unix://{DOCKER_SOCKET}", timeout=600)
    with _machine_lock():
        for key, ensure in (("nginxImage", ensure_nginx_image), ("vllmImage", ensure_vllm_image)):
            image = str(config.get(key) or "")
            if image.startswith("localhost/"):
                state.kept[f"image {image}"] = f"docker image rm {image}"
                state.save()
                with display.task(f"image {image.removeprefix('localhost/')}", "set-up") as task:
                    ensure(client, image, task.say)
        model = str(config.get("model") or "")
        if config.get("modelSource") == "host" and model.startswith("rehearsal/"):
            from scripts.rehearsal.tiny_models import ensure_tiny_model  # noqa: PLC0415

            directory = Path(str(config.get("weightsDirectory"))) / model.replace("/", "--")
            with display.task(f"model {model}", "set-up") as task:
                ensure_tiny_model(client, str(config.get("vllmImage")), model, directory, task.say)


def start_daemons(ssh_port: int, display: Display) -> None:
    """See to it that dockerd and the private sshd run."""
    with _machine_lock():
        with display.task("dockerd", "set-up") as task:
            _start_dockerd(task)
        with display.task("sshd", "set-up"):
            write_keys(ROOT / "ssh")
            _start_sshd(ssh_port)


def end_sessions(stack: str) -> None:
    """End the commands that a run which was cut off left running, unless another stack runs some just now."""
    if not _others(stack, running_only=True):
        processes.end(processes.marked(SESSION_MARK), 10)


def tear_down(stack: str, display: Display) -> None:
    """Once no other stack needs them: end our sshd and dockerd, remove keys and logs."""
    with _machine_lock():
        if _others(stack):
            return
        if _sshd_pid():
            with display.task("sshd", "set-up") as task:
                _stop_sshd()
                processes.end(processes.marked(SESSION_MARK), 10)
                task.outcome = "ended"
        pid = processes.pid_of(_dockerd_pid_file(), "dockerd", str(_dockerd_pid_file()))
        if pid:
            with display.task("dockerd", "set-up") as task:
                processes.end([pid], START_SECONDS)
                task.outcome = "ended"
        elif _systemd_marker().exists():
            subprocess.run(["systemctl", "stop", "docker.socket", "docker.service"], check=False)
        shutil.rmtree(ROOT, ignore_errors=True)


def is_set_up() -> bool:
    """Whether anything of ours runs or lies on this machine."""
    return (ROOT / "ssh").exists() or _dockerd_pid_file().exists()


@contextmanager
def _machine_lock() -> Iterator[None]:
    """Stacks that start at the same time set the machine up one after the other."""
    ROOT.mkdir(parents=True, exist_ok=True, mode=0o700)
    with (ROOT / "machine.lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _others(stack: str, *, running_only: bool = False) -> list[str]:
    names = [path.name for path in ROOT.glob("stacks/*") if path.name != stack]
    return [
        name
        for name in names
        if is_locked(ROOT, name) or (not running_only and (ROOT / "stacks" / name / "state.json").exists())
    ]


# --- dockerd


def _dockerd_pid_file() -> Path:
    return ROOT / "dockerd.pid"


def _systemd_marker() -> Path:
    return ROOT / "docker-started-with-systemctl"


def _docker_answers() -> bool:
    if not DOCKER_SOCKET.exists():
        return False
    try:
        return bool(docker.DockerClient(base_url=f"unix://{DOCKER_SOCKET}", timeout=10).ping())
    except (docker.errors.DockerException, requests.RequestException):
        return False


def _start_dockerd(task: Task) -> None:
    if _docker_answers():
        return
    task.outcome = "started"
    if Path("/run/systemd/system").exists():
        subprocess.run(["systemctl", "daemon-reload"], check=False)
        done = subprocess.run(["systemctl", "start", "docker"], capture_output=True, text=True, check=False)
        if done.returncode != 0:
            raise RehearsalError(f"systemctl start docker: {done.stderr.strip()}; see `journalctl -u docker`")
        _systemd_marker().touch()
    elif processes.pid_of(_dockerd_pid_file(), "dockerd", str(_dockerd_pid_file())) is None:
        _dockerd_pid_file().unlink(missing_ok=True)
        with (ROOT / "dockerd.log").open("wb") as log:
            subprocess.Popen(
                ["dockerd", f"--pidfile={_dockerd_pid_file()}"],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # it outlives this process, until `down`
            )
    end = time.monotonic() + START_SECONDS
    while not _docker_answers():
        if time.monotonic() > end:
            log_file = ROOT / "dockerd.log"
            lines = log_file.read_text(errors="replace").splitlines()[-10:] if log_file.exists() else []
            raise RehearsalError(
                f"dockerd doesn't answer at {DOCKER_SOCKET} after {START_SECONDS} s; its last lines ({log_file}):\n"
                + "\n".join(lines)
            )
        time.sleep(0.2)


# --- sshd


def _sshd_pid() -> int | None:
    return processes.pid_of(ROOT / "ssh" / "sshd.pid", "sshd", str(ROOT / "ssh" / "sshd_config"))


def _start_sshd(port: int) -> None:
    ssh = ROOT / "ssh"
    config, wanted = ssh / "sshd_config", SSHD_CONFIG.format(port=port, ssh=ssh, pam=_pam(), mark=SESSION_MARK)
    if _sshd_pid() and config.exists() and config.read_text() == wanted:
        return
    _stop_sshd()
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((LOOPBACK, port))
        except OSError as error:
            raise RehearsalError(
                f"port {port} for the rehearsal's sshd is taken by {processes.listener(port)}: end it, or choose "
                "another port with --set sshPort=PORT"
            ) from error
    config.write_text(wanted)
    Path("/run/sshd").mkdir(mode=0o755, exist_ok=True)
    sshd = shutil.which("sshd") or "/usr/sbin/sshd"
    done = subprocess.run([sshd, "-f", config, "-E", ssh / "sshd.log"], capture_output=True, text=True, check=False)
    if done.returncode != 0:
        said = done.stderr.strip() or (ssh / "sshd.log").read_text(errors="replace")[-500:]
        raise RehearsalError(f"the rehearsal's sshd doesn't start: {said}")
    end = time.monotonic() + START_SECONDS
    while _sshd_pid() is None:  # it has its port by now, and writes its pid a moment later
        if time.monotonic() > end:
            raise RehearsalError(f"the rehearsal's sshd ended at once; see {ssh / 'sshd.log'}")
        time.sleep(0.05)


def _stop_sshd() -> None:
    pid = _sshd_pid()
    if pid:
        processes.end([pid], 10)
    (ROOT / "ssh" / "sshd.pid").unlink(missing_ok=True)


def _pam() -> str:
    """Without PAM sshd refuses a locked root (Ubuntu); with it, it may need more than a container has."""
    try:
        entries = Path("/etc/shadow").read_text().splitlines()
    except OSError:
        return "no"
    return "yes" if any(entry.startswith("root:!") for entry in entries) else "no"

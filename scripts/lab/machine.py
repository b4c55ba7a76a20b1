"""This machine as the target host: packages, dockerd, a private sshd on a loopback port, images, the tiny model."""

import fcntl
import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import docker
import requests

from components.errors import UserError
from scripts.lab import podman, processes
from scripts.lab.emulator.state import ROOT, State, is_locked
from scripts.lab.packages import install_missing
from scripts.lab.ssh_keys import write_keys
from scripts.lib.ports import LOOPBACK, is_taken, listener
from scripts.lib.progress import Display, Task
from scripts.lib.stack_config import StackConfig

DOCKER_SOCKET = Path("/var/run/docker.sock")
START_SECONDS = 60
SESSION_MARK = "ELASTIC_VLLM_REHEARSAL=session"
NO_BASHRC = "SHLVL=1"
"""Value in a session's environment that keeps bash from reading ~/.bashrc: programs in there (pyenv, conda) take longer
than most commands, and no server has them."""

SSHD_CONFIG = """\
# An sshd of the rehearsal's own; scripts/rehearse writes and removes it.
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
Subsystem sftp internal-sftp
MaxStartups 100
MaxSessions 100
SetEnv {environment}
"""


def require_root() -> None:
    """Raise UserError unless this process runs as root."""
    if os.geteuid() != 0:
        raise UserError("the rehearsal needs root (packages, dockerd, sshd)", "run it with sudo")


def is_private(config: StackConfig) -> bool:
    """Return True if the stack's host is the sshd that the rehearsal runs itself, False for a real host."""
    key = str(config.get("sshPrivateKeyPath") or "")
    return config.get("host") in {LOOPBACK, "localhost"} and Path(key).is_relative_to(ROOT)


def set_up(config: StackConfig, state: State, display: Display) -> None:
    """Prepare the host for the stack. Each step is quick if it was done before.

    `ssh_port` is 0 if the stack creates its host itself. Raises UserError.
    """
    ssh_port = int(config.get("sshPort")) if is_private(config) else 0
    with _machine_lock(), display.task("packages", "set-up") as task:
        with_podman = podman.is_wanted(config)
        installed = install_missing(
            task.say, need_docker=not _docker_answers(), need_podman=with_podman, log=ROOT / "apt.log"
        )
        if installed:
            state.kept[f"packages {' '.join(installed)}"] = f"apt-get remove {' '.join(installed)}"
            state.save()
    start_daemons(ssh_port, display, with_podman=with_podman)
    state.on_this_machine, state.ssh_port = True, ssh_port
    state.save()
    # These modules import the larger libraries, and only a private host needs them.
    from scripts.lab.images import ensure_nginx_image, ensure_vllm_image  # noqa: PLC0415

    client = docker.DockerClient(base_url=f"unix://{DOCKER_SOCKET}", timeout=600)
    with _machine_lock():
        for key, ensure in (("nginxImage", ensure_nginx_image), ("vllmImage", ensure_vllm_image)):
            image = str(config.get(key) or "")
            if image.startswith("localhost/"):
                state.kept[f"image {image}"] = f"docker image rm {image}"
                state.save()
                with display.task(f"image {image.removeprefix('localhost/')}", "set-up") as task:
                    ensure(client, image, task.say)
                    if with_podman:
                        state.kept[f"image {image} in Podman"] = f"podman image rm {image}"
                        state.save()
                        podman.take_image(client, image, task)
        model = str(config.get("model") or "")
        if model.startswith("rehearsal/"):
            from scripts.lab.tiny_models import MODELS, ensure_tiny_model  # noqa: PLC0415

            weights = Path(str(config.get("weightsDirectory"))) if config.get("modelSource") == "host" else MODELS
            directory = weights / model.replace("/", "--")
            with display.task(f"model {model}", "set-up") as task:
                ensure_tiny_model(client, str(config.get("vllmImage")), model, directory, task.say)


def start_daemons(ssh_port: int, display: Display, *, with_podman: bool) -> None:
    """Start dockerd, Podman's API if asked for, and the private sshd if it has a port, unless they run."""
    with _machine_lock():
        with display.task("dockerd", "set-up") as task:
            _start_dockerd(task)
        if with_podman:
            with display.task("podman", "set-up") as task:
                podman.start(task)
        if not ssh_port:
            return
        with display.task("sshd", "set-up"):
            write_keys(ROOT / "ssh")
            start_sshd(ROOT / "ssh", ssh_port)


def end_sessions(stack: str) -> None:
    """End commands left over from an interrupted run, unless another stack is running commands now."""
    if not _others(stack, running_only=True):
        processes.end(processes.marked(SESSION_MARK), 10)


def tear_down(stack: str, display: Display) -> None:
    """Stop our sshd and dockerd and remove keys and logs, once no other stack needs them."""
    with _machine_lock():
        if _others(stack):
            return
        if _sshd_pid(ROOT / "ssh"):
            with display.task("sshd", "set-up") as task:
                stop_sshd(ROOT / "ssh")
                processes.end(processes.marked(SESSION_MARK), 10)
                task.outcome = "ended"
        if podman.is_running():
            with display.task("podman", "set-up") as task:
                podman.stop()
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
    """Return True if any of our processes or files is on this machine."""
    return (ROOT / "ssh").exists() or _dockerd_pid_file().exists()


@contextmanager
def _machine_lock() -> Iterator[None]:
    """Let stacks that start at the same time set the machine up one after the other."""
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
            raise UserError(f"systemctl start docker: {done.stderr.strip()}", "see `journalctl -u docker`")
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
            cause = f"dockerd doesn't answer at {DOCKER_SOCKET} after {START_SECONDS} s; its last lines:\n"
            raise UserError(cause + "\n".join(lines), f"see {log_file}")
        time.sleep(0.2)


# --- sshd


def _sshd_pid(directory: Path) -> int | None:
    return processes.pid_of(directory / "sshd.pid", "sshd", str(directory / "sshd_config"))


def start_sshd(directory: Path, port: int, path: str = "") -> None:
    """Start an sshd with the keys in `directory` on this port of loopback, unless it runs.

    `path` is the PATH of its sessions, if not sshd's default. Raises UserError.
    """
    environment = " ".join([SESSION_MARK, NO_BASHRC, *([f"PATH={path}"] if path else [])])
    config = directory / "sshd_config"
    wanted = SSHD_CONFIG.format(port=port, ssh=directory, pam=_pam(), environment=environment)
    if _sshd_pid(directory) and config.exists() and config.read_text() == wanted:
        return
    stop_sshd(directory)
    if is_taken(port):
        raise UserError(
            f"port {port} for the rehearsal's sshd is taken by {listener(port)}",
            "end it, or choose another port with --set sshPort=PORT (tunnelPort where sshVia is iap)",
        )
    config.write_text(wanted)
    Path("/run/sshd").mkdir(mode=0o755, exist_ok=True)
    sshd, log = shutil.which("sshd") or "/usr/sbin/sshd", directory / "sshd.log"
    done = subprocess.run([sshd, "-f", config, "-E", log], capture_output=True, text=True, check=False)
    if done.returncode != 0:
        reason = done.stderr.strip() or log.read_text(errors="replace")[-500:]
        raise UserError(f"the rehearsal's sshd doesn't start: {reason}", f"see {log}")
    end = time.monotonic() + START_SECONDS
    while _sshd_pid(directory) is None:  # it has its port already, and writes its PID a moment later
        if time.monotonic() > end:
            raise UserError("the rehearsal's sshd ended at once", f"see {log}")
        time.sleep(0.05)


def stop_sshd(directory: Path) -> None:
    """Stop the sshd with the keys in `directory`, if it runs."""
    pid = _sshd_pid(directory)
    if pid:
        processes.end([pid], 10)
    (directory / "sshd.pid").unlink(missing_ok=True)


def _pam() -> str:
    """Return sshd's PAM option: without PAM it refuses a locked root (Ubuntu), with PAM it may fail in containers."""
    try:
        entries = Path("/etc/shadow").read_text().splitlines()
    except OSError:
        return "no"
    return "yes" if any(entry.startswith("root:!") for entry in entries) else "no"

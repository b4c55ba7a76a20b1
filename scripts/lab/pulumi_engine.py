"""The real Pulumi as the engine of a rehearsal, where all of it is on this machine already.

It has its own PULUMI_HOME, state, passphrase and copies of stack files under the rehearsal's directory: neither the
checkout nor the user's ~/.pulumi is written to.
"""

import json
import os
import pwd
import re
import shutil
import signal
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from secrets import token_hex
from typing import Any

import yaml

from components.errors import UserError
from scripts.lab import compute_api, simulated_vm
from scripts.lab.emulator.state import ROOT, Record, stack_directory
from scripts.lab.in_place_of_google import is_for_google
from scripts.lib.private_files import write_private
from scripts.lib.stack_config import StackConfig

PLUGINS = ("command", "docker", "random", "tls")
PLUGINS_OF_TARGET = {"gcp": ("gcp",), "gke": ("gcp", "kubernetes"), "kubernetes": ("kubernetes",)}
"""Plugins that a target needs besides."""
LANGUAGE_HOST = ("pulumi-language-python", "pulumi-resource-pulumi-python")
"""Programs that run the program and its dynamic providers."""
SECONDS = 60
PROCESSES = Path("/proc")
VM = re.compile(r"urn:pulumi:\S*gcp:compute/instance:Instance::\S*")


@dataclass(frozen=True, kw_only=True)
class Installation:
    """A Pulumi that can run the program without a download."""

    program: Path
    version: str
    language_host: Path
    plugins: tuple[Path, ...]
    """Directories of the plugins."""


class IncompleteError(Exception):
    """The real Pulumi can't be used; the text lists what is missing."""


def find(target: str) -> Installation:
    """Look for Pulumi on PATH and in ~/.pulumi/bin; under sudo in those of the user who ran it.

    Raises IncompleteError unless everything that a stack of this target needs is there without a download.
    """
    user = _environment_of_user()
    path = os.pathsep.join([user.get("PATH", ""), str(_home(user) / "bin"), os.environ.get("PATH", os.defpath)])
    found = shutil.which("pulumi", path=path)
    if not found:
        raise IncompleteError("a pulumi on PATH")
    program, plugins = Path(found), Path(user.get("PULUMI_HOME") or _home(user)) / "plugins"
    path = f"{program.parent}{os.pathsep}{path}"
    try:
        version = _ask(program, plugins.parent, "version").strip().removeprefix("v")
        listed = json.loads(_ask(program, plugins.parent, "plugin", "ls", "--json"))
    except (OSError, subprocess.SubprocessError, ValueError) as error:
        raise IncompleteError(f"a {program} that works ({error})") from error
    missing = []
    if _minor(version) < _minor(sdk := metadata.version("pulumi")):
        missing.append(f"a CLI of {sdk} or newer ({version} is there)")
    language_host = shutil.which(LANGUAGE_HOST[0], path=path)
    missing += [f"{name} on PATH or beside {program}" for name in LANGUAGE_HOST if not shutil.which(name, path=path)]
    there = {(each["name"], str(each.get("version", "")).removeprefix("v")) for each in listed}
    wanted = {name: metadata.version(f"pulumi-{name}") for name in (*PLUGINS, *PLUGINS_OF_TARGET.get(target, ()))}
    for name, version_of_sdk in wanted.items():
        if (name, version_of_sdk) not in there:
            others = ", ".join(sorted(version for each, version in there if each == name)) or "none"
            missing.append(f"the plugin {name} {version_of_sdk} ({others} is there)")
    if missing or not language_host:
        raise IncompleteError("; ".join(missing))
    return Installation(
        program=program,
        version=version,
        language_host=Path(language_host),
        plugins=tuple(plugins / f"resource-{name}-v{version}" for name, version in wanted.items()),
    )


def _environment_of_user() -> Mapping[str, str]:
    """Environment of the user who ran sudo, which has another PATH for root; else this process's."""
    if os.geteuid() != 0 or "SUDO_UID" not in os.environ:
        return os.environ
    process = os.getppid()
    with suppress(OSError, ValueError, IndexError):
        while process > 1:
            directory = PROCESSES / str(process)
            if (directory / "comm").read_text().strip() == "sudo":
                words = (directory / "environ").read_bytes().decode(errors="replace").split("\0")
                return dict(word.split("=", 1) for word in words if "=" in word)
            process = int((directory / "stat").read_text().rpartition(")")[2].split()[1])
    return {"HOME": pwd.getpwuid(int(os.environ["SUDO_UID"])).pw_dir}


def _home(user: Mapping[str, str]) -> Path:
    """Return the directory of Pulumi's own installer."""
    return Path(user.get("HOME", "/")) / ".pulumi"


def _ask(program: Path, home: Path, *arguments: str) -> str:
    # As the user who ran sudo: it may write to that user's PULUMI_HOME.
    under_sudo = os.geteuid() == 0 and "SUDO_UID" in os.environ
    environment = {
        "PATH": f"{program.parent}:{os.environ.get('PATH', os.defpath)}",
        "HOME": str(home.parent),
        "PULUMI_HOME": str(home),
        "PULUMI_SKIP_UPDATE_CHECK": "true",
    }
    done = subprocess.run(
        [program, *arguments],
        env=environment,
        cwd="/",
        capture_output=True,
        text=True,
        timeout=SECONDS,
        check=True,
        user=int(os.environ["SUDO_UID"]) if under_sudo else None,
        group=int(os.environ["SUDO_GID"]) if under_sudo else None,
    )
    return done.stdout


def _minor(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split(".")[:2])


class Stack:
    """One stack under the real Pulumi."""

    def __init__(self, installation: Installation, project: Path, name: str, directory: Path | None = None) -> None:
        """Prepare its directory: `project` as it is, but for its stack files."""
        self.name, self._program = name, installation.program
        self.directory = (directory or _directory(name)) / "project"
        self.file = self.directory / "stacks" / f"Pulumi.{name}.yaml"
        self._compute = self.directory.parent / "google.json"
        shared = directory or ROOT / "pulumi"
        for each in (shared, shared / "home" / "plugins", shared / "state", self.file.parent):
            each.mkdir(parents=True, exist_ok=True, mode=0o700)
        for plugin in installation.plugins:
            _copy(plugin, shared / "home" / "plugins" / plugin.name)
        passphrase = shared / "passphrase"
        if not passphrase.exists():
            write_private(passphrase, token_hex(32))
        for entry in project.iterdir():
            link = self.directory / entry.name
            if entry.name != "stacks" and (not entry.name.startswith(".") or entry.name == ".venv"):
                link.unlink(missing_ok=True)
                link.symlink_to(entry)
        path = (installation.program.parent, installation.language_host.parent, os.environ.get("PATH", os.defpath))
        inherited = {key: value for key, value in os.environ.items() if not key.startswith("PULUMI_")}
        self.environment = {
            **inherited,
            "PATH": os.pathsep.join(map(str, path)),
            "PULUMI_HOME": str(shared / "home"),
            "PULUMI_BACKEND_URL": f"file://{shared / 'state'}",
            "PULUMI_CONFIG_PASSPHRASE_FILE": str(passphrase),
            "PULUMI_SKIP_UPDATE_CHECK": "true",
            "PULUMI_DISABLE_AUTOMATIC_PLUGIN_ACQUISITION": "true",
        }

    def configure(self, config: StackConfig) -> None:
        """Write the stack's file; secrets are encrypted with the rehearsal's passphrase."""
        known = yaml.safe_load(self.file.read_text()) if self.file.exists() else {}
        salt = {key: value for key, value in known.items() if key == "encryptionsalt"}
        plain = {key: value for key, value in config.values.items() if key not in config.secrets}
        write_private(self.file, yaml.safe_dump({**salt, "config": plain}))
        self.ask("stack", "select", self.name, "--create")
        for key in sorted(config.secrets):
            if value := config.values.get(key):
                self.ask("config", "set", "--secret", key, "--stack", self.name, data=str(value))

    def up(self, config: StackConfig) -> None:
        """Bring it up, or up to date. Raises UserError."""
        self.configure(config)
        refresh = ["--refresh"]
        with self.google(simulated=is_for_google(config)):
            if is_for_google(config) and not simulated_vm.find(self.name):
                # Nothing on a VM that is gone can be looked after: only the VM itself is.
                refresh = []
                if vm := VM.search(self.ask("stack", "--show-urns", "--stack", self.name)):
                    self.run("refresh", "--target", vm[0], "--yes", "--skip-preview", "--suppress-outputs")
            self.run("up", *refresh, "--yes", "--skip-preview", "--suppress-outputs")

    def destroy(self) -> None:
        """Take it down and forget it. Raises UserError."""
        with self.google(simulated=self._compute.exists()):
            self.run("destroy", "--remove", "--yes", "--skip-preview")

    def cancel(self) -> None:
        """Release the lock of a run that was cut off."""
        self.ask("cancel", "--yes", "--stack", self.name)

    def outputs(self) -> dict[str, dict[str, Any]]:
        """Return its outputs: name -> {"value", "secret"}."""
        ask = ("stack", "output", "--json", "--stack", self.name)
        shown, clear = (json.loads(self.ask(*ask, *more)) for more in ((), ("--show-secrets",)))
        return {name: {"value": value, "secret": shown[name] != value} for name, value in clear.items()}

    def records(self) -> dict[str, Record]:
        """Return its resources by URN, with their inputs."""
        exported = json.loads(self.ask("stack", "export", "--stack", self.name))
        return {
            each["urn"]: Record(
                type=each["type"],
                name=each["urn"].rpartition("::")[2],
                id=each.get("id", ""),
                inputs=each.get("inputs", {}),
                outputs={},
                provider=each.get("provider", "").rpartition("::")[0],
            )
            for each in exported["deployment"].get("resources") or ()
        }

    def ask(self, *arguments: str, data: str = "") -> str:
        """Return a command's output. Raises UserError with Pulumi's message."""
        command = [str(self._program), *arguments, "--non-interactive"]
        done = subprocess.run(
            command,
            cwd=self.directory,
            env=self._environment(),
            input=data,
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode:
            raise UserError(f"pulumi {' '.join(arguments)} failed:\n{done.stdout}{done.stderr}", "see what it reports")
        return done.stdout

    def run(self, *arguments: str) -> None:
        """Run a command whose progress is shown as Pulumi shows it. Raises UserError, KeyboardInterrupt."""
        # In a separate session: it gets one interrupt, from here, and finishes its current steps.
        process = subprocess.Popen(
            [self._program, *arguments, "--stack", self.name],
            cwd=self.directory,
            env=self._environment(),
            stdin=subprocess.DEVNULL,
            start_new_session=True,
        )
        interrupted = False
        while True:
            try:
                code = process.wait()
                break
            except KeyboardInterrupt:
                interrupted = True
                process.send_signal(signal.SIGINT)
        if interrupted:
            raise KeyboardInterrupt
        if code:
            raise UserError(f"pulumi {arguments[0]} failed ({code})", "see what it reports above, and run this again")

    def _environment(self) -> dict[str, str]:
        # A key with a passphrase is in an agent while the program runs, which it otherwise does for `up` alone, and not
        # while `up` refreshes.
        held = {"PULUMI_RUN_PROGRAM": "true"} if "sshPrivateKeyPassword" in self.file.read_text() else {}
        return {**self.environment, **held}

    @contextmanager
    def google(self, *, simulated: bool) -> Iterator[None]:
        """Let the provider ask a stand-in of Google's API until the block ends, where Google is simulated."""
        if not simulated:
            yield
            return
        with compute_api.running(self.name, self._compute) as compute:
            self.environment |= {
                "GOOGLE_COMPUTE_CUSTOM_ENDPOINT": compute.endpoint,
                # Google itself is not asked: the provider is content with any token, and a proxy that refuses is asked
                # once, where a name that can't be resolved would be tried for minutes.
                "GOOGLE_OAUTH_ACCESS_TOKEN": "none",
                "PULUMI_GCP_SKIP_REGION_VALIDATION": "true",
                "HTTPS_PROXY": "http://127.0.0.1:1",
                "NO_PROXY": "127.0.0.1,localhost",
            }
            yield


def _directory(stack: str) -> Path:
    return stack_directory(ROOT, stack) / "pulumi"


def _copy(plugin: Path, target: Path) -> None:
    """Have a plugin without a second copy of its bytes, where the file system allows that."""
    if target.exists():
        return
    new = target.with_name(f"{target.name}.new")
    shutil.rmtree(new, ignore_errors=True)
    try:
        shutil.copytree(plugin, new, copy_function=os.link)
    except (OSError, shutil.Error):
        shutil.rmtree(new, ignore_errors=True)
        shutil.copytree(plugin, new)
    new.rename(target)

"""A machine that is reached over SSH: its address, its keys, and the commands that run on it."""

import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pulumi
from pulumi_command import remote

from components import render
from components.containers import podman

STANDARD_SSH_PORT = 22
STORE = "/var/lib/elastic-vllm/bundle"
"""Directory on a host for a bundle's images and packages, one directory a stack; it stays when that is destroyed."""


@dataclass(frozen=True, kw_only=True)
class Bastion:
    """A host that SSH goes through to another."""

    user: str
    host: str
    port: int
    host_key: str


@dataclass(frozen=True, kw_only=True)
class Host:
    """How any machine is reached over SSH, by commands and by Docker, with its host key verified."""

    address: pulumi.Input[str]
    port: int
    user: str
    private_key_path: Path
    host_key: pulumi.Input[str]
    """`ssh-ed25519 AAAA...`; a machine that shows another key is refused."""
    identity: pulumi.Input[str]
    """Changes when it is another machine behind the same address: everything on it is then made anew."""
    prefix: str
    """Name of everything of this stack on the machine, so that two stacks can share one."""
    directory: str
    """This stack's own directory on the machine."""
    cleans_up: bool
    """Whether destroying a resource cleans up on the machine. False where the machine itself goes away."""
    engine: str = "docker"
    """What runs containers there: `docker`, or `podman`."""
    machine: pulumi.Resource | None = None
    """The machine as a resource, where it is one: what is on it needs no deleting once it goes."""
    bastion: Bastion | None = None
    """A host that SSH goes through, with the same private key."""
    dial_errors: int = 3
    """Refused or unanswered connections, a second and more apart, before the machine counts as unreachable."""
    ready: Sequence[pulumi.Resource] = ()
    """What must be there before anything is done on the machine."""
    packages: str = ""
    """Directory on the machine with the packages that may be installed; empty: those of its repositories."""

    def connection(self) -> remote.ConnectionArgs:
        """The connection for pulumi-command."""
        private_key = pulumi.Output.secret(self.private_key_path.read_text())
        through = self.bastion
        proxy = None
        if through:
            proxy = remote.ProxyConnectionArgs(
                host=through.host,
                port=through.port,
                user=through.user,
                private_key=private_key,
                host_key=through.host_key,
            )
        return remote.ConnectionArgs(
            host=self.address,
            port=self.port,
            user=self.user,
            private_key=private_key,
            host_key=self.host_key,
            dial_error_limit=self.dial_errors,
            per_dial_timeout=10,
            proxy=proxy,
        )

    def docker_url(self) -> pulumi.Output[str]:
        """The address for pulumi-docker, which starts the `ssh` client itself; a path in it is the API's socket."""
        socket = podman.SOCKET if self.engine == podman.PODMAN else ""
        return pulumi.Output.format("ssh://{}@{}:{}{}", self.user, self.address, self.port, socket)

    def ssh_destination(self) -> pulumi.Output[dict[str, object]]:
        """How the `ssh` client reaches it, for scripts that look at it later: no secret, the key's path only."""
        return pulumi.Output.all(address=self.address, options=pulumi.Output.all(*self.ssh_options())).apply(
            lambda known: {
                "destination": f"{self.user}@{known['address']}",
                "port": self.port,
                "options": known["options"],
            }
        )

    def ssh_options(self) -> list[pulumi.Input[str]]:
        """Options for the `ssh` client: this key only, and the host key without a file to keep (OpenSSH 8.5)."""
        flags = [*_key_options(self.private_key_path, self.address, self.port, self.host_key)]
        for name, value in {"ConnectTimeout": "10", "ServerAliveInterval": "15"}.items():
            flags += ["-o", f"{name}={value}"]
        if self.bastion:
            through = self.bastion
            options = _key_options(self.private_key_path, through.host, through.port, through.host_key)
            # ssh gives this to a shell. It is the one that the pinned host key of the bastion can be told.
            jump = ["ssh", *options, "-p", str(through.port), "-W", "%h:%p", f"{through.user}@{through.host}"]
            flags += ["-o", pulumi.Output.all(*jump).apply(lambda words: f"ProxyCommand={shlex.join(words)}")]
        return flags

    def command(
        self,
        name: str,
        script: pulumi.Input[str],
        *,
        parent: pulumi.Resource,
        depends_on: Sequence[pulumi.Resource] = (),
        data: pulumi.Input[str] = "",
        cleanup: str | None = None,
        triggers: Sequence[pulumi.Input[str]] = (),
        delete_first: bool = False,
    ) -> remote.Command:
        """Run `script` on the machine when it, `data`, `triggers` or the machine is new; `cleanup` on destroy.

        The script finds `data` on its standard input: the only way for secrets. `delete_first`: replaced by hand
        (pulumi up --replace), it is cleaned up before it is made again.
        """
        stdin = pulumi.Output.concat(self.standard_input(script), data)
        sudo = "" if self.user == "root" else "sudo -n "
        delete = f"{sudo}bash -c {shlex.quote(cleanup)}" if cleanup and self.cleans_up else None
        return remote.Command(
            name,
            connection=self.connection(),
            # bash by name, since a user's login shell can be any
            create="bash -s",
            delete=delete,
            stdin=stdin,
            # It would be sent as environment variables, which sshd refuses with a warning.
            add_previous_output_in_env=False,
            # One that cleans up must never be replaced: its cleanup would ask a machine that may be gone, or take away
            # what its successor has made. It runs again as well, since another machine has another host key.
            triggers=None if delete else [self.identity, *triggers],
            opts=pulumi.ResourceOptions(
                parent=parent, depends_on=[*self.ready, *depends_on], delete_before_replace=delete_first or None
            ),
        )

    def standard_input(self, script: pulumi.Input[str]) -> pulumi.Output[str]:
        """What `bash -s` on the host runs as root; the script finds what comes behind on its own standard input.

        Script and data both travel there. So neither is in a process list, and an error shows what the script said, not
        the script. Bash reads a group as a whole before it runs it; what follows is left to read.
        """
        become_root = (
            "" if self.user == "root" else "{\n" + render.script("host/become-root.sh", login=self.user) + "}\n"
        )
        packages = f"PACKAGES={shlex.quote(self.packages)}\n" if self.packages else ""
        return pulumi.Output.concat(become_root, "{\n", packages, script, "\nexit\n}\n")

    def ssh_command(self) -> pulumi.Output[list[str]]:
        """The `ssh` command of this machine that runs such a `bash -s`; it never asks anything."""
        before = ["ssh", "-o", "BatchMode=yes", "-T", *self.ssh_options(), "-p", str(self.port)]
        return pulumi.Output.all(*before, pulumi.Output.concat(self.user, "@", self.address), "bash -s")


def _key_options(
    private_key: Path, address: pulumi.Input[str], port: int, host_key: pulumi.Input[str]
) -> list[pulumi.Input[str]]:
    """Options that make `ssh` use this private key only, and trust this host key only."""
    known = pulumi.Output.from_input(address).apply(
        lambda host: host if port == STANDARD_SSH_PORT else f"[{host}]:{port}"
    )
    options: dict[str, pulumi.Input[str]] = {
        "IdentitiesOnly": "yes",
        "StrictHostKeyChecking": "yes",
        "UserKnownHostsFile": "/dev/null",
        "GlobalKnownHostsFile": "/dev/null",
        "KnownHostsCommand": pulumi.Output.concat("/bin/echo ", known, " ", host_key),
    }
    flags = [flag for name, value in options.items() for flag in ("-o", pulumi.Output.concat(name, "=", value))]
    return ["-i", str(private_key), *flags]

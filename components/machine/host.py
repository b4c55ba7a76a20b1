"""A machine that is reached over SSH: its address, its keys, and the commands that run on it."""

import json
import shlex
from collections.abc import Sequence
from dataclasses import dataclass

import pulumi
from pulumi_command import local, remote

from components import render
from components.containers import podman
from components.machine import ssh
from components.machine.ssh import SshKey

STORE = "/var/lib/elastic-vllm/bundle"
"""Directory on a host for a bundle's images and packages, one directory a stack; it stays when that is destroyed."""

CLOSING_WORD = "elastic-vllm: done"
"""Last line of each command's output. A command whose output lacks it did not run to its end."""
RAN_TO_ITS_END = 79
"""Exit status of a script that ran to its end. A bash whose input something else has read before it exits with 0."""
RUN_SCRIPT = (
    f"bash -c 'bash -s; case $? in {RAN_TO_ITS_END}) echo {CLOSING_WORD} ;; "
    '0) echo "elastic-vllm: the script did not run to its end" >&2; exit 1 ;; *) exit 1 ;; esac\''
)
"""Command that runs a script from standard input (`standard_input`) and fails unless that runs to its end.

Any login shell passes the quoted words on to bash as they are: they have no `'`, `\\`, `!` and no line break.
"""
RUN_CLEANUP = RUN_SCRIPT.replace("bash -s;", "bash -s cleanup;")
"""Command that runs the cleanup in the same input."""


@dataclass(frozen=True, kw_only=True)
class Bastion:
    """A host that SSH goes through to another."""

    user: str
    host: str
    port: int
    host_key: str


@dataclass(frozen=True, kw_only=True)
class Host:
    """SSH access to any machine, for commands and for Docker, with its host key verified."""

    address: pulumi.Input[str]
    port: int
    user: str
    ssh_key: SshKey
    host_key: pulumi.Input[str]
    """`ssh-ed25519 AAAA...`; a machine that shows another key is refused."""
    identity: pulumi.Input[str]
    """Value that changes if another machine is behind the same address: everything on it is then created again."""
    prefix: str
    """Name of everything of this stack on the machine, so that two stacks can share one."""
    directory: str
    """This stack's own directory on the machine."""
    cleans_up: bool
    """True if destroying a resource cleans up on the machine, False if the machine itself is deleted."""
    engine: str = "docker"
    """Container engine on the machine: `docker` or `podman`."""
    machine: pulumi.Resource | None = None
    """The machine's resource, if it has one: resources on the machine need no deletion once it is deleted."""
    bastion: Bastion | None = None
    """A host that SSH goes through, with the same private key."""
    dial_errors: int = 10
    """Refused, dropped or unanswered connections, a second and more apart, before the machine counts as unreachable."""
    ready: Sequence[pulumi.Resource] = ()
    """Resources that must exist before anything is done on the machine."""
    packages: str = ""
    """Directory on the machine with the packages that may be installed; empty: those of its repositories."""
    downloads: str = ""
    """Directory on the machine that says how it fetches (configure-downloads.sh); empty: by its own settings alone."""

    def connection(self) -> remote.ConnectionArgs:
        """The connection for pulumi-command, which asks SSH_AUTH_SOCK's agent where it is given no key."""
        key, through = self.ssh_key, self.bastion
        private_key = pulumi.Output.secret(key.path.read_text(encoding="utf-8")) if key.path and not key.agent else None
        passphrase = pulumi.Output.secret(key.passphrase) if key.passphrase else None
        proxy = None
        if through:
            proxy = remote.ProxyConnectionArgs(
                host=through.host,
                port=through.port,
                user=through.user,
                private_key=private_key,
                private_key_password=passphrase,
                host_key=through.host_key,
            )
        return remote.ConnectionArgs(
            host=self.address,
            port=self.port,
            user=self.user,
            private_key=private_key,
            private_key_password=passphrase,
            host_key=self.host_key,
            dial_error_limit=self.dial_errors,
            per_dial_timeout=10,
            proxy=proxy,
        )

    def docker_url(self) -> pulumi.Output[str]:
        """The address for pulumi-docker, which starts the `ssh` client itself; a path in it is the API's socket."""
        socket = podman.SOCKET if self.engine == podman.PODMAN else ""
        # The user is among the options: from an address, the provider's client would quote what it takes for unusual.
        address = pulumi.Output.from_input(self.address).apply(render.url_host)
        return pulumi.Output.format("ssh://{}:{}{}", address, self.port, socket)

    def ssh_server(self) -> pulumi.Output[dict[str, object]]:
        """Return the `ssh` access to the machine for later commands."""
        return pulumi.Output.all(address=self.address, options=self.ssh_options()).apply(
            lambda known: ssh.server(self.ssh_key, self.user, known["address"], self.port, known["options"])
        )

    def ssh_options(self) -> pulumi.Output[list[str]]:
        """Options for the `ssh` client."""
        own = pulumi.Output.all(self.address, self.host_key).apply(
            lambda known: ssh.options(self.ssh_key, self.user, known[0], self.port, known[1])
        )
        if not self.bastion:
            return own.apply(lambda options: [*options, *ssh.patient_connection()])
        through = self.bastion
        jump_options = ssh.options(self.ssh_key, through.user, through.host, through.port, through.host_key)
        # ssh runs this in a shell. It is the only way to give it the bastion's pinned host key.
        jump = shlex.join(["ssh", *jump_options, "-p", str(through.port), "-W", "%h:%p", "--", through.host])
        return own.apply(lambda options: [*options, "-o", f"ProxyCommand={jump}"])

    def command(
        self,
        name: str,
        script: pulumi.Input[str],
        *,
        parent: pulumi.Resource,
        depends_on: Sequence[pulumi.Resource] = (),
        data: pulumi.Input[str] = "",
        cleanup: str = "",
        triggers: Sequence[pulumi.Input[str]] = (),
        delete_first: bool = False,
    ) -> remote.Command:
        """Run `script` on the machine when it, `data`, `triggers` or the machine is new; `cleanup` on destroy.

        The script finds `data` on its standard input: the only way for secrets. `delete_first`: replaced by hand
        (pulumi up --replace), it is cleaned up before it is made again.
        """
        if not self.cleans_up:
            cleanup = ""
        delete = RUN_CLEANUP if cleanup else None
        command = remote.Command(
            name,
            connection=self.connection(),
            create=RUN_SCRIPT,
            delete=delete,
            stdin=pulumi.Output.concat(self.standard_input(script, cleanup), data),
            # It would be sent as environment variables, which sshd refuses with a warning.
            add_previous_output_in_env=False,
            # One that cleans up must never be replaced: its cleanup would ask a machine that may be gone, or take away
            # what its successor has made. It runs again as well, since another machine has another host key.
            triggers=None if delete else [self.identity, *triggers],
            opts=pulumi.ResourceOptions(
                parent=parent, depends_on=[*self.ready, *depends_on], delete_before_replace=delete_first or None
            ),
        )
        pulumi.Output.all(command.stdout, command.urn, self.address).apply(
            lambda known: require_closing_word(known[0], f"{self.user}@{known[2]}", f"pulumi up --replace '{known[1]}'")
        )
        return command

    def reached(self, name: str, *, parent: pulumi.Resource, depends_on: Sequence[pulumi.Resource]) -> local.Command:
        """Check that `ssh` reaches the machine as Docker will use it, and that it runs what it is sent."""
        order = {"script": standard_input("true", login="root"), "closing_word": CLOSING_WORD}
        stdin = pulumi.Output.all(ssh=self.ssh_command(), address=self.address).apply(
            lambda known: json.dumps(
                {
                    **order,
                    "ssh": known["ssh"],
                    "destination": f"{self.user}@{render.url_host(known['address'])}:{self.port}",
                }
            )
        )
        return local.Command(
            name,
            create="python3 components/files/ssh/check_ssh.py",
            stdin=stdin,
            triggers=[self.identity],
            add_previous_output_in_env=False,
            opts=pulumi.ResourceOptions(parent=parent, depends_on=[*self.ready, *depends_on]),
        )

    def standard_input(self, script: pulumi.Input[str], cleanup: str = "") -> pulumi.Output[str]:
        """Standard input for RUN_SCRIPT, with the places of packages and of the way out that `script` may use."""
        places = {"PACKAGES": self.packages, "DOWNLOADS": self.downloads}
        known = "".join(f"{name}={shlex.quote(path)}\n" for name, path in places.items() if path)
        return pulumi.Output.concat(known, script).apply(
            lambda text: standard_input(text, login=self.user, cleanup=cleanup)
        )

    def ssh_command(self) -> pulumi.Output[list[str]]:
        """The `ssh` command of this machine that runs a script from its standard input; it never asks anything."""
        return pulumi.Output.all(options=self.ssh_options(), address=self.address).apply(
            lambda known: ["ssh", "-T", *known["options"], "-p", str(self.port), "--", known["address"], RUN_SCRIPT]
        )


def standard_input(script: str, *, login: str, cleanup: str = "") -> str:
    """Standard input for RUN_SCRIPT: `script` runs as root, and finds what comes behind it on its standard input.

    Script and data both go there. So neither is in a process list, and an error shows the script's output, not
    the script. Bash reads a whole group before it runs it; the rest of the input is left for the script.
    """
    become_root = "" if login == "root" else "{\n" + render.script("host/become-root.sh", login=login) + "}\n"
    # A separate shell: if the script calls exit anywhere, its status comes back here.
    run = f"(\n{script}\n)\n"
    if cleanup:
        run = f"if [ $# -gt 0 ]; then\n(\n{cleanup}\n)\nelse\n{run}fi\n"
    return f"{become_root}{{\n{run}case $? in 0) exit {RAN_TO_ITS_END} ;; *) exit 1 ;; esac\n}}\n"


def require_closing_word(output: str | None, destination: str, again: str) -> None:
    """Raise RunError for a command that ended without an error although its script did not run to its end.

    Only what replaces the whole command at the server can do that; a script that ends early fails by itself.
    """
    if output is None or output.rstrip().endswith(CLOSING_WORD):
        return
    shown = " ".join(output.split())[-200:] or "nothing"
    raise pulumi.RunError(
        f"{destination} did not run what it was sent; it answered: {shown}\n"
        "  fix: is there a ForceCommand in its sshd_config, command= in its authorized_keys, or a login shell that "
        f"runs something else? Then run: {again}"
    )

"""A packet filter on a machine, as a Pulumi resource that looks whether it is still in place.

The provider runs in a process that Pulumi starts for it, from the project's directory, and is pickled by name only.
"""

import logging
import subprocess
from collections.abc import Sequence
from typing import Any

import pulumi
from pulumi import dynamic

from components import render
from components.machine.host import CLOSING_WORD, Host, require_closing_word

# gRPC would print a traceback for each error that a provider raises; Pulumi shows the error's own words.
logging.getLogger("grpc").setLevel(logging.CRITICAL)

SECONDS = 120
Props = dict[str, Any]
"""ssh (words of a command), check and set (its standard inputs), on (whatever makes it another one)."""


class PacketFilterError(Exception):
    """A packet filter could not be put in place."""


class PacketFilterProvider(dynamic.ResourceProvider):
    """Looks at each preview and update what is missing on the machine, and puts it in place."""

    replaced_by: tuple[str, ...] = ()
    compared = ("ssh", "check", "set", "on")

    def check(self, olds: Props, news: Props) -> dynamic.CheckResult:
        """Add what is missing to the inputs: so a plan shows it as the difference that it is."""
        same = all(key in olds and olds[key] == news[key] for key in self.compared)
        lines = _missing(news) if same else []
        return dynamic.CheckResult({**news, "missing": lines} if lines else news, [])

    def diff(self, _id: str, olds: Props, news: Props) -> dynamic.DiffResult:
        """Anything that changed or is missing is put right in place."""
        changed = any(olds.get(key) != news.get(key) for key in self.compared)
        return dynamic.DiffResult(changes=changed or bool(news.get("missing")))

    def create(self, props: Props) -> dynamic.CreateResult:
        """Put it in place."""
        return dynamic.CreateResult("packet-filter", outs=_set(props))

    def update(self, _id: str, _olds: Props, news: Props) -> dynamic.UpdateResult:
        """Put back what is missing."""
        return dynamic.UpdateResult(outs=_set(news))


class PacketFilter(dynamic.Resource, module="host", name="PacketFilter"):
    """The packet filter that `scripts` put on a machine; a later update puts back what was taken away.

    Leaves its removal to the command that it depends on.
    """

    def __init__(
        self,
        name: str,
        host: Host,
        scripts: Sequence[str],
        *,
        on: Sequence[pulumi.Input[str]] = (),
        parent: pulumi.Resource,
        depends_on: Sequence[pulumi.Resource],
        **variables: str | int,
    ) -> None:
        """`on`: it is set again when one of these changes; `variables` are those of the scripts."""
        inputs: dict[str, Any] = {
            key: host.standard_input(filter_script(host, scripts, check=check, **variables))
            for key, check in (("check", True), ("set", False))
        }
        super().__init__(
            PacketFilterProvider(),
            name,
            {**inputs, "ssh": host.ssh_command(), "on": [host.identity, *on]},
            pulumi.ResourceOptions(parent=parent, depends_on=[*host.ready, *depends_on]),
        )


def filter_script(host: Host, scripts: Sequence[str], *, check: bool, **variables: str | int) -> str:
    """Script that sets a packet filter or, with `check`, prints what is missing of it."""
    return render.script(
        "host/install-packet-filter.sh",
        *scripts,
        check="yes" if check else "no",
        prefix=host.prefix,
        program=(render.FILES / "host" / "packet-filter.sh").read_text(),
        **variables,
    )


def _missing(props: Props) -> list[str]:
    """Names of the missing walls; empty where the machine can't be asked, as what needs it then fails by itself."""
    try:
        done = _run(props, "check")
    except subprocess.TimeoutExpired:
        return []
    lines = done.stdout.splitlines()
    return lines[:-1] if lines[-1:] == [CLOSING_WORD] else []


def _set(props: Props) -> Props:
    done = _run(props, "set")
    if done.returncode != 0:
        raise PacketFilterError(done.stderr.strip() or done.stdout.strip())
    require_closing_word(done.stdout, props["ssh"][-2], "the same update")
    return {key: value for key, value in props.items() if key != "missing"}


def _run(props: Props, script: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        props["ssh"], input=props[script], capture_output=True, text=True, timeout=SECONDS, check=False
    )

"""The server as it is now, over SSH: disks, Docker or Podman, containers, socket, packet filter, GPUs."""

import re
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any, NamedTuple

from components import render
from components.containers.podman import PODMAN
from components.elastic import agent
from components.settings.machine import STATE_DIRECTORY
from scripts.cli.diagnose.finding import Finding, Look, Rank
from scripts.lib.errors import ExitCode
from scripts.lib.ssh import SshError, run_script

SSH_SECONDS = 60
LINES_OF_LOG = 200
FULL_KIB = 1024
JUST_STARTED_SECONDS = 15
LEAST_FREE = 0.05
"""Share of free disk space below which diagnose warns."""
LOADING = re.compile(r"(Loading safetensors|Starting to load|loading weights|Capturing|torch\.compile|Compiling)", re.I)
PROGRESS = re.compile(r"(\d+)\s?% (?:Completed|complete)|(\d+)%\|")

Survey = Mapping[str, Sequence[str]]
"""Name -> what there is, a line each (survey.sh)."""


def survey(ssh: Mapping[str, Any], passphrase: str, stack: str, engine: str) -> Survey:
    """Look at the server, whose containers `engine` runs. Raises SshError."""
    script = render.script(
        engine=engine,
        prefix=f"elastic-vllm-{stack}",
        directory=f"{STATE_DIRECTORY}/{stack}",
        logs=f"{agent.LOGS}/{stack}",
        lines_of_log=LINES_OF_LOG,
    )
    script += (Path(__file__).parent / "survey.sh").read_text(encoding="utf-8")
    printed = run_script(ssh, script, passphrase=passphrase, seconds=SSH_SECONDS)
    found: dict[str, list[str]] = defaultdict(list)
    for line in printed.splitlines():
        name, tab, text = line.partition("\t")
        if tab:
            found[name].append(text)
    return found


def unreachable(error: SshError, destination: str) -> Look:
    """Return the meaning of the error."""
    message = str(error)
    if "Host key verification failed" in message or "REMOTE HOST IDENTIFICATION" in message:
        cause, fix = (
            "it shows another host key than it should",
            "reinstalled, or not yours: if you trust it, set sshHostKey",
        )
    elif "Permission denied" in message:
        cause, fix = "it refuses the private key", "is sshPrivateKeyPath the right one, and in authorized_keys"
    elif "sudo" in message:
        cause, fix = "its user may not use sudo without a password", "give sshUser passwordless sudo"
    else:
        cause, fix = (
            f"SSH does not get there ({message})",
            "is the machine on, is sshd running, do firewalls let SSH through",
        )
    return Look("server", "", (Finding(ExitCode.SERVER, Rank.UNSEEN, f"{destination}: {cause}", fix),))


class Repair(NamedTuple):
    """Commands that bring a stack back to what its settings say."""

    up: str
    """Makes what is missing: a plain `pulumi up` compares with its state alone, and finds nothing to do."""
    replace: str
    """Runs a command of the program again."""


def repair(stack: str, *, rehearsal: bool) -> Repair:
    """The commands for a stack of Pulumi, or for a rehearsed one."""
    if rehearsal:
        up = f"scripts/rehearse up --stack {stack}"
        return Repair(up, f"scripts/rehearse down --stack {stack}, then {up}")
    return Repair(
        f"pulumi up --refresh --stack {stack}",
        f"pulumi up --stack {stack} --replace URN, with its URN from pulumi stack --show-urns",
    )


def looks(found: Survey, stack: str, engine: str, repair: Repair) -> Iterator[Look]:
    """Yield the results of the survey, one check after the other."""
    yield _disks(found, engine)
    if down := found.get("engine-down"):
        fix = f"start it: systemctl start {engine}; see journalctl -u {engine}"
        cause = f"{engine.capitalize()} does not run: {down[0]}"
        yield Look(engine, "", (Finding(ExitCode.SERVER, Rank.SERVER, cause, fix),))
        return
    yield Look(engine, f"{engine.capitalize()} {found['engine'][0]}")
    prefix = f"elastic-vllm-{stack}"
    for role in ("vllm", "nginx"):
        yield Look(role, *_container(found, role, f"{prefix}-{role}", engine, repair))
    yield Look("socket", *_socket(found, f"{prefix}-vllm", engine))
    yield _guard(found, prefix)
    if gpu := found.get("gpu"):
        yield _gpus(gpu[0])


def _disks(found: Survey, engine: str) -> Look:
    disks = [line.split() for line in found.get("disk", ())]
    full = [place for place, _, free in disks if int(free) < FULL_KIB]
    low = [place for place, size, free in disks if place not in full and int(free) < LEAST_FREE * int(size)]
    findings = []
    if full:
        fix = f"free some space there ({engine} system df; old weights), then scripts/elastic-vllm diagnose again"
        findings.append(Finding(ExitCode.SERVER, Rank.SERVER, f"the disk is full at {', '.join(full)}", fix))
    if low:
        cause = f"less than {LEAST_FREE:.0%} of the disk is free at {', '.join(low)}"
        findings.append(Finding(ExitCode.SERVER, Rank.SOON, cause, "free some space there before it is full"))
    least = min((int(free) / 2**20 for _, _, free in disks), default=0)
    return Look("disk", f"{least:.0f} GiB free at least", tuple(findings))


def _container(found: Survey, role: str, name: str, engine: str, repair: Repair) -> tuple[str, tuple[Finding, ...]]:
    state = found.get(f"container-{role}", ["missing"])[0].split()
    log = [line for line in found.get(f"log-{role}", ()) if line.strip()]
    last = f"; its last line: {log[-1][:200]}" if log else ""

    def broken(cause: str, fix: str) -> tuple[str, tuple[Finding, ...]]:
        return "", (Finding(ExitCode.CONTAINERS, Rank.CONTAINERS, cause, fix),)

    if state[0] == "missing":
        # Podman's vLLM is made by a command, which a refresh does not look at.
        by_command = role == "vllm" and engine == PODMAN
        fix = f"{repair.replace} (vllm-container)" if by_command else f"{repair.up}: it makes what is missing"
        return broken(f"there is no container {name}", fix)
    status, code, killed, restarts = state[0], state[1], state[2] == "true", int(state[3])
    if killed and status != "running":
        return broken(f"{name} ran out of memory and was killed", "a smaller model or maxModelLen, or more memory")
    if status == "paused":
        return broken(f"{name} is paused", f"{engine} unpause {name}")
    # Between two of its ends it runs for a moment.
    if status == "restarting" or (status == "running" and restarts and _just_started(found, " ".join(state[4:6]))):
        return broken(f"{name} starts and ends again and again (exit code {code}){last}", f"see {engine} logs {name}")
    if status != "running":
        return broken(
            f"{name} does not run ({status}, exit code {code}){last}",
            f"{engine} start {name} on the server, or {repair.up}",
        )
    seen = f"{name} runs" + (f", restarted {restarts} times" if restarts else "")
    return seen, ()


def _just_started(found: Survey, moment: str) -> bool:
    """Return True if this was seconds ago, by the server's clock; engines write it as UTC, with a T or a space."""
    match = re.match(r"(\d{4}-\d\d-\d\d)[T ](\d\d:\d\d:\d\d)", moment)
    if not match:
        return False
    started = datetime.fromisoformat(f"{match[1]}T{match[2]}+00:00").timestamp()
    # The clock was read first: a container may have been started since.
    return abs(int(found["clock"][0]) - started) < JUST_STARTED_SECONDS


def _socket(found: Survey, name: str, engine: str) -> tuple[str, tuple[Finding, ...]]:
    runs = found.get("container-vllm", ["missing"])[0].startswith("running")
    log = [line for line in found.get("log-vllm", ()) if line.strip()]
    health = found.get("vllm-health", ["000"])[0]
    if health == "200":
        return f"vLLM answers, rights {found['socket'][0]}", ()
    if not runs:
        return "vLLM does not run", ()
    loading = [line for line in log if LOADING.search(line)]
    if loading and not any("Application startup complete" in line for line in log):
        done = [match for line in loading if (match := PROGRESS.search(line))]
        far = f" ({next(filter(None, done[-1].groups()))} %)" if done else ""
        cause = f"vLLM is still loading{far}: {loading[-1].strip()[:160]}"
        return "", (Finding(ExitCode.LOADING, Rank.CONTAINERS, cause, "wait: large models take minutes"),)
    if "socket" not in found:
        fix = f"{engine} restart {name}: vLLM then creates its socket again"
        return "", (Finding(ExitCode.CONTAINERS, Rank.CONTAINERS, "vLLM runs, but its socket is gone", fix),)
    cause = (
        f"vLLM runs, but does not answer on its socket ({health}); its last line: {log[-1][:160] if log else 'none'}"
    )
    return "", (Finding(ExitCode.CONTAINERS, Rank.CONTAINERS, cause, f"{engine} restart {name}"),)


def _guard(found: Survey, prefix: str) -> Look:
    if found.get("guard") == ["there"]:
        return Look("packet filter", "Nginx can begin no connection")
    cause = "the packet filter is gone that keeps Nginx from beginning connections"
    fix = f"on the server: nft -f /etc/elastic-vllm/{prefix}.nft"
    return Look("packet filter", "", (Finding(ExitCode.SERVER, Rank.UNSEEN, cause, fix),))


def _gpus(output: str) -> Look:
    if re.search(r"fail|error|couldn't|No devices", output, re.IGNORECASE):
        fix = "see nvidia-smi and journalctl -k on the server; a reboot helps after an update of the driver"
        return Look(
            "GPUs", "", (Finding(ExitCode.SERVER, Rank.SERVER, f"the GPUs can't be used: {output[:200]}", fix),)
        )
    return Look("GPUs", output)

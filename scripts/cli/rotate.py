"""Command that gives a stack's key a new version without a failed request, and drops the old one when it is unused.

The state of a rotation follows only from the stack's file, its outputs and Nginx's log: a run can be stopped at any
point, and the next one resumes.
"""

import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from http import HTTPStatus
from pathlib import Path
from typing import Annotated, Any

import httpx2
import typer

from components.errors import UserError
from components.settings import keys as key_settings
from components.settings.keys import DEFAULT
from components.settings.problems import Problems
from components.settings.stack import as_text, defaults
from scripts.lib.errors import BadInputError, ExitCode, report
from scripts.lib.pods import gateway_logs
from scripts.lib.ssh import SshError, run_script
from scripts.lib.stack_file import PREFIX, StackFile
from scripts.lib.stack_outputs import Rehearsal, first_client, internal, stack_outputs
from scripts.lib.verification.endpoint import CHAT_PATH, Endpoint

ROOT = Path(__file__).resolve().parents[2]
SSH_SECONDS = 120
SHOWN_CLIENTS = 5
# The server's own clock, how far the log reaches back, and each client's last use of the label. A log without a line
# reaches back to the container's creation; a rotated one only to its first line.
LOOK = """set -eo pipefail
date -u +'now %Y-%m-%dT%H:%M:%S'
echo "since $({engine} inspect --format '{{{{json .Created}}}}' {container} | tr -d '"')"
{engine} logs --timestamps {container} 2>/dev/null | awk -v label={label} '
  NR == 1 {{ print "since", $1 }}
  $4 == label {{ last[$2] = $1 }}
  END {{ for (client in last) print client, last[client] }}'
"""


@dataclass(frozen=True)
class Rotation:
    """One key of one stack."""

    stack: str
    key: str
    rehearsal: bool
    up_options: Sequence[str]

    def begin(self, versions: tuple[int, ...]) -> None:
        """Record one version more in the stack's file, with the current one still accepted."""
        self._record((versions[0] + 1, versions[0]))

    def drop(self, versions: tuple[int, ...]) -> None:
        """Record that the current version alone is accepted."""
        self._record(versions[:1])

    def in_file(self) -> tuple[int, ...]:
        """The versions that the stack's file asks for. Raises BadInputError."""
        file = self._file()
        own = {key: value for key, value in file.config.items() if key.startswith(PREFIX)}
        given = {key.removeprefix(PREFIX): as_text(value) for key, value in own.items()}
        problems = Problems({**defaults(), **given}, defaults())
        problems.unknown_keys()
        versions = key_settings.key_versions(problems)
        if problems.found:
            raise BadInputError(f"{file.name}: {problems.found[0]}", "correct it there")
        if self.key not in versions:
            raise BadInputError(
                f"--key {self.key}: no such key in {file.name}: there are {', '.join(versions)}",
                "add it to the setting keys, and run up to have it made",
            )
        return versions[self.key]

    def _file(self) -> StackFile:
        return StackFile(ROOT, self.stack.rpartition("/")[2])

    def _record(self, versions: tuple[int, ...]) -> None:
        file = self._file()
        if file.get("keys") is None:
            file.set("keys", {})
        file.get("keys")[self.key] = list(versions)
        file.save()
        typer.echo(f"recorded in {file.name}: {_versions(self.key, versions)}")

    def up(self) -> None:
        """Bring the endpoint to what the file says. Raises UserError."""
        program = ["scripts/rehearse", "up"] if self.rehearsal else ["pulumi", "up", "--yes"]
        typer.echo(f"running {' '.join(program)} --stack {self.stack}")
        if subprocess.run([*program, "--stack", self.stack, *self.up_options], cwd=ROOT, check=False).returncode:
            raise UserError("up failed (see above)", "put it right and run this again: it resumes here")

    def outputs(self) -> Mapping[str, Any]:
        """The stack's outputs."""
        return stack_outputs(self.stack, rehearsal=self.rehearsal)


def main(
    *,
    stack: Annotated[str, typer.Option(help="Stack that is up.")],
    rehearsal: Rehearsal = False,
    key: Annotated[
        str, typer.Option(help="Name of the key, as in the setting keys; default is the connector's own.")
    ] = DEFAULT,
    unused_minutes: Annotated[
        int, typer.Option(min=1, help="Drop the old version once the log shows no use of it for this long.")
    ] = 60,
    drop_now: Annotated[
        bool, typer.Option("--drop-now", help="Drop the old version although it may be in use.")
    ] = False,
    status: Annotated[
        bool, typer.Option("--status", help="Show the state of the rotation, and change nothing.")
    ] = False,
    up_options: Annotated[list[str] | None, typer.Argument(help="Options for `up`, after --.")] = None,
) -> None:
    """Rotate a key: run it once for a new version, bring that to the clients, run it again to drop the old version.

    The first run makes the new version and leaves the old one working. Connectors that `up` makes have the new one
    then; others need it from the hand-off. The second run drops the old version if it is unused. Stopped at any point,
    the next run resumes.
    """
    rotation = Rotation(stack, key, rehearsal, up_options or [])
    wanted = rotation.in_file()
    outputs = rotation.outputs()
    accepted = _accepted(outputs, key, stack)
    if status:
        _say_status(rotation, wanted, accepted, outputs)
        return
    if wanted != accepted:
        typer.echo(f"the last run was stopped: {_versions(key, accepted)} now, {_versions(key, wanted)} wanted")
        _bring_about(rotation, wanted, outputs)
    elif len(accepted) == 1:
        rotation.begin(accepted)
        _bring_about(rotation, rotation.in_file(), outputs)
    else:
        # The run that made the new version may have been stopped before it saw that it works.
        for version in accepted:
            name = key_settings.label(key, version)
            _require_status(stack, outputs, internal(outputs)["acceptedKeys"][name], name, HTTPStatus.OK)
        if not drop_now:
            _require_unused(rotation, accepted[1], outputs, unused_minutes)
        rotation.drop(accepted)
        _bring_about(rotation, rotation.in_file(), outputs)


def _bring_about(rotation: Rotation, wanted: tuple[int, ...], before: Mapping[str, Any]) -> None:
    """Run `up`, then see that exactly the wanted versions work."""
    rotation.up()
    outputs = rotation.outputs()
    known = {**internal(before).get("acceptedKeys", {}), **internal(outputs).get("acceptedKeys", {})}
    for version in sorted({*wanted, wanted[0] - 1} - {0}, reverse=True):
        name = key_settings.label(rotation.key, version)
        if name in known:
            expected = HTTPStatus.OK if version in wanted else HTTPStatus.UNAUTHORIZED
            _require_status(rotation.stack, outputs, known[name], name, expected)
    _say_next(rotation, wanted, outputs)


def _say_next(rotation: Rotation, wanted: tuple[int, ...], outputs: Mapping[str, Any]) -> None:
    if len(wanted) == 1:
        typer.echo(f"done: {_versions(rotation.key, wanted)} only")
        return
    managed = [name for name in ("kibanaConnectorId", "inferenceEndpointId") if outputs.get(name)]
    if managed and rotation.key == DEFAULT:
        typer.echo(f"Elastic has the new version ({', '.join(str(outputs[name]) for name in managed)})")
    else:
        option = "" if rotation.key == DEFAULT else f" --key {rotation.key}"
        typer.echo(
            f"give the Elastic admin the new version: scripts/elastic-vllm handoff --stack {rotation.stack}{option}"
        )
    typer.echo("when it is in use everywhere, run this again to drop the old one")


def _say_status(
    rotation: Rotation, wanted: tuple[int, ...], accepted: tuple[int, ...], outputs: Mapping[str, Any]
) -> None:
    typer.echo(f"accepted: {_versions(rotation.key, accepted)}")
    if wanted != accepted:
        typer.echo(f"wanted: {_versions(rotation.key, wanted)}: the next run brings it about")
    for version in accepted:
        _, since, uses = _uses(rotation, version, outputs)
        last = (
            f"last used {max(uses.values()):%Y-%m-%d %H:%M} UTC" if uses else f"unused since {since:%Y-%m-%d %H:%M} UTC"
        )
        typer.echo(f"{key_settings.label(rotation.key, version)}: {last}")


def _require_unused(rotation: Rotation, version: int, outputs: Mapping[str, Any], minutes: int) -> None:
    """Raise typer.Exit if the log shows that the version is in use, or does not reach back far enough."""
    name = key_settings.label(rotation.key, version)
    typer.echo(f"looking in Nginx's log for uses of {name}")
    now, since, uses = _uses(rotation, version, outputs)
    limit = now - timedelta(minutes=minutes)
    recent = {client: time for client, time in uses.items() if time > limit}
    if recent:
        newest = sorted(recent.items(), key=lambda use: use[1], reverse=True)[:SHOWN_CLIENTS]
        clients = "".join(f"\n  {client}, last at {time:%Y-%m-%d %H:%M:%S} UTC" for client, time in newest)
        cause = f"{name} was used in the last {minutes} minutes, by:{clients}"
        report(UserError(cause, "give them the new version, or run this with --drop-now to lock them out"))
        raise typer.Exit(ExitCode.IN_USE)
    if since > limit:
        cause = f"the log reaches back to {since:%Y-%m-%d %H:%M:%S} UTC only, not {minutes} minutes"
        fix = "wait, or give fewer --unused-minutes, or --drop-now if you know that nobody uses it"
        report(UserError(cause, fix))
        raise typer.Exit(ExitCode.IN_USE)


def _uses(
    rotation: Rotation, version: int, outputs: Mapping[str, Any]
) -> tuple[datetime, datetime, dict[str, datetime]]:
    """The server's time, how far its log reaches back, and of each client that used this version when it did last."""
    about = internal(outputs)
    if about.get("kubernetes"):
        return _uses_in_pods(rotation, key_settings.label(rotation.key, version), about["kubernetes"])
    ssh = about.get("ssh")
    if not isinstance(ssh, dict):
        raise BadInputError(f"--stack {rotation.stack}: its outputs name no server (is it parked?)", "run up first")
    engine = str(about.get("containerRuntime") or "docker")
    look = LOOK.format(
        engine=engine, container=about["containers"]["nginx"], label=key_settings.label(rotation.key, version)
    )
    where = f"{ssh['user']}@{ssh['host']}"
    try:
        printed = run_script(ssh, look, passphrase=str(about.get("sshPrivateKeyPassword") or ""), seconds=SSH_SECONDS)
    except SshError as error:
        raise UserError(f"cannot read Nginx's log on {where}: {error}", f"is SSH open, and {engine} up") from error
    times = {client: _time(text) for client, text in (line.split() for line in printed.splitlines())}
    return times.pop("now"), times.pop("since"), times


def _uses_in_pods(
    rotation: Rotation, label: str, about: Mapping[str, str]
) -> tuple[datetime, datetime, dict[str, datetime]]:
    """The same on Kubernetes, where each gateway pod has its own log, and takes it along when it ends."""
    since, uses = [], dict[str, datetime]()
    for start, lines in gateway_logs(about, rotation.stack.rpartition("/")[2]):
        since.append(_time(start))
        for line in lines:
            # TIME CLIENT - LABEL [...
            words = line.split(maxsplit=4)
            if len(words) > 3 and words[3] == label:  # noqa: PLR2004
                uses[words[1]] = max(_time(words[0]), uses.get(words[1], since[-1]))
    if not since:
        raise UserError(f"no gateway pod is in the namespace {about['namespace']}", "run up first")
    return datetime.now(UTC), max(since), uses


def _time(text: str) -> datetime:
    """Docker's time, to the second: 2026-01-31T12:00:00.123456789Z."""
    return datetime.fromisoformat(text[:19]).replace(tzinfo=UTC)


def _accepted(outputs: Mapping[str, Any], key: str, stack: str) -> tuple[int, ...]:
    versions = internal(outputs).get("keyVersions")
    if internal(outputs).get("parked"):
        raise BadInputError(f"--stack {stack}: it is parked, so nothing answers", "unpark it first")
    if not isinstance(versions, dict) or key not in versions:
        raise BadInputError(f"--stack {stack}: it is up without the key {key}", "run up first, with this version")
    return tuple(int(version) for version in versions[key])


def _require_status(stack: str, outputs: Mapping[str, Any], key: str, name: str, expected: int) -> None:
    endpoint = Endpoint(
        url=outputs["connectorUrl"],
        key=key,
        model=outputs["model"],
        ca_certificate=outputs.get("caCertificate"),
        client_certificate=first_client(outputs),
    )
    headers = {"Authorization": f"Bearer {key}"}
    try:
        with httpx2.Client(verify=endpoint.tls_context(), trust_env=False, timeout=30) as client:
            found = client.get(endpoint.url.removesuffix(CHAT_PATH) + "/v1/models", headers=headers).status_code
    except httpx2.HTTPError as error:
        fix = "can this machine reach it? Then run this again"
        raise UserError(f"the endpoint does not answer at {endpoint.url}: {error}", fix) from error
    if found != expected:
        raise UserError(
            f"{name} is answered {found}, not {expected}",
            "see what scripts/elastic-vllm verify --stack reports, then run this again",
        )
    typer.echo(f"{name} is answered {found}, as it should be")


def _versions(key: str, versions: tuple[int, ...]) -> str:
    return " and ".join(key_settings.label(key, version) for version in versions)

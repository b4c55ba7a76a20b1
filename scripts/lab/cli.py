"""The command line: `scripts/rehearse up | verify | down | outputs | setup`."""

import json
import os
import shutil
import signal
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import pulumi
import typer

from components.errors import UserError
from components.machine.ssh import release
from scripts.lab import (
    RehearsalError,
    in_a_cluster,
    in_place_of_gke,
    machine,
    podman,
    pulumi_engine,
    simulated_gke,
    simulated_vm,
)
from scripts.lab.emulator import (
    command_adapter,
    docker_adapters,
    docker_ssh,
    dynamic_adapter,
    engine,
    gke_adapters,
    google_adapters,
    kubernetes_adapters,
    local_adapter,
    tls_adapters,
)
from scripts.lab.emulator.gke_adapters import Project
from scripts.lab.emulator.resource import Adapter
from scripts.lab.emulator.state import ROOT, Record, State, load, locked
from scripts.lab.engines import Engine, choose
from scripts.lab.in_place_of_google import is_for_google, rehearsed, serving_hub
from scripts.lab.kubernetes import cli as cluster_cli
from scripts.lab.kubernetes import cluster
from scripts.lab.ssh_keys import write_keys
from scripts.lab.tiny_models import MODELS
from scripts.lib.errors import BadInputError, report
from scripts.lib.progress import Display
from scripts.lib.stack_config import StackConfig, read_config

PROJECT = Path(__file__).resolve().parents[2]
ADAPTERS = {
    "command:remote:Command": command_adapter.COMMAND,
    "command:local:Command": local_adapter.COMMAND,
    **docker_adapters.ADAPTERS,
    **dynamic_adapter.ADAPTERS,
    **kubernetes_adapters.ADAPTERS,
    **tls_adapters.ADAPTERS,
}
INTERRUPTED = 130

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None, no_args_is_help=True)
app.add_typer(cluster_cli.app, name="cluster")

Stack = Annotated[str, typer.Option(help="The stack: stacks/Pulumi.<stack>.yaml.")]
Sets = Annotated[
    list[str],
    typer.Option("--set", metavar="KEY=VALUE", help="A setting for this run, over the stack's file. Repeatable."),
]
SetFiles = Annotated[
    list[str],
    typer.Option("--set-file", metavar="KEY=PATH", help="A secret setting, read from a file. Repeatable."),
]
ShowSecrets = Annotated[bool, typer.Option("--show-secrets", help="Show secrets in clear.")]


@app.callback()
def main() -> None:
    """Run the unmodified Pulumi program on this machine, each resource doing the real thing.

    The real Pulumi is the engine where the CLI and all plugins are here already, in the versions of requirements.txt;
    else an engine that is embedded in this command. The first line of `up` says which.
    """


@app.command()
def up(
    *,
    stack: Stack = "local",
    sets: Sets = [],  # noqa: B006 (typer copies it)
    set_files: SetFiles = [],  # noqa: B006
    verify: Annotated[bool, typer.Option("--verify", help="Then prove that the endpoint keeps its promises.")] = False,
    show_secrets: ShowSecrets = False,
    delays: Annotated[
        list[str],
        typer.Option(
            "--delay", metavar="RESOURCE=SECONDS", help="Let one take longer to make (make bench). Repeatable."
        ),
    ] = [],  # noqa: B006
    chosen: Annotated[
        Engine | None,
        typer.Option("--engine", envvar="ELASTIC_VLLM_ENGINE", help="The real Pulumi, or the embedded engine."),
    ] = None,
) -> None:
    """Bring the stack up, or up to date: `pulumi up --refresh`, or what that does."""
    with _user_errors():
        machine.require_root()
        slow = _seconds(delays)
        config = _config(stack, sets, set_files)
        with locked(ROOT, stack) as interrupted, _cut_off(stack):
            state = load(ROOT, stack)
            if in_place_of_gke.is_for_gke(config):
                if chosen is Engine.PULUMI:
                    raise BadInputError(
                        "--engine pulumi: only the embedded engine knows the simulated GKE", "use --engine embedded"
                    )
                chosen = Engine.EMBEDDED
            installation, line = choose(stack, state, chosen, str(config.get("target")))
            if installation and slow:
                raise BadInputError("--delay is for the embedded engine", "add --engine embedded")
            typer.echo(line)
            if installation:
                _up_with_pulumi(pulumi_engine.Stack(installation, PROJECT, stack), config, state, interrupted)
            else:
                _up(config, state, slow, interrupted)
        outputs = _outputs(stack)
        failed = _verify(outputs) if verify and not outputs["_internal"]["value"]["parked"] else 0
        _print_connector(outputs, stack, show_secrets=show_secrets)
    if failed:
        raise typer.Exit(1)


def _up(config: StackConfig, state: State, delays: Mapping[str, float], interrupted: bool) -> None:
    """Bring it up with the embedded engine."""
    with Display() as display:
        _set_up(config, state, display, interrupted=interrupted, check_first=True)
        _note_what_is_kept(config, state)
        state.engine = "embedded"
        with serving_hub(config), _google(config.stack, wanted=in_place_of_gke.is_for_gke(config)) as project:
            engine.up(PROJECT, config, state, _adapters(config, project), display, delays=delays)
    display.line(display.counts())
    display.line(display.timeline())


def _up_with_pulumi(stack: pulumi_engine.Stack, config: StackConfig, state: State, interrupted: bool) -> None:
    """Bring it up with the real Pulumi."""
    with Display() as display:
        _set_up(config, state, display, interrupted=interrupted, check_first=True)
    _note_what_is_kept(config, state)
    if interrupted and state.engine:
        stack.cancel()
    state.engine = "pulumi"
    state.save()
    release()  # the check of the settings has run the program in this process
    with serving_hub(config):
        stack.up(config)


@app.command()
def setup(*, stack: Stack = "local", sets: Sets = []) -> None:  # noqa: B006
    """Only make this machine ready for the stack: packages, dockerd, sshd, images, the tiny model."""
    with _user_errors():
        machine.require_root()
        config = _config(stack, sets, [])
        if not _is_here(config) and not in_a_cluster.is_wanted(config) and not in_place_of_gke.is_for_gke(config):
            raise BadInputError(f"stack {stack} runs on its own host ({config.get('host')})", "set that up by hand")
        with locked(ROOT, stack) as interrupted, _cut_off(stack), Display() as display:
            _set_up(config, load(ROOT, stack), display, interrupted=interrupted, check_first=False)
        display.line(display.timeline())


@app.command()
def verify(*, stack: Stack = "local") -> None:
    """Prove that a stack that is up keeps its promises."""
    with _user_errors():
        machine.require_root()
        failed = _verify(_outputs(stack))
    if failed:
        raise typer.Exit(1)


@app.command()
def outputs(
    *,
    stack: Stack = "local",
    as_json: Annotated[bool, typer.Option("--json", help="As `pulumi stack output --json`.")] = False,
    show_secrets: ShowSecrets = False,
) -> None:
    """Show a stack's outputs."""
    with _user_errors():
        machine.require_root()
        found = _outputs(stack)
        shown = {
            name: "[secret]" if each["secret"] and not show_secrets else each["value"] for name, each in found.items()
        }
        if as_json:
            typer.echo(json.dumps(shown, indent=2))
            return
        for name, value in shown.items():
            text = value if isinstance(value, str) else json.dumps(value)
            typer.echo(f"{name:<20} " + text.strip().replace("\n", "\n" + " " * 21))


@app.command()
def lose(*, stack: Stack = "prod") -> None:
    """Remove a stack's simulated VM, as Google does with a spot VM: the next `up` creates another."""
    with _user_errors():
        machine.require_root()
        with locked(ROOT, stack):
            if not simulated_vm.find(stack):
                raise BadInputError(f"stack {stack} has no simulated VM", "bring up a stack with target gcp")
            simulated_vm.destroy(stack)
        typer.echo(f"the VM of stack {stack} is gone")


@app.command()
def down(*, stack: Stack = "local") -> None:
    """Remove all resources of the stack, and everything that the rehearsal started for it."""
    with _user_errors():
        machine.require_root()
        with locked(ROOT, stack) as interrupted, _cut_off(stack):
            state = load(ROOT, stack)
            if state.path.exists() or machine.is_set_up():
                installation = choose(stack, state, None, "")[0] if state.engine == "pulumi" else None
                if installation:
                    _destroy_with_pulumi(pulumi_engine.Stack(installation, PROJECT, stack), state, interrupted)
                else:
                    _destroy(stack, state, interrupted)
            else:
                typer.echo(f"stack {stack}: there is nothing to take down")
            kept = dict(state.kept)
            shutil.rmtree(state.path.parent)
            with Display() as display:
                machine.tear_down(stack, display)
        if kept:
            typer.echo("kept, and how to remove it:")
        for what, remove in kept.items():
            typer.echo(f"  {what}: {remove}")


def _config(stack: str, sets: list[str], set_files: list[str]) -> StackConfig:
    config = read_config(PROJECT, stack, sets, set_files)
    given = {f"{config.project}:{each.partition('=')[0]}" for each in [*sets, *set_files]}
    if in_place_of_gke.is_for_gke(config):
        return in_place_of_gke.rehearsed(config, given)
    return rehearsed(config, given) if is_for_google(config) else config


def _seconds(delays: list[str]) -> dict[str, float]:
    try:
        return {name: float(seconds) for name, seconds in (each.split("=") for each in delays)}
    except ValueError:
        raise BadInputError(f"--delay {' '.join(delays)}: no number of seconds", "write --delay NAME=SECONDS") from None


def _is_here(config: StackConfig) -> bool:
    """Return True if this machine is the stack's host, or stands for it."""
    return machine.is_private(config) or is_for_google(config)


def _adapters(config: StackConfig, project: Project | None) -> dict[str, Adapter]:
    google = google_adapters.adapters(config)
    if project:
        google = {**google, **gke_adapters.adapters(config.stack, project, simulated_gke.SimulatedGke())}
    return {**ADAPTERS, **google}


@contextmanager
def _google(stack: str, *, wanted: bool) -> Iterator[Project | None]:
    """Run the simulated project of a stack whose cluster is GKE's, until the block ends; None for other stacks."""
    if wanted or in_place_of_gke.has_project(stack):
        with in_place_of_gke.simulated(stack) as project:
            yield project
    else:
        yield None


def _note_what_is_kept(config: StackConfig, state: State) -> None:
    if in_a_cluster.is_wanted(config):
        state.kept[f"the tiny model in {MODELS}"] = f"rm -r {MODELS}"
        return
    if str(config.get("target")) == "kubernetes" or in_place_of_gke.is_for_gke(config):
        return
    if not is_for_google(config):
        directory = config.get("weightsDirectory")
        state.kept[f"weights in {directory} on {config.get('host')}"] = f"rm -r {directory}"
        return
    state.kept[f"the tiny model in {MODELS}"] = f"rm -r {MODELS}"
    disk = config.get("weightsDisk") or f"elastic-vllm-{config.stack}-weights"
    what, file = f"the disk {disk}, to be used again with --set weightsDisk={disk}", simulated_vm.disk_file(disk)
    if config.get("keepWeightsDisk") or config.get("weightsDisk"):
        state.kept[what] = f"rm {file}"
    else:
        state.kept.pop(what, None)


def _set_up(config: StackConfig, state: State, display: Display, *, interrupted: bool, check_first: bool) -> None:
    here = _is_here(config)
    if here:
        write_keys(ROOT / "ssh")  # the settings name them
        state.save()
    if is_for_google(config):
        display.line(
            f"rehearsing {config.stack}: Google Cloud is simulated, this machine stands for the VM, on its CPU with "
            f"the tiny model {config.get('model')}"
        )
    if in_place_of_gke.is_for_gke(config):
        display.line(
            f"rehearsing {config.stack}: Google Cloud is simulated, the laboratory's cluster stands for GKE's, on this "
            f"machine's CPU with the tiny model {config.get('model')}"
        )
    if check_first:
        # Images take minutes: report a bad setting before that.
        with display.task("settings", "set-up"):
            engine.check(PROJECT, in_a_cluster.without_cluster(config) if in_a_cluster.is_wanted(config) else config)
    if in_a_cluster.is_wanted(config):
        in_a_cluster.set_up(config, state, display)
    if in_place_of_gke.is_for_gke(config):
        in_place_of_gke.set_up(config, state, display)
    if here:
        if interrupted:
            machine.end_sessions(config.stack)
        machine.set_up(config, state, display)


def _outputs(stack: str) -> dict[str, dict[str, Any]]:
    """A stack's outputs: name -> {"value", "secret"}. Raises UserError, RehearsalError."""
    state = load(ROOT, stack)
    if state.engine != "pulumi":
        return engine.outputs(stack)
    installation, _ = choose(stack, state, None, "")
    assert installation  # noqa: S101 (its state names Pulumi)
    return pulumi_engine.Stack(installation, PROJECT, stack).outputs()


def _destroy_with_pulumi(stack: pulumi_engine.Stack, state: State, interrupted: bool) -> None:
    """Take a stack down with the real Pulumi."""
    if interrupted:
        stack.cancel()
    records = stack.records()
    namespaces = in_a_cluster.namespaces(records)
    if namespaces and not cluster.status():
        # The cluster has taken the objects along: they are forgotten.
        stack.environment |= {"PULUMI_K8S_DELETE_UNREACHABLE": "true"}
    with Display() as display:
        _prepare_to_destroy(stack.name, state, records, display, interrupted)
    stack.destroy()
    with Display() as display:
        for namespace in namespaces:
            in_a_cluster.tear_down(namespace, display)
    simulated_vm.destroy(stack.name)


def _destroy(stack: str, state: State, interrupted: bool) -> None:
    """Take a stack down with the embedded engine."""
    in_gke = in_place_of_gke.has_project(stack)
    simulated = any(record.type.startswith(("gcp:", "pulumi:providers:gcp")) for record in state.resources.values())

    def remove_leftovers() -> None:
        if in_gke:
            return
        if simulated:
            simulated_vm.destroy(stack)  # with everything on it
            return
        for record in list(state.resources.values()):
            if record.type == in_a_cluster.PROVIDER:
                continue  # there is no Docker behind it
            for removed in docker_adapters.remove_leftovers(record.inputs, stack):
                display.line(f"{'deleted':<10} {removed}, left by an interrupted run")

    namespaces = in_a_cluster.namespaces(state.resources)
    config = StackConfig(project="", stack=stack, values={}, secrets=frozenset())
    with docker_ssh.key_held(state.resources.values()), Display() as display, _google(stack, wanted=False) as project:
        _prepare_to_destroy(stack, state, state.resources, display, interrupted)
        engine.destroy(config, state, _adapters(config, project), display, remove_leftovers)
        for namespace in namespaces:
            in_a_cluster.tear_down(namespace, display)
    display.line(display.counts())


def _prepare_to_destroy(
    stack: str, state: State, resources: Mapping[str, Record], display: Display, interrupted: bool
) -> None:
    """Start what the resources are reached through, and note what will be left of them."""
    in_a_cluster.forget_if_gone(state)
    if in_place_of_gke.has_project(stack) and not cluster.status():
        state.resources.clear()  # the laboratory's cluster has taken all along
    if state.on_this_machine and resources:
        if interrupted:
            machine.end_sessions(stack)
        machine.start_daemons(state.ssh_port, display, with_podman=podman.is_used(resources))
        vm = simulated_vm.find(stack)
        if vm:
            simulated_vm.start(stack, vm)
    for record in resources.values():
        if record.type == "docker:index/remoteImage:RemoteImage" and record.inputs.get("keepLocally"):
            image, provider = record.inputs["name"], resources.get(record.provider)
            in_podman = provider is not None and podman.is_behind(provider.inputs)
            what = f"image {image} in Podman" if in_podman else f"image {image}"
            state.kept[what] = f"{'podman' if in_podman else 'docker'} image rm {image}"
    state.save()


def _verify(outputs: dict[str, dict[str, Any]]) -> int:
    """Print a line for each check; returns how many failed."""
    # They bring the openai client.
    from scripts.lib.stack_outputs import first_client, refused_forms  # noqa: PLC0415
    from scripts.lib.verification.endpoint import Endpoint  # noqa: PLC0415
    from scripts.lib.verification.run import format_result, verify  # noqa: PLC0415

    values = {name: each["value"] for name, each in outputs.items()}
    endpoint = Endpoint(
        url=values["connectorUrl"],
        key=values["connectorApiKey"],
        model=values["model"],
        ca_certificate=values.get("caCertificate") or None,
        client_certificate=first_client(values),
        supports_tools=values["nativeFunctionCalling"],
        refuses=refused_forms(values),
    )
    with Display() as display, display.task("verify", "checks") as task:
        report = verify(endpoint, on_start=task.say, on_result=lambda result: display.line(format_result(result)))
        task.outcome = "failed" if report.failed else "verified"
    typer.echo(report.summary())
    return report.failed


def _print_connector(outputs: dict[str, dict[str, Any]], stack: str, *, show_secrets: bool) -> None:
    how = f"shown by: scripts/rehearse outputs --stack {stack} --show-secrets"
    names = {"URL": "connectorUrl", "API key": "connectorApiKey", "model": "model"}
    typer.echo()
    for label, name in names.items():
        if name in outputs:
            hidden = outputs[name]["secret"] and not show_secrets
            typer.echo(f"{label + ':':<9} {how if hidden else outputs[name]['value']}")


@contextmanager
def _user_errors() -> Iterator[None]:
    """Show errors that the user can correct as messages; any other is a bug and shows its traceback."""
    try:
        yield
    except UserError as error:
        raise typer.Exit(report(error)) from None
    except (RehearsalError, pulumi.RunError) as error:
        typer.echo(f"\nerror: {error}", err=True)
        raise typer.Exit(1) from None
    finally:
        _quietly(command_adapter.close_all)
        _quietly(docker_ssh.close_all)


@contextmanager
def _cut_off(stack: str) -> Iterator[None]:
    """Let Ctrl-C and SIGTERM end the run at once, even while threads wait for a command's end."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    except KeyboardInterrupt:
        again = f"scripts/rehearse up --stack {stack}"
        typer.echo(f"\ninterrupted; what was done is kept: `{again}` resumes from here", err=True)
        _quietly(command_adapter.close_all)
        _quietly(docker_ssh.close_all)
        machine.end_sessions(stack)
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(INTERRUPTED)  # inside the lock, so that no thread changes the state after it is free


def _quietly(close: Callable[[], None]) -> None:
    try:
        close()
    except Exception as error:  # the run is over, and its outcome has been shown
        typer.echo(f"while closing connections: {error}", err=True)

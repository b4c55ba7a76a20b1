"""A small `pulumi up --refresh` and `pulumi destroy`: plan and carry out the operation that each resource needs."""

import asyncio
import contextvars
import os
import runpy
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pulumi
from pulumi.runtime import mocks, rpc, settings
from pulumi.runtime.proto import resource_pb2
from pulumi.runtime.stack import run_pulumi_func

from scripts.lab import RehearsalError
from scripts.lab.emulator.resource import Adapter, NothingDoneError, Resource
from scripts.lab.emulator.state import ROOT, Record, State, deletion_order, load
from scripts.lib.progress import Display
from scripts.lib.stack_config import StackConfig

PARALLEL = 32
KEPT_OPTIONS = ("provider", "dependencies", "trigger", "deleted_with", "retained", "protect")
"""Options of a resource that its record keeps."""


class StoppedError(Exception):
    """A resource was not started, because another one failed before."""


class Monitor(mocks.MockMonitor):
    """Stand-in for Pulumi's engine: each registration does the real thing before it is answered."""

    def __init__(
        self, config: StackConfig, state: State, adapters: Mapping[str, Adapter], display: Display | None
    ) -> None:
        """Set up a run; without a `display` it only checks the program and changes nothing."""
        super().__init__(_NoMocks())
        self.config, self.state, self.adapters, self.display = config, state, adapters, display
        self.delays: Mapping[str, float] = {}
        self.registered: set[str] = set()
        self.failure: tuple[str, BaseException] | None = None  # the first one: the resource and its exception
        self.stopping = display is None
        self._lock = threading.Lock()

    def RegisterResource(  # noqa: N802 (the name of the call in Pulumi's protocol)
        self, request: resource_pb2.RegisterResourceRequest
    ) -> resource_pb2.RegisterResourceResponse:
        """Create, update, replace, repair or leave alone one resource."""
        urn = self.urn(request.parent, request.type, request.name)
        if not request.custom:
            own = request.type == "pulumi:pulumi:Stack" or request.type.startswith(f"{self.config.project}:")
            if own and not request.remote:
                return resource_pb2.RegisterResourceResponse(urn=urn, object=request.object)
        if self.stopping or self.display is None:
            raise StoppedError
        with self.display.task(request.name, _short(request.type), counted=True) as task:
            try:
                wanted, options = self._wanted(request, urn, task.say)
                task.outcome, record = self._bring_about(urn, wanted, options)
            except BaseException as error:
                with self._lock:
                    self.failure = self.failure or (f"{request.name} ({_short(request.type)})", error)
                    self.stopping = True
                raise
        secret_keys = options["secrets"] | set(request.additionalSecretOutputs)
        response = resource_pb2.RegisterResourceResponse(urn=urn, id=record.id)
        for key, value in {**wanted.inputs, **record.outputs}.items():
            response.object.update({key: rpc.wrap_rpc_secret(value) if key in secret_keys else value})
        return response

    def ReadResource(self, request: resource_pb2.ReadResourceRequest) -> Any:  # noqa: N802
        """Refuse: the program reads no existing resources."""
        raise self._unsupported(f"reading the existing resource {request.name} ({request.type})")

    def Invoke(self, request: resource_pb2.ResourceInvokeRequest) -> Any:  # noqa: N802
        """Refuse: the program calls no provider function."""
        raise self._unsupported(f"the provider function {request.tok}")

    Call = Invoke

    def urn(self, parent: str, kind: str, name: str) -> str:
        """Return the URN that the real engine would give."""
        inherited = parent.split("::")[2] if parent else ""
        # The real engine leaves the stack out of the chain of types.
        chain = kind if inherited in {"", "pulumi:pulumi:Stack"} else f"{inherited}${kind}"
        return f"urn:pulumi:{self.config.stack}::{self.config.project}::{chain}::{name}"

    def _unsupported(self, what: str) -> RehearsalError:
        error = RehearsalError(f"the rehearsal doesn't know {what}: add it to scripts/lab/emulator, or don't use it")
        with self._lock:
            self.failure = self.failure or ("the program", error)
            self.stopping = True
        return error

    def _wanted(
        self, request: resource_pb2.RegisterResourceRequest, urn: str, say: Callable[[str], None]
    ) -> tuple[Resource, dict[str, Any]]:
        """Return the request as a Resource, and its options: secrets, provider, dependencies, trigger."""
        adapter = self.adapters.get(request.type)
        if adapter is None:
            raise RehearsalError(f"the rehearsal doesn't know resource type {request.type}: write an adapter for it")
        with self._lock:
            if urn in self.registered:
                raise RehearsalError("registered twice: two resources of one type and parent need different names")
            self.registered.add(urn)
        given = rpc.deserialize_properties(request.object)
        inputs = {key: _plain(value) for key, value in given.items() if value is not None}
        unknown = sorted(set(inputs) - adapter.inputs)
        if unknown:
            raise RehearsalError(f"the rehearsal doesn't know input {', '.join(unknown)} of {request.type}")
        provider = request.provider.rpartition("::")[0]
        trigger = resource_pb2.RegisterResourceRequest()
        if request.HasField("replacement_trigger"):
            trigger.object.fields["value"].CopyFrom(request.replacement_trigger)
        options = {
            "secrets": {key for key, value in given.items() if rpc.is_rpc_secret(value)},
            "provider": provider,
            "dependencies": sorted({*request.dependencies, request.deletedWith} - {""}),
            "trigger": _plain(rpc.deserialize_properties(trigger.object).get("value")),
            "deleted_with": request.deletedWith,
            "retained": request.retainOnDelete,
            "protect": request.protect,
            "ignored": frozenset(path.split("[")[0] for path in request.ignoreChanges),
        }
        resource = self._resource(
            Record(type=request.type, name=request.name, id="", inputs=inputs, outputs={}, provider=provider), say
        )
        return resource, options

    def _bring_about(self, urn: str, wanted: Resource, options: dict[str, Any]) -> tuple[str, Record]:
        adapter, old = self.adapters[wanted.type], self.state.resources.get(urn)
        made = {key: options[key] for key in KEPT_OPTIONS}

        def create(outcome: str) -> tuple[str, Record]:
            # Recorded before it exists: if this process is killed now, `down` still removes its traces.
            self._keep(urn, wanted, "", {}, {**made, "begun": "create"})
            time.sleep(self.delays.get(wanted.name, 0))
            try:
                id_, outputs = adapter.create(wanted)
            except NothingDoneError:
                if old is None:
                    self._forget(urn)
                raise
            return outcome, self._keep(urn, wanted, id_, outputs, made)

        def remake(outcome: str, resource: Resource) -> tuple[str, Record]:
            self.remove(urn, resource)
            return create(outcome)

        if old is None or old.begun == "create":
            return create("created")
        before = replace(self._resource(old, wanted.say), ignored=options["ignored"])
        if old.begun == "delete":
            return remake("created", before)
        # Ignored inputs stay as they were, unless the resource is replaced: then they are as the program has them now.
        inputs = _ignoring(options["ignored"], old.inputs, wanted.inputs)
        changed = {key for key in {*old.inputs, *inputs} if old.inputs.get(key) != inputs.get(key)}
        moved = old.provider != options["provider"] or old.trigger != options["trigger"]
        if moved or (changed and (adapter.replaces(changed) or adapter.remakes(old.inputs, inputs))):
            _refuse_protected(old)
            if moved or not adapter.overlaps(old.inputs, wanted.inputs):
                self.remove(urn, before)
            else:
                with self._lock:  # no program registers this name, so it is deleted at the end of an `up`
                    self.state.resources[f"{urn}::replaced::{old.id}"] = old
            return create("replaced")
        if changed:
            wanted = replace(wanted, inputs=inputs)
            current = replace(wanted, id=old.id, outputs=old.outputs)
            outputs = adapter.update(current) if adapter.update else {}
            return "updated", self._keep(urn, wanted, old.id, outputs, made)
        seen = adapter.read(before)
        if seen == "expired":
            _refuse_protected(old)
        if seen in {"gone", "expired"}:
            return remake("created" if seen == "gone" else "replaced", before)
        if seen == "repaired" or made != {key: getattr(old, key) for key in made}:
            old = self._keep(urn, wanted, old.id, before.outputs, made)
        return ("updated" if seen == "repaired" else "unchanged"), old

    def remove(self, urn: str, resource: Resource) -> None:
        """Delete the real thing, then forget it."""
        with self._lock:
            self.state.resources[urn].begun = "delete"
            self.state.save()
        if not self.state.resources[urn].retained:
            self.adapters[resource.type].delete(resource)
        self._forget(urn)

    def delete_all(self, urns: list[str]) -> None:
        """Delete resources in the given order. Raises the exception of the first that fails."""
        assert self.display  # noqa: S101 (a check never deletes)
        for urn in urns:
            record = self.state.resources[urn]
            with self.display.task(record.name, _short(record.type), counted=True) as task:
                if record.deleted_with in urns:  # the resource that it is deleted with comes later
                    self._forget(urn)
                    task.outcome = "deleted"
                    continue
                with _named(record):
                    _refuse_protected(record)
                    self.remove(urn, self._resource(record, task.say))
                task.outcome = "retained" if record.retained else "deleted"

    def _resource(self, record: Record, say: Callable[[str], None]) -> Resource:
        provider = self.state.resources.get(record.provider)
        return Resource(
            name=record.name,
            type=record.type,
            inputs=record.inputs,
            outputs=record.outputs,
            id=record.id,
            provider=provider.inputs if provider else {},
            say=say,
        )

    def _keep(self, urn: str, resource: Resource, id_: str, outputs: dict[str, Any], options: dict[str, Any]) -> Record:
        record = Record(
            type=resource.type, name=resource.name, id=id_, inputs=resource.inputs, outputs=outputs, **options
        )
        with self._lock:
            self.state.resources[urn] = record
            self.state.save()
        return record

    def _forget(self, urn: str) -> None:
        with self._lock:
            del self.state.resources[urn]
            self.state.save()


class _NoMocks(mocks.Mocks):
    """Mocks that are never used: Monitor answers everything itself."""

    def call(self, args: mocks.MockCallArgs) -> Any:
        raise NotImplementedError

    def new_resource(self, args: mocks.MockResourceArgs) -> Any:
        raise NotImplementedError


def check(directory: Path, config: StackConfig) -> None:
    """Run the program without any changes. Raises the program's own errors, such as bad settings."""
    _run(directory, Monitor(config, State(path=Path(os.devnull)), {}, None))


def up(
    directory: Path,
    config: StackConfig,
    state: State,
    adapters: Mapping[str, Adapter],
    display: Display,
    *,
    delays: Mapping[str, float] | None = None,
) -> None:
    """Bring everything up as the program in `directory` describes; `state` receives the resources and outputs.

    `delays` are extra seconds for the creation of resources, by name. Raises RehearsalError with the first failing
    resource's name and cause; resources created by then stay in the state.
    """
    state.save()  # from here on `down` knows that the stack may have traces
    monitor = Monitor(config, state, adapters, display)
    monitor.delays = delays or {}
    exports = _run(directory, monitor)
    monitor.delete_all([urn for urn in deletion_order(state.resources) if urn not in monitor.registered])
    state.outputs = exports
    state.save()


def destroy(
    config: StackConfig,
    state: State,
    adapters: Mapping[str, Adapter],
    display: Display,
    before_providers: Callable[[], None],
) -> None:
    """Delete every resource in the state, dependents first and providers last."""
    monitor = Monitor(config, state, adapters, display)
    for record in state.resources.values():  # before anything is deleted
        with _named(record):
            _refuse_protected(record)
    order = deletion_order(state.resources)
    providers = [urn for urn in order if state.resources[urn].type.startswith("pulumi:providers:")]
    monitor.delete_all([urn for urn in order if urn not in providers])
    before_providers()
    monitor.delete_all(providers)


def outputs(stack: str, root: Path = ROOT) -> dict[str, dict[str, Any]]:
    """Return a stack's outputs: name -> {"value", "secret"}. Raises RehearsalError if the stack isn't up."""
    found = load(root, stack).outputs
    if found is None:
        raise RehearsalError(f"stack {stack} isn't up: start it with `scripts/rehearse up --stack {stack}`")
    return found


@contextmanager
def _named(record: Record) -> Iterator[None]:
    """Put a resource's name in front of the block's error."""
    try:
        yield
    except RehearsalError as error:
        raise RehearsalError(f"{record.name} ({_short(record.type)}): {error}") from error


def _refuse_protected(record: Record) -> None:
    if record.protect:
        raise RehearsalError(
            "it is protected and can't be deleted; fix: lift the protection, bring the stack up, then do this again"
        )


def _ignoring(paths: Iterable[str], old: dict[str, Any], new: dict[str, Any]) -> dict[str, Any]:
    """Return the new inputs with the old values, or none, at these paths (`a` or `a.b`)."""
    result = new
    for path in paths:
        key, _, rest = path.partition(".")
        if not rest:
            value = old.get(key)
        elif isinstance(old.get(key), dict) and isinstance(result.get(key), dict):
            value = _ignoring([rest], old[key], result[key])
        else:
            continue
        result = {
            **{each: kept for each, kept in result.items() if each != key},
            **({} if value is None else {key: value}),
        }
    return result


def _run(directory: Path, monitor: Monitor) -> dict[str, dict[str, Any]]:
    """Run the program on a fresh Pulumi runtime, even if this process has run one before, and return its exports."""
    # Pulumi keeps configuration, settings and the root stack in context variables: a copy leaves no trace.
    with _inside(directory):
        return contextvars.copy_context().run(_run_in_this_context, directory, monitor)


def _run_in_this_context(directory: Path, monitor: Monitor) -> dict[str, dict[str, Any]]:
    raised: list[BaseException] = []

    def program() -> None:
        try:
            runpy.run_path(str(directory / "__main__.py"), run_name="__main__")
        except BaseException as error:
            monitor.stopping = True
            raised.append(error)
            raise

    async def run() -> dict[str, dict[str, Any]]:
        await run_pulumi_func(program)
        root = settings.get_root_resource()
        assert isinstance(root, pulumi.runtime.stack.Stack)  # noqa: S101 (set_mocks has just made it)
        return {name: await _export(value) for name, value in root.outputs.items()}

    loop = asyncio.new_event_loop()
    asyncio.set_event_loop(loop)
    executor = ThreadPoolExecutor(PARALLEL)
    loop.set_default_executor(executor)
    # After a failure the tasks that depend on it fail too; their errors add nothing.
    loop.set_exception_handler(lambda _loop, _context: None)
    config = monitor.config
    try:
        settings.ROOT.set(None)
        settings.SETTINGS.outputs = set()  # set_mocks does not reset these two
        settings.SETTINGS.package_refs = {}
        mocks.set_mocks(_NoMocks(), project=config.project, stack=config.stack, preview=False, monitor=monitor)
        pulumi.runtime.set_all_config(config.for_pulumi(), list(config.secrets))
        return loop.run_until_complete(run())
    except Exception as error:
        monitor.stopping = True
        executor.shutdown(wait=True, cancel_futures=True)  # lets running operations finish and enter the state
        if monitor.failure:
            name, cause = monitor.failure
            if isinstance(cause, RehearsalError):
                raise RehearsalError(f"{name}: {cause}") from cause
            cause.add_note(f"while working on {name}")
            raise cause from None
        if raised:
            raise raised[0] from None
        if monitor.display is None and isinstance(error, StoppedError):
            return {}
        raise
    finally:
        monitor.stopping = True
        _close(loop)
        executor.shutdown(wait=False, cancel_futures=True)


def _close(loop: asyncio.AbstractEventLoop) -> None:
    for task in asyncio.all_tasks(loop):
        task.cancel()
    loop.run_until_complete(asyncio.sleep(0))
    asyncio.set_event_loop(None)
    loop.close()


async def _export(value: Any) -> dict[str, Any]:
    output = pulumi.Output.from_input(value)
    return {"value": _plain(await output.future()), "secret": await output.is_secret()}


@contextmanager
def _inside(directory: Path) -> Iterator[None]:
    """Run the block like `pulumi up` runs a program: in its directory, which also holds its own modules."""
    before = Path.cwd()
    os.chdir(directory)
    sys.path.insert(0, str(directory))
    try:
        yield
    finally:
        sys.path.remove(str(directory))
        os.chdir(before)


def _plain(value: Any) -> Any:
    """Convert to JSON values without secret wrappers, and whole floats to int: the protocol has only floats."""
    if rpc.is_rpc_secret(value):
        return _plain(rpc.unwrap_rpc_secret(value))
    if isinstance(value, dict):
        return {key: _plain(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(each) for each in value]
    if isinstance(value, float) and value.is_integer():
        return int(value)
    return value


def _short(kind: str) -> str:
    """Shorten `docker:index/container:Container` to `docker:Container`; mark Google's types, which are simulated."""
    parts = kind.split(":")
    return f"{parts[0]}:{parts[-1]}" + ("[simulated]" if parts[0] == "gcp" else "")

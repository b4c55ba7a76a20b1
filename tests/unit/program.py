"""Runs the unmodified __main__.py under Pulumi's mocks and records what it registers.

Each run has an event loop, a context and a configuration of its own, so runs in one process never see each other.
"""

import asyncio
import base64
import hashlib
import json
import runpy
import shlex
import subprocess
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pulumi
import yaml
from pulumi.runtime import mocks, rpc
from pulumi.runtime.proto import resource_pb2
from pulumi.runtime.stack import Stack, run_pulumi_func

ROOT = Path(__file__).resolve().parents[2]
PROJECT = yaml.safe_load((ROOT / "Pulumi.yaml").read_text())
# Those of the repository only: people keep stack files of their own beside them.
STACKS = sorted(
    Path(name).stem.removeprefix("Pulumi.")
    for name in subprocess.run(
        ["git", "ls-files", "stacks/Pulumi.*.yaml"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout.splitlines()
)
HOST_KEY = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIOMqqnkVzrm0SdG6UOoqKLsabgH5C9okWi0dh2l9GKJl"
BECOME_ROOT = "exec sudo -n bash -s\n}\n"
END_OF_SCRIPT = "\nexit\n}\n"
HUB_TOKEN = "hf_TokenOfTheTests"

# A server with two GPUs that downloads its model: what no stack file describes yet.
GPU = {
    "host": "llm.example",
    "sshUser": "ops",
    "modelRevision": "95a6d26c4bfb886c58daf9d3f7332c857cb27b87",
    "hubToken": HUB_TOKEN,
    "vllmImage": f"docker.io/vllm/vllm-openai:v0.32.0@sha256:{'a' * 64}",
    "nginxImage": f"docker.io/library/nginx:1.30.2@sha256:{'b' * 64}",
}


@dataclass(frozen=True)
class Secret:
    """The value of an input that Pulumi keeps secret."""

    value: Any


@dataclass
class Registered:
    """One resource, as the program registered it. Secret inputs are replaced by Secret(value)."""

    type: str
    name: str
    inputs: dict[str, Any]
    parent: str
    depends_on: list[str]
    """Of depends_on and of inputs that are other resources' outputs."""
    provider: str
    """Name of the explicit provider, or empty."""
    delete_before_replace: bool
    replacement_trigger: Any

    @property
    def is_docker(self) -> bool:
        return self.type.startswith("docker:")

    @property
    def is_command(self) -> bool:
        return self.type == "command:remote:Command"

    @property
    def script(self) -> str:
        """What bash runs on the host: the group in front of standard input (components/host.py)."""
        return self._stdin.partition(END_OF_SCRIPT)[0].removeprefix(self.becoming_root).removeprefix("{\n")

    @property
    def becoming_root(self) -> str:
        """What the user's own bash reads before it leaves the script to root's; empty if the user is root."""
        before, found, _ = self._stdin.partition(END_OF_SCRIPT)[0].partition(BECOME_ROOT)
        return before + found if found else ""

    @property
    def data(self) -> str:
        """What the script finds on its standard input."""
        return self._stdin.partition(END_OF_SCRIPT)[2]

    @property
    def files(self) -> dict[str, str]:
        """The data as files (render.files_as_lines), where it is that."""
        lines = [line.split(" ") for line in self.data.splitlines()]
        return {line[0]: base64.b64decode(line[1]).decode() for line in lines if len(line) == 2}

    @property
    def cleanup(self) -> str:
        """What bash runs when the resource is destroyed; empty where nothing is."""
        return shlex.split(self.inputs.get("delete", "''"))[-1]

    @property
    def _stdin(self) -> str:
        stdin = self.inputs["stdin"]
        return str(stdin.value if isinstance(stdin, Secret) else stdin)


@dataclass
class Program:
    """What a run registered and exported."""

    resources: dict[str, Registered] = field(default_factory=dict)
    outputs: dict[str, Any] = field(default_factory=dict)
    secret_outputs: set[str] = field(default_factory=set)
    outputs_wait_for: dict[str, set[str]] = field(default_factory=dict)
    """Output -> the resources that it comes from."""

    def of_type(self, token: str) -> list[Registered]:
        return [resource for resource in self.resources.values() if resource.type == token]

    @property
    def leaves(self) -> list[Registered]:
        """All but components and providers."""
        return [r for r in self.resources.values() if not r.type.startswith(("elastic-vllm:", "pulumi:"))]

    @property
    def containers(self) -> list[Registered]:
        return self.of_type("docker:index/container:Container")

    @property
    def commands(self) -> list[Registered]:
        return [resource for resource in self.resources.values() if resource.is_command]

    def waits_for(self, name: str) -> set[str]:
        """All resources that must exist before this one: what it depends on, through however many others."""
        found: set[str] = set()
        ahead = [name]
        while ahead:
            resource = self.resources[ahead.pop()]
            before = {*resource.depends_on, *filter(None, [resource.provider])} - found
            found |= before
            ahead += before
        return found


def key_of(resource: str) -> str:
    """The random key that the mocks give the resource of this name."""
    return hashlib.sha256(f"key {resource}".encode()).hexdigest()


def tls_key_of(resource: str) -> str:
    """The private key that the mocks give the resource of this name."""
    return f"-----BEGIN PRIVATE KEY-----\n{key_of(resource)}\n-----END PRIVATE KEY-----\n"


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


class _Mocks(mocks.Mocks):
    """Outputs that look like the real ones. What is made anew when an input changes has another id or content then."""

    def __init__(self, outputs: Mapping[str, Mapping[str, Any]]) -> None:
        self.given = outputs

    def call(self, args: mocks.MockCallArgs) -> Any:
        raise AssertionError(f"the program calls {args.token}")

    def new_resource(self, args: mocks.MockResourceArgs) -> tuple[str, dict[str, Any]]:
        made = _digest([args.name, args.inputs])
        certificate = {"certPem": f"certificate {args.name} {made}\n"}
        outputs: dict[str, Any] = {
            "random:index/randomBytes:RandomBytes": {"hex": rpc.wrap_rpc_secret(key_of(args.name))},
            "tls:index/privateKey:PrivateKey": {"privateKeyPem": rpc.wrap_rpc_secret(tls_key_of(args.name))},
            "tls:index/selfSignedCert:SelfSignedCert": certificate,
            "tls:index/certRequest:CertRequest": {"certRequestPem": f"request {made}\n"},
            "tls:index/locallySignedCert:LocallySignedCert": certificate,
            "docker:index/remoteImage:RemoteImage": {"imageId": f"sha256:{made}"},
            "command:remote:Command": {"stdout": "", "stderr": ""},
        }.get(args.typ, {})
        id_ = made if args.typ.startswith("docker:") else f"{args.name}-id"
        return id_, {**args.inputs, **outputs, **self.given.get(args.name, {})}


class _Monitor(mocks.MockMonitor):
    """Notes each registration, then answers it as the mocks say."""

    def __init__(self, program: Program, outputs: Mapping[str, Mapping[str, Any]]) -> None:
        super().__init__(_Mocks(outputs))
        self.program = program

    def RegisterResource(self, request: resource_pb2.RegisterResourceRequest) -> Any:  # noqa: N802 - the protocol's
        urn = self.make_urn(request.parent, request.type, request.name)
        if request.type == "pulumi:pulumi:Stack":
            return resource_pb2.RegisterResourceResponse(urn=urn)
        inputs = rpc.deserialize_properties(request.object)
        assert request.name not in self.program.resources, f"two resources are called {request.name}"
        self.program.resources[request.name] = Registered(
            type=request.type,
            name=request.name,
            inputs={key: _mark(value) for key, value in inputs.items()},
            parent=_name(request.parent),
            depends_on=sorted(_name(urn) for urn in request.dependencies),
            provider=_name(request.provider.rpartition("::")[0]),
            delete_before_replace=request.deleteBeforeReplace,
            replacement_trigger=_trigger(request),
        )
        arguments = mocks.MockResourceArgs(typ=request.type, name=request.name, inputs=inputs)
        id_, outputs = self.mocks.new_resource(arguments)
        answer = resource_pb2.RegisterResourceResponse(urn=urn, id=id_ or "")
        answer.object.update(outputs)
        return answer


class _AtOnce(ThreadPoolExecutor):
    """Answers in the thread that asks: the mocks never wait, and threads would cost more than they do."""

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        done: Future[Any] = Future()
        try:
            done.set_result(fn(*args, **kwargs))
        except Exception as error:
            done.set_exception(error)
        return done


def _trigger(request: resource_pb2.RegisterResourceRequest) -> Any:
    holder = resource_pb2.RegisterResourceRequest()  # only whole objects can be read
    if request.HasField("replacement_trigger"):
        holder.object.fields["trigger"].CopyFrom(request.replacement_trigger)
    return _mark(rpc.deserialize_properties(holder.object).get("trigger"))


def _name(urn: str) -> str:
    return urn.rpartition("::")[2]


def _mark(value: Any) -> Any:
    if rpc.is_rpc_secret(value):
        return Secret(_mark(rpc.unwrap_rpc_secret(value)))
    if isinstance(value, dict):
        return {key: _mark(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_mark(item) for item in value]
    return value


def texts(value: Any, *, secret: bool = False) -> Iterator[str]:
    """All texts in a value of inputs: the plain ones, or with `secret` those that Pulumi keeps secret."""
    if isinstance(value, Secret):
        if secret:
            yield from texts(value.value)
    elif isinstance(value, Mapping):
        for key, item in value.items():
            yield from texts(item, secret=secret)
            if not secret:
                yield str(key)
    elif isinstance(value, list):
        for item in value:
            yield from texts(item, secret=secret)
    elif not secret:
        yield str(value)


def changes(old: Program, new: Program) -> dict[str, list[str]]:
    """What an update from one run to the other does, as the engine plans it: each list holds names of resources."""

    def replaced(name: str) -> bool:
        before, after = old.resources[name], new.resources[name]
        if before.replacement_trigger != after.replacement_trigger:
            return True
        if before.is_command:
            return bool(before.inputs.get("triggers") != after.inputs.get("triggers"))
        # Of these providers, every input that a setting can change forces replacement.
        return before.inputs != after.inputs and before.type.startswith(("docker:", "random:", "tls:"))

    both = [name for name in old.resources if name in new.resources]
    remade = {name for name in both if replaced(name)}
    return {
        "created": sorted(set(new.resources) - set(old.resources)),
        "replaced": sorted(remade),
        "updated": sorted(n for n in both if old.resources[n].inputs != new.resources[n].inputs and n not in remade),
        "deleted": sorted(set(old.resources) - set(new.resources)),
    }


def configuration(stack_file: str | None, overrides: Mapping[str, Any]) -> dict[str, str]:
    """The values of a stack as Pulumi gives them to the program: defaults, the stack's file, then `overrides`."""
    values = {key: entry["default"] for key, entry in PROJECT["config"].items()}
    if stack_file:
        document = yaml.safe_load((ROOT / "stacks" / f"Pulumi.{stack_file}.yaml").read_text())
        values |= {key.removeprefix("elastic-vllm:"): value for key, value in document["config"].items()}
    values |= overrides
    return {key: value if isinstance(value, str) else json.dumps(value) for key, value in values.items()}


def run(
    values: Mapping[str, str],
    stack: str = "local",
    *,
    main: Callable[[], Any] | None = None,
    outputs: Mapping[str, Mapping[str, Any]] | None = None,
    program: Program | None = None,
) -> Program:
    """Run __main__.py with these values (or `main` in its place).

    `outputs` gives resources, by name, other outputs than the mocks would. `program` is filled as the run goes on,
    for those who want to see what a run that fails has done.
    """
    found = Program() if program is None else program
    monitor = _Monitor(found, outputs or {})

    async def everything() -> None:
        asyncio.get_running_loop().set_default_executor(_AtOnce())
        config = {f"elastic-vllm:{key}": value for key, value in values.items()}
        pulumi.runtime.set_all_config(config, ["elastic-vllm:hubToken"])
        mocks.set_mocks(monitor.mocks, project="elastic-vllm", stack=stack, monitor=monitor)
        await run_pulumi_func(main or (lambda: _discard(runpy.run_path(str(ROOT / "__main__.py")))))
        root = pulumi.runtime.settings.get_root_resource()
        assert isinstance(root, Stack)
        for name, value in root.outputs.items():
            output: pulumi.Output[Any] = pulumi.Output.from_input(value)
            found.outputs[name] = await output.future()
            if await output.is_secret():
                found.secret_outputs.add(name)
            found.outputs_wait_for[name] = {str(resource._name) for resource in await output.resources()}

    # A thread of its own has an empty context. And its stack is short: Pulumi reads all of it for each resource.
    with ThreadPoolExecutor(1) as thread:
        thread.submit(asyncio.run, everything()).result()
    return found


def _discard(_: Any) -> None:
    """What a program's module holds at its end is of no interest."""

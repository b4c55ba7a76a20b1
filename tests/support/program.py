"""Runs of the unmodified __main__.py under Pulumi's mocks, with a record of all registered resources.

Each run has a separate event loop, context and configuration, so runs in one process never affect each other.
"""

import asyncio
import base64
import copy
import functools
import hashlib
import json
import runpy
import subprocess
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pulumi
import yaml
from google.protobuf import empty_pb2  # type: ignore[import-untyped]
from pulumi.runtime import mocks, rpc
from pulumi.runtime.proto import resource_pb2
from pulumi.runtime.stack import Stack, run_pulumi_func

from components.machine.host import CLOSING_WORD
from components.settings.problems import SECRETS
from tests.support.registered import CLUSTER, INSTANCE, Registered, Secret

ROOT = Path(__file__).resolve().parents[2]
PROJECT = yaml.safe_load((ROOT / "Pulumi.yaml").read_text())
# Only the repository's stack files: users keep their own beside them.
STACKS = sorted(
    Path(name).stem.removeprefix("Pulumi.")
    for name in subprocess.run(
        ["git", "ls-files", "stacks/Pulumi.*.yaml"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout.splitlines()
)
HOST_KEY = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIOMqqnkVzrm0SdG6UOoqKLsabgH5C9okWi0dh2l9GKJl"
HUB_TOKEN = "hf_TokenOfTheTests"

# Values that `pin` records in a stack file for its model and for images of registries.
PINS = {
    "modelRevision": "95a6d26c4bfb886c58daf9d3f7332c857cb27b87",
    "vllmImage": f"docker.io/vllm/vllm-openai:v0.32.0@sha256:{'a' * 64}",
    "nginxImage": f"docker.io/library/nginx:1.30.2@sha256:{'b' * 64}",
}
VM_IMAGE = "projects/ubuntu-os-accelerator-images/global/images/ubuntu-accelerator-2404-amd64-with-nvidia-580-v20261101"
"""Further values that `pin` records in a stack file for Google Cloud."""
# Values that users fill in where a stack file for Google Cloud leaves them empty.
FILLED_IN = {
    "gcpProject": "acme-search",
    "httpsSourceRanges": ["198.51.100.0/24"],
    "sshSourceRanges": ["203.0.113.7/32"],
}
# A server with two GPUs that downloads its model, which no stack file describes.
GPU = {
    "host": "llm.example",
    "sshUser": "ops",
    "hfToken": HUB_TOKEN,
    **PINS,
}


@dataclass
class Program:
    """Resources and outputs of a run."""

    resources: dict[str, Registered] = field(default_factory=dict)
    outputs: dict[str, Any] = field(default_factory=dict)
    secret_outputs: set[str] = field(default_factory=set)
    outputs_wait_for: dict[str, set[str]] = field(default_factory=dict)
    """Output -> the resources that it depends on."""

    def of_type(self, token: str) -> list[Registered]:
        return [resource for resource in self.resources.values() if resource.type == token]

    @property
    def leaves(self) -> list[Registered]:
        """Return all resources except components and providers."""
        return [r for r in self.resources.values() if not r.type.startswith(("elastic-vllm:", "pulumi:"))]

    @property
    def on_google(self) -> bool:
        return bool(self.of_type("pulumi:providers:gcp"))

    @property
    def host_key(self) -> str:
        """The only SSH host key that may be trusted."""
        return ssh_key_of("vm-host-key")[1] if self.on_google else HOST_KEY

    @property
    def machine(self) -> str:
        """Identity of the machine behind the address: it changes with the machine."""
        return instance_id(self.resources["vm-instance"]) if self.on_google else HOST_KEY

    @property
    def containers(self) -> list[Registered]:
        return self.of_type("docker:index/container:Container")

    @property
    def commands(self) -> list[Registered]:
        return [resource for resource in self.resources.values() if resource.is_command]

    def waits_for(self, name: str) -> set[str]:
        """Return all resources that must exist before this one: its direct and indirect dependencies."""
        found: set[str] = set()
        ahead = [name]
        while ahead:
            resource = self.resources[ahead.pop()]
            before = {*resource.depends_on, *filter(None, [resource.provider])} - found
            found |= before
            ahead += before
        return found


def key_of(resource: str) -> str:
    """Return the random key that the mocks give the resource of this name."""
    return hashlib.sha256(f"key {resource}".encode()).hexdigest()


def tls_key_of(resource: str) -> str:
    """Return the private key that the mocks give the resource of this name."""
    return f"-----BEGIN PRIVATE KEY-----\n{key_of(resource)}\n-----END PRIVATE KEY-----\n"


def ssh_key_of(resource: str) -> tuple[str, str]:
    """Return the private and public key, in OpenSSH's format, that the mocks give the resource of this name."""
    private = f"-----BEGIN OPENSSH PRIVATE KEY-----\n{key_of(resource)}\n-----END OPENSSH PRIVATE KEY-----\n"
    return private, f"ssh-ed25519 {base64.b64encode(key_of(f'public {resource}').encode()).decode()}"


def instance_id(instance: Registered) -> str:
    """Return the number that the mocks give this VM; another VM of the same name gets another number."""
    return str(int(_digest(instance.identity)[:12], 16))


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True, default=lambda s: s.value).encode()).hexdigest()


class _Mocks(mocks.Mocks):
    """Mocks that the monitor requires but never asks: it makes the outputs itself, since mocks see too little."""

    def call(self, args: mocks.MockCallArgs) -> Any:
        raise AssertionError(f"the program calls {args.token}")

    def new_resource(self, args: mocks.MockResourceArgs) -> tuple[str, dict[str, Any]]:
        raise NotImplementedError


def _outputs(resource: Registered) -> tuple[str, dict[str, Any]]:
    """Return an id and outputs that look like real ones.

    A resource that is replaced when an input changes then gets another id or content.
    """
    name = resource.name
    made = _digest([name, resource.identity])
    certificate = {"certPem": f"certificate {name} {made}\n"}
    private, public = ssh_key_of(name)
    outside = resource.inputs.get("addressType") == "EXTERNAL"
    outputs: dict[str, Any] = {
        "random:index/randomBytes:RandomBytes": {"hex": rpc.wrap_rpc_secret(key_of(name))},
        "tls:index/privateKey:PrivateKey": {
            "privateKeyPem": rpc.wrap_rpc_secret(tls_key_of(name)),
            "privateKeyPemPkcs8": rpc.wrap_rpc_secret(tls_key_of(name)),
            "privateKeyOpenssh": rpc.wrap_rpc_secret(private),
            "publicKeyOpenssh": f"{public}\n",
        },
        "tls:index/selfSignedCert:SelfSignedCert": certificate,
        "tls:index/certRequest:CertRequest": {"certRequestPem": f"request {made}\n"},
        "tls:index/locallySignedCert:LocallySignedCert": certificate,
        "docker:index/remoteImage:RemoteImage": {"imageId": f"sha256:{made}"},
        "command:remote:Command": {"stdout": CLOSING_WORD, "stderr": ""},
        "command:local:Command": {"stdout": "", "stderr": ""},
        "gcp:serviceaccount/account:Account": {
            "email": f"{resource.inputs.get('accountId')}@acme.iam.gserviceaccount.com"
        },
        "gcp:compute/address:Address": {"address": f"{'203.0.113' if outside else '10.10.0'}.{int(made[:2], 16)}"},
    }.get(resource.type, {})
    if resource.type == CLUSTER:
        outputs |= _control_plane(resource)
    if resource.is_google and "name" in resource.inputs:
        outputs |= {"selfLink": f"https://www.googleapis.com/compute/v1/{resource.inputs['name']}/{made[:8]}"}
    if resource.type == INSTANCE:
        outputs |= {"instanceId": instance_id(resource)}
    return made if resource.is_docker else f"{name}-id", outputs


def _control_plane(cluster: Registered) -> dict[str, Any]:
    """Return what Google makes of a cluster's endpoints; keys are beside the CA's certificate."""
    endpoints = cluster.inputs["controlPlaneEndpointsConfig"]
    dns = {**endpoints["dnsEndpointConfig"], "endpoint": f"gke-{cluster.name}.us-central1.gke.goog"}
    authority = base64.b64encode(b"certificate of the cluster's CA").decode()
    return {
        "controlPlaneEndpointsConfig": {**endpoints, "dnsEndpointConfig": dns},
        "endpoint": "203.0.113.99",
        "masterAuth": rpc.wrap_rpc_secret({"clusterCaCertificate": authority, "clientKey": "a key of the cluster's"}),
    }


class _Monitor(mocks.MockMonitor):
    """Monitor that records each registration, then answers it."""

    def __init__(self, program: Program, outputs: Mapping[str, Mapping[str, Any]]) -> None:
        super().__init__(_Mocks())
        self.program = program
        self.given = outputs
        self.names: dict[str, str] = {}

    def RegisterResourceOutputs(self, request: Any) -> Any:  # noqa: N802 - the protocol's
        if name := self.names.get(request.urn):
            outputs = rpc.deserialize_properties(request.outputs)
            self.program.resources[name].outputs = {key: _mark(value) for key, value in outputs.items()}
        return empty_pb2.Empty()

    def RegisterResource(self, request: resource_pb2.RegisterResourceRequest) -> Any:  # noqa: N802 - the protocol's
        urn = self.make_urn(request.parent, request.type, request.name)
        if request.type == "pulumi:pulumi:Stack":
            return resource_pb2.RegisterResourceResponse(urn=urn)
        inputs = rpc.deserialize_properties(request.object)
        assert request.name not in self.program.resources, f"two resources are called {request.name}"
        resource = self.program.resources[request.name] = Registered(
            type=request.type,
            name=request.name,
            inputs={key: _mark(value) for key, value in inputs.items()},
            parent=_name(request.parent),
            depends_on=sorted(_name(urn) for urn in request.dependencies),
            provider=_name(request.provider.rpartition("::")[0]),
            delete_before_replace=request.deleteBeforeReplace,
            replacement_trigger=_trigger(request),
            replace_on_changes=list(request.replaceOnChanges),
            ignore_changes=list(request.ignoreChanges),
            retain_on_delete=request.retainOnDelete,
            deleted_with=_name(request.deletedWith),
            protect=request.protect,
            create_timeout=request.customTimeouts.create,
        )
        self.names[urn] = request.name
        id_, outputs = _outputs(resource)
        answer = resource_pb2.RegisterResourceResponse(urn=urn, id=id_)
        answer.object.update({**inputs, **outputs, **self.given.get(request.name, {})})
        return answer


class _AtOnce(ThreadPoolExecutor):
    """Executor that runs calls in the calling thread: the mocks never wait, and threads would cost more time."""

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


def changes(old: Program, new: Program) -> dict[str, list[str]]:
    """Map each kind of change between two runs to its resources, as the engine plans it; without components."""

    def replaced(name: str) -> bool:
        before, after = old.resources[name], new.resources[name]
        if (before.provider, before.replacement_trigger) != (after.provider, after.replacement_trigger):
            return True
        if before.type.startswith("command:"):
            return bool(before.inputs.get("triggers") != after.inputs.get("triggers"))
        return bool(before.identity != after.identity)

    before, after = ({r.name for r in p.resources.values() if not r.is_component} for p in (old, new))
    both = before & after
    remade = {name for name in both if replaced(name)}
    return {
        "created": sorted(after - before),
        "replaced": sorted(remade),
        "updated": sorted(n for n in both if old.resources[n].inputs != new.resources[n].inputs and n not in remade),
        "deleted": sorted(before - after),
    }


_parsed = functools.cache(yaml.safe_load)


def written(stack_file: str) -> dict[str, Any]:
    """Return the settings in a stack's file."""
    document = copy.deepcopy(_parsed((ROOT / "stacks" / f"Pulumi.{stack_file}.yaml").read_text()))
    return {key.removeprefix("elastic-vllm:"): value for key, value in document["config"].items()}


def configuration(stack_file: str | None, overrides: Mapping[str, Any]) -> dict[str, str]:
    """Return a stack's values as Pulumi passes them to the program: defaults, the stack's file, then `overrides`."""
    values = {key: entry["default"] for key, entry in PROJECT["config"].items()}
    values |= (written(stack_file) if stack_file else {}) | dict(overrides)
    return {key: value if isinstance(value, str) else json.dumps(value) for key, value in values.items()}


def run(
    values: Mapping[str, str],
    stack: str = "local",
    *,
    main: Callable[[], Any] | None = None,
    outputs: Mapping[str, Mapping[str, Any]] | None = None,
    program: Program | None = None,
) -> Program:
    """Run __main__.py with these values (or `main` instead).

    `outputs` replaces the mocks' outputs of resources, by name. `program` is filled during the run, to show how far a
    failing run came.
    """
    found = Program() if program is None else program
    monitor = _Monitor(found, outputs or {})

    async def everything() -> None:
        asyncio.get_running_loop().set_default_executor(_AtOnce())
        config = {f"elastic-vllm:{key}": value for key, value in values.items()}
        pulumi.runtime.set_all_config(config, [f"elastic-vllm:{name}" for name in SECRETS])
        mocks.set_mocks(monitor.mocks, project="elastic-vllm", stack=stack, monitor=monitor)
        # Outputs created outside of a run belong to no running loop, and waiting for them would never end.
        pulumi.runtime.settings.SETTINGS.outputs.clear()
        await run_pulumi_func(main or (lambda: _discard(runpy.run_path(str(ROOT / "__main__.py")))))
        root = pulumi.runtime.settings.get_root_resource()
        assert isinstance(root, Stack)
        for name, value in root.outputs.items():
            output: pulumi.Output[Any] = pulumi.Output.from_input(value)
            found.outputs[name] = await output.future()
            if await output.is_secret():
                found.secret_outputs.add(name)
            found.outputs_wait_for[name] = {str(resource._name) for resource in await output.resources()}

    # A new thread has an empty context and a short stack: Pulumi reads the whole stack for each resource.
    with ThreadPoolExecutor(1) as thread:
        thread.submit(asyncio.run, everything()).result()
    return found


def _discard(_: Any) -> None:
    """Discard the program's module."""

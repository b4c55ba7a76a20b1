"""docker:* with the docker SDK. Names are fixed, so a replacement deletes first."""

import functools
import hashlib
import json
import re
from collections.abc import Callable
from typing import Any, TypeVar

import docker
import requests
from docker.models.containers import Container
from docker.models.networks import Network
from docker.types import DeviceRequest, IPAMConfig, IPAMPool, LogConfig, Ulimit

from scripts.lab import RehearsalError
from scripts.lab.emulator import docker_read, docker_ssh
from scripts.lab.emulator.resource import Adapter, Resource, Seen

HASH_LABEL = "elastic-vllm.rehearsal"  # sha256 of the inputs: what was cut off half-way is recognised by it
STACK_LABEL = "elastic-vllm.stack"  # set by the program
MIB = 1024 * 1024

T = TypeVar("T")


def _explained(do: Callable[[Resource], T]) -> Callable[[Resource], T]:
    """Docker's errors as messages for the user."""

    @functools.wraps(do)
    def wrapper(resource: Resource) -> T:
        try:
            return do(resource)
        except docker.errors.APIError as error:
            raise RehearsalError(f"Docker says: {error.explanation or error}") from error
        except (requests.RequestException, docker.errors.DockerException) as error:
            host = resource.provider.get("host", "the host")
            raise RehearsalError(
                f"the connection to Docker on {host} was lost ({error}): is it still running? Run the same again"
            ) from error

    return wrapper


def _client(resource: Resource) -> docker.DockerClient:
    return docker_ssh.client(resource.provider)


# --- Provider and image


def _create_provider(resource: Resource) -> tuple[str, dict[str, Any]]:
    return resource.name, {}


def _image_outputs(resource: Resource) -> tuple[str, dict[str, Any]]:
    name = resource.inputs["name"]
    images = _client(resource).images
    try:
        image = images.get(name)
    except docker.errors.ImageNotFound:
        if name.startswith("localhost/"):
            message = f"image {name} is not on the host: build or load it there first (localhost/ is never pulled)"
            raise RehearsalError(message) from None
        resource.say(f"pulling {name}")
        image = images.pull(name)
    digests = image.attrs.get("RepoDigests") or [""]
    return f"{image.id}{name}", {"imageId": image.id, "repoDigest": digests[0]}


def _read_image(resource: Resource) -> Seen:
    try:
        found = _client(resource).images.get(resource.inputs["name"])
    except docker.errors.ImageNotFound:
        return "gone"
    return "same" if found.id == resource.outputs["imageId"] else "gone"


def _delete_image(resource: Resource) -> None:
    if not resource.inputs.get("keepLocally"):
        try:
            _client(resource).images.remove(resource.inputs["name"])
        except docker.errors.ImageNotFound:
            return


# --- Network


def _labels(inputs: dict[str, Any]) -> dict[str, str]:
    return {each["label"]: each["value"] for each in inputs.get("labels", [])}


def _create_network(resource: Resource) -> tuple[str, dict[str, Any]]:
    inputs, networks = resource.inputs, _client(resource).networks
    labels = {**_labels(inputs), HASH_LABEL: _digest(inputs)}
    for found in networks.list(names=[inputs["name"]]):
        if found.name != inputs["name"]:
            continue
        found.reload()
        theirs = found.attrs.get("Labels") or {}
        if theirs.get(HASH_LABEL) == labels[HASH_LABEL]:
            return str(found.id), _network_outputs(found)
        _refuse_foreign("network", inputs["name"], theirs)
        _remove_network(found)
    pools = [IPAMPool(**_only(each, {"subnet", "gateway"})) for each in inputs.get("ipamConfigs", [])]
    made = networks.create(
        inputs["name"],
        driver=inputs.get("driver", "bridge"),
        internal=bool(inputs.get("internal")),
        options=inputs.get("options"),
        ipam=IPAMConfig(pool_configs=pools) if pools else None,
        enable_ipv6=bool(inputs.get("ipv6")),
        labels=labels,
    )
    made.reload()
    return str(made.id), _network_outputs(made)


def _network_outputs(network: Network) -> dict[str, Any]:
    return {"scope": network.attrs.get("Scope", "local"), "driver": network.attrs["Driver"]}


def _read_network(resource: Resource) -> Seen:
    try:
        found = _client(resource).networks.get(resource.id)
    except docker.errors.NotFound:
        return "gone"
    labels = {key: value for key, value in (found.attrs.get("Labels") or {}).items() if key != HASH_LABEL}
    changed = docker_read.network_differences({**found.attrs, "Labels": labels}, resource.inputs) - resource.ignored
    if changed:
        resource.say(f"the engine has other {', '.join(sorted(changed))}")
    return "expired" if changed else "same"


def _delete_network(resource: Resource) -> None:
    if not resource.id:
        return  # its creation was cut off: if there is one, `remove_leftovers` finds it
    try:
        _remove_network(_client(resource).networks.get(resource.id))
    except docker.errors.NotFound:
        return


def _remove_network(network: Network) -> None:
    network.reload()
    for container in network.attrs.get("Containers") or {}:
        network.disconnect(container, force=True)
    network.remove()


# --- Container

# Inputs that Docker takes as they are: input -> argument of create_host_config or create_container.
HOST_PLAIN = {
    "networkMode": "network_mode",
    "usernsMode": "userns_mode",
    "tmpfs": "tmpfs",
    "readOnly": "read_only",
    "securityOpts": "security_opt",
    "dns": "dns",
    "ipcMode": "ipc_mode",
    "init": "init",
    "groupAdds": "group_add",
}
PLAIN = {
    "image": "image",
    "command": "command",
    "entrypoints": "entrypoint",
    "user": "user",
    "hostname": "hostname",
    "envs": "environment",
    "workingDir": "working_dir",
    "stopSignal": "stop_signal",
}
HANDLED = {
    *("name", "ports", "volumes", "capabilities", "shmSize", "memory", "memorySwap", "ulimits"),
    *("logDriver", "logOpts", "restart", "labels", "gpus", "stopTimeout", "destroyGraceSeconds"),
    *("mustRun", "wait", "start", "attach", "logs", "rm", "healthcheck"),
}
# Of these the rehearsal knows one value; mostly the provider's default, which the program may well spell out.
KNOWN_VALUES = {"gpus": "all", "wait": False, "start": True, "attach": False, "logs": False, "rm": False}


def _create_container(resource: Resource) -> tuple[str, dict[str, Any]]:
    inputs, client = resource.inputs, _client(resource)
    digest = _digest(inputs)
    try:
        found = client.containers.get(inputs["name"])
    except docker.errors.NotFound:
        pass
    else:
        if found.labels.get(HASH_LABEL) == digest and found.status == "running":
            return _container_outputs(found)
        _refuse_foreign("container", inputs["name"], found.labels)
        found.remove(force=True, v=True)

    options = {theirs: inputs[ours] for ours, theirs in PLAIN.items() if ours in inputs}
    if "stopTimeout" in inputs:
        options["stop_timeout"] = inputs["stopTimeout"]
    if "healthcheck" in inputs:
        options["healthcheck"] = health_check(inputs["healthcheck"])
    ports = [(each["internal"], each.get("protocol", "tcp")) for each in inputs.get("ports", [])]
    made = client.api.create_container(
        name=inputs["name"],
        host_config=client.api.create_host_config(**host_options(inputs)),
        labels={**_labels(inputs), HASH_LABEL: digest},
        ports=ports or None,
        detach=True,
        **options,
    )
    container = client.containers.get(made["Id"])
    container.start()
    container.reload()
    return _container_outputs(container)


def host_options(inputs: dict[str, Any]) -> dict[str, Any]:
    """The container inputs that concern the host, as arguments of the SDK's create_host_config.

    Raises RehearsalError for a value that the rehearsal doesn't know.
    """
    _refuse_unknown_values(inputs)
    options: dict[str, Any] = {theirs: inputs[ours] for ours, theirs in HOST_PLAIN.items() if ours in inputs}
    bindings: dict[str, list[tuple[str, int | None]]] = {}
    for each in inputs.get("ports", []):
        port = _only(each, {"internal", "external", "ip", "protocol"})
        key = f"{port['internal']}/{port.get('protocol', 'tcp')}"
        bindings.setdefault(key, []).append((port.get("ip", "0.0.0.0"), port.get("external")))  # noqa: S104
    if bindings:
        options["port_bindings"] = bindings
    if "volumes" in inputs:
        known = {"hostPath", "containerPath", "readOnly", "selinuxRelabel"}
        options["binds"] = [_bind(_only(each, known)) for each in inputs["volumes"]]
    capabilities = _only(inputs.get("capabilities", {}), {"adds", "drops"})
    options |= {f"cap_{key[:-1]}": value for key, value in capabilities.items()}
    for ours, theirs in {"shmSize": "shm_size", "memory": "mem_limit", "memorySwap": "memswap_limit"}.items():
        if ours in inputs:
            options[theirs] = inputs[ours] if inputs[ours] < 0 else inputs[ours] * MIB
    if "ulimits" in inputs:
        options["ulimits"] = [Ulimit(**_only(each, {"name", "soft", "hard"})) for each in inputs["ulimits"]]
    if "logDriver" in inputs or "logOpts" in inputs:
        log = LogConfig(type=inputs.get("logDriver", "json-file"), config=inputs.get("logOpts", {}))
        options["log_config"] = log
    if "restart" in inputs:
        options["restart_policy"] = {"Name": inputs["restart"]}
    if "gpus" in inputs:
        options["device_requests"] = [DeviceRequest(count=-1, capabilities=[["gpu"]])]
    return options


def _bind(volume: dict[str, Any]) -> str:
    flags = ["ro" if volume.get("readOnly") else "rw", *filter(None, [volume.get("selinuxRelabel")])]
    return f"{volume['hostPath']}:{volume['containerPath']}:{','.join(flags)}"


def health_check(given: dict[str, Any]) -> dict[str, Any]:
    """The input as the SDK takes it: durations such as 1m30s are nanoseconds there."""
    check = _only(given, {"tests", "interval", "timeout", "startPeriod", "retries"})
    periods = {"interval": "interval", "timeout": "timeout", "startPeriod": "start_period"}
    durations = {theirs: _nanoseconds(check[ours]) for ours, theirs in periods.items() if ours in check}
    return {"test": check["tests"], "retries": int(check.get("retries", 0)), **durations}


def _nanoseconds(duration: str) -> int:
    units = {"h": 3600, "m": 60, "s": 1}
    parts = re.findall(r"(\d+)([hms])", duration)
    if "".join(number + unit for number, unit in parts) != duration:
        raise RehearsalError(f"the rehearsal doesn't know the duration {duration!r} of a health check")
    return sum(int(number) * units[unit] for number, unit in parts) * 10**9


def _refuse_unknown_values(inputs: dict[str, Any]) -> None:
    for key, known in KNOWN_VALUES.items():
        if inputs.get(key, known) != known:
            raise RehearsalError(f"the rehearsal doesn't know {key}={inputs[key]!r} of a container, only {known!r}")


def _container_outputs(container: Container) -> tuple[str, dict[str, Any]]:
    return str(container.id), {"hostname": container.attrs["Config"]["Hostname"]}


def _read_container(resource: Resource) -> Seen:
    try:
        found = _client(resource).containers.get(resource.inputs["name"])
    except docker.errors.NotFound:
        return "gone"
    if found.id != resource.id:
        return "gone"
    changed = docker_read.container_differences(found.attrs, resource.inputs) - resource.ignored
    if found.status != "running":
        changed -= {"ports"}  # published only while it runs
    if changed:
        resource.say(f"the engine has other {', '.join(sorted(changed))}")
    if changed - docker_read.UPDATED_IN_PLACE:
        return "expired"
    if changed:
        _update_container(resource)
        return "repaired"
    if found.status in {"running", "restarting"} or not resource.inputs.get("mustRun", True):
        return "same"
    if found.status == "paused":
        found.unpause()
    else:
        found.start()
    return "repaired"


def _update_container(resource: Resource) -> dict[str, Any]:
    """Update limits and restarts like the provider; other inputs that replace nothing only matter at its end."""
    found = _client(resource).containers.get(resource.id)
    options = host_options(resource.inputs)
    known = {key: options[key] for key in ("mem_limit", "memswap_limit", "restart_policy") if key in options}
    if known:
        found.update(**known)
    found.reload()
    return _container_outputs(found)[1]


def _delete_container(resource: Resource) -> None:
    try:
        # One whose creation was cut off has no id yet; then only one of ours by that name is meant.
        found = _client(resource).containers.get(resource.id or resource.inputs["name"])
        if not resource.id and not _is_ours(found.labels):
            return
        if grace := resource.inputs.get("destroyGraceSeconds"):
            found.stop(timeout=grace)
        found.remove(force=True, v=True)
    except docker.errors.NotFound:
        return


def remove_leftovers(provider: dict[str, Any], stack: str) -> list[str]:
    """Remove the stack's containers and networks that no state knows; returns their names."""
    client = docker_ssh.client(provider)
    labelled: dict[str, str | list[str] | bool] = {"label": f"{STACK_LABEL}={stack}"}
    removed = []
    for container in client.containers.list(all=True, filters=labelled):
        container.remove(force=True, v=True)
        removed.append(f"container {container.name}")
    for network in client.networks.list(filters=labelled):
        _remove_network(network)
        removed.append(f"network {network.name}")
    return removed


def _digest(inputs: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(inputs, sort_keys=True).encode()).hexdigest()


def _is_ours(labels: dict[str, str]) -> bool:
    return bool(labels.keys() & {HASH_LABEL, STACK_LABEL})


def _refuse_foreign(what: str, name: str, labels: dict[str, str]) -> None:
    if not _is_ours(labels):
        remove = f"docker {'rm -f' if what == 'container' else 'network rm'} {name}"
        raise RehearsalError(f"there is a {what} {name} that is not ours: remove it if it isn't needed ({remove})")


def _only(item: dict[str, Any], known: set[str]) -> dict[str, Any]:
    unknown = sorted(item.keys() - known)
    if unknown:
        raise RehearsalError(f"the rehearsal doesn't know {', '.join(unknown)} in {item} of a docker resource")
    return item


ADAPTERS = {
    "pulumi:providers:docker": Adapter(
        inputs=frozenset({"host", "sshOpts", "version"}),
        create=_create_provider,
        replaces=lambda _changed: False,
    ),
    "docker:index/remoteImage:RemoteImage": Adapter(
        inputs=frozenset({"name", "keepLocally", "pullTriggers"}),
        create=_explained(_image_outputs),
        read=_explained(_read_image),
        delete=_explained(_delete_image),
    ),
    "docker:index/network:Network": Adapter(
        inputs=frozenset({"name", "driver", "internal", "options", "labels", "ipamConfigs", "ipv6", "checkDuplicate"}),
        create=_explained(_create_network),
        read=_explained(_read_network),
        delete=_explained(_delete_network),
    ),
    "docker:index/container:Container": Adapter(
        inputs=frozenset(HANDLED | HOST_PLAIN.keys() | PLAIN.keys()),
        create=_explained(_create_container),
        update=_explained(_update_container),
        read=_explained(_read_container),
        delete=_explained(_delete_container),
        replaces=lambda changed: bool(changed - docker_read.UPDATED_IN_PLACE),
    ),
}

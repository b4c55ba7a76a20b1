"""Differences that the Docker provider (5.1.0) would find between a resource's inputs and what the engine has.

The provider reads most options of a container or network back at each refresh, whether they were asked for or not,
and compares them with the inputs and with its own defaults. Both tables follow its source.
"""

from collections.abc import Callable, Iterable, Mapping
from typing import Any

Attributes = Mapping[str, Any]
MIB = 1024 * 1024
UPDATED_IN_PLACE = frozenset(
    {
        *("restart", "maxRetryCount", "memory", "memoryReservation", "memorySwap", "cpuShares", "cpuSet", "tmpfs"),
        *("mustRun", "start", "wait", "attach", "logs", "rm", "init", "removeVolumes", "destroyGraceSeconds"),
    }
)
"""Inputs of a container whose change does not replace it."""


def container_differences(attributes: Attributes, inputs: Attributes) -> set[str]:
    """Inputs of a container that the provider would find changed."""
    return _differences(_container(attributes), inputs, CONTAINER_DEFAULTS)


def network_differences(attributes: Attributes, inputs: Attributes) -> set[str]:
    """Inputs of a network that the provider would find changed."""
    return _differences(_network(attributes), inputs, NETWORK_DEFAULTS)


# The value of an input that is not declared; for inputs that are not listed, it is the engine's own value.
CONTAINER_DEFAULTS: dict[str, Any] = {
    **dict.fromkeys(("cpuSet", "cpuShares", "dns", "dnsOpts", "dnsSearches", "domainname", "groupAdds", "hosts")),
    **dict.fromkeys(("maxRetryCount", "memory", "memoryReservation", "memorySwap", "mounts", "privileged")),
    **dict.fromkeys(("publishAllPorts", "readOnly", "rm", "stdinOpen", "storageOpts", "sysctls", "tmpfs", "tty")),
    "networkMode": "bridge",
    "restart": "no",
    "usernsMode": None,
}
NETWORK_DEFAULTS: dict[str, Any] = {
    **dict.fromkeys(("attachable", "ingress", "ipamOptions", "ipv6", "labels")),
    "ipamDriver": "default",
}


def _differences(read: Mapping[str, Any], inputs: Attributes, defaults: Mapping[str, Any]) -> set[str]:
    compared = {key for key in read if key in inputs or key in defaults}
    return {key for key in compared if _plain(key, inputs.get(key, defaults.get(key))) != _plain(key, read[key])}


def _container(attributes: Attributes) -> dict[str, Any]:
    """Return the values as the provider reads them, by the name of the input."""
    host, config = attributes["HostConfig"], attributes["Config"]
    return {
        "capabilities": {"adds": host.get("CapAdd"), "drops": host.get("CapDrop")},
        "command": config.get("Cmd"),
        "cpuSet": host.get("CpusetCpus"),
        "cpuShares": host.get("CpuShares"),
        "dns": host.get("Dns"),
        "dnsOpts": host.get("DnsOptions"),
        "dnsSearches": host.get("DnsSearch"),
        "domainname": config.get("Domainname"),
        "entrypoints": config.get("Entrypoint"),
        "groupAdds": host.get("GroupAdd"),
        "healthcheck": _health_check(config.get("Healthcheck") or {}),
        "hosts": host.get("ExtraHosts"),
        "image": attributes["Image"],
        "init": bool(host.get("Init")),
        "ipcMode": host.get("IpcMode"),
        "logDriver": host["LogConfig"]["Type"],
        "logOpts": host["LogConfig"].get("Config"),
        "maxRetryCount": host["RestartPolicy"].get("MaximumRetryCount"),
        "memory": host["Memory"] // MIB,
        "memoryReservation": _mebibytes(host.get("MemoryReservation") or 0),
        "memorySwap": _mebibytes(host.get("MemorySwap") or 0),
        "mounts": [{"target": each.get("Target"), "type": each.get("Type")} for each in host.get("Mounts") or ()],
        "networkMode": host["NetworkMode"],
        "ports": [
            {"internal": int(key.partition("/")[0]), "external": int(bound["HostPort"]), "ip": bound["HostIp"]}
            for key, bindings in sorted((attributes["NetworkSettings"].get("Ports") or {}).items())
            for bound in bindings or ()
        ],
        "privileged": host.get("Privileged"),
        "publishAllPorts": host.get("PublishAllPorts"),
        "readOnly": host["ReadonlyRootfs"],
        "restart": host["RestartPolicy"]["Name"],
        "rm": host.get("AutoRemove"),
        "securityOpts": host.get("SecurityOpt"),
        "shmSize": host["ShmSize"] // MIB,
        "stdinOpen": config.get("OpenStdin"),
        "stopSignal": config.get("StopSignal"),
        "storageOpts": host.get("StorageOpt"),
        "sysctls": host.get("Sysctls"),
        "tmpfs": host.get("Tmpfs"),
        "tty": config.get("Tty"),
        "ulimits": [
            {"name": each["Name"], "soft": each["Soft"], "hard": each["Hard"]} for each in host.get("Ulimits") or ()
        ],
        "user": config.get("User"),
        "usernsMode": host.get("UsernsMode"),
        "workingDir": config.get("WorkingDir"),
    }


def _network(attributes: Attributes) -> dict[str, Any]:
    ipam = attributes["IPAM"]
    return {
        "attachable": attributes.get("Attachable"),
        "driver": attributes["Driver"],
        "ingress": attributes.get("Ingress"),
        "internal": attributes.get("Internal"),
        "ipamDriver": ipam.get("Driver"),
        "ipamOptions": ipam.get("Options"),
        "ipv6": attributes.get("EnableIPv6"),
        "labels": [{"label": label, "value": value} for label, value in (attributes.get("Labels") or {}).items()],
        "options": attributes.get("Options"),
    }


def _mebibytes(size: int) -> int:
    return size // MIB if size > 0 else size


def _health_check(check: Mapping[str, Any]) -> dict[str, Any]:
    periods = {"interval": "Interval", "timeout": "Timeout", "startPeriod": "StartPeriod"}
    return {
        "tests": check.get("Test"),
        "retries": check.get("Retries", 0),
        **{ours: _duration(check.get(theirs, 0)) for ours, theirs in periods.items()},
    }


def _duration(nanoseconds: int) -> str:
    """Format a duration as Go prints it, in whole seconds."""
    minutes, seconds = divmod(nanoseconds // 10**9, 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours}h{minutes}m{seconds}s"
    return f"{minutes}m{seconds}s" if minutes else f"{seconds}s"


def _sorted(items: Iterable[Any] | None) -> list[Any]:
    return sorted(items or (), key=str)


def _port(port: Mapping[str, Any]) -> tuple[Any, ...]:
    return port["internal"], port.get("external"), port.get("ip") or "0.0.0.0"  # noqa: S104 - the provider's default


# Lists without an order, and values in which the provider sees no difference.
SHAPES: dict[str, Callable[[Any], Any]] = {
    **dict.fromkeys(("dns", "dnsOpts", "dnsSearches", "groupAdds", "securityOpts", "hosts"), _sorted),
    "capabilities": lambda value: {key: _sorted(value.get(key)) for key in ("adds", "drops")},
    "labels": lambda value: _sorted((each["label"], each["value"]) for each in value),
    "mounts": lambda value: _sorted((each["target"], each["type"]) for each in value),
    "ports": lambda value: [_port(each) for each in value],  # the provider's list has an order
    "ulimits": lambda value: _sorted((each["name"], each["soft"], each["hard"]) for each in value),
    "options": lambda value: {key: str(each) for key, each in value.items()},
}


def _plain(key: str, value: Any) -> Any:
    return SHAPES[key](value) if value and key in SHAPES else (value or None)

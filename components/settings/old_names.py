"""Settings and values of earlier versions: what each is now, or why it is gone."""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Old:
    """A setting's earlier name."""

    became: str
    """Cause, as in `NAME is now maxModelLen`."""
    advice: str | Callable[[str], str]
    """The fix, or a function that makes it from the old value."""

    def fix(self, value: str) -> str:
        """The fix for this value."""
        return self.advice if isinstance(self.advice, str) else self.advice(value)


def _renamed(new: str) -> Old:
    return Old(f"is now {new}", "rename it")


def _gone(why: str) -> Old:
    return Old(f"is gone: {why}", "remove it")


def _utilization(percent: str) -> str:
    share = f"{int(percent) / 100:g}" if percent.isdecimal() else "0.9"
    return f'write gpuMemoryUtilization: "{share}"'


def _provisioning_model(capacity: str) -> str:
    if capacity == "reservation":
        return "write provisioningModel: STANDARD beside reservation, or RESERVATION_BOUND if Google ends it with that"
    return f"write provisioningModel: {OLD_VALUES['provisioningModel'].get(capacity, 'STANDARD')}"


def _default_key(version: str) -> str:
    number = int(version) if version.isdecimal() else 1
    if number == 1:
        return "write keys: {default: [1]}"
    return f"write keys: {{default: [{number}, {number - 1}]}}, or [{number}] if version {number - 1} no longer works"


OLD_VALUES: Mapping[str, Mapping[str, str]] = {
    "tls": {"self-signed": "private-ca"},
    "provisioningModel": {
        "standard": "STANDARD",
        "spot": "SPOT",
        "flex-start": "FLEX_START",
        "reservation": "STANDARD with reservation set, or RESERVATION_BOUND",
    },
}
"""Setting -> old value -> the value that takes its place."""

OLD_SETTINGS: Mapping[str, Old] = {
    "contextTokens": _renamed("maxModelLen"),
    "gpuMemoryPercent": Old("is now gpuMemoryUtilization, a fraction", _utilization),
    "vllmArguments": _renamed("vllmExtraArgs"),
    "modelAlias": _renamed("servedModelName"),
    "hubToken": Old("is now hfToken", "remove it, then `pulumi config set --secret hfToken`"),
    "hubEndpoint": _renamed("hfEndpoint"),
    "capacity": Old("is now provisioningModel", _provisioning_model),
    "httpsSources": _renamed("httpsSourceRanges"),
    "sshSources": _renamed("sshSourceRanges"),
    "maxBodyMb": _renamed("maxBodyMib"),
    "keyVersion": Old("is now part of keys", _default_key),
    "acceptPreviousKey": Old(
        "is now part of keys", "write keys: {default: [2, 1]} while version 1 still works, {default: [2]} afterwards"
    ),
    "artifacts": Old("is gone: if bundle is set, nothing is fetched", "remove it, and set or remove bundle"),
    "osImage": Old(
        "is gone: `pin` chooses the VM's image",
        "remove it, then run scripts/elastic-vllm pin with --os accelerator|plain",
    ),
    "maxRunHours": _gone("a VM with FLEX_START lives 168 hours, the most that Google allows"),
    "subnetCidr": Old(
        "is gone: the stack's own subnetwork has 10.10.0.0/24",
        "remove it, or set network and subnetwork to existing ones",
    ),
    "maxHeaderKb": _gone("a header line may always have 8 KiB"),
    "slowHeaderSeconds": _gone("a request's header always has 15 seconds to arrive"),
    "slowBodySeconds": _gone("60 seconds are always allowed between two pieces of a request's body"),
    "slowReaderSeconds": _gone("a client that reads nothing for 60 seconds is always disconnected"),
    "kibanaTest": _gone("the hand-off document has the call that tests the connector"),
    "kibanaConnectorId": Old(
        "is gone: `up` creates its own connector", "remove it, and delete the old connector in Kibana"
    ),
    "inferenceEndpointId": Old(
        "is gone: `up` creates its own inference endpoint", "remove it, and delete the old one in Elasticsearch"
    ),
}
"""Setting of an earlier version -> what became of it. No edit distance finds these."""


def list_as_object(key: str, text: str) -> str | None:
    """The object that takes the place of an old list of `keys` or `labels`; None if `text` is no such list."""
    try:
        entries = json.loads(text)
    except json.JSONDecodeError:
        return None
    if not isinstance(entries, list) or not all(isinstance(entry, str) and "=" in entry for entry in entries):
        return None
    pairs = [entry.split("=", 1) for entry in entries]
    if key == "keys":
        return "{" + ", ".join(f"{name.strip()}: [{versions.replace(',', ', ')}]" for name, versions in pairs) + "}"
    return "{" + ", ".join(f"{name}: {json.dumps(value)}" for name, value in pairs) + "}"

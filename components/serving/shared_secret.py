"""The keys that Elastic's connectors show and Nginx checks."""

from collections.abc import Mapping
from dataclasses import dataclass

import pulumi
import pulumi_random as random

from components.settings import keys as key_settings

# 256 bits: Nginx compares keys without constant time, so guessing must be hopeless by size alone.
KEY_BYTES = 32


@dataclass(frozen=True, kw_only=True)
class SharedSecretArgs:
    """Which keys there are."""

    versions: Mapping[str, tuple[int, ...]]
    """Name -> accepted versions, the current one first; the default key's are there."""


class SharedSecret(pulumi.ComponentResource):
    """Every accepted version of every key exists: 64 hexadecimal digits each.

    Each version is a separate random resource, so that a new version never changes an old one. Nginx checks the keys.
    """

    key: pulumi.Output[str]
    """The default key. Secret."""
    named: dict[str, pulumi.Output[str]]
    """Name -> current version of each other key. Secrets."""
    accepted: dict[str, pulumi.Output[str]]
    """Label for the access log (`v2`, `siem-v1`) -> key, the default one's current version first. Secrets."""

    def __init__(self, name: str, args: SharedSecretArgs, opts: pulumi.ResourceOptions | None = None) -> None:
        super().__init__("elastic-vllm:index:SharedSecret", name, None, opts)
        labels = {key: [key_settings.label(key, version) for version in each] for key, each in args.versions.items()}
        self.accepted = {
            label: random.RandomBytes(f"{name}-{label}", length=KEY_BYTES, opts=pulumi.ResourceOptions(parent=self)).hex
            for each in labels.values()
            for label in each
        }
        current = {key: self.accepted[each[0]] for key, each in labels.items()}
        self.key = current.pop(key_settings.DEFAULT)
        self.named = current
        self.register_outputs({"key": self.key, "named": self.named, "accepted": self.accepted})

"""The key that Elastic's connector shows and Nginx checks."""

from dataclasses import dataclass

import pulumi
import pulumi_random as random

# 256 bits: Nginx compares keys without constant time, so guessing must be hopeless by size alone.
KEY_BYTES = 32


@dataclass(frozen=True, kw_only=True)
class SharedSecretArgs:
    """Which version of the key is current."""

    version: int
    accept_previous: bool
    """Whether the version before it still works, so that connectors can be changed over."""


class SharedSecret(pulumi.ComponentResource):
    """The current key exists, and the previous one while it is still accepted: 64 hexadecimal digits each.

    One random resource a version, so that a new version never changes an old one. Leaves checking the key to Nginx.
    """

    key: pulumi.Output[str]
    """Secret."""
    accepted: dict[str, pulumi.Output[str]]
    """Label for the access log (`v2`) -> key, the current one first. Secrets."""

    def __init__(self, name: str, args: SharedSecretArgs, opts: pulumi.ResourceOptions | None = None) -> None:
        super().__init__("elastic-vllm:shared_secret:SharedSecret", name, None, opts)
        versions = [args.version]
        if args.accept_previous and args.version > 1:
            versions.append(args.version - 1)
        self.accepted = {
            f"v{version}": random.RandomBytes(
                f"{name}-v{version}", length=KEY_BYTES, opts=pulumi.ResourceOptions(parent=self)
            ).hex
            for version in versions
        }
        self.key = self.accepted[f"v{args.version}"]
        self.register_outputs({"key": self.key})

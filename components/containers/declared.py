"""Options that a container engine completes or rewrites, and how changes of ours to them still show.

The Docker provider reads back what the engine has, not what it was asked for. Docker adds its own `log-opts`,
`default-ulimits` and `default-network-opts` to what is declared, and drops limits of memory that its kernel can't keep;
Podman rewrites capabilities, signals and more. A port that is published on two addresses is read back in another order,
and by some versions of the provider as the same address twice. Each of these would be a difference, and replace the
container at every `up --refresh`. So the provider ignores these options, and a label repeats them as declared: a change
of ours changes the label, which replaces the container. None of these options of a container that exists can change in
any other way.
"""

import json
from collections.abc import Mapping

import pulumi

LABEL = "elastic-vllm.declared"
NETWORK_LABEL = "elastic-vllm.network"
"""A container has to go before its network can, and its `networkMode` no longer shows that."""
OF_CONTAINERS = [
    *("capabilities", "logDriver", "logOpts", "memory", "memorySwap", "networkMode", "securityOpts", "stopSignal"),
    *("tmpfs", "ulimits", "usernsMode"),
    "mounts",  # nothing is declared here; plugins of the engine's runtime interface (NRI) may add some
]
USERS_AS_THEY_ARE = {"userns_mode": "host"}
"""With Docker's `userns-remap`, files on the server belong to the containers' users under their own numbers."""
OF_NETWORKS = ["ipamOptions", "ipv6", "options"]


def labels(declared: Mapping[str, object]) -> dict[str, str]:
    """Labels of a container or network: its stack, and the options of those above that are declared."""
    return {"elastic-vllm.stack": pulumi.get_stack(), LABEL: json.dumps(declared, sort_keys=True)}

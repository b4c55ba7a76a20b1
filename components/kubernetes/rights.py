"""Rights that the program needs in its namespace: no more than an admin of the namespace has."""

from collections.abc import Mapping, Sequence

_OWN = ("get", "list", "watch", "create", "patch", "delete")
"""For what the program creates; Pulumi's provider applies by patches and waits by watches."""
_SEEN = ("get", "list", "watch")

RIGHTS: Mapping[str, Mapping[str, Sequence[str]]] = {
    "": {
        "secrets": _OWN,
        "configmaps": _OWN,
        "services": _OWN,
        "persistentvolumeclaims": _OWN,
        "pods": _OWN,
        "pods/log": ("get",),
        "endpoints": _SEEN,
        "events": _SEEN,
        "limitranges": ("list",),
        "resourcequotas": ("list",),
    },
    "apps": {"deployments": _OWN, "replicasets": _SEEN},
    "batch": {"jobs": _OWN},
    "networking.k8s.io": {"networkpolicies": _OWN},
    "policy": {"poddisruptionbudgets": _OWN},
}
"""API group -> resource -> verbs."""


def role(name: str, namespace: str) -> dict[str, object]:
    """Return the Role with these rights, and with that to look at the namespace itself."""
    rules = [
        {"apiGroups": [group], "resources": [resource], "verbs": list(verbs)}
        for group, resources in RIGHTS.items()
        for resource, verbs in resources.items()
    ]
    return {
        "apiVersion": "rbac.authorization.k8s.io/v1",
        "kind": "Role",
        "metadata": {"name": name, "namespace": namespace},
        "rules": [*rules, {"apiGroups": [""], "resources": ["namespaces"], "verbs": ["get"]}],
    }

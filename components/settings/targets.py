"""Targets that the endpoint can run on, and the settings that have an effect there."""

from collections.abc import Mapping, Sequence

from components.settings import downloads, gcp, gke, kubernetes

EXISTING, GCP, KUBERNETES, GKE = TARGETS = ("existing", "gcp", "kubernetes", "gke")
_SERVERS = (EXISTING, GCP)
CLUSTERS = (KUBERNETES, GKE)

TARGETS_OF: Mapping[str, Sequence[str]] = {
    **dict.fromkeys(gcp.KEYS, (GCP,)),
    **dict.fromkeys(gcp.SHARED_KEYS, (GCP, GKE)),
    **dict.fromkeys(kubernetes.KEYS, (KUBERNETES,)),
    **dict.fromkeys(gke.SHARED_WITH_KUBERNETES, (KUBERNETES, GKE)),
    **dict.fromkeys(gke.KEYS, (GKE,)),
    **dict.fromkeys(("httpsSourceRanges", "parked"), (GCP, KUBERNETES, GKE)),
    **dict.fromkeys(("host", "sshPort", "sshHostKey", *downloads.KEYS), (EXISTING,)),
    **dict.fromkeys(("gpuCount", "gpuMemoryGib"), (EXISTING, KUBERNETES)),
    **dict.fromkeys(
        (
            "sshUser",
            "sshPrivateKeyPath",
            "sshPrivateKeyPassword",
            "sshAgent",
            "modelSource",
            "weightsDirectory",
            "dcgmImage",
        ),
        _SERVERS,
    ),
}
"""Setting -> the targets that it belongs to; one that is not listed belongs to all of them."""

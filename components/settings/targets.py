"""Targets that the endpoint can run on, and the settings that have an effect there."""

from collections.abc import Mapping, Sequence

from components.settings import downloads, gcp, kubernetes

EXISTING, GCP, KUBERNETES = TARGETS = ("existing", "gcp", "kubernetes")
_SERVERS = (EXISTING, GCP)

TARGETS_OF: Mapping[str, Sequence[str]] = {
    **dict.fromkeys(gcp.KEYS, (GCP,)),
    **dict.fromkeys(kubernetes.KEYS, (KUBERNETES,)),
    **dict.fromkeys(("httpsSourceRanges", "parked"), (GCP, KUBERNETES)),
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

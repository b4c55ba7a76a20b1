"""Input of every check."""

from dataclasses import dataclass
from http import HTTPStatus
from typing import Any, cast

from components.settings.gcp import GcpSettings, GoogleSettings
from components.settings.gke import GkeSettings
from components.settings.stack import Settings
from scripts.lib.google import COMPUTE, Google, RefusedError

CONTAINER = "container.googleapis.com"
QUOTA_PAGE = "https://console.cloud.google.com/iam-admin/quotas"


@dataclass(frozen=True)
class Survey:
    """The settings of a stack with target gcp or gke, and the APIs to check them with."""

    settings: Settings
    gcp: GoogleSettings
    google: Google

    @property
    def vm(self) -> GcpSettings:
        """The settings of target gcp; only its checks ask for them."""
        return cast(GcpSettings, self.gcp)

    @property
    def gke(self) -> GkeSettings:
        """The settings of target gke; only its checks ask for them."""
        return cast(GkeSettings, self.gcp)

    @property
    def preemptible(self) -> bool:
        """Return True if Google counts the VM, or the nodes with GPUs, as preemptible.

        Spot: docs.cloud.google.com/compute/docs/instances/spot; flex-start: "consume preemptible quota" in Google's
        "Introducing Flex-start VMs" of 2025-09-25.
        """
        return self.gcp.provisioning_model in {"SPOT", "FLEX_START"}

    @property
    def makes_disk(self) -> bool:
        """Return True if this stack creates the weights' disk."""
        return not self.vm.weights_disk

    def exists(self) -> bool:
        """Return True if the stack's VM or cluster exists already; raises the exceptions of Google.ask."""
        if isinstance(self.gcp, GkeSettings):
            return self.cluster() is not None
        return self.google.find(self.gcp.project, f"zones/{self.gcp.zone}/instances/{self.gcp.name}") is not None

    def cluster(self) -> dict[str, Any] | None:
        """Return the stack's cluster, or None if there is none of that name."""
        path = f"v1/projects/{self.gke.project}/locations/{self.gke.location}/clusters/{self.gke.name}"
        try:
            return self.google.ask(CONTAINER, path)
        except RefusedError as error:
            if error.status != HTTPStatus.NOT_FOUND:
                raise
            return None

    def quotas(self, path: str = "") -> dict[str, tuple[float, float]]:
        """Map each quota to limit and usage, for the whole project or for `regions/REGION`."""
        where = f"compute/v1/projects/{self.gcp.project}" + (f"/{path}" if path else "")
        listed = self.google.ask(COMPUTE, where).get("quotas", [])
        return {quota["metric"]: (float(quota["limit"]), float(quota["usage"])) for quota in listed}

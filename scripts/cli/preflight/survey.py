"""Input of every check."""

from dataclasses import dataclass

from components.settings.gcp import GcpSettings
from components.settings.stack import Settings
from scripts.lib.google import COMPUTE, Google

QUOTA_PAGE = "https://console.cloud.google.com/iam-admin/quotas"


@dataclass(frozen=True)
class Survey:
    """The settings of a stack with target gcp, and the APIs to check them with."""

    settings: Settings
    gcp: GcpSettings
    google: Google

    @property
    def preemptible(self) -> bool:
        """Return True if Google counts the VM as preemptible.

        Spot: docs.cloud.google.com/compute/docs/instances/spot; flex-start: "consume preemptible quota" in Google's
        "Introducing Flex-start VMs" of 2025-09-25.
        """
        return self.gcp.provisioning_model in {"SPOT", "FLEX_START"}

    @property
    def makes_disk(self) -> bool:
        """Return True if this stack creates the weights' disk."""
        return not self.gcp.weights_disk

    def vm_exists(self) -> bool:
        """Return True if the stack's VM exists already; raises the exceptions of Google.find."""
        return self.google.find(self.gcp.project, f"zones/{self.gcp.zone}/instances/{self.gcp.name}") is not None

    def quotas(self, path: str = "") -> dict[str, tuple[float, float]]:
        """Map each quota to limit and usage, for the whole project or for `regions/REGION`."""
        where = f"compute/v1/projects/{self.gcp.project}" + (f"/{path}" if path else "")
        listed = self.google.ask(COMPUTE, where).get("quotas", [])
        return {quota["metric"]: (float(quota["limit"]), float(quota["usage"])) for quota in listed}

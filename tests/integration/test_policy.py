"""checkov's rules for Google Cloud hold for every such stack file, with the exceptions below."""
# ruff: noqa: F811 - pytest gives fixtures by the names of arguments

import copy
import json
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.support import tool_environment
from tests.support.program import Program
from tests.support.registered import INSTANCE
from tests.support.terraform_plan import terraform_plan
from tests.unit.conftest import (  # noqa: F401 - fixtures
    ON_GKE,
    ON_GOOGLE,
    bundle,
    kubeconfig,
    private_key,
    program_of,
    values_of,
)

pytestmark = pytest.mark.slow  # the quick run has tests/support/google_rules.py

EXCEPTIONS = {
    "CKV_GCP_26": "flow logs of the subnetwork: they cost money, and Nginx logs each request; turn them on if your "
    "rules ask for them",
    "CKV_GCP_34": "OS Login is off for this VM: cloud-init gives it its one user and key, which OS Login would ignore; "
    "project-wide keys are blocked",
    "CKV_GCP_37": "no customer-supplied key for the weights disk: Google encrypts it with its own, and what is on it "
    "is public or can be downloaded again",
    "CKV_GCP_38": "the same for the boot disk",
    "CKV_GCP_40": "an external address: only with externalAddress, and Elastic Cloud can't connect without",
    "CKV2_GCP_18": "it follows references between a plan's resources, which a plan of mocked inputs does not have; "
    "tests/support/google_rules.py holds the firewall",
}
PRIVATE = {"CKV_GCP_40"}
"""Exceptions that private mode does not need."""
IN_CLUSTERS = {
    "CKV_GCP_12": "the add-on that enforces NetworkPolicies: Dataplane V2 does, and refuses that add-on",
    "CKV_GCP_20": "authorized networks: the control plane has no address at all, unless controlPlaneSourceRanges gives "
    "it one for these alone",
    "CKV_GCP_26": EXCEPTIONS["CKV_GCP_26"],
    "CKV_GCP_61": "visibility within a node shows in the same flow logs",
    "CKV_GCP_65": "a Google group for RBAC has to be made in your organization; access is by IAM",
    "CKV_GCP_66": "Binary Authorization asks a policy of the whole project; the stack's images are pinned by digest",
    "CKV2_GCP_18": "the same as for a VM; a cluster's firewall rules are Google's own",
}
BY_ADDRESS = {"CKV_GCP_20"}
"""Exceptions that a control plane with an address does not need."""
PLANE = {"controlPlaneSourceRanges": ["203.0.113.7/32"]}

# A change of the inputs of prod (resource, path, value) and the rule that must find it: proof that checkov reads the
# output of terraform_plan.
WRONG: list[tuple[str, tuple[str | int, ...], Any, str]] = [
    ("network-ssh", ("sourceRanges",), ["0.0.0.0/0"], "CKV_GCP_2"),
    ("network-subnetwork", ("privateIpGoogleAccess",), False, "CKV_GCP_74"),
    ("vm-instance", ("serviceAccount",), {"email": "1-compute@developer.gserviceaccount.com"}, "CKV_GCP_30"),
    ("vm-instance", ("metadata", "block-project-ssh-keys"), "FALSE", "CKV_GCP_32"),
    ("vm-instance", ("metadata", "serial-port-enable"), True, "CKV_GCP_35"),
    ("vm-instance", ("canIpForward",), True, "CKV_GCP_36"),
    ("vm-instance", ("shieldedInstanceConfig", "enableIntegrityMonitoring"), False, "CKV_GCP_39"),
]
# The same for gke.
WRONG_IN_CLUSTERS: list[tuple[str, tuple[str | int, ...], Any, str]] = [
    ("gke-cluster", ("resourceLabels",), None, "CKV_GCP_21"),
    ("gke-cluster", ("ipAllocationPolicy",), None, "CKV_GCP_23"),
    ("gke-cluster", ("privateClusterConfig",), None, "CKV_GCP_25"),
    ("gke-cluster", ("privateClusterConfig",), None, "CKV_GCP_64"),
    ("gke-cluster", ("masterAuth", "clientCertificateConfig", "issueClientCertificate"), True, "CKV_GCP_13"),
    ("gke-cluster", ("releaseChannel",), None, "CKV_GCP_70"),
    ("gke-cluster", ("enableShieldedNodes",), False, "CKV_GCP_71"),
    ("gke-gpu", ("nodeConfig", "shieldedInstanceConfig", "enableSecureBoot"), False, "CKV_GCP_68"),
    ("gke-gpu", ("nodeConfig", "shieldedInstanceConfig", "enableIntegrityMonitoring"), False, "CKV_GCP_72"),
    ("gke-gpu", ("nodeConfig", "workloadMetadataConfig", "mode"), "GCE_METADATA", "CKV_GCP_69"),
    ("gke-gpu", ("management", "autoRepair"), False, "CKV_GCP_9"),
    ("gke-gpu", ("management", "autoUpgrade"), False, "CKV_GCP_10"),
    ("gke-account-node", ("role",), "roles/editor", "CKV_GCP_117"),
    ("gke-subnetwork", ("privateIpGoogleAccess",), False, "CKV_GCP_74"),
]


@pytest.fixture(scope="module")
def checkov() -> Callable[[Path], dict[str, set[str]]]:
    """Function that runs checkov on a directory of plans, from a separate environment that is created once."""
    programs = tool_environment.programs("checkov")

    def failed(directory: Path) -> dict[str, set[str]]:
        command = [str(programs / "checkov"), "--directory", str(directory), "--framework", "terraform_plan"]
        done = subprocess.run([*command, "--skip-download", "--output", "json"], capture_output=True, text=True)  # noqa: PLW1510 - 1 when it finds something
        assert done.returncode in {0, 1}, done.stderr
        results = json.loads(done.stdout)["results"]
        assert not results["parsing_errors"]
        assert len(results["passed_checks"]) > 10 * len([*directory.iterdir()])
        found: dict[str, set[str]] = {path.stem: set() for path in directory.iterdir()}
        for check in results["failed_checks"]:
            found[Path(check["file_path"]).stem].add(check["check_id"])
        return found

    return failed


@pytest.fixture(scope="module")
def found(
    checkov: Callable[[Path], dict[str, set[str]]],
    program_of: Callable[..., Program],
    tmp_path_factory: pytest.TempPathFactory,
) -> dict[str, set[str]]:
    """Map each plan to the rules that it breaks: every stack for Google, and prod and gke with each wrong input."""
    directory = tmp_path_factory.mktemp("plans")
    for stack in (*ON_GOOGLE, *ON_GKE):
        (directory / f"{stack}.json").write_text(json.dumps(terraform_plan(program_of(stack))))
    for stack in ON_GKE:
        (directory / f"{stack} by address.json").write_text(json.dumps(terraform_plan(program_of(stack, **PLANE))))
    for base, wrong in (("prod", WRONG), ("gke", WRONG_IN_CLUSTERS)):
        for name, path, value, rule in wrong:
            program = copy.deepcopy(program_of(base))
            _change(program, name, path, value)
            (directory / f"wrong {base} {rule}.json").write_text(json.dumps(terraform_plan(program)))
    return checkov(directory)


def _change(program: Program, name: str, path: tuple[str | int, ...], value: Any) -> None:
    at: Any = program.resources[name].inputs
    for part in path[:-1]:
        at = at[part]
        at = getattr(at, "value", at)
    at[path[-1]] = value


@pytest.mark.parametrize("stack", ON_GOOGLE)
def test_a_stack_file_breaks_only_the_excepted_rules(
    stack: str, found: dict[str, set[str]], program_of: Callable[..., Program]
) -> None:
    (instance,) = program_of(stack).of_type(INSTANCE)
    private = not instance.inputs["networkInterfaces"][0].get("accessConfigs")
    assert found[stack] == set(EXCEPTIONS) - (PRIVATE if private else set())


@pytest.mark.parametrize("stack", ON_GKE)
def test_a_cluster_breaks_only_the_excepted_rules(stack: str, found: dict[str, set[str]]) -> None:
    assert found[stack] == set(IN_CLUSTERS)
    assert found[f"{stack} by address"] == set(IN_CLUSTERS) - BY_ADDRESS


@pytest.mark.parametrize(
    ("base", "rule"), [*(("prod", rule) for *_, rule in WRONG), *(("gke", rule) for *_, rule in WRONG_IN_CLUSTERS)]
)
def test_checkov_finds_what_is_wrong(base: str, rule: str, found: dict[str, set[str]]) -> None:
    assert rule in found[f"wrong {base} {rule}"]

"""Checks of the project: credentials, APIs, permissions."""

from itertools import groupby
from typing import Any

from components.settings.gke import GkeSettings
from scripts.cli.preflight.report import Outcome, failed, ok, warning
from scripts.cli.preflight.survey import Survey
from scripts.lib.google import RefusedError

IAP = "iap.googleapis.com"
IAM = "iam.googleapis.com"
FILESTORE = "file.googleapis.com"
MANAGER = "cloudresourcemanager.googleapis.com"
UNAUTHORIZED = 401

POLICIES = "orgpolicy.googleapis.com"
INSTANCE_ADMIN = "roles/compute.instanceAdmin.v1"
NETWORK_ADMIN = "roles/compute.networkAdmin"
SECURITY_ADMIN = "roles/compute.securityAdmin"
TUNNEL_USER = "roles/iap.tunnelResourceAccessor"
ACCOUNT_USER = "roles/iam.serviceAccountUser"
ACCOUNT_ADMIN = "roles/iam.serviceAccountAdmin"
PROJECT_IAM_ADMIN = "roles/resourcemanager.projectIamAdmin"
CLUSTER_ADMIN = "roles/container.clusterAdmin"
CLUSTER_DEVELOPER = "roles/container.developer"


def credentials(survey: Survey) -> Outcome:
    """Check that Google accepts the credentials, which every answer except 401 shows."""
    kind = survey.google.identity.kind
    try:
        survey.google.ask(MANAGER, f"v3/projects/{survey.gcp.project}")
    except RefusedError as error:
        if error.status == UNAUTHORIZED:
            return failed(f"Google refuses the {kind} (401: {error})", survey.google.identity.renewal)
    return ok(f"{kind}, {survey.google.account() or 'of an account that Google does not name'}")


def api(survey: Survey, name: str) -> Outcome:
    """Check that the API `name` is enabled in the project."""
    project = survey.gcp.project
    found = survey.google.ask("serviceusage.googleapis.com", f"v1/projects/{project}/services/{name}")
    if found["state"] == "ENABLED":
        return ok(f"{name} is enabled in {project}")
    return failed(f"{name} is not enabled in {project}", f"gcloud services enable {name} --project {project}")


def permissions_needed(survey: Survey) -> dict[str, str]:
    """Map each permission that these settings need to the smallest predefined role that includes it.

    Roles: roles/ in darkbitio/gcp-iam-role-permissions at 8962839b (2026-08-22). Needs: Google's "Create a Flex-start
    VM" and "Customize your network isolation in GKE", and the requests of the resources that the program declares.
    """
    gcp = survey.gcp
    network = ["networks.get", "networks.updatePolicy", "subnetworks.get", "subnetworks.use"]
    if not gcp.network:
        network += ["networks.create", "networks.delete", "subnetworks.create", "subnetworks.delete"]
    network += ["addresses.get"]
    if gcp.external_address:
        network += ["addresses.create", "addresses.delete", "addresses.use", "subnetworks.useExternalIp"]
    else:
        network += ["addresses.createInternal", "addresses.deleteInternal", "addresses.useInternal"]
    if gcp.cloud_nat:
        network += ["routers.create", "routers.delete", "routers.get", "routers.update"]
    roles = _of_cluster(gcp) if isinstance(gcp, GkeSettings) else _of_vm(survey)
    return roles | {f"compute.{name}": NETWORK_ADMIN for name in network}


def _of_vm(survey: Survey) -> dict[str, str]:
    gcp = survey.vm
    words = "instances.create instances.delete instances.get instances.setLabels instances.setMetadata"
    needed = dict.fromkeys(
        [*words.split(), "instances.setTags", "disks.create", "disks.get", "disks.setLabels", "disks.use"],
        INSTANCE_ADMIN,
    )
    if survey.makes_disk:
        needed["disks.delete"] = INSTANCE_ADMIN
    if gcp.deletion_protection:
        needed["instances.setDeletionProtection"] = INSTANCE_ADMIN
    firewalls = ["firewalls.create", "firewalls.delete", "firewalls.get", "firewalls.update"]
    needed |= dict.fromkeys(firewalls, SECURITY_ADMIN)
    if gcp.service_account:
        needed["instances.setServiceAccount"] = INSTANCE_ADMIN
    roles = {f"compute.{name}": role for name, role in needed.items()}
    if gcp.ssh_via == "iap":
        roles["iap.tunnelInstances.accessViaIAP"] = TUNNEL_USER
    if gcp.service_account:
        roles["iam.serviceAccounts.actAs"] = ACCOUNT_USER
    return roles


def _of_cluster(gcp: GkeSettings) -> dict[str, str]:
    """Rights for the cluster and its nodes' account; IAM alone gives those inside of it, too."""
    made = ("create", "delete", "get", "update")
    roles = {f"container.clusters.{verb}": CLUSTER_ADMIN for verb in made}
    roles["container.operations.get"] = CLUSTER_ADMIN
    kinds = "configMaps deployments jobs namespaces networkPolicies persistentVolumeClaims podDisruptionBudgets pods"
    for kind in (*kinds.split(), "secrets", "services"):
        roles |= {f"container.{kind}.{verb}": CLUSTER_DEVELOPER for verb in made}
    roles["container.pods.getLogs"] = CLUSTER_DEVELOPER
    if not gcp.control_plane_source_ranges:
        roles["container.clusters.connect"] = CLUSTER_DEVELOPER
    roles["iam.serviceAccounts.actAs"] = ACCOUNT_USER
    if not gcp.service_account:
        roles |= {f"iam.serviceAccounts.{verb}": ACCOUNT_ADMIN for verb in ("create", "delete", "get")}
        roles |= {f"resourcemanager.projects.{verb}IamPolicy": PROJECT_IAM_ADMIN for verb in ("get", "set")}
    return roles


def permissions(survey: Survey) -> Outcome:
    """Check that the user has the permissions on the project that these settings need (testIamPermissions)."""
    needed, project = permissions_needed(survey), survey.gcp.project
    held: set[str] = set()

    # A permission that can't be tested on a project would spoil the answer for those asked with it.
    def asked_with(name: str) -> tuple[str, str]:
        of_the_network = name.startswith(("compute.firewalls", "compute.networks", "compute.subnetworks"))
        return (survey.gcp.network_project if of_the_network else project), name.split(".", maxsplit=1)[0]

    for (where, _), names in groupby(sorted(needed, key=asked_with), key=asked_with):
        asked = {"permissions": sorted(names)}
        held |= set(survey.google.ask(MANAGER, f"v3/projects/{where}:testIamPermissions", asked).get("permissions", []))
    missing = {name: role for name, role in needed.items() if name not in held}
    if not missing:
        return ok(f"all {len(needed)} that these settings need, on {project}")
    by_role = {role: [name for name in missing if missing[name] == role] for role in dict.fromkeys(missing.values())}
    cause = "missing: " + "; ".join(f"{', '.join(names)} ({role})" for role, names in by_role.items())
    who = survey.google.account()
    member = f"{'serviceAccount' if who.endswith('.gserviceaccount.com') else 'user'}:{who}" if who else "MEMBER"
    fix = f"gcloud projects add-iam-policy-binding {project} --member={member} --role=ROLE, for each role"
    if set(by_role) == {ACCOUNT_USER} and survey.gcp.service_account:
        return warning(cause, f"fine if it is granted on {survey.gcp.service_account} itself; else {fix}")
    return failed(cause, fix)


def policies(survey: Survey) -> Outcome:
    """Check for policies of the organisation that would stop `up` late: enforced OS Login, no external addresses."""
    gcp, vm = survey.vm, f"projects/{survey.gcp.project}/zones/{survey.gcp.zone}/instances/{survey.gcp.name}"
    exception = "ask who keeps the organisation's policies for an exception for this project"
    rules = _rules(survey, "compute.requireOsLogin")
    if any(rule.get("enforce") for rule in rules):
        return failed("the organisation enforces OS Login, which ignores the SSH key that up gives the VM", exception)
    if gcp.external_address:
        for rule in _rules(survey, "compute.vmExternalIpAccess"):
            allowed = rule.get("values", {}).get("allowedValues")
            if rule.get("denyAll") or (allowed is not None and vm not in allowed):
                cause = "the organisation allows this VM no external address"
                return failed(cause, f"set externalAddress to false (and sshVia to iap or bastion), or {exception}")
    return ok("no policy of the organisation forbids the VM's SSH key or its address")


def _rules(survey: Survey, constraint: str) -> list[dict[str, Any]]:
    """Return the rules of a constraint that apply to the project, including those of its folders and organisation."""
    path = f"v2/projects/{survey.gcp.project}/policies/{constraint}:getEffectivePolicy"
    rules: list[dict[str, Any]] = survey.google.ask(POLICIES, path).get("spec", {}).get("rules", [])
    return rules

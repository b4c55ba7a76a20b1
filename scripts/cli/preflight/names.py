"""Checks of names: those that `up` gives are free, those that the settings give exist."""

from components.settings.gcp import GoogleSettings
from scripts.cli.preflight.report import Outcome, failed, ok, warning
from scripts.cli.preflight.survey import Survey


def free_names(survey: Survey) -> Outcome:
    """Check that no resource has the names of those that `up` creates."""
    gcp, name = survey.vm, survey.gcp.name
    paths = {} if gcp.parked else {f"VM {name}": f"zones/{gcp.zone}/instances/{name}"}
    paths |= _of_network(gcp)
    paths |= {f"firewall {name}-{role}": f"global/firewalls/{name}-{role}" for role in ("https", "ssh")}
    if survey.makes_disk:
        paths[f"disk {name}-weights"] = f"zones/{gcp.zone}/disks/{name}-weights"
    return _free(survey, paths, [])


def free_names_of_cluster(survey: Survey) -> Outcome:
    """Check the same for a cluster."""
    found = [f"cluster {survey.gcp.name}"] if survey.cluster() else []
    return _free(survey, _of_network(survey.gcp), found)


def _of_network(gcp: GoogleSettings) -> dict[str, str]:
    """Map what every target has around its machines to its path in the project."""
    name, paths = gcp.name, {}
    if not gcp.network:
        paths[f"network {name}"] = f"global/networks/{name}"
        paths[f"subnetwork {name}"] = f"regions/{gcp.region}/subnetworks/{name}"
    paths[f"address {name}"] = f"regions/{gcp.region}/addresses/{name}"
    if gcp.cloud_nat:
        paths[f"router {name}"] = f"regions/{gcp.region}/routers/{name}"
    return paths


def _free(survey: Survey, paths: dict[str, str], found: list[str]) -> Outcome:
    """Report which of these names are taken; `found` are those that are known to be."""
    gcp = survey.gcp
    there = [*found, *(what for what, path in paths.items() if survey.google.find(gcp.project, path) is not None)]
    if there:
        return warning(
            f"exists in {gcp.project}: {', '.join(there)}",
            "fine if this stack made it; else `pulumi import` it (a disk: set weightsDisk), or use another stack name",
        )
    return ok(f"free in {gcp.project}: {', '.join(paths)}")


def weights_disk(survey: Survey) -> Outcome:
    """Check that the disk in the settings is in the zone, and that no other VM has it."""
    gcp = survey.vm
    found = survey.google.find(gcp.project, f"zones/{gcp.zone}/disks/{gcp.weights_disk}")
    if found is None:
        return failed(f"{gcp.zone} of {gcp.project} has no disk {gcp.weights_disk}", "check weightsDisk and zone")
    users = [user.rpartition("/")[2] for user in found.get("users", [])]
    if set(users) - {gcp.name}:
        return failed(f"{gcp.weights_disk} is attached to {', '.join(users)}", "detach it there")
    return ok(f"{gcp.weights_disk} in {gcp.zone}, {found['sizeGb']} GB")


def network(survey: Survey) -> Outcome:
    """Check that the network and subnetwork in the settings exist and fit."""
    gcp, project = survey.gcp, survey.gcp.network_project
    name, subnetwork = gcp.network.rpartition("/")[2], gcp.subnetwork.rpartition("/")[2]
    if survey.google.find(project, f"global/networks/{name}") is None:
        return failed(f"{project} has no network {name}", "check network")
    found = survey.google.find(project, f"regions/{gcp.region}/subnetworks/{subnetwork}")
    if found is None:
        return failed(f"{gcp.region} has no subnetwork {subnetwork}", "check subnetwork and zone")
    owner = found["network"].rpartition("/")[2]
    if owner != name:
        return failed(f"subnetwork {subnetwork} is of network {owner}", f"set network to {owner}")
    if not found.get("privateIpGoogleAccess"):
        cause = f"subnetwork {subnetwork} has no Private Google Access"
        fix = (
            f"gcloud compute networks subnets update {subnetwork} --region {gcp.region} --project {project} "
            "--enable-private-ip-google-access"
        )
        return warning(cause, fix) if gcp.external_address else failed(cause, fix)
    return ok(f"{name}/{subnetwork} in {gcp.region}, with Private Google Access")

"""Checks of availability: quotas, the reservation, zone, machine type and boot image."""

from components.kubernetes.gke_nodes import SYSTEM_DISK_GB, SYSTEM_NODES, SYSTEM_VCPUS
from components.kubernetes.weights import claim_gb
from components.settings.gke import DISK_CLASSES, GkeSettings
from scripts.cli.preflight.hardware import family_of
from scripts.cli.preflight.report import NotCheckedError, Outcome, Verdict, failed, ok, warning
from scripts.cli.preflight.survey import QUOTA_PAGE, Survey

NO_SOURCE = "no source names the quota for it: see " + QUOTA_PAGE


def gpu_quota(survey: Survey) -> Outcome:
    """Room in the region for the GPUs, in the quota of the capacity."""
    return _compute_quota(survey, family_of(survey.gcp.machine_type).gpu_quota, _gpus(survey))


def cpu_quota(survey: Survey) -> Outcome:
    """Room in the region for the virtual CPUs of an A2."""
    gcp = survey.gcp
    needed = gcp.machine_type.vcpus * gcp.machines
    return _compute_quota(survey, family_of(gcp.machine_type).cpu_quota, needed, "PREEMPTIBLE_CPUS")


def system_cpu_quota(survey: Survey) -> Outcome:
    """Room in the region for the virtual CPUs of the least nodes that a cluster has besides those with GPUs."""
    return _room(survey, f"regions/{survey.gcp.region}", "CPUS", SYSTEM_NODES[0] * SYSTEM_VCPUS)


def _gpus(survey: Survey) -> int:
    return survey.gcp.machine_type.gpus * survey.gcp.machines


def all_gpus_quota(survey: Survey) -> Outcome:
    """Room in the project for GPUs of any kind. Of spot and flex-start, sources differ on whether it counts them."""
    outcome = _room(survey, "", "GPUS_ALL_REGIONS", _gpus(survey))
    if outcome.verdict is Verdict.FAILED and survey.preemptible:
        return Outcome(Verdict.WARNING, f"{outcome.detail} (it may not count for {survey.gcp.provisioning_model})")
    return outcome


def disk_quota(survey: Survey) -> Outcome:
    """Room in the region for the disks that `up` makes, in GB: balanced persistent disks count as SSD."""
    gcp = survey.gcp
    if gcp.machine_type.disk_type.startswith("hyperdisk"):
        raise NotCheckedError(f"Hyperdisk: {NO_SOURCE}?project={gcp.project}")
    gigabytes = 0 if gcp.parked else gcp.boot_disk_gb * gcp.machines
    if isinstance(gcp, GkeSettings):
        gigabytes += SYSTEM_NODES[0] * SYSTEM_DISK_GB
        if gcp.kubernetes.weights_storage_class in DISK_CLASSES:
            gigabytes += claim_gb(survey.settings.weights_gb)
    elif survey.makes_disk and not survey.google.find(gcp.project, f"zones/{gcp.zone}/disks/{gcp.name}-weights"):
        gigabytes += survey.vm.weights_disk_gb
    return _room(survey, f"regions/{gcp.region}", "SSD_TOTAL_GB", gigabytes)


def address_quota(survey: Survey) -> Outcome:
    """Room in the region for a static address."""
    gcp = survey.gcp
    if survey.google.find(gcp.project, f"regions/{gcp.region}/addresses/{gcp.name}"):
        return ok(f"{gcp.name} exists and is counted")
    return _room(survey, f"regions/{gcp.region}", "STATIC_ADDRESSES", 1)


def _compute_quota(survey: Survey, standard: str, needed: int, preemptible: str = "") -> Outcome:
    """Check the quota for a VM. Spot uses the preemptible quota, or the standard one if none was ever granted.

    Source: docs.cloud.google.com/compute/docs/instances/spot, "Quotas for Spot VMs".
    """
    if not standard:
        raise NotCheckedError(f"{survey.gcp.machine_type.name}: {NO_SOURCE}?project={survey.gcp.project}")
    where = f"regions/{survey.gcp.region}"
    if not survey.preemptible:
        return _room(survey, where, standard, needed)
    own = preemptible or f"PREEMPTIBLE_{standard}"
    if survey.quotas(where).get(own, (1, 0))[0] > 0:
        return _room(survey, where, own, needed)
    instead = _room(survey, where, standard, needed)
    if instead.verdict is not Verdict.OK:
        return Outcome(instead.verdict, f"{own} is 0; {instead.detail}")
    return warning(
        f"{own} in {survey.gcp.region} is 0; Google takes {standard} in its place ({instead.detail})",
        "not so if preemptible quota was ever asked for there; then ask for more",
    )


def _room(survey: Survey, path: str, metric: str, needed: float) -> Outcome:
    gcp = survey.gcp
    quotas = survey.quotas(path)
    region = path.removeprefix("regions/") or "the whole project"
    page = f"{QUOTA_PAGE}?project={gcp.project}"
    if metric not in quotas:
        raise NotCheckedError(f"Compute Engine lists no {metric} for {region}: see {page}")
    limit, usage = quotas[metric]
    seen = f"{metric} in {region}: {needed:g} needed, {limit - usage:g} of {limit:g} free"
    if limit - usage >= needed:
        return ok(seen)
    if survey.exists():
        return warning(seen, f"fine if only {gcp.name}, which exists and is counted, is changed or replaced")
    return failed(seen, f"ask for more at {page}, or use another zone or machineType")


def reservation(survey: Survey) -> Outcome:
    """Check that the reservation exists in the zone, has the machine type and room for what is to run."""
    gcp = survey.gcp
    found = survey.google.find(gcp.project, f"zones/{gcp.zone}/reservations/{gcp.reservation}")
    if found is None:
        return failed(f"{gcp.zone} of {gcp.project} has no reservation {gcp.reservation}", "check reservation and zone")
    if found["status"] != "READY":
        return failed(f"{gcp.reservation} is {found['status']}", "wait until it is READY")
    reserved = found["specificReservation"]
    machine_type = reserved["instanceProperties"]["machineType"].rpartition("/")[2]
    if machine_type != gcp.machine_type.name:
        return failed(f"{gcp.reservation} is of {machine_type}", f"set machineType to {machine_type}")
    count, used = int(reserved["count"]), int(reserved["inUseCount"])
    seen = f"{gcp.reservation}: {count - used} of {count} {machine_type} free"
    if count - used >= gcp.machines:
        return ok(seen)
    seen = f"{seen}, {gcp.machines} needed" if used < count else f"{gcp.reservation}: all {count} are in use"
    if survey.exists():
        return warning(seen, f"fine if {gcp.name}, which exists, is one of them")
    return failed(seen, "make it larger")


def zone(survey: Survey) -> Outcome:
    """Check that the zone exists and is up."""
    gcp = survey.gcp
    found = survey.google.find(gcp.project, f"zones/{gcp.zone}")
    if found is None:
        return failed(f"there is no zone {gcp.zone}", "check zone")
    if found["status"] != "UP":
        return failed(f"{gcp.zone} is {found['status']}", "wait, or use another zone")
    return ok(f"{gcp.zone} is UP")


def machine_type(survey: Survey) -> Outcome:
    """Check that the zone has the machine type, and that it matches components/catalogue/machine_types.yaml."""
    gcp, wanted = survey.gcp, survey.gcp.machine_type
    found = survey.google.find(gcp.project, f"zones/{gcp.zone}/machineTypes/{wanted.name}")
    if found is None:
        return failed(f"{gcp.zone} has no {wanted.name}", f"use another zone, e.g. {', '.join(wanted.zones)}")
    gpus = {gpu["guestAcceleratorType"]: gpu["guestAcceleratorCount"] for gpu in found.get("accelerators", [])}
    seen = f"{wanted.name} in {gcp.zone}: {found['guestCpus']} vCPUs, {gpus or 'no GPU'}"
    # Where Google's name for the GPU is not known here, their number must do.
    accelerator = family_of(wanted).accelerator or next(iter(gpus), "")
    if found["guestCpus"] != wanted.vcpus or gpus != {accelerator: wanted.gpus}:
        expected = f"{wanted.vcpus} vCPUs and {wanted.gpus} {accelerator}"
        return failed(seen, f"components/catalogue/machine_types.yaml expects {expected}: correct it there")
    return ok(f"{wanted.name} in {gcp.zone}: {wanted.vcpus} vCPUs, {wanted.gpus} x {accelerator}")


def image(survey: Survey) -> Outcome:
    """Check that the boot image exists and is usable, and fits on the boot disk."""
    gcp = survey.vm
    _, project, path = gcp.image.split("/", 2)
    name, pin = path.rpartition("/")[2], "take a newer one: scripts/elastic-vllm pin --stack STACK"
    found = survey.google.find(project, path)
    if found is None:
        return failed(f"{project} has no image {name}", pin)
    state = found.get("deprecated", {}).get("state", "ACTIVE")
    if found["status"] != "READY" or state in {"OBSOLETE", "DELETED"}:
        return failed(f"{name} is {found['status']} and {state}", pin)
    if int(found["diskSizeGb"]) > gcp.boot_disk_gb:
        return failed(f"{name} needs {found['diskSizeGb']} GB", "set bootDiskGb to as much or more")
    return ok(f"{name} of {project}" + (", which has a newer one" if state == "DEPRECATED" else ""))

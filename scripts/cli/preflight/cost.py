"""Hourly cost, from Google's own price list: the Cloud Billing Catalog API. No price is written here."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

from components.kubernetes.gke_nodes import SYSTEM_DISK_GB, SYSTEM_MEMORY_GIB, SYSTEM_NODES, SYSTEM_VCPUS
from components.kubernetes.weights import claim_gb
from components.settings.gke import GkeSettings
from scripts.cli.preflight.hardware import family_of
from scripts.cli.preflight.report import NotCheckedError, Outcome, ok
from scripts.cli.preflight.survey import Survey

CATALOG = "cloudbilling.googleapis.com"
COMPUTE_ENGINE = "services/6F81-5844-456A"
KUBERNETES_ENGINE = "services/CCD8-9BF1-090E"
BALANCED_CLASSES = ("standard-rwo",)
"""Classes of GKE whose volumes are balanced persistent disks."""
PAGE_SIZE = "5000"  # the most that skus.list gives at once
CURRENCY = "USD"
# A partition of Local SSD (docs.cloud.google.com/compute/docs/disks/local-ssd; the A2 and A3 series have no others).
LOCAL_SSD_GIB = 375
GIB = 2**30
SECONDS_AN_HOUR = 3600

# How a SKU's description begins for each provisioning model: of cores and memory, of GPUs and of Local SSD.
# flex-start is "DWS Defined Duration" there (Dynamic Workload Scheduler).
SERIES_PREFIX = {"STANDARD": "", "SPOT": "Spot Preemptible ", "FLEX_START": "DWS Defined Duration "}
ATTACHED = {
    "STANDARD": "",
    "SPOT": " attached to Spot Preemptible VMs",
    "FLEX_START": " attached to DWS Defined Duration VMs",
}


@dataclass(frozen=True)
class Part:
    """A part of the bill: `amount` of the unit of SKUs whose whole description matches `pattern`."""

    name: str
    amount: int
    unit: str
    """Unit of the catalog: h, GiBy.h (GiB hours) or GiBy.mo (GiB months)."""
    pattern: str
    service: str = COMPUTE_ENGINE


@dataclass(frozen=True)
class Price:
    """Cost of one unit of a part per hour."""

    description: str
    hourly: Decimal
    since: str
    """Day from which the price holds, as in effectiveTime."""


def hourly_cost(survey: Survey) -> Outcome:
    """Return the cost of the machines and disks in USD per hour, by part. Raises NotCheckedError for unclear parts."""
    gcp = survey.gcp
    if gcp.reservation and not gcp.parked:
        raise NotCheckedError("a reservation is paid for whether it is used or not, at the price of its kind")
    parts = _parts(survey)
    found = _skus(survey, parts)
    prices = {}
    for part in parts:
        matching = found[part.name]
        if len(matching) != 1:
            several = f": {', '.join(sorted(sku['description'] for sku in matching))}" if matching else ""
            raise NotCheckedError(
                f"the price list has {len(matching) or 'no'} SKU{'' if len(matching) == 1 else 's'} for {part.name} "
                f"in {gcp.region} ({part.pattern}){several}"
            )
        prices[part] = _price(matching[0], part)
    total = sum((part.amount * price.hourly for part, price in prices.items()), Decimal(0))
    lines = [
        f"{part.amount} x {price.hourly:.6f} {price.description} (since {price.since})"
        for part, price in prices.items()
    ]
    state, left_out = " while parked" if gcp.parked else "", "address and traffic"
    if isinstance(gcp, GkeSettings):
        # The cluster adds nodes for the system if it needs them, up to SYSTEM_NODES[1].
        replicas = 0 if gcp.parked else gcp.kubernetes.replicas
        state += f" for {replicas} nodes with GPUs and {SYSTEM_NODES[0]} for the system"
        left_out = "address, load balancer and traffic"
    return ok(
        f"{total:.3f} {CURRENCY} an hour{state} by {CATALOG}, asked on {datetime.now(UTC):%Y-%m-%d}, before tax and "
        f"discounts, without {left_out} = {' + '.join(lines)}"
    )


def _parts(survey: Survey) -> list[Part]:
    gcp, kind = survey.gcp, survey.gcp.machine_type
    if isinstance(gcp, GkeSettings):
        machines, others = gcp.kubernetes.replicas, _of_cluster(survey, gcp)
        disks = SYSTEM_NODES[0] * SYSTEM_DISK_GB
        if gcp.kubernetes.weights_storage_class in BALANCED_CLASSES:
            disks += claim_gb(survey.settings.weights_gb)
    else:
        machines, others = 1, []
        disks = survey.vm.weights_disk_gb if survey.makes_disk else 0
    disks += 0 if gcp.parked else machines * gcp.boot_disk_gb
    if disks and kind.disk_type.startswith("hyperdisk"):
        raise NotCheckedError(f"no source says how the price list calls the disks of {kind.name}")
    parts = [Part("disks", disks, "GiBy.mo", r"Balanced PD Capacity( in .+)?")] if disks else []
    parts += others
    if gcp.parked:
        return parts
    family = family_of(kind)
    if not family.series:
        raise NotCheckedError(f"no source says how the price list calls the parts of {kind.name}")
    series, attached = (
        re.escape(SERIES_PREFIX[gcp.provisioning_model] + family.series),
        re.escape(ATTACHED[gcp.provisioning_model]),
    )
    # "Instance" is left out in some of flex-start's.
    parts += [
        Part("vCPUs", machines * kind.vcpus, "h", rf"{series} (Instance )?Core running in .+"),
        Part("memory", machines * kind.memory_gib, "GiBy.h", rf"{series} (Instance )?Ram running in .+"),
        Part("GPUs", machines * kind.gpus, "h", rf"{re.escape(family.gpu_sku)}{attached} running in .+"),
    ]
    if kind.local_ssd_bundled:
        # "Bills ... for their attached GPUs, predefined vCPU, memory, and bundled Local SSD":
        # docs.cloud.google.com/compute/docs/accelerator-optimized-machines
        where = f"zones/{gcp.zone}/machineTypes/{kind.name}"
        described = survey.google.find(gcp.project, where) or {}
        partitions = described.get("bundledLocalSsds", {}).get("partitionCount")
        if not partitions:
            raise NotCheckedError(f"Compute Engine does not say how much Local SSD {kind.name} has")
        size = machines * partitions * LOCAL_SSD_GIB
        parts.append(Part("Local SSD", size, "GiBy.mo", rf"SSD backed Local Storage{attached}( (running )?in .+)?"))
    return parts


def _of_cluster(survey: Survey, gcp: GkeSettings) -> list[Part]:
    """Return what a cluster costs besides its nodes with GPUs and all disks."""
    if gcp.kubernetes.weights_storage_class not in {"", *BALANCED_CLASSES}:
        raise NotCheckedError(f"no source says how the price list calls {gcp.kubernetes.weights_storage_class}")
    nodes = SYSTEM_NODES[0]
    # The fee: infracost's internal/resources/google/container_cluster.go, and quotes of 2026 from the catalog.
    fee = "Regional" if gcp.regional else "Zonal"
    return [
        Part("management", 1, "h", f"{fee} Kubernetes Clusters", KUBERNETES_ENGINE),
        Part("system vCPUs", nodes * SYSTEM_VCPUS, "h", r"E2 Instance Core (running )?in .+"),
        Part("system memory", nodes * SYSTEM_MEMORY_GIB, "GiBy.h", r"E2 Instance Ram (running )?in .+"),
    ]


def _skus(survey: Survey, parts: list[Part]) -> dict[str, list[dict[str, Any]]]:
    """Map each part's name to its SKUs in the region."""
    found: dict[str, list[dict[str, Any]]] = {part.name: [] for part in parts}
    for service in dict.fromkeys(part.service for part in parts):
        wanted = [part for part in parts if part.service == service]
        for sku in _listed(survey, service):
            if not {survey.gcp.region, "global"} & {*sku.get("serviceRegions", [])}:
                continue
            for part in wanted:
                if re.fullmatch(part.pattern, sku["description"]):
                    found[part.name].append(sku)
    return found


def _listed(survey: Survey, service: str) -> Iterator[dict[str, Any]]:
    """Yield every SKU of a service: of Compute Engine, tens of thousands on several pages."""
    page = ""
    while True:
        query = {"pageSize": PAGE_SIZE, "currencyCode": CURRENCY} | ({"pageToken": page} if page else {})
        answer = survey.google.ask(CATALOG, f"v1/{service}/skus", query=query)
        yield from answer.get("skus", [])
        page = answer.get("nextPageToken", "")
        if not page:
            return


def _price(sku: dict[str, Any], part: Part) -> Price:
    """Return the current price. Raises NotCheckedError for one that depends on usage, or is free."""
    now = datetime.now(UTC)
    held = [p for p in sku["pricingInfo"] if datetime.fromisoformat(p["effectiveTime"]) <= now]
    if not held:
        raise NotCheckedError(f"{sku['description']} has no price yet")
    newest = max(held, key=lambda p: datetime.fromisoformat(p["effectiveTime"]))
    expression = newest["pricingExpression"]
    rates = expression["tieredRates"]
    if len(rates) != 1 or expression["usageUnit"] != part.unit or rates[0]["unitPrice"]["currencyCode"] != CURRENCY:
        raise NotCheckedError(f"{sku['description']} is not priced as one rate in {CURRENCY} per {part.unit}")
    money = rates[0]["unitPrice"]
    price = Decimal(money.get("units", 0)) + Decimal(money.get("nanos", 0)) / 10**9
    if price <= 0:
        raise NotCheckedError(f"{sku['description']} is listed at {price}")
    if part.unit == "GiBy.mo":
        # The catalog itself gives the number of byte seconds in its month.
        if expression["baseUnit"] != "By.s":
            raise NotCheckedError(f"{sku['description']} is counted in {expression['baseUnit']}")
        price *= Decimal(GIB * SECONDS_AN_HOUR) / Decimal(expression["baseUnitConversionFactor"])
    return Price(sku["description"], price, newest["effectiveTime"][:10])

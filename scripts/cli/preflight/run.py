"""Checks that a stack needs, in order, and their results: an error is a result, never an exception."""

import queue
import threading
import time
from collections.abc import Callable
from functools import partial
from typing import NamedTuple, cast

from components.settings.gcp import GcpSettings, GoogleSettings
from components.settings.gke import SHARED_CLASSES, GkeSettings
from components.settings.stack import Settings
from scripts.cli.preflight import capacity, cost, hub, names, project, sizing
from scripts.cli.preflight.report import NotCheckedError, Outcome, Result, Verdict
from scripts.cli.preflight.survey import CONTAINER, Survey
from scripts.lib.google import COMPUTE, Google, NoAnswerError, RefusedError

CHECK_SECONDS = 120.0
"""Time limit of one check: the price list has several pages, and each request may be repeated."""


Wanted = tuple[bool, str, Callable[[Survey], Outcome]]
"""A check that the settings ask for or not, its name in the report, and its function."""


class Check(NamedTuple):
    """A check: its name in the report, and its function."""

    name: str
    run: Callable[[], Outcome]


def checks_of(settings: Settings, gcp: GoogleSettings, google: Google | None, reason: str = "") -> list[Check]:
    """Return the checks for these settings; without credentials (`google` None, and why) only the model's."""
    about_model = [Check("model", partial(hub.model, settings)), Check("contexts", partial(sizing.contexts, settings))]
    if google is None:
        return [Check("credentials", lambda: Outcome(Verdict.FAILED, reason)), *_impossible(gcp), *about_model]
    survey = Survey(settings, gcp, google)
    checks = [Check("credentials", partial(project.credentials, survey))]
    checks += [Check(name, partial(check, survey)) for name, check in _of_google(gcp)]
    return [*checks, *about_model, Check("cost", partial(cost.hourly_cost, survey))]


def _of_google(gcp: GoogleSettings) -> list[tuple[str, Callable[[Survey], Outcome]]]:
    """Return the checks of Google Cloud between the credentials and the cost."""
    running = not gcp.parked
    # The quota of a reservation was counted when it was created.
    counted = running and not gcp.reservation
    of_gpus: list[Wanted] = [
        (True, "zone", capacity.zone),
        (running, "machine-type", capacity.machine_type),
        (running and bool(gcp.reservation), "reservation", capacity.reservation),
        (counted, "quota-gpus", capacity.gpu_quota),
        (counted, "quota-all-gpus", capacity.all_gpus_quota),
        (counted and gcp.machine_type.name.startswith("a2-"), "quota-vcpus", capacity.cpu_quota),
    ]
    listed = _of_cluster(gcp, of_gpus) if isinstance(gcp, GkeSettings) else _of_vm(cast(GcpSettings, gcp), of_gpus)
    return [(name, check) for wanted, name, check in listed if wanted]


def _of_vm(gcp: GcpSettings, of_gpus: list[Wanted]) -> list[Wanted]:
    running = not gcp.parked
    return [
        (True, "api-compute", partial(project.api, name=COMPUTE)),
        (gcp.ssh_via == "iap", "api-iap", partial(project.api, name=project.IAP)),
        (True, "permissions", project.permissions),
        (running, "policies", project.policies),
        *of_gpus,
        (running or not gcp.weights_disk, "quota-disks", capacity.disk_quota),
        (gcp.external_address, "quota-addresses", capacity.address_quota),
        (running, "image", capacity.image),
        (bool(gcp.network), "network", names.network),
        (bool(gcp.weights_disk), "weights-disk", names.weights_disk),
        (True, "names", names.free_names),
    ]


def _of_cluster(gcp: GkeSettings, of_gpus: list[Wanted]) -> list[Wanted]:
    shared_files = gcp.kubernetes.weights_storage_class.endswith(SHARED_CLASSES)
    return [
        (True, "api-compute", partial(project.api, name=COMPUTE)),
        (True, "api-container", partial(project.api, name=CONTAINER)),
        (not gcp.service_account, "api-iam", partial(project.api, name=project.IAM)),
        (shared_files, "api-filestore", partial(project.api, name=project.FILESTORE)),
        (True, "permissions", project.permissions),
        *of_gpus,
        (True, "quota-system", capacity.system_cpu_quota),
        (True, "quota-disks", capacity.disk_quota),
        (gcp.external_address, "quota-addresses", capacity.address_quota),
        (bool(gcp.network), "network", names.network),
        (True, "names", names.free_names_of_cluster),
    ]


def _impossible(gcp: GoogleSettings) -> list[Check]:
    outcome = Outcome(Verdict.NOT_CHECKED, "no credentials")
    return [Check(name, lambda: outcome) for name in [*(name for name, _ in _of_google(gcp)), "cost"]]


def run(
    checks: list[Check],
    *,
    redact: Callable[[str], str] = str,
    on_start: Callable[[str], None] = lambda _name: None,
    on_result: Callable[[Result], None] = lambda _result: None,
    limit: float = CHECK_SECONDS,
) -> list[Result]:
    """Run the checks one after another, each within `limit` seconds.

    `on_start` gets a check's name before it, `on_result` its result right after; `redact` removes secrets from it.
    """
    results = []
    for check in checks:
        on_start(check.name)
        started = time.monotonic()
        verdict, detail = _within(limit, check)
        seconds = round(time.monotonic() - started, 3)
        results.append(Result(check.name, verdict, redact(detail), seconds))
        on_result(results[-1])
    return results


def _within(limit: float, check: Check) -> Outcome:
    """Return the check's outcome; a check that takes longer is abandoned, and ends with the program."""
    outcomes: queue.Queue[Outcome] = queue.Queue()
    threading.Thread(target=lambda: outcomes.put(_outcome(check)), daemon=True).start()
    try:
        return outcomes.get(timeout=limit)
    except queue.Empty:
        return Outcome(Verdict.NOT_CHECKED, f"not done within {limit:g} s")


def _outcome(check: Check) -> Outcome:
    try:
        return check.run()
    except (NotCheckedError, NoAnswerError) as error:
        return Outcome(Verdict.NOT_CHECKED, str(error))
    except RefusedError as error:
        detail = f"{error.host} answered {error.status} {error.reason}: {error}"
        return Outcome(Verdict.NOT_CHECKED, detail)
    except Exception as error:
        # The answer contradicts Google's documentation: nothing can be concluded from it.
        return Outcome(Verdict.NOT_CHECKED, f"the answer is not of the expected form ({type(error).__name__}: {error})")

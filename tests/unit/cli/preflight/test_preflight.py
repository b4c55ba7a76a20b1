"""The command: its report, its results when Google does not answer, and its choice of credentials."""

import json
import socket
import time
from pathlib import Path

import google.auth.compute_engine
import pytest

from components.errors import UserError
from scripts.cli.preflight import command as preflight
from scripts.cli.preflight import run
from scripts.cli.preflight.report import Outcome, Verdict
from scripts.lib.google import find_identity
from tests.support.google_stand_in import TOKEN, Cloud
from tests.unit.cli.preflight.survey import invoked, report

OK, _, _, NOT_CHECKED = Verdict
ZONE = "zones/us-central1-a"

# All is well


def test_every_check_passes_where_all_is_well(cloud: Cloud) -> None:
    found = report(cloud)
    assert {name: outcome for name, outcome in found.items() if outcome.verdict is not OK} == {}
    assert list(found) == [
        *(
            "credentials",
            "api-compute",
            "permissions",
            "policies",
            "zone",
            "machine-type",
            "quota-gpus",
            "quota-all-gpus",
        ),
        *("quota-vcpus", "quota-disks", "quota-addresses", "image", "names", "model", "contexts", "cost"),
    ]
    assert found["credentials"].detail == "token of $GOOGLE_OAUTH_ACCESS_TOKEN, ada@example.com"
    assert found["quota-gpus"].detail == "NVIDIA_A100_80GB_GPUS in us-central1: 2 needed, 8 of 8 free"
    assert found["quota-disks"].detail == "SSD_TOTAL_GB in us-central1: 400 needed, 2000 of 2000 free"


def test_the_report_has_a_line_per_check_and_a_summary(cloud: Cloud) -> None:
    result = invoked()
    lines = result.stdout.splitlines()
    assert result.exit_code == 0
    assert len(lines) == 17
    assert lines[4].startswith("ok          zone               us-central1-a is UP (")
    assert lines[-1] == "all 16 checks passed"


def test_the_report_as_json(cloud: Cloud) -> None:
    cloud.things[cloud.compute(ZONE)]["status"] = "DOWN"
    del cloud.things[cloud.compute("")]
    result = invoked("--json")
    document = json.loads(result.stdout)
    assert result.exit_code == 1
    assert (document["stack"], document["project"], document["ok"]) == ("cloud", "acme-llm", False)
    assert document["summary"][0] == "1 of 16 checks failed: zone"
    found = {check["name"]: check["verdict"] for check in document["checks"]}
    assert (found["zone"], found["quota-all-gpus"], found["image"]) == ("FAIL", "not checked", "ok")


# When Google does not answer


def test_offline_it_lists_what_it_could_not_check(cloud: Cloud, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        monkeypatch.setattr(preflight, "GOOGLE_BASE", f"http://127.0.0.1:{closed.getsockname()[1]}")
        result = invoked("--set", "hfEndpoint=http://127.0.0.1:9")
    *checks, last = result.stdout.splitlines()
    assert result.exit_code == 0
    assert [line.split()[1] for line in checks if not line.startswith("not checked ")] == ["contexts"]
    assert "no answer from compute.googleapis.com ([Errno 111] Connection refused)" in checks[4]
    assert last.startswith("15 checks could not be made: credentials, api-compute, ")


def test_each_check_is_announced_before_it_is_made(cloud: Cloud) -> None:
    events: list[str] = []
    checks = [run.Check(name, lambda: Outcome(OK, str(events))) for name in ("one", "two")]
    results = run.run(checks, on_start=events.append, on_result=lambda result: events.append(f"{result.name} done"))
    assert [result.detail for result in results] == ["['one']", "['one', 'one done', 'two']"]


def test_a_busy_service_is_asked_again(cloud: Cloud) -> None:
    path = cloud.compute(ZONE)
    cloud.busy = {path: 2}
    assert report(cloud, "zone")["zone"].verdict is OK
    assert cloud.asked.count(path) == 3


def test_a_service_that_stays_busy_is_not_a_failure(cloud: Cloud) -> None:
    cloud.busy = {cloud.compute(ZONE): 99}
    found = report(cloud, "zone")["zone"]
    assert found.verdict is NOT_CHECKED
    assert "answered 503 backendError: The service is currently unavailable." in found.detail


def test_a_check_has_a_time_limit() -> None:
    def asleep() -> Outcome:
        time.sleep(0.5)
        return Outcome(OK, "")

    slow = run.Check("slow", asleep)
    [found] = run.run([slow], limit=0.05)
    assert (found.verdict, found.detail) == (NOT_CHECKED, "not done within 0.05 s")


def test_no_answer_contains_the_token(cloud: Cloud) -> None:
    cloud.refuse(cloud.compute(ZONE), 400, "INVALID", f"what is\n{TOKEN} for")
    assert report(cloud, "zone")["zone"].detail.endswith("what is <token> for")


# Credentials


def test_without_credentials_only_the_models_checks_are_made(cloud: Cloud, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("GOOGLE_OAUTH_ACCESS_TOKEN")
    result = invoked()
    lines = result.stdout.splitlines()
    assert result.exit_code == 1
    assert lines[0].startswith("FAIL        credentials        no credentials (")
    assert "gcloud auth application-default login" in lines[0]
    assert [line.split()[1] for line in lines if line.startswith("ok")] == ["model", "contexts"]
    assert lines[-1].startswith("13 checks could not be made: api-compute, ")
    assert not [path for path in cloud.asked if not path.startswith("hub")]


def gcloud(tmp_path: Path, script: str) -> None:
    path = tmp_path / "bin" / "gcloud"
    path.parent.mkdir()
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)


def test_the_login_of_gcloud_is_the_last_resort(tmp_path: Path) -> None:
    gcloud(tmp_path, f'case "$1 $2" in "auth print-access-token") echo {TOKEN} ;; *) echo ada@example.com ;; esac')
    found = find_identity()
    assert (found.kind, found.who, found.credentials.token) == ("login of gcloud", "ada@example.com", TOKEN)
    assert TOKEN not in repr(found)


def test_a_gcloud_without_a_login_is_reported(tmp_path: Path) -> None:
    gcloud(tmp_path, "echo 'You do not currently have an active account selected.' >&2; exit 1")
    with pytest.raises(UserError, match=r"gcloud gave no token \(You do not .*\); fix: gcloud auth application-def"):
        find_identity()


def test_application_default_credentials_come_before_gcloud(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    gcloud(tmp_path, f"echo {TOKEN}")
    path = tmp_path / "adc.json"
    user = {"type": "authorized_user", "client_id": "i", "client_secret": "s", "refresh_token": "r"}
    path.write_text(json.dumps(user | {"account": "ada@example.com"}))
    monkeypatch.setenv("GOOGLE_APPLICATION_CREDENTIALS", str(path))
    found = find_identity()
    assert (found.kind, found.who) == ("Application Default Credentials", "ada@example.com")
    path.write_text("{")
    with pytest.raises(UserError, match=r"not usable .*; fix: check \$GOOGLE_APPLICATION_CREDENTIALS"):
        find_identity()


def test_a_virtual_machines_own_account_has_no_name_yet(monkeypatch: pytest.MonkeyPatch) -> None:
    own = google.auth.compute_engine.Credentials()  # type: ignore[no-untyped-call]
    monkeypatch.setattr("google.auth.default", lambda **_: (own, "acme-llm"))
    assert find_identity().who == ""


# Options


@pytest.mark.parametrize(
    ("stack", "arguments", "exit_code", "words"),
    [
        ("here", [], 2, "--stack here: its target is existing"),
        ("nowhere", [], 2, "there is no stack nowhere"),
        ("cloud", ["--set", "zone"], 2, "write --set KEY=VALUE"),
        (
            "cloud",
            ["--set", "zone=us-west1-b", "--set", "parked=maybe"],
            2,
            "2 settings are wrong in stack cloud",
        ),
    ],
)
def test_a_stack_that_it_cannot_check_is_refused(
    cloud: Cloud, stack: str, arguments: list[str], exit_code: int, words: str
) -> None:
    result = invoked(*arguments, stack=stack)
    assert result.exit_code == exit_code
    assert words in " ".join(result.stderr.split())
    assert "Traceback" not in result.output
    assert cloud.asked == []

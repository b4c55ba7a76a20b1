"""Findings of a server survey, the choice of the cause among several, and redaction in a support archive."""

import base64
import json
import tarfile
from pathlib import Path

import pytest

from scripts.cli.diagnose import archive, server
from scripts.cli.diagnose.finding import Finding, Rank
from scripts.lib.errors import ExitCode
from scripts.lib.redaction import REDACTED, redact
from scripts.lib.ssh import SshError

WELL: server.Survey = {
    "clock": ["1"],
    "engine": ["28.1"],
    "disk": ["/ 100000000 50000000"],
    "container-vllm": ["running 0 false 0 2026-01-01T00:00:00Z"],
    "container-nginx": ["running 0 false 0 2026-01-01T00:00:00Z"],
    "socket": ["755 10001:10001"],
    "vllm-health": ["200"],
    "guard": ["there"],
}
SECRET = "s3cr3t/with+signs==and more"


def findings(**changes: list[str] | None) -> list[Finding]:
    found = {name.replace("_", "-"): lines for name, lines in changes.items()}
    survey = {name: lines for name, lines in {**WELL, **found}.items() if lines is not None}
    looks = server.looks(survey, "prod", "docker", server.repair("prod", rehearsal=False))
    return [finding for look in looks for finding in look.findings]


def test_a_server_that_is_well_has_no_findings() -> None:
    assert findings() == []
    # Restarted, but long ago; or started just now, for the first time.
    assert findings(clock=["1767229200"], container_nginx=["running 0 false 9 2026-01-01 00:00:00.1 +0000 UTC"]) == []
    assert findings(clock=["1767225605"], container_nginx=["running 0 false 0 2026-01-01T00:00:00Z"]) == []


@pytest.mark.parametrize(
    ("changes", "kind", "rank", "words"),
    [
        ({"disk": ["/ 100000000 10"]}, ExitCode.SERVER, Rank.SERVER, "the disk is full at /"),
        ({"disk": ["/ 100000000 3000000"]}, ExitCode.SERVER, Rank.SOON, "less than 5%"),
        ({"engine_down": ["ERROR: no daemon"]}, ExitCode.SERVER, Rank.SERVER, "Docker does not run"),
        (
            {"container_nginx": ["missing"]},
            ExitCode.CONTAINERS,
            Rank.CONTAINERS,
            "no container elastic-vllm-prod-nginx",
        ),
        ({"container_vllm": ["exited 137 true 0 x"]}, ExitCode.CONTAINERS, Rank.CONTAINERS, "ran out of memory"),
        ({"container_nginx": ["paused 0 false 0 x"]}, ExitCode.CONTAINERS, Rank.CONTAINERS, "is paused"),
        ({"container_nginx": ["restarting 1 false 9 x"]}, ExitCode.CONTAINERS, Rank.CONTAINERS, "again and again"),
        (
            {"clock": ["1767225605"], "container_nginx": ["running 0 false 9 2026-01-01T00:00:00.1Z"]},
            ExitCode.CONTAINERS,
            Rank.CONTAINERS,
            "again and again",
        ),
        (
            {"clock": ["1767225599"], "container_nginx": ["running 0 false 1 2026-01-01T00:00:00.1Z"]},
            ExitCode.CONTAINERS,
            Rank.CONTAINERS,
            "again and again",
        ),
        ({"guard": ["missing"]}, ExitCode.SERVER, Rank.UNSEEN, "the packet filter is gone"),
        ({"socket": None, "vllm_health": None}, ExitCode.CONTAINERS, Rank.CONTAINERS, "its socket is gone"),
        ({"vllm_health": ["500"]}, ExitCode.CONTAINERS, Rank.CONTAINERS, "does not answer on its socket (500)"),
        ({"gpu": ["Failed to initialize NVML"]}, ExitCode.SERVER, Rank.SERVER, "the GPUs can't be used"),
    ],
)
def test_what_is_wrong_is_named(changes: dict[str, list[str] | None], kind: ExitCode, rank: Rank, words: str) -> None:
    (found,) = findings(**changes)
    assert (found.kind, found.rank) == (kind, rank)
    assert words in found.cause
    assert found.fix


@pytest.mark.parametrize(
    ("log", "far"),
    [
        (["Loading safetensors checkpoint shards:  40% Completed | 2/5"], "(40 %)"),
        (["Capturing CUDA graphs:  75%|███ "], "(75 %)"),
        (["Starting to load model x..."], "still loading: Starting"),
    ],
)
def test_a_loading_model_is_reported_with_its_progress(log: list[str], far: str) -> None:
    (found,) = findings(vllm_health=["000"], socket=None, log_vllm=log)
    assert found.kind is ExitCode.LOADING
    assert far in found.cause


@pytest.mark.parametrize(
    ("error", "words"),
    [
        ("Host key verification failed.", "another host key"),
        ("root@x: Permission denied (publickey).", "refuses the private key"),
        ("sudo: a password is required", "sudo"),
        ("connect to host x port 22: Connection refused", "SSH does not get there"),
    ],
)
def test_why_ssh_does_not_get_there(error: str, words: str) -> None:
    (found,) = server.unreachable(SshError(error), "root@x").findings
    assert words in found.cause
    assert found.kind is ExitCode.SERVER


@pytest.mark.parametrize(
    "text",
    [
        SECRET,
        json.dumps({"a": SECRET}),
        base64.b64encode(SECRET.encode()).decode(),
        "s3cr3t%2Fwith%2Bsigns%3D%3Dand%20more",
        f"Authorization: Bearer {SECRET[:6]}xyz-not-in-outputs",
        "ApiKey bm90LWluLW91dHB1dHM=",
        "0123456789abcdef" * 4,
        "hf_abcdefghijkl",
        "-----BEGIN EC PRIVATE KEY-----\nAAAA\nBBBB\n-----END EC PRIVATE KEY-----",
        "-----BEGIN PRIVATE KEY-----\nAAAA",
    ],
)
def test_no_secret_is_left_in_any_form(text: str) -> None:
    left = redact(f"before {text} after", [SECRET])
    assert REDACTED in left
    for word in (
        SECRET,
        "bm90LWlu",
        "xyz-not",
        "0123456789abcdef",
        "hf_abc",
        "AAAA",
        "s3cr3t",
        base64.b64encode(SECRET.encode()).decode(),
    ):
        assert word not in left


def test_what_is_no_secret_stays() -> None:
    text = f"image sha256:{'a' * 64}, port 443, elastic-vllm-prod"
    assert redact(text, [SECRET, "short"]) == text


def test_an_archive_is_for_its_owner_alone(tmp_path: Path) -> None:
    path = tmp_path / "support.tar.gz"
    path.write_text("old")
    path.chmod(0o644)
    archive.write(path, {"a.txt": f"x {SECRET} y"}, [SECRET])
    assert path.stat().st_mode & 0o777 == 0o600
    with tarfile.open(path) as opened:
        (name,) = opened.getnames()
        file = opened.extractfile(name)
        assert file
        assert file.read().decode() == f"x {REDACTED} y"


@pytest.mark.parametrize(
    ("rehearsal", "up"), [(False, "pulumi up --refresh --stack prod"), (True, "scripts/rehearse up --stack prod")]
)
@pytest.mark.parametrize(("state", "words"), [("missing", "it makes what is missing"), ("exited 0 false 0 x", "start")])
def test_a_container_that_is_gone_or_stopped_is_repaired_by_an_up_that_looks(
    rehearsal: bool, up: str, state: str, words: str
) -> None:
    """Without a refresh Pulumi finds nothing to do."""
    survey = {**WELL, "container-nginx": [state]}
    repair = server.repair("prod", rehearsal=rehearsal)
    (found,) = [each for look in server.looks(survey, "prod", "docker", repair) for each in look.findings]
    assert up in found.fix
    assert words in found.fix


def test_a_vllm_that_podman_lost_is_made_by_running_its_command_again() -> None:
    survey = {**WELL, "container-vllm": ["missing"], "engine": ["5.4"]}
    repair = server.repair("prod", rehearsal=False)
    (found,) = [each for look in server.looks(survey, "prod", "podman", repair) for each in look.findings]
    assert "--replace URN" in found.fix
    assert "vllm-container" in found.fix

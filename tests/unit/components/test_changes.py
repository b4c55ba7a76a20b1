"""Resources that a change of a setting touches: docs/reference/changes.md and tests/golden/changes.yaml."""

import os
import re
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from cryptography import x509

from scripts.maintain import record_previews
from tests.conftest import GOLDEN
from tests.support import empty_bundle
from tests.support.program import PROJECT, ROOT, Program, changes, run
from tests.support.verify_server import issue, new_authority
from tests.unit.conftest import ON_GKE, ON_GOOGLE, ON_KUBERNETES

FILE = GOLDEN / "changes.yaml"
HEADER = """\
# What `pulumi up` does to each resource when a setting changes; what is not named is left alone.
# base: a stack file, or gpu (tests/support/program.py). from, to: settings that differ from it.
# To add a change, write setting, base, from and to, then run: pytest --update-golden
"""
Values = Callable[..., dict[str, str]]
TABLE: list[dict[str, Any]] = yaml.safe_load(FILE.read_text())


def _base(row: dict[str, Any]) -> str:
    base: str = row.get("base", "local")
    return base


def _id(row: dict[str, Any]) -> str:
    return f"{_base(row)}: {row['setting']}={row['to'][row['setting']]}"


@pytest.fixture(scope="session")
def another_key(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("ssh") / "another"
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(path)], check=True)
    return path


@pytest.fixture(scope="session")
def encrypted_key(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("ssh") / "encrypted"
    command = ["ssh-keygen", "-q", "-a", "1", "-t", "ed25519", "-N", "open sesame", "-f", str(path)]
    subprocess.run(command, check=True)
    return path


@pytest.fixture(scope="session")
def agent_socket(tmp_path_factory: pytest.TempPathFactory, another_key: Path) -> Iterator[str]:
    """An SSH agent with a key."""
    path = tmp_path_factory.mktemp("agent") / "socket"
    with subprocess.Popen(["ssh-agent", "-a", path, "cat"], stdin=subprocess.PIPE) as agent:
        while not path.exists():
            assert agent.poll() is None
        subprocess.run(["ssh-add", "-q", another_key], env={**os.environ, "SSH_AUTH_SOCK": str(path)}, check=True)
        yield str(path)


@pytest.fixture(scope="session")
def pem_files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Files that the table names: a CA, and two certificates of it with their keys."""
    directory, ca = tmp_path_factory.mktemp("pem"), new_authority()
    (directory / "ca").write_text(ca.pem)
    names: list[x509.GeneralName] = [x509.DNSName("llm.example")]
    issued = {name: str(issue(ca, directory / name.split()[0], names=names)) for name in ("FIRST PEM", "SECOND PEM")}
    return {"CA PEM": str(directory / "ca"), **issued}


@pytest.fixture(scope="session")
def another_bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Bundle that differs only in a newer revision of the model."""
    return empty_bundle.write(tmp_path_factory.mktemp("bundle"), empty_bundle.parts(revision="3" * 40))


@pytest.fixture
def settled(
    program_of: Callable[..., Program],
    another_key: Path,
    encrypted_key: Path,
    agent_socket: str,
    pem_files: dict[str, str],
    another_bundle: Path,
) -> Callable[[str, dict[str, Any]], Program]:
    def program(base: str, overrides: dict[str, Any]) -> Program:
        known = {
            "ANOTHER KEY": str(another_key),
            "ENCRYPTED KEY": str(encrypted_key),
            "ANOTHER BUNDLE": str(another_bundle),
            "ANOTHER KUBECONFIG": "/dev/null",
            **pem_files,
        }
        with pytest.MonkeyPatch.context() as patch:
            if "sshAgent" in overrides:
                patch.setenv("SSH_AUTH_SOCK", agent_socket)
            return program_of(base, **{key: known.get(str(value), value) for key, value in overrides.items()})

    return program


@pytest.mark.parametrize("row", TABLE, ids=_id)
def test_a_change_of_a_setting_touches_exactly_these(
    row: dict[str, Any], settled: Callable[[str, dict[str, Any]], Program], update_golden: bool
) -> None:
    now = changes(settled(row["base"], row["from"]), settled(row["base"], row["to"]))
    if update_golden:
        row |= now
        FILE.write_text(HEADER + yaml.safe_dump(TABLE, sort_keys=False, default_flow_style=None, width=120))
    assert now == {kind: row.get(kind) for kind in now}


PREVIEWS: list[dict[str, Any]] = yaml.safe_load((GOLDEN / "previews.yaml").read_text())


@pytest.mark.parametrize(
    "preview", PREVIEWS, ids=lambda row: f"{_base(row)}:{row['setting']}={row['to'][row['setting']]}"
)
def test_the_real_engine_plans_the_same(preview: dict[str, Any]) -> None:
    """The previews are recorded by scripts/maintain/record_previews.py; this fails if the table changed since."""
    (row,) = [row for row in TABLE if row["to"] == preview["to"] and row["base"] == _base(preview)]
    kinds = ("created", "replaced", "updated", "deleted")
    assert {kind: preview[kind] for kind in kinds} == {kind: sorted(row[kind]) for kind in kinds}


# The engine can't preview resources on a VM whose address is not known yet: docs/guides/day-2.md says to park it first.
# A rehearsal cannot use another boot image either.
NOT_PREVIEWED = (
    {"externalAddress": False, "cloudNat": True},
    {"gcpProject": "acme-other"},
    {"zone": "europe-west4-a"},
    {"vmImage": "projects/ubuntu-os-cloud/global/images/ubuntu-2404-noble-amd64-v20261101"},
)


@pytest.mark.parametrize("base", sorted({*map(_base, PREVIEWS)}))
def test_every_change_that_can_be_was_previewed_by_the_real_engine(base: str) -> None:
    possible = [row for row in TABLE if row["base"] == base and set(row["from"]) <= {*record_previews.POSSIBLE}]
    possible = [row for row in possible if row["to"] not in NOT_PREVIEWED]
    assert {str(row["to"]) for row in possible} == {str(row["to"]) for row in PREVIEWS if _base(row) == base}


def test_the_table_holds_every_setting_that_can_change() -> None:
    assert {row["setting"] for row in TABLE} == set(PROJECT["config"]) - {"target"}  # another target is another stack


def _documented(section: str) -> set[str]:
    """Return the settings in the first column of a table in docs/reference/changes.md."""
    document = (ROOT / "docs" / "reference" / "changes.md").read_text()
    rows = document.partition(f"\n## {section}\n")[2].partition("\n## ")[0].splitlines()
    return set(re.findall(r"`(\w+)(?:: \w+)?`", "".join(row.split("|")[1] for row in rows if row.startswith("|"))))


def test_every_change_on_google_cloud_is_documented() -> None:
    assert _documented("On Google Cloud") == {row["setting"] for row in TABLE if row["base"] in ON_GOOGLE}


def test_every_change_on_a_server_is_documented() -> None:
    elsewhere = {*ON_GOOGLE, *ON_KUBERNETES, *ON_GKE}
    assert _documented("On any server") == {row["setting"] for row in TABLE if row["base"] not in elsewhere}


def test_every_change_on_kubernetes_is_documented() -> None:
    assert _documented("On Kubernetes") == {row["setting"] for row in TABLE if row["base"] in ON_KUBERNETES}


def test_every_change_on_gke_is_documented() -> None:
    assert _documented("On GKE") == {row["setting"] for row in TABLE if row["base"] in ON_GKE}


def test_nothing_changed_touches_nothing(values_of: Values, program_of: Callable[..., Program]) -> None:
    assert not any(changes(program_of("gpu"), run(values_of("gpu"), stack="gpu")).values())


def test_a_renewed_certificate_touches_only_nginx_config(values_of: Values, program_of: Callable[..., Program]) -> None:
    renewed = run(values_of("local"), outputs={"certificate-server": {"certPem": "renewed\n"}})
    assert changes(program_of("local"), renewed) == {
        "created": [],
        "replaced": [],
        "updated": ["nginx-config"],
        "deleted": [],
    }


def test_a_new_revision_of_the_model_is_served_and_not_only_downloaded(
    settled: Callable[[str, dict[str, Any]], Program],
) -> None:
    found = changes(settled("gpu", {}), settled("gpu", {"modelRevision": "2" * 40}))
    assert "vllm-container" in found["replaced"]

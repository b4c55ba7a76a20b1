"""A server describes itself to the script alone; unusable probes are refused with a fix."""

import base64
import gzip
import json
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest

from components.errors import UserError
from scripts.cli.bundle import probe
from tests.support.program import ROOT

STATUS = "Package: bash\nStatus: install ok installed\nVersion: 5.2\n"


def run(tmp_path: Path, *arguments: str, script: str | None = None) -> dict[str, Any]:
    """Run the script on a machine with two GPUs, an NVSwitch and another maker's device."""
    kinds = {"a": ("0x10de", "0x030200"), "b": ("0x10de", "0x030000"), "c": ("0x10de", "0x068000")}
    for name, (vendor, kind) in {**kinds, "d": ("0x8086", "0x030000")}.items():
        device = tmp_path / "sys/bus/pci/devices" / name
        device.mkdir(parents=True)
        for file, value in {"vendor": vendor, "class": kind, "device": "0x20b2"}.items():
            (device / file).write_text(f"{value}\n")
    (tmp_path / "dpkg").mkdir()
    (tmp_path / "dpkg" / "status").write_text(STATUS)
    place = {"SYSFS": str(tmp_path / "sys"), "DPKG": str(tmp_path / "dpkg")}
    environment = {"PATH": os.environ["PATH"], **place}
    command = (
        ["bash", "-s", "--", *arguments]
        if script
        else [str(ROOT / "scripts" / "elastic-vllm"), "bundle", "probe", *arguments]
    )
    done = subprocess.run(command, env=environment, input=script, capture_output=True, text=True, check=True)
    document: dict[str, Any] = json.loads(done.stdout)
    return document


def test_it_describes_everything_that_a_bundle_has_to_fit(tmp_path: Path) -> None:
    document = run(tmp_path)
    found = probe.parse(document)
    assert (found.gpus, found.switches) == (2, 1)
    assert found.kernel == os.uname().release
    assert found.dpkg_status == STATUS.encode()
    assert found.programs["python3"]
    assert {disk["path"] for disk in document["disks"]} == {"/", "/var/lib"}
    assert all(0 < disk["free_bytes"] <= disk["bytes"] for disk in document["disks"])


def test_a_program_that_does_not_work_is_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its error message may contain numbers too."""
    broken = tmp_path / "bin" / "rsync"
    broken.parent.mkdir()
    broken.write_text("#!/bin/sh\necho 'error while loading shared libraries: libpopt.so.0.1' >&2\nexit 127\n")
    broken.chmod(0o755)
    monkeypatch.setenv("PATH", f"{broken.parent}:{os.environ['PATH']}")
    assert run(tmp_path)["programs"]["rsync"] is None


def test_its_fields_are_those_that_are_documented(tmp_path: Path) -> None:
    document = run(tmp_path)
    assert probe.__doc__
    for name in [*document, *document["distribution"], *document["disks"][0], *document["pci"][0]]:
        assert f"`{name}`" in probe.__doc__


def test_it_names_no_machine_and_no_user(tmp_path: Path) -> None:
    document = json.dumps({**run(tmp_path), "dpkg_status": None})
    assert os.uname().nodename not in document
    assert str(tmp_path) not in document


def test_the_script_alone_suffices_and_shows_the_disk_for_weights(tmp_path: Path) -> None:
    printed = subprocess.run(
        [ROOT / "scripts" / "elastic-vllm", "bundle", "probe", "--script"], capture_output=True, text=True, check=True
    )
    document = run(tmp_path, "/srv/not there/yet", script=printed.stdout)
    assert [disk["path"] for disk in document["disks"]] == ["/", "/var/lib", "/srv/not there/yet"]
    assert probe.parse(document).gpus == 2


def test_another_kernel_or_package_is_another_probe(tmp_path: Path) -> None:
    document = run(tmp_path)
    other = {**document, "kernel": "6.0"}
    more = {**document, "dpkg_status": base64.b64encode(gzip.compress(b"Package: curl\n")).decode()}
    fuller = {**document, "disks": []}
    digests = [probe.parse(each).digest for each in (document, other, more, fuller)]
    assert len(set(digests)) == 3
    assert digests[0] == digests[3]


@pytest.mark.parametrize(
    "text",
    ["", "[]", "{}", '{"format": 2}', "no JSON"],
)
def test_what_is_no_probe(tmp_path: Path, text: str) -> None:
    path = tmp_path / "probe.json"
    path.write_text(text)
    with pytest.raises(UserError, match="fix: run scripts/elastic-vllm bundle probe at the site again"):
        probe.read(path)


def test_a_probe_that_was_cut_off(tmp_path: Path) -> None:
    document = run(tmp_path)
    path = tmp_path / "probe.json"
    path.write_text(json.dumps({**document, "dpkg_status": document["dpkg_status"][:-8]}))
    with pytest.raises(UserError, match="probe at the site again"):
        probe.read(path)

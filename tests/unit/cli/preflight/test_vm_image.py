"""`pin` takes the VM's boot image from Google Cloud: the newest of a family, by its name."""

from pathlib import Path

import pytest
from ruamel.yaml import YAML
from typer.testing import Result

from scripts.cli import pin
from tests.support.commands import invoke
from tests.support.google_stand_in import TOKEN, Cloud

FAMILY = "global/images/family/ubuntu-accelerator-2404-amd64-with-nvidia-580"
PROJECT = "ubuntu-os-accelerator-images"
STACK = """\
config:
  elastic-vllm:target: gcp # in Google Cloud
  elastic-vllm:vllmImage: localhost/x:1
  elastic-vllm:nginxImage: localhost/x:1
  elastic-vllm:modelSource: host
"""


@pytest.fixture
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(pin, "ROOT", tmp_path)
    file = tmp_path / "stacks" / "Pulumi.mine.yaml"
    file.parent.mkdir()
    file.write_text(STACK)
    return file


def run_pin(*options: str) -> Result:
    done = invoke("pin", "--stack", "mine", *options)
    assert done.exception is None or isinstance(done.exception, SystemExit)
    assert TOKEN not in done.output
    return done


def test_the_newest_image_of_the_family_is_recorded_by_name(file: Path, cloud: Cloud) -> None:
    cloud.things[cloud.compute(FAMILY, PROJECT)] = {"name": "ubuntu-accelerator-v2"}
    assert run_pin().exit_code == 0
    recorded = YAML(typ="safe").load(file)["config"]["elastic-vllm:vmImage"]
    assert recorded == f"projects/{PROJECT}/global/images/ubuntu-accelerator-v2"
    assert "# in Google Cloud" in file.read_text()


def test_a_recorded_image_of_the_family_stays_unless_asked_otherwise(file: Path, cloud: Cloud) -> None:
    cloud.things[cloud.compute(FAMILY, PROJECT)] = {"name": "ubuntu-accelerator-2404-v1"}
    run_pin()
    cloud.things[cloud.compute(FAMILY, PROJECT)] = {"name": "ubuntu-accelerator-2404-v2"}
    assert "--new-vm takes it" in run_pin().output
    assert "2404-v1" in file.read_text()
    run_pin("--new-vm")
    assert "2404-v2" in file.read_text()


PLAIN, PLAIN_FAMILY = "ubuntu-os-cloud", "global/images/family/ubuntu-2404-lts-amd64"


def recorded(file: Path) -> str:
    return str(YAML(typ="safe").load(file)["config"]["elastic-vllm:vmImage"])


def test_the_kind_of_image_is_chosen_once_and_kept(file: Path, cloud: Cloud) -> None:
    cloud.things[cloud.compute(FAMILY, PROJECT)] = {"name": "ubuntu-accelerator-v1"}
    cloud.things[cloud.compute(PLAIN_FAMILY, PLAIN)] = {"name": "ubuntu-2404-noble-amd64-v1"}
    run_pin("--os", "plain")
    assert recorded(file) == f"projects/{PLAIN}/global/images/ubuntu-2404-noble-amd64-v1"
    cloud.things[cloud.compute(PLAIN_FAMILY, PLAIN)] = {"name": "ubuntu-2404-noble-amd64-v2"}
    assert "kept" in run_pin().output
    run_pin("--new-vm")
    assert recorded(file) == f"projects/{PLAIN}/global/images/ubuntu-2404-noble-amd64-v2"


@pytest.mark.parametrize("image", [f"projects/{PLAIN}/global/images/x", "projects/mine/global/images/own"])
def test_another_kind_of_image_takes_new_vm(image: str, file: Path, cloud: Cloud) -> None:
    file.write_text(f"{STACK}  elastic-vllm:vmImage: {image}\n")
    cloud.things[cloud.compute(FAMILY, PROJECT)] = {"name": "ubuntu-accelerator-v1"}
    assert "--new-vm takes it, and replaces the VM" in run_pin("--os", "accelerator").output
    assert recorded(file) == image
    run_pin("--os", "accelerator", "--new-vm")
    assert recorded(file).startswith(f"projects/{PROJECT}/")


def test_an_unknown_kind_of_image_is_refused(file: Path) -> None:
    done = run_pin("--os", "debian")
    assert done.exit_code == 2
    assert "error: --os debian is unknown\n  fix: use accelerator or plain" in done.output
    assert file.read_text() == STACK


def test_a_family_without_an_image_is_reported(file: Path, cloud: Cloud) -> None:
    done = run_pin()
    assert done.exit_code == 1
    assert f"error: {PROJECT} has no image of family" in done.output
    assert file.read_text() == STACK


def test_without_credentials_the_message_explains_the_login(file: Path) -> None:
    done = run_pin()
    assert done.exit_code == 1
    assert "gcloud auth application-default login" in done.output
    assert file.read_text() == STACK

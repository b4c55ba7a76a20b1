"""A stack's settings as scripts read them beside Pulumi."""

import shutil
from pathlib import Path

import pytest
import yaml

from components.settings.problems import ENCRYPTED
from components.settings.stack import PROJECT_DIRECTORY
from scripts.lib import stack_settings
from scripts.lib.errors import BadInputError
from scripts.lib.stack_settings import load, overrides
from tests.support.program import GPU, HOST_KEY


@pytest.fixture
def stack(tmp_path: Path, private_key: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """Stack with an encrypted token, in a separate project."""
    values = GPU | {"sshPrivateKeyPath": str(private_key), "sshHostKey": HOST_KEY, "hfToken": {"secure": "v1:abc"}}
    shutil.copy(PROJECT_DIRECTORY / "Pulumi.yaml", tmp_path)
    (tmp_path / "stacks").mkdir()
    document = {"config": {f"elastic-vllm:{key}": value for key, value in values.items()}}
    (tmp_path / "stacks" / "Pulumi.x.yaml").write_text(yaml.safe_dump(document))
    monkeypatch.setattr(stack_settings, "PROJECT_DIRECTORY", tmp_path)
    return "x"


def test_settings_are_the_files_over_the_defaults(stack: str) -> None:
    settings = load(stack, {})
    assert settings.images["vllm"] == GPU["vllmImage"]
    assert settings.https_port == 443


def test_a_secret_in_plain_text_in_the_file_is_refused(stack: str, tmp_path: Path) -> None:
    file = tmp_path / "stacks" / "Pulumi.x.yaml"
    file.write_text(file.read_text().replace("\n    secure: v1:abc", " hf_plain"))
    with pytest.raises(BadInputError, match="hfToken: stored in plain text; encrypt it: `pulumi config set --secret"):
        load(stack, {})
    assert load(stack, {"hfToken": "hf_of_this_run"})


def test_overrides_go_over_the_file(stack: str) -> None:
    assert load(stack, {"httpsPort": "8443"}).https_port == 8443


def test_a_wrong_setting_is_reported_by_the_settings_own_check(stack: str) -> None:
    with pytest.raises(BadInputError, match="httpsPort = '0': out of range"):
        load(stack, {"httpsPort": "0"})


def test_an_encrypted_secret_counts_as_there(stack: str, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[str] = []
    monkeypatch.setattr(stack_settings, "parse_settings", lambda values, *_, **__: seen.append(values["hfToken"]))
    load(stack, {})
    load(stack, {"hfToken": ""})
    assert seen == [ENCRYPTED, ""]


def test_a_stack_that_is_not_there_is_bad_input(stack: str) -> None:
    with pytest.raises(BadInputError, match=r"there is no stack nope: .*; fix: use one of: x"):
        load("nope", {})


@pytest.mark.parametrize("text", ["zone", "=x"])
def test_a_wrong_override_is_bad_input(text: str) -> None:
    with pytest.raises(BadInputError, match="write --set KEY=VALUE"):
        overrides([text])


def test_overrides_are_split_at_the_first_equals_sign() -> None:
    assert overrides(["model=a=b", "zone="]) == {"model": "a=b", "zone": ""}

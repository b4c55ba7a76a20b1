"""A stack's configuration is read as the Pulumi CLI reads it."""

from pathlib import Path

import pytest

from scripts.lib.errors import BadInputError
from scripts.lib.stack_config import read_config

PROJECT = """
name: elastic-vllm
stackConfigDir: stacks
config:
  model: {type: string, default: small, description: the model}
  port: {type: integer, default: 443}
  token: {type: string, secret: true}
  arguments: {type: array, default: []}
  plain: value
  other:key: {value: 1}
"""


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    (tmp_path / "Pulumi.yaml").write_text(PROJECT)
    (tmp_path / "stacks").mkdir()
    (tmp_path / "stacks/Pulumi.local.yaml").write_text("config:\n  elastic-vllm:port: 8443\n  elastic-vllm:on: true\n")
    (tmp_path / "stacks/Pulumi.prod.yaml").write_text("config:\n  elastic-vllm:token: {secure: v1:abc}\n")
    return tmp_path


def test_defaults_stack_and_options_overlay_each_other(directory: Path) -> None:
    config = read_config(directory, "local", ["model=big", "arguments=[a, b]", "unknown=1", "empty="], [])
    assert config.for_pulumi() == {
        "elastic-vllm:model": "big",
        "elastic-vllm:port": "8443",
        "elastic-vllm:on": "true",
        "elastic-vllm:arguments": '["a", "b"]',
        "elastic-vllm:plain": "value",
        "elastic-vllm:unknown": "1",
        "elastic-vllm:empty": "",
        "other:key": "1",
    }
    assert config.get("port") == 8443
    assert config.get("token") is None
    assert config.secrets == set()


def test_secrets_come_from_files(directory: Path) -> None:
    (directory / "token").write_text("hf_x\n")
    config = read_config(directory, "prod", [], [f"token={directory / 'token'}"])
    assert config.get("token") == "hf_x"
    assert config.secrets == {"elastic-vllm:token"}


def test_a_secret_setting_in_plain_text_is_no_secret(directory: Path) -> None:
    """Pulumi does the same, so that the program can refuse it."""
    assert read_config(directory, "local", ["token=hf_x"], []).secrets == set()


@pytest.mark.parametrize(
    ("stack", "sets", "set_files", "message"),
    [
        ("nope", [], [], "there is no stack nope: .*; fix: use one of: local, prod"),
        ("prod", [], [], "elastic-vllm:token: encrypted .* --set-file token=PATH"),
        ("local", ["model"], [], "--set model: there is no value; fix: write --set KEY=VALUE"),
        ("local", [], ["token=/nowhere"], "--set-file token=/nowhere: No such file"),
    ],
)
def test_an_unreadable_configuration_is_one_error(
    directory: Path, stack: str, sets: list[str], set_files: list[str], message: str
) -> None:
    with pytest.raises(BadInputError, match=message):
        read_config(directory, stack, sets, set_files)

"""A rotation in the stack's file: which versions it asks for, and how a step is recorded."""

from pathlib import Path

import pytest

from scripts.cli import rotate
from scripts.cli.rotate import Rotation
from scripts.lib.errors import BadInputError

FILE = """\
config:
  gcp:project: acme-search
  elastic-vllm:host: llm.example # the server
  elastic-vllm:keys:
    default: [3]
    # the SIEM
    siem:
      - 2
      - 1
"""


@pytest.fixture
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(rotate, "ROOT", tmp_path)
    (tmp_path / "stacks").mkdir()
    path = tmp_path / "stacks" / "Pulumi.prod.yaml"
    path.write_text(FILE)
    return path


def rotation(key: str) -> Rotation:
    return Rotation("prod", key, rehearsal=False, up_options=[])


@pytest.mark.usefixtures("file")
@pytest.mark.parametrize(("key", "versions"), [("default", (3,)), ("siem", (2, 1))])
def test_the_versions_are_those_of_the_file(key: str, versions: tuple[int, ...]) -> None:
    assert rotation(key).in_file() == versions


def test_without_keys_in_the_file_the_default_key_is_at_its_first_version(file: Path) -> None:
    file.write_text("config:\n  elastic-vllm:host: llm.example\n")
    assert rotation("default").in_file() == (1,)
    rotation("default").begin((1,))
    assert rotation("default").in_file() == (2, 1)


def test_a_step_changes_one_key_and_leaves_the_rest_of_the_file(file: Path) -> None:
    rotation("default").begin((3,))
    rotation("siem").drop((2, 1))
    assert rotation("default").in_file() == (4, 3)
    assert rotation("siem").in_file() == (2,)
    text = file.read_text()
    assert "elastic-vllm:host: llm.example # the server\n" in text
    assert "    # the SIEM\n" in text


@pytest.mark.parametrize(
    ("text", "cause"),
    [
        ("  elastic-vllm:keys: [siem=1]\n", "keys = '[\"siem=1\"]': not an object; write keys: {siem: [1]}"),
        ("  elastic-vllm:keys: {siem: [1, 2]}\n", "siem: [1, 2] is no list of one or two versions, newest first"),
        ("  elastic-vllm:keyVersion: 3\n", "keyVersion is now part of keys; write keys: {default: [3, 2]}"),
    ],
)
def test_wrong_keys_in_the_file_are_refused_before_anything_changes(file: Path, text: str, cause: str) -> None:
    file.write_text(f"config:\n{text}")
    with pytest.raises(BadInputError) as error:
        rotation("default").in_file()
    assert "stacks/Pulumi.prod.yaml: " in error.value.cause
    assert cause in error.value.cause


@pytest.mark.usefixtures("file")
def test_an_unknown_key_is_refused_with_those_that_there_are() -> None:
    with pytest.raises(BadInputError, match=r"no such key in stacks/Pulumi\.prod\.yaml: there are default, siem"):
        rotation("soc").in_file()

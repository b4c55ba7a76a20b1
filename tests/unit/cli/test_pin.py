"""Errors of `pin` for a stack's file that it can't complete: one line for the cause, one for the fix."""

from pathlib import Path

import pytest

from scripts.cli import pin
from tests.support.commands import invoke

LOCAL = "  elastic-vllm:vllmImage: localhost/x:1\n  elastic-vllm:nginxImage: localhost/x:1\n"
FILES = {
    "not YAML": ("config: [\n", "error: stacks/Pulumi.mine.yaml can't be read: while parsing"),
    "no settings": ("other: 1\n", "error: stacks/Pulumi.mine.yaml has no settings under config"),
    "no text": ("config:\n  elastic-vllm:vllmImage: 5\n", "error: vllmImage = 5 is no text"),
    "no tag": (
        "config:\n  elastic-vllm:vllmImage: vllm\n",
        "error: vllmImage = 'docker.io/library/vllm' is no image's name",
    ),
    "no model's name": (
        f"config:\n{LOCAL}  elastic-vllm:model: a/b/c\n",
        "error: model = 'a/b/c' is no name on",
    ),
    "no hub": (
        f"config:\n{LOCAL}  elastic-vllm:model: a/b\n  elastic-vllm:hfEndpoint: http://127.0.0.1:1\n",
        "error: the hub does not answer: [Errno 111] Connection refused",
    ),
}


@pytest.mark.parametrize("where", ["weightsClaim: models", "weightsImage: registry.example/weights:1"])
def test_the_hub_is_not_asked_where_the_cluster_has_the_weights(
    where: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pin, "ROOT", tmp_path)
    file = tmp_path / "stacks" / "Pulumi.mine.yaml"
    file.parent.mkdir()
    file.write_text(f"config:\n{LOCAL}  elastic-vllm:hfEndpoint: http://127.0.0.1:1\n  elastic-vllm:{where}\n")
    assert invoke("pin", "--stack", "mine").exit_code == 0
    assert "modelRevision" not in file.read_text()


@pytest.mark.parametrize(("content", "problem"), FILES.values(), ids=FILES.keys())
def test_an_error_is_one_line_with_its_cause_and_one_with_its_fix(
    content: str, problem: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pin, "ROOT", tmp_path)
    file = tmp_path / "stacks" / "Pulumi.mine.yaml"
    file.parent.mkdir()
    file.write_text(content)
    done = invoke("pin", "--stack", "mine")
    *_, message, fix = done.output.splitlines()
    assert done.exit_code == (1 if "does not answer" in problem else 2)
    assert isinstance(done.exception, SystemExit)
    assert message.startswith(problem)
    assert fix.startswith("  fix: ")
    assert file.read_text() == content

"""A failing Pulumi: its error is shown, and no rehearsal of that name replaces the stack."""

from pathlib import Path

import pytest
from typer.testing import Result

from scripts.cli import rotate
from scripts.cli.handoff import command as handoff
from scripts.lib import pulumi_cli, stack_outputs
from tests.support.commands import invoke
from tests.support.pulumi_stub import LOGIN_ERROR, PulumiStub

COMMANDS = ("verify", "handoff", "rotate", "diagnose")
FILE = "config:\n  elastic-vllm:keys: {default: [1]}\n"
REHEARSAL = """\
#!/bin/sh
echo "$*" >> "{directory}/rehearsal-asked"
echo '{{"connectorUrl": "https://rehearsed.invalid/v1/chat/completions"}}'
"""


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Project whose stack `prod` was rehearsed, and whose rehearsal is up."""
    directory = tmp_path / "project"
    (directory / "stacks").mkdir(parents=True)
    (directory / "stacks" / "Pulumi.prod.yaml").write_text(FILE)
    (directory / "scripts").mkdir()
    rehearse = directory / "scripts" / "rehearse"
    rehearse.write_text(REHEARSAL.format(directory=tmp_path))
    rehearse.chmod(0o755)
    for module, name in ((pulumi_cli, "PROJECT"), (stack_outputs, "PROJECT"), (handoff, "PROJECT"), (rotate, "ROOT")):
        monkeypatch.setattr(module, name, directory)
    return directory


@pytest.fixture
def pulumi(tmp_path: Path) -> PulumiStub:
    return PulumiStub(tmp_path / "bin")


def run(command: str, pulumi: PulumiStub, *options: str, **environment: str) -> Result:
    result = invoke(command, "--stack", "prod", *options, env={"PATH": pulumi.path, **environment})
    assert isinstance(result.exception, SystemExit)
    return result


def files(project: Path) -> dict[str, str]:
    return {str(path): path.read_text() for path in project.rglob("*") if path.is_file()}


@pytest.mark.parametrize("command", COMMANDS)
def test_a_login_error_is_shown_and_nothing_is_changed(command: str, project: Path, pulumi: PulumiStub) -> None:
    pulumi.fails()
    before = files(project)
    result = run(command, pulumi)
    assert result.exit_code == 2
    assert f"failed (255):\n{LOGIN_ERROR}\n  fix: " in result.stderr
    assert "pulumi login" in result.stderr
    assert "Traceback" not in result.output
    assert files(project) == before
    assert not (project.parent / "rehearsal-asked").exists()
    assert all(call.startswith("stack output ") for call in pulumi.asked)


@pytest.mark.parametrize("command", COMMANDS)
def test_a_rehearsal_is_taken_where_it_is_asked_for(command: str, project: Path, pulumi: PulumiStub) -> None:
    pulumi.fails()
    result = run(command, pulumi, "--rehearsal")
    assert result.exit_code == 2  # these outputs are of no use
    assert LOGIN_ERROR not in result.output
    asked = (project.parent / "rehearsal-asked").read_text()
    assert asked == "outputs --json --show-secrets --stack prod\n"
    assert pulumi.asked == []


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize(
    ("answer", "words"),
    [
        ("", "the outputs are not JSON"),
        ("[1]", "the outputs are not a JSON object"),
        ("{}", "--stack prod: it has no outputs\n  fix: bring it up: pulumi up --stack prod"),
    ],
)
def test_an_answer_without_outputs_is_reported(
    command: str, answer: str, words: str, project: Path, pulumi: PulumiStub
) -> None:
    pulumi.answers(answer)
    result = run(command, pulumi)
    assert result.exit_code == 2
    assert words in result.stderr


@pytest.mark.parametrize("command", COMMANDS)
def test_without_a_pulumi_it_says_so(command: str, project: Path, pulumi: PulumiStub) -> None:
    result = run(command, pulumi, PATH="/nonexistent")
    assert result.exit_code == 2
    assert "can't be run: No such file or directory\n  fix: install the Pulumi CLI" in result.stderr
    assert "--rehearsal" in result.stderr


def test_a_pulumi_that_does_not_end_is_reported(
    project: Path, pulumi: PulumiStub, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pulumi_cli, "SECONDS", 0.1)
    (project.parent / "bin" / "pulumi").write_text("#!/bin/sh\nexec sleep 60\n")
    result = run("verify", pulumi)
    assert result.exit_code == 2
    assert "has not ended within 0.1 s" in result.stderr


@pytest.mark.parametrize(
    ("error", "fix"),
    [
        ("error: no stack named 'prod' found", "pulumi stack ls"),
        ("error: get stack secrets manager: passphrase must be set with PULUMI_CONFIG_PASSPHRASE", "_PASSPHRASE_FILE"),
        ("error: something new", "put right what it reports"),
    ],
)
def test_the_fix_is_that_of_the_cause(error: str, fix: str, project: Path, pulumi: PulumiStub) -> None:
    pulumi.fails(error)
    result = run("verify", pulumi)
    assert error in result.stderr
    assert fix in result.stderr.partition("  fix: ")[2]


def test_what_pulumi_prints_is_shown_without_secrets(project: Path, pulumi: PulumiStub) -> None:
    secret, passphrase = f"pul-{'0a1b2c3d' * 5}", "correct horse battery staple"
    pulumi.fails(f"error: token {secret}, {passphrase}, https://user:geheim1234@backend.example.com")
    result = run("verify", pulumi, PULUMI_CONFIG_PASSPHRASE=passphrase)
    assert "backend.example.com" in result.stderr
    assert not [each for each in (secret, passphrase, "geheim1234") if each in result.output]


def test_only_the_end_of_a_long_output_is_shown(project: Path, pulumi: PulumiStub) -> None:
    pulumi.fails("\n".join(f"line {number}" for number in range(100)))
    result = run("verify", pulumi)
    assert "line 99" in result.stderr
    assert "line 89\n" not in result.stderr

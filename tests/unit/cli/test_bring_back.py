"""`bring-back` with a stub for Pulumi: which commands it runs, and how it fails."""

from pathlib import Path

import pytest
from typer.testing import Result

from tests.support.commands import invoke
from tests.support.pulumi_stub import LOGIN_ERROR, PulumiStub

VM = "urn:pulumi:prod::elastic-vllm::elastic-vllm:index:GpuVm$gcp:compute/instance:Instance::machine-vm"
STATE = f"Current stack resources (2):\n  TYPE  NAME\n  gcp:compute/instance:Instance  machine-vm\n  │  URN: {VM}\n"
SHOW = "stack --show-urns --stack prod --non-interactive"
REFRESH = f"refresh --stack prod --target {VM} --yes --skip-preview"


class StartedError(Exception):
    """Takes the place of the process that `execvp` would become; holds its arguments."""


@pytest.fixture
def pulumi(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> PulumiStub:
    stub = PulumiStub(tmp_path / "bin")
    monkeypatch.setenv("PATH", stub.path)
    monkeypatch.chdir(tmp_path)  # the command changes the directory

    def become(program: str, arguments: list[str]) -> None:
        raise StartedError(program, *arguments)

    monkeypatch.setattr("os.execvp", become)
    return stub


def run(*options: str) -> Result:
    return invoke("bring-back", "--stack", "prod", *options)


def started(result: Result) -> tuple[str, ...]:
    assert isinstance(result.exception, StartedError), result.output
    return tuple(result.exception.args[1:])


def test_the_vm_is_refreshed_alone_and_an_update_follows(pulumi: PulumiStub) -> None:
    pulumi.answers(STATE)
    assert started(run("--", "--yes", "--parallel", "4")) == (
        *("pulumi", "up", "--stack", "prod"),
        *("--yes", "--parallel", "4"),
    )
    assert pulumi.asked == [SHOW, REFRESH]


def test_a_state_without_a_vm_is_only_updated(pulumi: PulumiStub) -> None:
    pulumi.answers("Current stack resources (0):\n    No resources currently in this stack\n")
    result = run()
    assert started(result) == ("pulumi", "up", "--stack", "prod")
    assert "the state has no VM" in result.stdout
    assert pulumi.asked == [SHOW]


def test_a_vm_that_cannot_be_refreshed_stops_before_the_update(pulumi: PulumiStub, tmp_path: Path) -> None:
    program = tmp_path / "bin" / "pulumi"
    pulumi.answers(STATE)
    program.write_text(program.read_text().replace('exit "$(cat', '[ "$1" != refresh ] || exit 255\nexit "$(cat'))
    result = run()
    assert isinstance(result.exception, SystemExit)
    assert result.exit_code == 1
    assert "the VM can't be refreshed (see above)" in result.stderr
    assert pulumi.asked == [SHOW, REFRESH]


def test_a_pulumi_that_is_not_logged_in_changes_nothing(pulumi: PulumiStub) -> None:
    pulumi.fails()
    result = run()
    assert isinstance(result.exception, SystemExit)
    assert result.exit_code == 2
    assert LOGIN_ERROR in result.stderr
    assert pulumi.asked == [SHOW]


def test_without_a_pulumi_it_says_what_to_install(pulumi: PulumiStub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nonexistent")
    result = run()
    assert isinstance(result.exception, SystemExit)
    assert result.exit_code == 2
    assert "install the Pulumi CLI" in result.stderr

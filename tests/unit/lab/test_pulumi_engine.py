"""When the real Pulumi is a rehearsal's engine: versions, plugins without a download, also under sudo."""

import json
import os
from collections.abc import Callable
from importlib import metadata
from pathlib import Path

import pytest

from scripts.lab import pulumi_engine
from scripts.lab.emulator.state import Record, State
from scripts.lab.engines import Engine, choose
from scripts.lab.pulumi_engine import IncompleteError, Installation
from scripts.lib.errors import BadInputError

SDK = metadata.version("pulumi")
PLUGINS = {name: metadata.version(f"pulumi-{name}") for name in pulumi_engine.PLUGINS}
SCRIPT = """\
#!/bin/sh
case "$*" in
version) echo v{version} ;;
"plugin ls --json") echo '{plugins}' ;;
*) exit 1 ;;
esac
"""

Put = Callable[..., Path]


@pytest.fixture
def put(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Put:
    """Puts a Pulumi into a directory, which is the only one on PATH; it is complete unless `without` or changed."""
    monkeypatch.setattr(os, "environ", {"PATH": str(tmp_path / "bin"), "HOME": str(tmp_path / "home")})

    def make(
        directory: str = "bin", *, version: str = SDK, without: tuple[str, ...] = (), **plugins: str | None
    ) -> Path:
        place = tmp_path / directory
        place.mkdir(parents=True, exist_ok=True)
        wanted = {**PLUGINS, **plugins}
        listed = [{"name": name, "version": each, "kind": "resource"} for name, each in wanted.items() if each]
        for name in {"pulumi", *pulumi_engine.LANGUAGE_HOST} - {*without}:
            (place / name).write_text(SCRIPT.format(version=version, plugins=json.dumps(listed)))
            (place / name).chmod(0o755)
        return place / "pulumi"

    return make


def missing(target: str = "existing") -> str:
    with pytest.raises(IncompleteError) as raised:
        pulumi_engine.find(target)
    return str(raised.value)


def test_a_complete_installation_is_used(put: Put, tmp_path: Path) -> None:
    program = put()
    found = pulumi_engine.find("existing")
    assert (found.program, found.version) == (program, SDK)
    plugins = tmp_path / "home" / ".pulumi" / "plugins"
    assert found.plugins == tuple(plugins / f"resource-{name}-v{version}" for name, version in PLUGINS.items())


def test_without_a_pulumi_there_is_none(put: Put) -> None:
    assert missing() == "a pulumi on PATH"


@pytest.mark.parametrize(("version", "enough"), [("3.1.0", False), ("2.999.0", False), ("3.9999.0", True)])
def test_the_cli_must_be_as_new_as_the_sdk(put: Put, version: str, enough: bool) -> None:
    put(version=version)
    if enough:
        assert pulumi_engine.find("existing").version == version
    else:
        assert missing() == f"a CLI of {SDK} or newer ({version} is there)"


def test_another_patch_release_of_the_cli_will_do(put: Put) -> None:
    version = f"{SDK.rpartition('.')[0]}.0"
    put(version=version)
    assert pulumi_engine.find("existing").version == version


@pytest.mark.parametrize("name", PLUGINS)
@pytest.mark.parametrize(("there", "words"), [(None, "none is there"), ("0.1.0", "0.1.0 is there")])
def test_each_plugin_must_have_the_version_of_its_sdk(put: Put, name: str, there: str | None, words: str) -> None:
    put(**{name: there})
    assert missing() == f"the plugin {name} {PLUGINS[name]} ({words})"


@pytest.mark.parametrize(("target", "name"), [("gcp", "gcp"), ("kubernetes", "kubernetes")])
def test_a_plugin_of_one_target_is_needed_for_that_alone(put: Put, target: str, name: str) -> None:
    put()
    version = metadata.version(f"pulumi-{name}")
    assert missing(target) == f"the plugin {name} {version} (none is there)"
    put(**{name: version})
    assert pulumi_engine.find(target).plugins[-1].name == f"resource-{name}-v{version}"


@pytest.mark.parametrize("name", pulumi_engine.LANGUAGE_HOST)
def test_the_language_host_must_be_there(put: Put, name: str) -> None:
    program = put(without=(name,))
    assert missing() == f"{name} on PATH or beside {program}"


def test_the_language_host_may_be_elsewhere_on_path(put: Put, tmp_path: Path) -> None:
    put(without=pulumi_engine.LANGUAGE_HOST)
    put("other", without=("pulumi",))
    os.environ["PATH"] += f":{tmp_path / 'other'}"
    assert pulumi_engine.find("existing").language_host == tmp_path / "other" / pulumi_engine.LANGUAGE_HOST[0]


def test_all_that_is_missing_is_listed(put: Put) -> None:
    put(version="3.1.0", docker=None, tls="4.0.0")
    assert len(missing().split("; ")) == 3


def test_a_pulumi_that_does_not_work_is_none(put: Put) -> None:
    program = put()
    program.write_text("#!/bin/sh\nexit 3\n")
    assert missing().startswith(f"a {program} that works (")


def test_it_is_found_where_its_installer_puts_it(put: Put) -> None:
    program = put("home/.pulumi/bin")
    assert pulumi_engine.find("existing").program == program


@pytest.fixture
def sudo(tmp_path: Path, put: Put, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """This process runs under sudo, two processes above it; `environment` is that of the user who ran it."""

    def run(**environment: str) -> None:
        os.environ.update({"PATH": "/nonexistent", "HOME": "/nonexistent", "SUDO_UID": "0", "SUDO_GID": "0"})
        monkeypatch.setattr(os, "geteuid", lambda: 0)
        monkeypatch.setattr(os, "getppid", lambda: 70)
        monkeypatch.setattr(pulumi_engine, "PROCESSES", tmp_path / "proc")
        texts = "\0".join(f"{name}={value}" for name, value in environment.items())
        for process, name, parent, known in ((70, "make", 60, ""), (60, "sudo", 50, texts)):
            directory = tmp_path / "proc" / str(process)
            directory.mkdir(parents=True)
            (directory / "comm").write_text(f"{name}\n")
            (directory / "stat").write_text(f"{process} ({name}) S {parent} 0")
            (directory / "environ").write_text(known)

    return run


def test_under_sudo_it_is_that_of_the_user(put: Put, sudo: Callable[..., None], tmp_path: Path) -> None:
    program = put("mine")
    sudo(PATH=f"{tmp_path / 'mine'}", PULUMI_HOME=str(tmp_path / "plugins of mine"))
    found = pulumi_engine.find("existing")
    assert found.program == program
    assert found.plugins[0].parent == tmp_path / "plugins of mine" / "plugins"


def test_under_sudo_it_may_be_in_the_users_home(put: Put, sudo: Callable[..., None], tmp_path: Path) -> None:
    program = put("home/.pulumi/bin")
    sudo(PATH="/usr/bin", HOME=str(tmp_path / "home"))
    assert pulumi_engine.find("existing").program == program


# Which engine


@pytest.fixture
def complete(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Makes the installation complete, or lack something."""

    def set_to(lacking: str = "") -> None:
        def find(_target: str) -> Installation:
            if lacking:
                raise IncompleteError(lacking)
            return Installation(program=Path("/p/pulumi"), version="3.1.2", language_host=Path("/p/l"), plugins=())

        monkeypatch.setattr(pulumi_engine, "find", find)

    return set_to


def state(owner: str = "") -> State:
    return State(path=Path("/nonexistent"), engine=owner)  # type: ignore[arg-type] # one of the names


def test_the_real_one_is_used_where_it_is_complete(complete: Callable[..., None]) -> None:
    complete()
    installation, line = choose("x", state(), None, "")
    assert installation
    assert line == "engine: Pulumi 3.1.2 (/p/pulumi)"


def test_the_embedded_one_is_used_elsewhere_and_it_says_why(complete: Callable[..., None]) -> None:
    complete("the plugin tls 5.5.1 (none is there)")
    installation, line = choose("x", state(), None, "")
    assert installation is None
    assert line == "engine: embedded, as Pulumi can't be used here: missing is the plugin tls 5.5.1 (none is there)"


def test_the_embedded_one_can_be_asked_for(complete: Callable[..., None]) -> None:
    complete()
    assert choose("x", state(), Engine.EMBEDDED, "") == (None, "engine: embedded, as asked for")


def test_asking_for_pulumi_lists_what_is_missing(complete: Callable[..., None]) -> None:
    complete("a pulumi on PATH")
    with pytest.raises(BadInputError, match="--engine pulumi: missing is a pulumi on PATH"):
        choose("x", state(), Engine.PULUMI, "")


@pytest.mark.parametrize("owner", Engine)
def test_a_stack_stays_with_its_engine(complete: Callable[..., None], owner: Engine) -> None:
    complete()
    installation, line = choose("x", state(owner), None, "")
    assert bool(installation) is (owner is Engine.PULUMI)
    assert line.lower().startswith(f"engine: {owner}")


@pytest.mark.parametrize(("owner", "asked"), [(Engine.PULUMI, Engine.EMBEDDED), (Engine.EMBEDDED, Engine.PULUMI)])
def test_a_stack_never_has_two_engines(complete: Callable[..., None], owner: Engine, asked: Engine) -> None:
    complete()
    with pytest.raises(BadInputError, match=f"brought up by the engine {owner}, .* fix: .*rehearse down --stack x"):
        choose("x", state(owner), asked, "")


def test_a_state_with_resources_that_names_no_engine_is_the_embedded_ones(complete: Callable[..., None]) -> None:
    complete()
    known = state()
    known.resources["urn"] = Record(type="t", name="n", id="i", inputs={}, outputs={})
    assert choose("x", known, None, "") == (None, "engine: embedded, which has stack x")


def test_a_stack_of_pulumi_needs_pulumi(complete: Callable[..., None]) -> None:
    complete("a pulumi on PATH")
    with pytest.raises(BadInputError, match="stack x was brought up by Pulumi: missing is a pulumi on PATH"):
        choose("x", state("pulumi"), None, "")


@pytest.mark.parametrize(("settings", "run"), [("", ""), ("elastic-vllm:sshPrivateKeyPassword: {secure: x}", "true")])
def test_every_command_runs_the_program_where_it_holds_a_key_with_a_passphrase(
    settings: str, run: str, tmp_path: Path
) -> None:
    program = tmp_path / "pulumi"
    program.write_text('#!/bin/sh\necho "$PULUMI_RUN_PROGRAM"\n')
    program.chmod(0o755)
    installation = Installation(program=program, version=SDK, language_host=program, plugins=())
    (tmp_path / "project").mkdir()
    stack = pulumi_engine.Stack(installation, tmp_path / "project", "x", tmp_path / "scratch")
    stack.file.write_text(f"config: {{{settings}}}\n")
    assert stack.ask("destroy") == f"{run}\n"

"""The resource that looks whether a packet filter is in place, against a machine that a shell stands for."""

from pathlib import Path
from typing import Any

import pytest

from components.machine.host import RUN_SCRIPT, standard_input
from components.machine.packet_filter import PacketFilterError, PacketFilterProvider

PROVIDER = PacketFilterProvider()


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """File that is there while the filter is."""
    return tmp_path / "filter"


@pytest.fixture
def props(place: Path) -> dict[str, Any]:
    return {
        "ssh": ["bash", "-c", RUN_SCRIPT],
        "check": standard_input(f"[ -e {place} ] || echo 'table inet x'", login="root"),
        "set": standard_input(f"touch {place}; echo set", login="root"),
        "on": ["machine"],
    }


def diff(olds: dict[str, Any], news: dict[str, Any]) -> tuple[dict[str, Any], bool | None]:
    """Checked inputs and whether there are changes, as an engine asks for them."""
    checked = PROVIDER.check(olds, news).inputs
    return checked, PROVIDER.diff("packet-filter", olds, checked).changes


def test_creating_it_puts_it_in_place(props: dict[str, Any], place: Path) -> None:
    assert PROVIDER.check({}, props).inputs == props
    assert PROVIDER.create(props).outs == props
    assert place.exists()


def test_one_in_place_is_no_change(props: dict[str, Any]) -> None:
    PROVIDER.create(props)
    assert diff(props, props) == (props, False)


def test_a_missing_one_is_named_as_a_change_and_put_back(props: dict[str, Any], place: Path) -> None:
    PROVIDER.create(props)
    place.unlink()
    checked, changes = diff(props, props)
    assert (checked["missing"], changes) == (["table inet x"], True)
    assert PROVIDER.update("packet-filter", props, checked).outs == props
    assert place.exists()
    assert diff(checked, props) == (props, False)  # the state holds what was missing then


def test_another_container_or_machine_is_a_change(props: dict[str, Any]) -> None:
    PROVIDER.create(props)
    assert diff(props, props | {"on": ["another"]})[1]


@pytest.mark.parametrize(
    "ssh",
    [["false"], ["true"], ["echo", "who are you?"], ["bash", "-c", "echo 'table inet x'; exit 1"]],
    ids=["unreachable", "silent", "something else answers", "cut off"],
)
def test_a_machine_that_cannot_be_asked_is_no_change(ssh: list[str], props: dict[str, Any]) -> None:
    cut_off = props | {"ssh": ssh}
    assert diff(cut_off, cut_off) == (cut_off, False)


def test_a_failure_to_set_it_is_the_servers_own_words(props: dict[str, Any]) -> None:
    failing = props | {"set": standard_input("echo 'no nf_tables' >&2; exit 1", login="root")}
    with pytest.raises(PacketFilterError, match="no nf_tables"):
        PROVIDER.create(failing)


def test_a_machine_that_runs_something_else_is_an_error(props: dict[str, Any]) -> None:
    with pytest.raises(Exception, match="did not run what it was sent"):
        PROVIDER.create(props | {"ssh": ["echo", "root@server", "x"]})

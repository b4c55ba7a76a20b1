"""Generated references match the current program."""

from collections.abc import Callable

import pytest

from components.outputs import OUTPUTS
from scripts.maintain import reference
from tests.support.program import Program


@pytest.mark.parametrize("name", sorted(reference.DOCUMENTS))
def test_a_generated_reference_is_not_stale(name: str) -> None:
    assert (reference.REFERENCE / name).read_text() == reference.DOCUMENTS[name](), "run `make docs`"


def test_the_reference_of_settings_has_every_setting_in_a_section() -> None:
    sections = reference.settings().split("\n## ")[1:]
    rows = [line.split("`")[1] for section in sections for line in section.splitlines() if line.startswith("| `")]
    assert sorted(rows) == sorted(reference.described())


def test_every_output_is_described_and_marked_as_secret_where_it_is(program_of: Callable[..., Program]) -> None:
    plain, clients = program_of("gpu"), program_of("gpu", clientCertificates=["kibana"], keys={"siem": [1]})
    assert [*OUTPUTS] == [name for name in plain.outputs if name != "_internal"]
    secret = plain.secret_outputs | clients.secret_outputs
    assert {name for name, output in OUTPUTS.items() if output.secret} == secret - {"_internal"}

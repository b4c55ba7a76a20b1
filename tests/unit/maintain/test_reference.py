"""The generated references: as the program is now."""

import pytest

from scripts.maintain import reference


@pytest.mark.parametrize("name", sorted(reference.DOCUMENTS))
def test_a_generated_reference_is_not_stale(name: str) -> None:
    assert (reference.REFERENCE / name).read_text() == reference.DOCUMENTS[name](), "run `make docs`"


def test_the_reference_of_settings_has_every_setting_in_a_section() -> None:
    sections = reference.settings().split("\n## ")[1:]
    rows = [line.split("`")[1] for section in sections for line in section.splitlines() if line.startswith("| `")]
    assert sorted(rows) == sorted(reference.described())

"""Tables of the gateways side by side: percentiles, who is first, promises, and the document's reasons."""

import random
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from scripts.maintain.price import compare
from scripts.maintain.price.behaviour import LEAVING
from scripts.maintain.price.compare import COLUMNS, MOST_STREAMS, Figures
from scripts.maintain.price.document import DOCUMENT
from scripts.maintain.price.gateways import DIRECT, GUIDE, NAMES, OURS, Opened
from scripts.maintain.price.traffic import Lags

ROUTER = "router"
FEW_STREAMS = 16


def figures(factor: float = 1.0, **changed: Any) -> Figures:
    """Figures of a gateway; all times are multiplied by the factor."""
    spread = [factor * number / 100_000 for number in range(1, 101)]  # 0.01 to 1 ms
    own: dict[str, Any] = {
        "latencies": [spread] * 3,
        "lags": {FEW_STREAMS: [Lags(spread)] * 3, MOST_STREAMS: [Lags([2 * each for each in spread])] * 3},
        "cpu_seconds": 0.02 * factor,
        "events": 1000,
        "loads": [1000 / factor] * 3,
        "memory_mib": (20 * factor, 10 * factor),
        "notices": {kind: [0.001 * factor] * 3 for kind in LEAVING},
        "behaviours": {"wrong key, no key": "401 JSON, 401 JSON"},
    }
    return Figures(**own | changed)


def side_by_side(**others: Figures) -> dict[str, Figures]:
    return {DIRECT: figures(0.5), OURS: figures(), GUIDE: figures(2.0)} | others


def opened(found: dict[str, Figures]) -> Opened:
    gateways = {
        name: SimpleNamespace(title=f"{NAMES[name]} 1.0", way=SimpleNamespace(tls=name != DIRECT or None))
        for name in found
    }
    return cast("Opened", SimpleNamespace(gateways=gateways))


def cells(table: str, name: str) -> list[str]:
    """Cells of a gateway's row, without the first two."""
    row = next(line for line in table.splitlines() if line.startswith(f"| {NAMES[name]} 1.0 |"))
    return [cell.strip() for cell in row.split("|")[3:-1]]


@pytest.mark.parametrize("percent", [50, 95, 99])
def test_a_percentile_is_between_the_values_beside_it(percent: int) -> None:
    values = [number / 1000 for number in range(1, 1001)]  # 1 to 1000 ms
    random.Random(1).shuffle(values)  # noqa: S311
    assert compare.ms(values, percent) == pytest.approx(10 * percent, rel=0.002)


def test_a_disturbed_round_does_not_count() -> None:
    calm, disturbed = [0.001] * 100, [0.5] * 100
    found = figures(latencies=[calm, disturbed, calm], lags={MOST_STREAMS: [Lags(calm), Lags(calm), Lags(disturbed)]})
    assert compare.latency_ms(found, 99) == pytest.approx(1)
    assert compare.lag_ms(found, 99) == pytest.approx(1)


def test_what_is_added_is_the_difference_to_the_direct_way() -> None:
    found = side_by_side()
    added = COLUMNS["added p50, ms"]
    assert added(found, OURS) == pytest.approx(0.505 - 0.2525)
    assert added(found, GUIDE) == pytest.approx(3 * added(found, OURS))


def test_bunched_events_are_counted_over_all_rounds() -> None:
    found = figures(lags={MOST_STREAMS: [Lags([0.1] * 10, 3), Lags([0.1] * 30, 1)]})
    assert compare.bunched(found) == (4, 40)
    assert COLUMNS["bunched, %"]({OURS: found}, OURS) == 10


def test_cpu_time_is_for_a_thousand_events() -> None:
    found = {OURS: figures(cpu_seconds=0.5, events=20_000)}
    assert COLUMNS["CPU ms for 1,000 events"](found, OURS) == pytest.approx(25)


def test_the_table_has_a_figure_for_each_gateway_and_column() -> None:
    found = side_by_side()
    table = compare.tables(opened(found), found)
    for name in (OURS, GUIDE):
        assert len(cells(table, name)) == len(COLUMNS) + 1
        assert all(cells(table, name))
    assert cells(table, OURS)[6:9] == ["1,000", "20.0", "10.0"]
    direct = dict(zip(COLUMNS, cells(table, DIRECT), strict=False))
    assert {title for title, cell in direct.items() if not cell} == compare.WITHOUT_DIRECT
    assert direct["added p50, ms"] == "(takes 0.253)"


def test_ours_is_first_where_it_is() -> None:
    found = side_by_side()
    assert compare.tables(opened(found), found).count("behind the first, in every column.") == 1


def test_each_column_in_which_another_is_ahead_is_named_with_both_figures() -> None:
    found = side_by_side(router=figures(0.9, loads=[1500.0] * 3, memory_mib=(40.0, 30.0)))
    table = compare.tables(opened(found), found)
    behind = table.partition("in every column except ")[2].partition(".\n")[0]
    named = {each.partition(" (")[0] for each in behind.split("; ")}
    assert named == set(COLUMNS) - {"bunched, %", "resident, MiB", "proportional, MiB"}
    assert "requests/s (vllm-router: 1,500 against 1,000)" in behind
    assert "CPU ms for 1,000 events (vllm-router: 18.0 against 20.0)" in behind


def test_a_difference_as_small_as_that_between_rounds_does_not_count() -> None:
    found = side_by_side(router=figures(0.99))
    assert "except" not in compare.tables(opened(found), found)


def test_being_ahead_of_the_direct_way_does_not_count() -> None:
    found = side_by_side()
    found[DIRECT] = figures(0.1)
    assert "except" not in compare.tables(opened(found), found)


@pytest.mark.parametrize(
    ("changed", "verdicts"),
    [
        ({}, ["not kept", "kept"]),
        ({"latencies": [[0.0003] * 100]}, ["kept", "kept"]),
        ({"latencies": [[0.0003] * 98 + [0.002] * 2]}, ["not kept", "kept"]),
        ({"lags": {MOST_STREAMS: [Lags([0.02] * 100)], FEW_STREAMS: [Lags([0.001] * 100)]}}, ["not kept", "not kept"]),
        (
            {"lags": {MOST_STREAMS: [Lags([0.001] * 100, 1)], FEW_STREAMS: [Lags([0.001] * 100)]}},
            ["not kept", "not kept"],
        ),
    ],
)
def test_promises_are_judged_by_the_figures(changed: dict[str, Any], verdicts: list[str]) -> None:
    found = side_by_side()
    found[OURS] = figures(**changed)
    text = compare.tables(opened(found), found)
    assert re.findall(r"\*\*((?:not )?kept)\*\*", text) == verdicts


def test_a_gateway_that_does_not_notice_is_said_not_to() -> None:
    found = side_by_side(router=figures(notices={kind: [0.001, None] for kind in LEAVING}))
    table = compare.tables(opened(found), found)
    [row] = [line for line in table.splitlines() if "a client that leaves a silent stream" in line]
    assert [cell.strip() for cell in row.split("|")[2:-1]] == ["1 ms", "2 ms", "not within 10 s"]


@pytest.mark.parametrize(
    ("value", "expected"), [(0.0, "0.000"), (0.1049, "0.105"), (1.108, "1.11"), (18.46, "18.5"), (45788.4, "45,788")]
)
def test_figures_have_three_digits(value: float, expected: str) -> None:
    assert compare.cell(value) == expected


def test_figures_are_drawn_beside_the_document(tmp_path: Path) -> None:
    compare.write_figures(side_by_side(), tmp_path)
    for name in ("latency.svg", "lag.svg"):
        text = (tmp_path / name).read_text()
        assert all(f">{NAMES[each].replace(chr(39), '&#x27;')}</text>" in text for each in (DIRECT, OURS, GUIDE))


SUBJECTS = {
    "added p50, ms": "Added latency",
    "added p99, ms": "Added latency",
    "lag p50, ms": "lag",
    "lag p99, ms": "lag",
    "bunched, %": "bunched",
    "CPU ms for 1,000 events": "CPU",
    "requests/s": "requests/s",
    "resident, MiB": "Resident memory",
    "proportional, MiB": "Proportional memory",
}
"""Column -> word for it in the reasons."""


def test_the_document_has_a_reason_for_each_column_in_which_this_gateway_is_behind() -> None:
    document = DOCUMENT.read_text()
    behind = re.search(r"is first, or at most 3% behind the first, in every column(?: except (.+))?\.\n", document)
    assert behind
    reasons = document.partition("### Where this gateway is not first")[2].partition("\n### ")[0]
    titles = re.findall(r"^- \*\*(.+?)\*\*", reasons, re.MULTILINE)
    for column, ahead in re.findall(r"(?:^|; )(.+?) \((.+?): \S+ against \S+\)", behind[1] or ""):
        assert any(SUBJECTS[column] in title and ahead in title for title in titles), column
    assert set(SUBJECTS) == set(COLUMNS)

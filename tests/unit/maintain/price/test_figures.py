"""Bars of the benchmark's figures: lengths, order and labels."""

import xml.etree.ElementTree as ET
from collections.abc import Mapping

import pytest

from scripts.maintain.price.figures import BAR, LABELS, WIDTH, bars

SVG = "{http://www.w3.org/2000/svg}"


def drawn(groups: Mapping[str, Mapping[str, float]]) -> ET.Element:
    return ET.fromstring(bars("Lag", "ms", groups))  # noqa: S314 - of this program


def lengths(figure: ET.Element) -> list[float]:
    """Lengths of the bars, from top to bottom; not the background, nor the legend."""
    rows = [each for each in figure.findall(f"{SVG}rect") if each.get("height") == str(BAR - 3)]
    return [float(each.get("width", "")) for each in sorted(rows, key=lambda each: float(each.get("y", "")))]


def texts(figure: ET.Element) -> list[str]:
    return [each.text or "" for each in figure.findall(f"{SVG}text")]


def test_tenfold_values_are_the_same_distance_apart() -> None:
    first, second, third = lengths(drawn({"a": {"p50": 0.2}, "b": {"p50": 2.0}, "c": {"p50": 20.0}}))
    assert second - first == pytest.approx(third - second, abs=0.1)
    assert 0 < first < third < WIDTH - LABELS


def test_each_group_has_its_bars_in_the_order_of_the_series_and_its_label() -> None:
    figure = drawn({"ours": {"p50": 1.0, "p99": 4.0}, "the guide's <Nginx>": {"p50": 492.0, "p99": 1300.0}})
    found = lengths(figure)
    assert found == sorted(found)
    shown = texts(figure)
    assert shown[:3] == ["Lag (logarithmic scale)", "p50", "p99"]
    assert shown[3:] == ["ours", "1 ms", "4 ms", "the guide's <Nginx>", "492 ms", "1,300 ms"]


def test_the_smallest_value_has_a_bar_that_can_be_seen() -> None:
    assert min(lengths(drawn({"a": {"p50": 0.1}, "b": {"p50": 5.0}}))) >= 1


def test_bars_and_labels_stay_inside_the_figure() -> None:
    figure = drawn({name: {"p50": 0.05, "p99": 2500.0} for name in "abcdef"})
    width, height = float(figure.get("width", "")), float(figure.get("height", ""))
    for each in [*figure.findall(f"{SVG}rect"), *figure.findall(f"{SVG}text")]:
        assert 0 <= float(each.get("x", "0")) < width
        assert 0 <= float(each.get("y", "0")) <= height

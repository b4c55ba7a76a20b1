"""Figures as SVG: horizontal bars, one group per line."""

import math
from collections.abc import Mapping, Sequence
from html import escape

WIDTH, LABELS, BAR, GAP = 720, 190, 16, 14
HUNDRED = 100.0
COLOURS = ("#4c78a8", "#e45756")


def bars(title: str, unit: str, groups: Mapping[str, Mapping[str, float]]) -> str:
    """Draw group -> series -> value on a logarithmic scale; each group has the same series."""
    series: Sequence[str] = list(next(iter(groups.values())))
    drawn = [value for values in groups.values() for value in values.values()]
    # The scale begins at the power of ten below the smallest value.
    begin = math.floor(math.log10(min(drawn)))
    decades = math.log10(max(drawn)) - begin
    rows, y = [], 58
    for group, values in groups.items():
        rows.append(_text(LABELS - 10, y + BAR * len(values) / 2 + 4, group, anchor="end"))
        for number, name in enumerate(series):
            length = (math.log10(values[name]) - begin) / decades * (WIDTH - LABELS - 110)
            rows.append(
                f'<rect x="{LABELS}" y="{y}" width="{max(length, 1):.1f}" height="{BAR - 3}" fill="{COLOURS[number]}"/>'
            )
            rows.append(
                _text(
                    LABELS + max(length, 1) + 6,
                    y + BAR - 5,
                    f"{values[name]:{',.0f' if values[name] >= HUNDRED else '.3g'}} {unit}",
                    size=11,
                )
            )
            y += BAR
        y += GAP
    legend = []
    for number, name in enumerate(series):
        x = LABELS + 130 * number
        legend.append(
            f'<rect x="{x}" y="34" width="10" height="10" fill="{COLOURS[number]}"/>' + _text(x + 15, 43, name)
        )
    body = "\n".join([_text(10, 20, f"{title} (logarithmic scale)", size=14), *legend, *rows])
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{y}" font-family="sans-serif">\n'
        f'<rect width="100%" height="100%" fill="white"/>\n{body}\n</svg>\n'
    )


def _text(x: float, y: float, text: str, *, anchor: str = "start", size: int = 12) -> str:
    return f'<text x="{x:g}" y="{y:g}" font-size="{size}" text-anchor="{anchor}">{escape(text)}</text>'

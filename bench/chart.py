"""A bar chart of what ours costs beside the real servers, as SVG."""

from __future__ import annotations

from typing import Final
from xml.sax.saxutils import escape

from bench.figures import Better
from bench.judgement import Row, Verdict

__all__ = ("cost", "draw")

LEFT: Final = 330  # for the labels
WIDTH: Final = 420  # of the bars
RIGHT: Final = 70  # for the numbers
BAR: Final = 16
PITCH: Final = 26
TOP: Final = 56
LONGEST: Final = 1.6  # a longer bar is cut there

# Readable on white and on black.
COLOURS: Final = {
    Verdict.MET: "#2a9d6f",
    Verdict.MISSED: "#d1603d",
    Verdict.NONE: "#6f8fb3",
}
INK: Final = "#7a7f87"


def cost(row: Row) -> float | None:
    """What ours costs in units of theirs, whichever way the figure improves."""
    ratio = row.ratio
    if ratio is None or not ratio:
        return None
    return ratio if row.figure.better is Better.LOWER else 1 / ratio


def draw(rows: list[Row]) -> str:
    """Draw one bar per row that can be compared.

    Args:
        rows: In the order of the bars.
    """
    bars = [(row, value) for row in rows if (value := cost(row)) is not None]
    height = TOP + PITCH * len(bars) + 14
    width = LEFT + WIDTH + RIGHT
    one = LEFT + WIDTH / LONGEST
    parts = [
        (
            f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}"'
            f' viewBox="0 0 {width} {height}" font-family="sans-serif" font-size="12">'
        ),
        "<title>What ours costs beside the real servers</title>",
        (
            f'<text x="10" y="20" font-size="14" fill="{INK}">Cost beside derper'
            " and Coder's coordinator: 1.0 is the same, shorter is better</text>"
        ),
        (
            f'<text x="10" y="40" fill="{INK}">CPU, memory and time; rates upside down.'
            " Green: target met. Red: missed. Blue: no target.</text>"
        ),
    ]
    for number, (row, value) in enumerate(bars):
        y = TOP + PITCH * number
        length = WIDTH * min(value, LONGEST) / LONGEST
        mark = " (cut)" if value > LONGEST else ""
        label = f"{row.scenario.section.title}, {row.scenario.case}"
        if row.figure.unit not in {"us/packet", "us/delivery"}:
            label += f": {row.figure.label}"
        colour = COLOURS.get(row.verdict, INK)
        parts += [
            (
                f'<text x="{LEFT - 8}" y="{y + BAR - 4}" text-anchor="end"'
                f' fill="{INK}">{escape(_shorten(label))}</text>'
            ),
            (
                f'<rect x="{LEFT}" y="{y}" width="{length:.1f}" height="{BAR}" rx="2"'
                f' fill="{colour}"/>'
            ),
            (
                f'<text x="{LEFT + length + 6:.1f}" y="{y + BAR - 4}"'
                f' fill="{INK}">{value:.2f}{mark}</text>'
            ),
        ]
    parts += [
        (
            f'<line x1="{one:.1f}" y1="{TOP - 6}" x2="{one:.1f}" y2="{height - 8}"'
            f' stroke="{INK}" stroke-dasharray="4 3"/>'
        ),
        "</svg>",
    ]
    return "\n".join(parts) + "\n"


_LABEL_LEN: Final = 50


def _shorten(label: str) -> str:
    return label if len(label) <= _LABEL_LEN else f"{label[: _LABEL_LEN - 1]}…"

"""A record as Markdown: the report, and the short table for the terminal."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import Final

from bench.figures import Side, Spread, number
from bench.judgement import (
    BUSY_CORES,
    Row,
    Verdict,
    count_deliveries,
    count_packets,
    find_faults,
    loader_limited,
    make_rows,
)
from bench.record import Record
from bench.scenarios import FRAMING, Section

__all__ = ("kept_notes", "render", "summary", "table")

NOTES_BEGIN: Final = "<!-- notes: kept when the report is written again -->"
NOTES_END: Final = "<!-- end of the notes -->"
NOTHING: Final = "-"


def table(head: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    """Make a Markdown table whose source reads as a table too."""
    cells = [list(head), *[list(line) for line in lines]]
    widths = [max(len(line[column]) for line in cells) for column in range(len(head))]
    rows = [
        "| "
        + " | ".join(
            cell.ljust(width) for cell, width in zip(line, widths, strict=True)
        )
        + " |"
        for line in cells
    ]
    rule = "|" + "|".join("-" * (width + 2) for width in widths) + "|"
    return "\n".join([rows[0], rule, *rows[1:]]) + "\n"


def _cells(row: Row) -> list[str]:
    """Figure, ours, theirs, ratio, target and verdict of a row."""
    unit = f", {row.figure.unit}" if row.figure.unit else ""
    return [
        f"{row.figure.label}{unit}",
        str(row.ours or NOTHING),
        str(row.theirs or NOTHING),
        _ratio_text(row),
        row.figure.target_text(),
        str(row.verdict),
    ]


def _ratio_text(row: Row) -> str:
    """The ratio of the medians, and the range of the pairs."""
    if row.ratio is None:
        return NOTHING
    if row.pairs is None or row.pairs.count == 1:
        return f"{row.ratio:.2f}"
    return f"{row.ratio:.2f} ({row.pairs.low:.2f} to {row.pairs.high:.2f})"


def rows_tables(rows: Sequence[Row], first: str) -> list[str]:
    """Make a table of the rows beside each of the real servers.

    Args:
        rows: In their order.
        first: What tells the rows apart: ``scenario``, ``case``, or ``title``
            for the section and the case.
    """
    tables = []
    for side in Side:
        lines = []
        for row in rows:
            if row.scenario.section.rival is side:
                title = f"{row.scenario.section.title}: {row.scenario.case}"
                names = {"scenario": row.scenario.name, "case": row.scenario.case}
                lines.append([names.get(first, title), *_cells(row)])
        if lines:
            head = "scenario" if first == "scenario" else "case"
            figures = ("figure", Side.OURS, side, "ratio", "target", "")
            tables.append(table((head, *figures), lines))
    return tables


def framing_table(record: Record) -> str:
    """The table of the codec."""
    lines = []
    for figure in record.framing:
        spread = Spread.of(figure.ns_per_frame)
        if spread is not None:
            rate = number(1e9 / spread.median)
            lines.append([figure.name, str(figure.frames), str(spread), rate])
    return table(("operation", "frames a call", "ns/frame", "frames/s"), lines)


def summary(record: Record) -> str:
    """All rows in one table, then the codec's, then what is wrong."""
    rows = make_rows(record)
    parts = []
    if rows:
        parts += rows_tables(rows, "scenario")
    if record.framing:
        parts.append(framing_table(record))
    parts.append("".join(f"{line}\n" for line in _conclusion(record, rows)))
    return "\n".join(parts)


def _conclusion(record: Record, rows: list[Row]) -> Iterator[str]:
    """What to know about all rows, a line each."""
    verdicts = [row.verdict for row in rows if row.figure.target is not None]
    if verdicts:
        yield (
            f"{verdicts.count(Verdict.MET)} of {len(verdicts)} targets met;"
            f" {record.seconds:.0f} s."
        )
    for side in record.sides:
        if packets := count_packets(record, side):
            counts = ", ".join(f"{count:,} {name}" for name, count in packets.items())
            yield f"Packets compared, {side}: {counts}."
        if nodes := count_deliveries(record, side):
            yield f"Nodes delivered to clients of a coordinator, {side}: {nodes:,}."
    for text in record.missing:
        yield f"Not there: {text}"
    for fault in find_faults(record):
        yield f"FAULT: {fault}"


def render(record: Record, *, chart: str, notes: str = "") -> str:
    """Make the whole report.

    Args:
        record: Of the run.
        chart: Path of the chart, from the report.
        notes: Written by hand; see :func:`kept_notes`.
    """
    rows = make_rows(record)
    times = "once" if record.repetitions == 1 else f"{record.repetitions} times"
    form = "quick" if record.quick else "full"
    parts = [
        "# Benchmarks\n",
        (
            f"Written by `make bench` ({form} form, {record.seconds:.0f} s). Our relay"
            " and the real derper, our coordinator and Coder's own, one after the other"
            f" in the same run, over loopback; the whole list {times}, each run with a"
            " fresh server process. A figure is the median, with the range in brackets;"
            " the ratio is ours divided by theirs, of the medians, with the range over"
            " the repetitions in brackets. A verdict is on the ratio of the medians:"
            " where the limit lies within that range, the run does not settle it.\n"
        ),
        table(("", "what"), [[name, text] for name, text in record.machine.items()]),
        (
            "A server's CPU is the clock of its process, all threads, over exactly the"
            " measured time. The load generator is `bench/loader` (Rust), which checks"
            " the source, order and bytes of every packet, and the order of nodes. A"
            " pinned server has one core: `taskset` starts it there, so that Go plans"
            " for one core as well.\n"
        ),
    ]
    conclusion = list(_conclusion(record, rows))
    parts.append("".join(f"* {line}\n" for line in conclusion))
    aimed = [row for row in rows if row.figure.target is not None]
    if aimed:
        parts += ["## Targets\n", *rows_tables(aimed, "title")]
        parts.append(f"![What ours costs beside the real ones]({chart})\n")
    parts += [NOTES_BEGIN, notes.strip("\n"), f"{NOTES_END}\n"]
    for section in Section:
        found = [row for row in rows if row.scenario.section is section]
        if found:
            parts += [f"## {section.title}\n", f"{section.question} {section.method}\n"]
            parts += rows_tables(found, "case")
    limited = loader_limited(record)
    if limited:
        parts.append(
            f"Where a pinned server used less than {BUSY_CORES} of its core, it waited"
            " for the load generator or for other work of the machine. CPU per packet"
            " or delivery is right there, the rate is not the server's limit:"
            f" {', '.join(limited)}.\n"
        )
    if FRAMING in record.names:
        parts += [
            "## Framing\n",
            (
                "What does the codec cost alone? CPU time of one thread, in memory. The"
                " mixed buffer holds runs of up to 12 packets of four sizes for four"
                " peers, with some Pings and NotePreferred between.\n"
            ),
            framing_table(record),
        ]
    return "\n".join(parts)


def kept_notes(old: str) -> str:
    """Return the part of an old report that was written by hand."""
    pattern = f"{re.escape(NOTES_BEGIN)}(.*?){re.escape(NOTES_END)}"
    found = re.search(pattern, old, re.DOTALL)
    return found[1].strip("\n") if found else ""

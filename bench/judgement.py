"""Rows of the report out of a record, and what is wrong with it.

A target that is missed is told, and is no fault: figures depend on the
machine. A fault is a figure that is missing, a byte that went wrong, or a
packet lost although our queue had room for it.
"""

from __future__ import annotations

import enum
from collections.abc import Iterator
from dataclasses import dataclass

from bench.figures import Figure, Result, Side, Spread, field
from bench.record import Record, Run
from bench.scenarios import FRAMING, SCENARIOS, Kind, Scenario

__all__ = (
    "BUSY_CORES",
    "Row",
    "Verdict",
    "count_deliveries",
    "count_packets",
    "find_faults",
    "loader_limited",
    "make_rows",
)

# Below this share of its core a pinned relay had to wait for something.
BUSY_CORES = 0.9


class Verdict(enum.StrEnum):
    MET = "met"
    MISSED = "missed"
    MISSING = "missing"
    NONE = ""  # no target


@dataclass(frozen=True, slots=True)
class Row:
    """One figure of one scenario, on both sides.

    Attributes:
        scenario: Whose figure.
        figure: Which.
        ours: Over the repetitions.
        theirs: The real one's, over the repetitions.
        pairs: Ours divided by theirs within each repetition. A wide range
            says that the ratio of the medians is worth little.
    """

    scenario: Scenario
    figure: Figure
    ours: Spread | None
    theirs: Spread | None
    pairs: Spread | None

    @property
    def ratio(self) -> float | None:
        """The median of ours divided by that of theirs."""
        if self.ours is None or self.theirs is None or self.theirs.median <= 0:
            return None
        return self.ours.median / self.theirs.median

    @property
    def verdict(self) -> Verdict:
        """How the figure stands to its target."""
        if self.figure.target is None:
            return Verdict.NONE
        if self.figure.target.of == "ratio":
            value = self.ratio
        else:
            value = None if self.ours is None else self.ours.median
        if value is None:
            return Verdict.MISSING
        return Verdict.MET if self.figure.is_met(value) else Verdict.MISSED


def make_rows(record: Record) -> list[Row]:
    """Make the rows of all scenarios that were asked for, in their order."""
    rows = []
    for scenario in SCENARIOS:
        if scenario.name not in record.names:
            continue
        for figure in scenario.figures:
            ours, theirs = (
                _values(record, scenario, figure, side) for side in scenario.sides
            )
            pairs = [
                value / theirs[repetition]
                for repetition, value in ours.items()
                if theirs.get(repetition, 0) > 0
            ]
            rows.append(
                Row(
                    scenario,
                    figure,
                    Spread.of([*ours.values()]),
                    Spread.of([*theirs.values()]),
                    Spread.of(pairs),
                )
            )
    return rows


def _values(
    record: Record, scenario: Scenario, figure: Figure, side: Side
) -> dict[int, float]:
    """The figure by repetition."""
    found = {}
    for run in record.runs:
        if run.scenario == scenario.name and run.side is side and run.result:
            value = figure.value(run.result)
            if value is not None:
                found[run.repetition] = value
    return found


def find_faults(record: Record) -> list[str]:
    """Return what is wrong, a line each; nothing if all is well.

    Programs that there were not are no faults here: the caller decides.
    """
    faults = list(record.faults)
    if FRAMING in record.names and not record.framing:
        faults.append(f"{FRAMING}: no figures")
    runs = {(run.scenario, run.side, run.repetition): run for run in record.runs}
    for scenario in SCENARIOS:
        if scenario.name not in record.names:
            continue
        for side in _sides(record, scenario):
            for repetition in range(1, record.repetitions + 1):
                where = f"{scenario.name}, {side}, repetition {repetition}"
                run = runs.get((scenario.name, side, repetition))
                faults += [f"{where}: {what}" for what in _faults(scenario, run)]
    return faults


def _sides(record: Record, scenario: Scenario) -> list[Side]:
    """The servers that it ran against."""
    return [side for side in scenario.sides if side in record.sides]


def _faults(scenario: Scenario, run: Run | None) -> Iterator[str]:
    """What is wrong with one run."""
    if run is None:
        yield "did not run"
    elif run.result is None:
        yield run.error or "no result"
    else:
        for figure in scenario.figures:
            if figure.value(run.result) is None:
                yield f"no figure for {figure.label}"
        try:
            yield from _wrong_bytes(scenario, run.side, run.result)
        except (KeyError, TypeError) as exc:
            yield f"the result is not what it should be: {exc!r}"


def _wrong_bytes(scenario: Scenario, side: Side, result: Result) -> Iterator[str]:
    match scenario.kind:
        case Kind.TRANSFER:
            return  # A damaged file has no result.
        case Kind.IDLE:
            if result["failed_handshakes"]:
                yield f"{result['failed_handshakes']} handshakes failed"
            if result["alive_after_hold"] != result["opened"]:
                yield f"{result['alive_after_hold']} of {result['opened']} lived on"
        case Kind.HANDSHAKES:
            if result["failed_handshakes"]:
                yield f"{result['failed_handshakes']} handshakes failed"
        case Kind.SLOW:
            for count in ("corrupt", "reordered"):
                if result[count]:
                    yield f"{result[count]} packets of the flood {count}"
            # derper hangs up on a receiver that is too slow for it.
            if side is Side.OURS and not result["slow_stream_whole"]:
                yield "the slow receiver's stream did not end whole"
            yield from _wrong_traffic(scenario, side, result["bystander"])
        case Kind.CROWD:
            clients = result["clients"]
            if result["have_last_update"] != clients:
                yield f"{result['have_last_update']} of {clients} have the last node"
            if result["ready_for_handshake"] != clients:
                yield f"{result['ready_for_handshake']} of {clients} were told once"
            if result["repeated"]:
                yield f"{result['repeated']} nodes were sent twice"
        case _:
            yield from _wrong_traffic(scenario, side, result)


def _wrong_traffic(scenario: Scenario, side: Side, result: Result) -> Iterator[str]:
    for count in ("corrupt", "reordered", "unaccounted"):
        if result[count]:
            yield f"{result[count]} packets {count}"
    if side is not Side.OURS:
        return  # What derper loses stands in the table where it matters.
    if result["closed_connections"]:
        yield f"{result['closed_connections']} connections ended"
    if result["never_arrived"] and not scenario.may_lose:
        yield f"{result['never_arrived']} packets lost, and the queue had room"


def loader_limited(record: Record) -> list[str]:
    """Name the runs, by scenario and side, in which the server was not busy.

    Their CPU per packet is right, their packets per second are those of the
    load generator.
    """
    limited = []
    for scenario in SCENARIOS:
        if not scenario.pinned or scenario.name not in record.names:
            continue
        if scenario.kind is Kind.CROWD:
            cores = Figure("cores", "", field("windowed.server_cores"))
        else:
            cores = Figure("cores", "", field("relay_cores"))
        for side in _sides(record, scenario):
            spread = Spread.of([*_values(record, scenario, cores, side).values()])
            if spread is not None and spread.median < BUSY_CORES:
                limited.append(f"{scenario.name} ({side})")
    return limited


def count_packets(record: Record, side: Side) -> dict[str, int]:
    """Add up what became of the packets that one side was to carry.

    Returns:
        Counts by name; nothing if no packets were counted.
    """
    totals: dict[str, int] = {}
    for run in record.runs:
        if run.side is side and run.result is not None:
            for name in ("delivered", "corrupt", "reordered"):
                for result in (run.result, run.result.get("bystander", {})):
                    if name in result:
                        totals[name] = totals.get(name, 0) + result[name]
    return totals


def count_deliveries(record: Record, side: Side) -> int:
    """Add up the nodes that clients of one side's coordinator got."""
    return sum(
        run.result[part]["delivered"]
        for run in record.runs
        if run.side is side and run.result is not None
        for part in ("alone", "windowed")
        if part in run.result
    )

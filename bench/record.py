"""What a run of the bench leaves: everything that a report is made from."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec

from bench.figures import Side

__all__ = ("FramingFigure", "Record", "Run", "load", "save")


@dataclass(slots=True)
class Run:
    """One scenario, once, through one relay.

    Attributes:
        scenario: Its name.
        side: Whose relay.
        repetition: From 1.
        result: What came of it; None if nothing.
        error: Why nothing came of it.
    """

    scenario: str
    side: Side
    repetition: int
    result: dict[str, Any] | None
    error: str = ""


@dataclass(slots=True)
class FramingFigure:
    """One operation of the codec.

    Attributes:
        name: What was done.
        frames: Frames in one call.
        ns_per_frame: CPU time, one value per repetition.
    """

    name: str
    frames: int
    ns_per_frame: list[float]


@dataclass(slots=True)
class Record:
    """A whole run of the bench.

    Attributes:
        quick: Whether it was the short form.
        repetitions: Of each scenario.
        names: Scenarios that were asked for.
        sides: Relays that there were.
        machine: What it ran on and with, for people.
        missing: Programs that there were not, each with the reason.
        runs: In the order in which they ran.
        framing: Of the codec.
        faults: Bytes that went wrong in the codec.
        seconds: The whole run.
    """

    quick: bool
    repetitions: int
    names: list[str]
    sides: list[Side]
    machine: dict[str, str]
    missing: list[str] = field(default_factory=list)
    runs: list[Run] = field(default_factory=list)
    framing: list[FramingFigure] = field(default_factory=list)
    faults: list[str] = field(default_factory=list)
    seconds: float = 0.0


def save(record: Record, path: Path) -> None:
    """Write a record as JSON."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(msgspec.json.format(msgspec.json.encode(record)))


def load(path: Path) -> Record:
    """Read what :func:`save` wrote.

    Raises:
        msgspec.ValidationError: It is no record.
    """
    return msgspec.json.decode(path.read_bytes(), type=Record)

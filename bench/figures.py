"""Figures, their targets, and medians with ranges."""

from __future__ import annotations

import enum
import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal, TypeAlias

__all__ = (
    "Better",
    "Figure",
    "Result",
    "Side",
    "Spread",
    "Target",
    "field",
    "number",
)

# What one run found out; the load generator's JSON, or the same shape.
Result: TypeAlias = Mapping[str, Any]


class Side(enum.StrEnum):
    """Whose server: ours, or the real one that a scenario runs beside it."""

    OURS = "ours"
    DERPER = "derper"
    CODER = "Coder"


class Better(enum.Enum):
    """Which way a figure improves."""

    LOWER = "lower"
    HIGHER = "higher"


@dataclass(frozen=True, slots=True)
class Target:
    """What a figure should reach.

    Attributes:
        of: Whether the limit is for ours divided by the real one's, or for ours.
        limit: The limit itself is still good.
    """

    of: Literal["ratio", "ours"]
    limit: float


@dataclass(frozen=True, slots=True)
class Figure:
    """One number of a scenario.

    Attributes:
        label: What it is.
        unit: Of it; empty for a mere count.
        read: Takes it from the result of a run; None if it is not there.
        better: Which way it improves.
        target: What it should reach, if anything was promised.
    """

    label: str
    unit: str
    read: Callable[[Result], float | None]
    better: Better = Better.LOWER
    target: Target | None = None

    def value(self, result: Result) -> float | None:
        """Return the figure, or None if it is missing or not a number."""
        try:
            value = self.read(result)
        except (KeyError, TypeError, ZeroDivisionError):
            return None
        return value if value is not None and math.isfinite(value) else None

    def is_met(self, value: float) -> bool:
        """Whether ``value`` reaches the target, which there must be."""
        assert self.target is not None
        if self.better is Better.LOWER:
            return value <= self.target.limit
        return value >= self.target.limit

    def target_text(self) -> str:
        """The target in words, or nothing."""
        if self.target is None:
            return ""
        sign = "<=" if self.better is Better.LOWER else ">="
        return f"{self.target.of} {sign} {self.target.limit:g}"


def field(path: str, *, divisor: float = 1) -> Callable[[Result], float | None]:
    """Make a reader of one field.

    Args:
        path: Names from the outside in, joined by dots.
        divisor: The field is divided by it.
    """

    def read(result: Result) -> float | None:
        value: Any = result
        for name in path.split("."):
            value = value[name]
        return None if value is None else float(value) / divisor

    return read


@dataclass(frozen=True, slots=True)
class Spread:
    """The median of some repetitions, and their range."""

    median: float
    low: float
    high: float
    count: int

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread | None:
        """Summarise ``values``; None if there are none."""
        if not values:
            return None
        return cls(statistics.median(values), min(values), max(values), len(values))

    def __str__(self) -> str:
        if self.count == 1:
            return number(self.median)
        return f"{number(self.median)} ({number(self.low)} to {number(self.high)})"


_BREAKS: Final = ((100, 0), (10, 1))


def number(value: float) -> str:
    """Write a number with about three digits, the thousands apart."""
    for least, digits in _BREAKS:
        if abs(value) >= least:
            return f"{value:,.{digits}f}"
    return f"{value:.2f}"

"""What a relay answered, as small JSON values, and the comparer of two relays.

A probe of one relay yields ``{scenario: {case: answer}}``. An answer holds
nothing that differs between two runs against one relay: keys are named, ports
and dates masked, times put into the coarse classes of :func:`about`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final, TypeAlias

__all__ = (
    "PROBE_ERROR",
    "Answers",
    "Difference",
    "Json",
    "about",
    "closed",
    "compare",
    "flatten",
    "judge",
)

Json: TypeAlias = bool | int | str | Sequence["Json"] | Mapping[str, "Json"] | None
Answers: TypeAlias = dict[str, dict[str, Json]]

# The key of an answer that is none: the probe itself failed. Two of them are
# never taken as equal.
PROBE_ERROR: Final = "probe error"

# Upper ends of the classes of times, in seconds. They leave room for a loaded
# machine, and none of derper's limits (2, 10, 30, 60 to 65 s) is near an edge.
_CLASSES: Final = (
    (0.0, 1.8, "at once"),
    (1.8, 6.0, "after about 2 s"),
    (8.0, 14.0, "after about 10 s"),
    (28.0, 36.0, "after about 30 s"),
    (59.5, 66.5, "after 60 to 65 s"),
)


def about(seconds: float) -> str:
    """The class of a time, for an answer.

    Args:
        seconds: Seconds that something took.
    """
    for low, high, text in _CLASSES:
        if low <= seconds < high:
            return text
    return f"after {seconds:.0f} s"


def closed(seconds: float) -> str:
    """The answer of a relay that closed the connection after ``seconds``."""
    return f"closed {about(seconds)}"


@dataclass(frozen=True, slots=True)
class Difference:
    """A case that two relays answer differently.

    Attributes:
        where: ``scenario/case``.
        reference: The answer of the relay that is right.
        candidate: The answer of the one that is tested.
    """

    where: str
    reference: Json
    candidate: Json

    def __str__(self) -> str:
        return (
            f"{self.where}\n    reference: {self.reference}"
            f"\n    candidate: {self.candidate}"
        )


def flatten(answers: Answers) -> dict[str, Json]:
    """Answers by ``scenario/case``."""
    return {
        f"{scenario}/{case}": answer
        for scenario, cases in answers.items()
        for case, answer in cases.items()
    }


def compare(reference: Answers, candidate: Answers) -> list[Difference]:
    """All cases that differ, or that only one of the two has.

    A case in which the probe itself failed differs from everything.
    """
    left, right = flatten(reference), flatten(candidate)
    return [
        Difference(where, left.get(where), right.get(where))
        for where in sorted(left.keys() | right.keys())
        if where not in left
        or where not in right
        or left[where] != right[where]
        or _is_probe_error(left[where])
    ]


def judge(
    reference: Answers, candidate: Answers, intended: Mapping[str, str]
) -> list[str]:
    """What is wrong with ``candidate``, one text for each fault.

    Args:
        reference: Answers of the relay that is right.
        candidate: Answers of the one that is tested.
        intended: Reasons by ``scenario/case``, for the cases that shall
            differ. One that does not differ any more is a fault too; one that
            neither side has (TLS cases on a plain relay) is not.

    Returns:
        Empty if the two are the same but for ``intended``.
    """
    differences = {found.where: found for found in compare(reference, candidate)}
    asked = flatten(reference).keys() | flatten(candidate).keys()
    faults = [
        str(found)
        for where, found in differences.items()
        if where not in intended
        or _is_probe_error(found.reference)
        or _is_probe_error(found.candidate)
    ]
    faults += [
        f"{where}\n    is listed as an intended difference, but does not differ"
        for where in sorted(intended.keys() & asked)
        if where not in differences
    ]
    return faults


def _is_probe_error(answer: Json) -> bool:
    return isinstance(answer, Mapping) and PROBE_ERROR in answer

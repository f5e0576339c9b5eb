"""When memory is given back."""

from __future__ import annotations

import sys

import pytest

from relay.memory import MIN_LEFT, HeapTrimmer


@pytest.mark.skipif(sys.platform != "linux", reason="only glibc trims")
def test_once_when_most_of_a_crowd_has_left() -> None:
    trimmer = HeapTrimmer()
    crowd = 3 * MIN_LEFT
    counts = [*range(crowd), *range(crowd, -1, -1)]
    trimmed = [n for n in counts if trimmer.note_connections(n)]
    # At half of the crowd; then what is left is too few to be worth it.
    assert len(trimmed) <= 2
    assert all(n <= crowd // 2 for n in trimmed)


def test_small_crowds_are_not_worth_it() -> None:
    trimmer = HeapTrimmer()
    trimmer.note_connections(MIN_LEFT - 1)
    assert not trimmer.note_connections(0)

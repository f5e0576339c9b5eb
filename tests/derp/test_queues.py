"""The queue that drops its oldest items."""

from __future__ import annotations

import pytest
from hypothesis import given, strategies as st

from tailnet.derp.queues import DropOldestQueue


def test_the_oldest_goes_when_there_are_too_many() -> None:
    queue = DropOldestQueue[str](3, 100)
    assert [queue.put(item, 1) for item in "abc"] == [[], [], []]
    assert not queue.fits(1)
    assert queue.put("d", 1) == ["a"]
    assert queue.take_all() == ["b", "c", "d"]
    assert (len(queue), queue.bytes) == (0, 0)


def test_as_many_go_as_the_bytes_need() -> None:
    queue = DropOldestQueue[str](10, 10)
    for item in "abcde":
        queue.put(item, 2)
    assert queue.put("f", 5) == ["a", "b", "c"]
    assert queue.bytes == 9


def test_an_item_larger_than_the_queue_has_it_alone() -> None:
    queue = DropOldestQueue[str](10, 10)
    queue.put("a", 1)
    assert queue.put("b", 50) == ["a"]
    assert queue.put("c", 1) == ["b"]
    assert queue.take() == "c"
    with pytest.raises(IndexError):
        queue.take()


@given(sizes=st.lists(st.integers(0, 12), max_size=60))
def test_bounds_hold_and_order_stays(sizes: list[int]) -> None:
    queue = DropOldestQueue[int](5, 20)
    gone: list[int] = []
    for number, size in enumerate(sizes):
        fits = queue.fits(size)
        dropped = queue.put(number, size)
        assert fits is not bool(dropped)
        gone += dropped
        assert len(queue) <= 5
        assert queue.bytes <= 20
    assert gone + queue.take_all() == list(range(len(sizes)))

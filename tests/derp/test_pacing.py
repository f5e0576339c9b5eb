"""Delays and limits: arithmetic, checked against Go's formulas by hand."""

from __future__ import annotations

import pytest
from hypothesis import given, strategies as st

from tailnet.derp.pacing import Backoff, TokenBucket


def test_delays_grow_with_the_square_and_end_at_five_seconds() -> None:
    backoff = Backoff(lambda: 0.5)  # a factor of 1
    delays = [backoff.next_delay() for _ in range(25)]
    assert delays[:4] == pytest.approx([0.01, 0.04, 0.09, 0.16])
    assert delays[21:] == pytest.approx([4.84, 5.0, 5.0, 5.0])
    assert backoff.failures == 25


def test_a_success_begins_anew() -> None:
    backoff = Backoff(lambda: 0.5)
    for _ in range(10):
        backoff.next_delay()
    backoff.reset()
    assert backoff.next_delay() == pytest.approx(0.01)


@pytest.mark.parametrize(
    ("random", "first", "last"), [(0.0, 0.005, 2.5), (1.0, 0.015, 7.5)]
)
def test_the_random_factor_comes_after_the_limit(
    random: float, first: float, last: float
) -> None:
    backoff = Backoff(lambda: random)
    delays = [backoff.next_delay() for _ in range(30)]
    assert (delays[0], delays[-1]) == pytest.approx((first, last))


def test_a_bucket_begins_full_and_fills_with_time() -> None:
    bucket = TokenBucket(rate=100, burst=1000, now=50.0)
    assert bucket.allow(1000, 50.0)
    assert not bucket.allow(1, 50.0)
    assert not bucket.allow(100, 50.9)
    assert bucket.allow(100, 51.0)
    assert not bucket.allow(1, 51.0)


def test_what_was_refused_costs_nothing() -> None:
    bucket = TokenBucket(rate=100, burst=1000, now=0.0)
    assert bucket.allow(900, 0.0)
    assert not bucket.allow(500, 0.0)
    assert bucket.allow(100, 0.0)


def test_a_bucket_never_holds_more_than_its_burst() -> None:
    bucket = TokenBucket(rate=100, burst=1000, now=0.0)
    assert not bucket.allow(1001, 1e6)
    assert bucket.allow(1000, 1e6)


@given(
    rate=st.integers(1, 1000),
    burst=st.integers(0, 1000),
    sends=st.lists(st.tuples(st.integers(0, 300), st.floats(0, 2)), max_size=50),
)
def test_never_more_passes_than_burst_and_rate_allow(
    rate: int, burst: int, sends: list[tuple[int, float]]
) -> None:
    bucket = TokenBucket(rate, burst, 0.0)
    now = 0.0
    passed = 0
    for size, pause in sends:
        now += pause
        if bucket.allow(size, now):
            passed += size
        assert passed <= burst + rate * now + 1e-6

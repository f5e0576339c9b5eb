from __future__ import annotations

import pytest
import trio
import trio.testing
from hypothesis import given, strategies as st

from relay.api.rate_limit import (
    MAX_BUCKETS,
    RateLimiter,
    RateVerdict,
    address_identity,
    rate_headers,
    rate_limit_message,
)


class Clock:
    """Monotonic seconds, moved by hand."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def test_a_full_bucket_holds_the_limit() -> None:
    clock = Clock()
    limiter = RateLimiter(3, clock=clock)
    verdicts = [limiter.take("u") for _ in range(4)]
    assert [v.is_allowed for v in verdicts] == [True, True, True, False]
    assert [v.remaining for v in verdicts] == [2, 1, 0, 0]
    assert verdicts[3].retry_after == 20.0  # a third of a minute
    assert verdicts[3].reset_after == 60.0


def test_tokens_come_back_evenly() -> None:
    clock = Clock()
    limiter = RateLimiter(60, clock=clock)
    assert all(limiter.take("u").is_allowed for _ in range(60))
    clock.now += 0.999
    assert not limiter.take("u").is_allowed
    clock.now += 0.001
    assert limiter.take("u").is_allowed
    assert not limiter.take("u").is_allowed
    clock.now += 3600.0
    assert sum(limiter.take("u").is_allowed for _ in range(100)) == 60


def test_a_refused_request_costs_nothing() -> None:
    clock = Clock()
    limiter = RateLimiter(1, clock=clock)
    assert limiter.take("u").is_allowed
    for _ in range(59):
        clock.now += 1.0
        assert not limiter.take("u").is_allowed
    clock.now += 1.0
    assert limiter.take("u").is_allowed


async def test_the_clock_is_trios(autojump_clock: trio.testing.MockClock) -> None:
    limiter = RateLimiter(2)
    assert limiter.take("u").is_allowed
    assert limiter.take("u").is_allowed
    verdict = limiter.take("u")
    assert not verdict.is_allowed
    await trio.sleep(verdict.retry_after)
    assert limiter.take("u").is_allowed


def test_callers_and_routes_have_buckets_of_their_own() -> None:
    limiter = RateLimiter(1, clock=Clock())
    for identity in ("a", "b"):
        for endpoint in ("/x", "/y"):
            assert limiter.take(identity, endpoint).is_allowed
            assert not limiter.take(identity, endpoint).is_allowed


@pytest.mark.parametrize("limit", [0, -1])
def test_no_limit(limit: int) -> None:
    limiter = RateLimiter(limit, clock=Clock())
    verdict = limiter.take("u")
    assert verdict.is_allowed
    assert len(limiter) == 0
    assert rate_headers(verdict, now=0.0) == ()


def test_the_table_is_bounded_and_forgets_the_idle_first() -> None:
    limiter = RateLimiter(1, clock=Clock(), max_buckets=2)
    limiter.take("a")
    limiter.take("b")
    assert not limiter.take("a").is_allowed  # used again, so b is idle longest
    limiter.take("c")
    assert len(limiter) == 2
    assert not limiter.take("a").is_allowed
    assert limiter.take("b").is_allowed
    assert RateLimiter()._max_buckets == MAX_BUCKETS


def test_sweep_forgets_full_buckets_only() -> None:
    clock = Clock()
    limiter = RateLimiter(1, clock=clock)
    limiter.take("old")
    clock.now = 30.0
    limiter.take("new")
    clock.now = 60.0
    limiter.sweep()
    assert len(limiter) == 1
    assert not limiter.take("new").is_allowed
    clock.now = 1000.0
    limiter.sweep()
    assert len(limiter) == 0


@given(steps=st.lists(st.floats(min_value=0, max_value=30), max_size=200))
def test_no_window_lets_more_through_than_two_buckets(steps: list[float]) -> None:
    """A full bucket, and what flows in: never more in any one window."""
    clock = Clock()
    limiter = RateLimiter(5, clock=clock)
    allowed: list[float] = []
    for step in steps:
        clock.now += step
        if limiter.take("u").is_allowed:
            allowed.append(clock.now)
    for start in allowed:
        assert sum(start <= at <= start + 60.0 for at in allowed) <= 10


@pytest.mark.parametrize(
    ("remote", "identity"),
    [
        (None, "unknown"),
        (("192.0.2.7", 1), "192.0.2.7"),
        (("::ffff:192.0.2.7", 1), "192.0.2.7"),
        (("2001:db8:1:2:3:4:5:6", 1), "2001:db8:1:2::/64"),
        (("fe80::1%eth0", 1), "fe80::/64"),
        (("no address", 1), "no address"),
    ],
)
def test_who_a_caller_is(remote: tuple[str, int] | None, identity: str) -> None:
    assert address_identity(remote) == identity


def test_headers() -> None:
    allowed = RateVerdict(True, 512, 511, 0.0, 0.1)
    assert rate_headers(allowed, now=100.0) == (
        ("X-RateLimit-Limit", "512"),
        ("X-RateLimit-Remaining", "511"),
        ("X-RateLimit-Reset", "101"),
    )
    refused = RateVerdict(False, 512, 0, 0.05, 60.0)
    assert rate_headers(refused, now=100.0)[3:] == (("Retry-After", "1"),)


def test_message() -> None:
    assert rate_limit_message(512) == (
        "You've been rate limited for sending more than 512 requests in 1m0s."
    )
    assert rate_limit_message(1, 30).endswith("in 30s.")

from __future__ import annotations

import json
from datetime import UTC, datetime
from uuid import UUID

import pytest
import trio
import trio.testing
from hypothesis import given, strategies as st

from relay.api.rate_limit import (
    MAX_BUCKETS,
    RateLimit,
    RateLimiter,
    RateVerdict,
    address_identity,
    endpoint_of,
    rate_headers,
    rate_limit_message,
)
from relay.pages.page import Request
from relay.store.model import User

AGENT = UUID("9f1b5ad0-1d3e-4f6f-9e62-0a9b9f0a1b2c")


def user(number: int, *, is_admin: bool = False) -> User:
    return User(UUID(int=number), f"user{number}", is_admin, datetime.now(UTC))


def get(
    path: str, *, remote: str = "192.0.2.1", headers: dict[str, str] | None = None
) -> Request:
    pairs = tuple((n.encode(), v.encode()) for n, v in (headers or {}).items())
    return Request("GET", path, path, headers=pairs, remote=(remote, 1))


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


def test_ids_and_names_are_no_endpoints_of_their_own() -> None:
    path = f"/api/v2/workspaceagents/{AGENT}/coordinate"
    assert endpoint_of(path) == "/api/v2/workspaceagents/*/coordinate"
    assert (
        endpoint_of("/api/v2/users/alice/workspace/dev")
        == "/api/v2/users/*/workspace/*"
    )


def test_the_first_request_too_many_gets_429() -> None:
    limit = RateLimit(2, clock=Clock(), wall_clock=lambda: 1000.0)
    path = "/api/v2/regions"
    assert limit(get(path), user(1)) is None
    assert limit(get(path), user(1)) is None
    refusal = limit(get(path), user(1))
    assert refusal is not None
    assert refusal.status == 429
    assert json.loads(refusal.body) == {
        "message": "You've been rate limited for sending more than 2 requests in 1m0s."
    }
    headers = dict(refusal.headers)
    assert headers["Retry-After"] == "30"
    assert headers["X-RateLimit-Limit"] == "2"
    assert headers["X-RateLimit-Remaining"] == "0"
    assert headers["X-RateLimit-Reset"] == "1060"
    # Others, and other endpoints, notice nothing.
    assert limit(get(path), user(2)) is None
    assert limit(get(path), None) is None
    assert limit(get("/api/v2/buildinfo"), user(1)) is None


def test_who_has_no_user_is_an_address() -> None:
    limit = RateLimit(1, clock=Clock())
    path = f"/api/v2/workspaceagents/{AGENT}/coordinate"
    assert limit(get(path), None) is None
    assert limit(get(path.replace("9f", "8f")), None) is not None
    assert limit(get(path, remote="192.0.2.2"), None) is None


def test_endpoints_that_give_tokens_out_have_a_lower_limit() -> None:
    limit = RateLimit(100, login_limit=1, clock=Clock())
    assert limit(get("/api/v2/users/me/keys"), user(1)) is None
    assert limit(get("/api/v2/users/me/keys"), user(1)) is not None


@pytest.mark.parametrize(
    "path",
    [
        "/api/v2/users/me/keys/",
        "/api/v2/users/alice/keys",
        f"/api/v2/users/{AGENT}/keys/",
        "/api/v2/users/ssh/keys",  # somebody may have that name
    ],
)
def test_other_ways_to_write_it_are_no_way_around(path: str) -> None:
    limit = RateLimit(100, login_limit=1, clock=Clock())
    assert limit(get("/api/v2/users/me/keys"), user(1)) is None
    assert limit(get(path), user(1)) is not None


@pytest.mark.parametrize("path", ["/healthz", "/latency-check", "/derp/verify"])
def test_outside_the_api_there_is_no_limit(path: str) -> None:
    limit = RateLimit(1, clock=Clock())
    assert [limit(get(path), None) for _ in range(3)] == [None] * 3


@pytest.mark.parametrize("limit", [None, 0, -1])
def test_no_limit_at_all(limit: int | None) -> None:
    judge = RateLimit(limit, login_limit=1, clock=Clock())
    for path in ("/api/v2/regions", "/api/v2/users/me/keys"):
        assert [judge(get(path), None) for _ in range(3)] == [None] * 3


def test_an_admin_may_pass_by() -> None:
    limit = RateLimit(1, clock=Clock())
    bypass = get("/api/v2/regions", headers={"x-coder-bypass-ratelimit": "true"})
    admin = user(1, is_admin=True)
    assert [limit(bypass, admin) for _ in range(3)] == [None] * 3
    refusal = limit(bypass, user(2))
    assert refusal is not None
    assert refusal.status == 428
    # Without a user it is but a header.
    assert limit(bypass, None) is None
    assert limit(bypass, None) is not None

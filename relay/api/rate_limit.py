"""Rate limits of the API: a token bucket for each caller and route.

Coder limits requests in a minute by user, or by address where there is no
user, and by endpoint (coder ``coderd/httpmw/ratelimit.go``; its headers are
those of ``go-chi/httprate``). Here ids and names in a path count as one
endpoint: they would be as many buckets as a caller likes.

A bucket that nobody touches for a window is full, and no bucket is full too.
So the table forgets the least recently used ones first, and is bounded.
"""

from __future__ import annotations

import ipaddress
import math
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

import trio

from relay.api.answers import error_answer
from relay.pages.page import Request, Response
from relay.store.model import User

__all__ = (
    "BYPASS_HEADER",
    "DEFAULT_LIMIT",
    "LOGIN_LIMIT",
    "WINDOW",
    "RateLimit",
    "RateLimiter",
    "RateVerdict",
    "address_identity",
    "endpoint_of",
    "rate_headers",
    "rate_limit_message",
)

# codersdk: an owner may send it with a true value, for load tests.
BYPASS_HEADER_TEXT: Final = "X-Coder-Bypass-Ratelimit"
BYPASS_HEADER: Final = BYPASS_HEADER_TEXT.lower()

DEFAULT_LIMIT: Final = 512  # requests in a window
LOGIN_LIMIT: Final = 60
WINDOW: Final = 60.0

# Ours. An entry is about 300 bytes.
MAX_BUCKETS: Final = 16_384

# Coder has no limit on what is outside (health, latency, DERP).
API_PREFIX: Final = "/api/v2/"

# The parts of paths that are no ids or names.
_WORDS: Final = frozenset(
    (
        "api", "appearance", "buildinfo", "connection", "coordinate",
        "coordinator", "debug", "deployment", "derp-map", "external-auth",
        "first", "gitauth", "gitsshkey", "keys", "log-source", "logs", "me",
        "regions", "reinit", "rpc", "ssh", "tailnet", "templateversions",
        "usage", "users", "v2", "workspace", "workspaceagents", "workspaces",
        "ws",
    )
)  # fmt: skip

# Behind this one stands somebody's name, which may well be one of the words.
_USERS: Final = "users"

# Endpoints that give tokens out, and get the lower limit.
_LOGIN_ENDPOINTS: Final = frozenset({"/api/v2/users/*/keys"})


@dataclass(frozen=True, slots=True)
class RateVerdict:
    """What became of one request.

    Attributes:
        is_allowed: Whether it may go on.
        limit: Requests in a window.
        remaining: Requests that may follow at once.
        retry_after: Seconds until the next one may, 0 if at once.
        reset_after: Seconds until the bucket is full again.
    """

    is_allowed: bool
    limit: int
    remaining: int
    retry_after: float
    reset_after: float


class RateLimiter:
    """Buckets of tokens, one for each caller and route.

    Args:
        limit: Requests in a window; a bucket holds as many. Zero or less is
            no limit.
        window: Seconds in which an empty bucket fills up.
        clock: Monotonic seconds.
        max_buckets: Entries in the table.
    """

    def __init__(
        self,
        limit: int = DEFAULT_LIMIT,
        *,
        window: float = WINDOW,
        clock: Callable[[], float] = trio.current_time,
        max_buckets: int = MAX_BUCKETS,
    ) -> None:
        self.limit = limit
        self.window = window
        self._clock = clock
        self._max_buckets = max_buckets
        # (identity, endpoint) -> tokens, and when they were counted. In the
        # order of use, the least recent first.
        self._buckets: OrderedDict[tuple[str, str], tuple[float, float]] = OrderedDict()

    def __len__(self) -> int:
        return len(self._buckets)

    def take(self, identity: str, endpoint: str = "") -> RateVerdict:
        """Count one request.

        Args:
            identity: Who asks: the id of a user, or :func:`address_identity`.
            endpoint: What for: the pattern of the route.
        """
        if self.limit <= 0:
            return RateVerdict(True, 0, 0, 0.0, 0.0)
        now, key = self._clock(), (identity, endpoint)
        rate = self.limit / self.window
        tokens, counted_at = self._buckets.pop(key, (float(self.limit), now))
        tokens = min(float(self.limit), tokens + (now - counted_at) * rate)
        # An entry that would be full by a whisker of rounding is full.
        is_allowed = tokens > 1 - 1e-9
        if is_allowed:
            tokens = max(0.0, tokens - 1)
        self._buckets[key] = tokens, now
        if len(self._buckets) > self._max_buckets:
            self._buckets.popitem(last=False)
        return RateVerdict(
            is_allowed=is_allowed,
            limit=self.limit,
            remaining=int(tokens),
            retry_after=max(0.0, (1 - tokens) / rate),
            reset_after=(self.limit - tokens) / rate,
        )

    def sweep(self) -> None:
        """Forget the buckets that are full again."""
        horizon = self._clock() - self.window
        while self._buckets:
            key, (_, counted_at) = next(iter(self._buckets.items()))
            if counted_at > horizon:
                return
            del self._buckets[key]


def address_identity(remote: tuple[str, int] | None) -> str:
    """Who a caller without a user is, by its address.

    Whoever has an IPv6 address has 2**64 of them, so the /64 counts
    (``httprate.CanonicalizeIP``).
    """
    if remote is None:
        return "unknown"
    try:
        ip = ipaddress.ip_address(remote[0].partition("%")[0])
    except ValueError:
        return remote[0]
    if isinstance(ip, ipaddress.IPv6Address):
        if ip.ipv4_mapped is not None:
            return str(ip.ipv4_mapped)
        return str(ipaddress.ip_network((int(ip) >> 64 << 64, 64)))
    return str(ip)


def rate_headers(verdict: RateVerdict, *, now: float) -> tuple[tuple[str, str], ...]:
    """The headers of an answer that say how much is left (``httprate``).

    Args:
        verdict: On the request.
        now: Seconds since the epoch.
    """
    if verdict.limit <= 0:
        return ()
    headers = (
        ("X-RateLimit-Limit", str(verdict.limit)),
        ("X-RateLimit-Remaining", str(verdict.remaining)),
        ("X-RateLimit-Reset", str(math.ceil(now + verdict.reset_after))),
    )
    if verdict.is_allowed:
        return headers
    return (*headers, ("Retry-After", str(max(1, math.ceil(verdict.retry_after)))))


def rate_limit_message(limit: int, window: float = WINDOW) -> str:
    """What a caller is told with a 429."""
    minutes, seconds = divmod(round(window), 60)
    # Go's time.Duration.String of whole seconds below an hour.
    text = f"{minutes}m{seconds}s" if minutes else f"{seconds}s"
    return f"You've been rate limited for sending more than {limit} requests in {text}."


def endpoint_of(path: str) -> str:
    """What a request is for: its path, with a star for each id or name.

    However the path is written, as the router sees it: a slash at its end means
    nothing.
    """
    parts = path.removesuffix("/").split("/")
    return "/".join(
        part if not part or (part in _WORDS and before != _USERS) else "*"
        for before, part in zip(("", *parts), parts, strict=False)
    )


class RateLimit:
    """Judges requests before they are answered.

    Args:
        limit: Requests of one caller to one endpoint in a minute; None is no
            limit, here and for logins.
        login_limit: The same, of endpoints that give tokens out.
        clock: Monotonic seconds.
        wall_clock: Seconds since the epoch.
    """

    def __init__(
        self,
        limit: int | None = DEFAULT_LIMIT,
        *,
        login_limit: int = LOGIN_LIMIT,
        clock: Callable[[], float] = trio.current_time,
        wall_clock: Callable[[], float] = time.time,
    ) -> None:
        self._limiter = RateLimiter(limit or 0, clock=clock)
        self._login_limiter = RateLimiter(login_limit, clock=clock)
        self._wall_clock = wall_clock

    def __call__(self, request: Request, user: User | None) -> Response | None:
        """Count a request; None if it may go on, else its answer.

        Args:
            request: Any.
            user: Who asks, if that is known.
        """
        if not request.path.startswith(API_PREFIX) or self._limiter.limit <= 0:
            return None
        if user is not None and _is_true(request.header(BYPASS_HEADER)):
            if user.is_admin:
                return None
            return error_answer(
                428, f'"{BYPASS_HEADER_TEXT}" provided but user is not owner'
            )
        endpoint = endpoint_of(request.path)
        limiter = self._login_limiter if endpoint in _LOGIN_ENDPOINTS else self._limiter
        identity = address_identity(request.remote) if user is None else str(user.id)
        verdict = limiter.take(identity, endpoint)
        if verdict.is_allowed:
            return None
        answer = error_answer(429, rate_limit_message(verdict.limit, limiter.window))
        headers = rate_headers(verdict, now=self._wall_clock())
        return Response(429, (*answer.headers, *headers), answer.body)


def _is_true(text: str) -> bool:
    """Go's strconv.ParseBool."""
    return text in {"1", "t", "T", "TRUE", "true", "True"}

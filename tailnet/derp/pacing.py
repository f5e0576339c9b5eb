"""When a DERP client may send, and when it may try again.

Both are arithmetic: time and randomness come in as arguments.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

__all__ = ("MAX_RECONNECT_DELAY", "Backoff", "TokenBucket")

# magicsock/derp.go runDerpReader: backoff.NewBackoff("derp-N", logf, 5s).
MAX_RECONNECT_DELAY: Final = 5.0


class Backoff:
    """Delays between attempts: n*n*10 ms up to 5 s, times 0.5 to 1.5.

    The formula is tailscale ``util/backoff``'s; n counts the failures since
    the last success. The limit comes before the random factor, as in Go.

    Args:
        random: Returns a number from 0 up to 1.
    """

    __slots__ = ("_random", "failures")

    def __init__(self, random: Callable[[], float]) -> None:
        self._random = random
        self.failures = 0

    def next_delay(self) -> float:
        """Note a failure.

        Returns:
            Seconds to wait before the next attempt.
        """
        self.failures += 1
        delay = min(self.failures * self.failures * 0.010, MAX_RECONNECT_DELAY)
        return delay * (self._random() + 0.5)

    def reset(self) -> None:
        """Note a success."""
        self.failures = 0


class TokenBucket:
    """A limit on bytes per second that allows bursts.

    golang.org/x/time/rate Limiter.AllowN, with which Go's client obeys the
    numbers in ServerInfo: the bucket begins full, and what is larger than the
    bucket never passes.

    Args:
        rate: Bytes per second.
        burst: Bytes that the bucket holds.
        now: Seconds, of any clock that the calls then use too.
    """

    __slots__ = ("_burst", "_rate", "_then", "_tokens")

    def __init__(self, rate: float, burst: float, now: float) -> None:
        self._rate = rate
        self._burst = burst
        self._tokens = burst
        self._then = now

    def allow(self, size: int, now: float) -> bool:
        """Take ``size`` bytes out of the bucket, if it has them.

        Args:
            size: Bytes.
            now: Seconds.

        Returns:
            Whether it had them; if not, it stays as it is.
        """
        elapsed = max(0.0, now - self._then)
        self._tokens = min(self._burst, self._tokens + elapsed * self._rate)
        self._then = now
        if size > self._tokens:
            return False
        self._tokens -= size
        return True

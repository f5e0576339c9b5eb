"""When to ping, and when to give up: no I/O, no clock.

hashicorp/yamux ``session.go`` keepalive and Ping: the next ping goes out an
interval after the last answer, and one that stays away ends the session.
"""

from __future__ import annotations

from typing import Final

from tailnet.errors import RemoteProtocolError

__all__ = ("PING_INTERVAL", "PING_TIMEOUT", "KeepAlive")

# mux.go DefaultConfig: KeepAliveInterval, ConnectionWriteTimeout. Seconds.
PING_INTERVAL: Final = 30.0
PING_TIMEOUT: Final = 10.0

_MAX_VALUE: Final = 2**32


class KeepAlive:
    """The pings of one session; one is on its way at most.

    Args:
        now: Monotonic seconds.
        interval: Seconds from an answer to the next ping.
        timeout: Seconds to wait for an answer.

    Attributes:
        last_pong_at: When the last answer came; ``now`` before the first.
    """

    __slots__ = ("_deadline", "_interval", "_sent_at", "_timeout", "_value",
                 "last_pong_at")  # fmt: skip

    def __init__(
        self,
        now: float,
        *,
        interval: float = PING_INTERVAL,
        timeout: float = PING_TIMEOUT,
    ) -> None:
        self._interval = interval
        self._timeout = timeout
        self._value = 0
        self._sent_at: float | None = None
        self._deadline = now + interval
        self.last_pong_at = now

    def next_deadline(self) -> float:
        """When ``handle_timeout`` wants to be called."""
        return self._deadline

    def handle_timeout(self, now: float) -> int | None:
        """Judge the time.

        Returns:
            The value of a ping to send, or None.

        Raises:
            RemoteProtocolError: The last ping was not answered in time.
        """
        if now < self._deadline:
            return None
        if self._sent_at is not None:
            raise RemoteProtocolError("keepalive timeout")
        self._sent_at = now
        self._deadline = now + self._timeout
        return self._value

    def handle_pong(self, value: int, now: float) -> float | None:
        """Note an answer.

        Returns:
            Seconds that the ping and its answer took; None if there is no
            such ping, as Go ignores it.
        """
        if self._sent_at is None or value != self._value:
            return None
        taken = now - self._sent_at
        self._sent_at = None
        self._value = (self._value + 1) % _MAX_VALUE
        self._deadline = now + self._interval
        self.last_pong_at = now
        return taken

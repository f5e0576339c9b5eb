"""When to dial the server again.

coder ``tailnet/controllers.go`` Run: delays from 50 ms to 10 s, which grow
with each failure. Two things are ours, both for a server that comes back to
thousands of peers:

- Each delay is drawn from its upper half, so that peers who lost the server
  at the same moment do not all return at the same moment.
- A connection counts as a success only once it has lasted. Otherwise a server
  that takes connections and then ends them would be dialed without a pause.

Time and randomness come in as arguments.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

__all__ = ("LASTING", "MAX_DELAY", "MIN_DELAY", "RedialDelays")

# controllers.go: retry.New(50*time.Millisecond, 10*time.Second). Seconds.
MIN_DELAY: Final = 0.05
MAX_DELAY: Final = 10.0

# Seconds after which a connection counts as a success.
LASTING: Final = 10.0


class RedialDelays:
    """Delays between dials: 50 to 100 ms, doubled each time, up to 5 to 10 s.

    Args:
        random: Returns a number from 0 up to 1.
    """

    __slots__ = ("_next_max", "_random", "failures")

    def __init__(self, random: Callable[[], float]) -> None:
        self._random = random
        self._next_max = 2 * MIN_DELAY
        self.failures = 0

    def next_delay(self) -> float:
        """Note that a dial, or a connection, has failed.

        Returns:
            Seconds to wait before the next dial.
        """
        self.failures += 1
        delay = self._next_max * (0.5 + 0.5 * self._random())
        self._next_max = min(2 * self._next_max, MAX_DELAY)
        return delay

    def connection_lost(self, lasted: float) -> float:
        """Note that a connection has ended.

        Args:
            lasted: Seconds.

        Returns:
            Seconds to wait before the next dial.
        """
        if lasted >= LASTING:
            self._next_max = 2 * MIN_DELAY
            self.failures = 0
        return self.next_delay()

"""Which node keys belong to somebody, for a relay that wants to know.

A key is known as long as a peer that published it is here, and for GRACE after
that was lost: its sessions go on, so the relay must not turn it away. Keys
count for each peer by itself, so that nobody can end another's by publishing
it as well.
"""

from __future__ import annotations

import math
from collections import deque
from typing import Final

__all__ = ("GRACE", "MAX_LOST_KEYS", "NodeKeys")

# Seconds: as long as Coder's peers keep one that is lost (configmaps.go).
GRACE: Final = 15 * 60.0

# Ours, of one peer: keys that it does not use any more, but may return with.
# It has a new one each time that it starts.
MAX_LOST_KEYS: Final = 8

_HERE: Final = math.inf

# Deadlines out of date that are not worth the time to remove them.
_FEW_DEADLINES: Final = 1024


class NodeKeys:
    """Keys are 32 bytes, peers 16; ``now`` is any clock that never goes back."""

    def __init__(self) -> None:
        # When each peer's right to a key ends.
        self._ends: dict[bytes, dict[bytes, float]] = {}
        # In order, since GRACE is the same for all; may be out of date.
        self._deadlines: deque[tuple[float, bytes, bytes]] = deque()
        self._most_deadlines = _FEW_DEADLINES
        # Keys that each peer has lost, as keys in order.
        self._lost: dict[bytes, dict[bytes, None]] = {}

    def knows(self, key: bytes, now: float) -> bool:
        """Whether the key is somebody's."""
        return any(end > now for end in self._ends.get(key, {}).values())

    def publish(self, key: bytes, peer_id: bytes) -> None:
        """A peer that is here has this key."""
        self._ends.setdefault(key, {})[peer_id] = _HERE
        self._find_again(key, peer_id)

    def lose(self, key: bytes, peer_id: bytes, now: float) -> list[bytes]:
        """The peer with this key is lost, or has another key now.

        Returns:
            The key that is nobody's now: the peer's oldest, if it has lost more
            than MAX_LOST_KEYS.
        """
        ends = self._ends.get(key)
        if ends is None or ends.get(peer_id) != _HERE:
            return []
        ends[peer_id] = now + GRACE
        self._deadlines.append((now + GRACE, key, peer_id))
        if len(self._deadlines) > self._most_deadlines:
            self._remove_old_deadlines()
        lost = self._lost.setdefault(peer_id, {})
        lost[key] = None
        oldest = next(iter(lost))
        if len(lost) > MAX_LOST_KEYS and self._drop(oldest, peer_id):
            return [oldest]
        return []

    def _remove_old_deadlines(self) -> None:
        self._deadlines = deque(
            one
            for one in self._deadlines
            if self._ends.get(one[1], {}).get(one[2]) == one[0]
        )
        self._most_deadlines = 2 * len(self._deadlines) + _FEW_DEADLINES

    def _find_again(self, key: bytes, peer_id: bytes) -> None:
        lost = self._lost.get(peer_id)
        if lost is not None:
            lost.pop(key, None)
            if not lost:
                del self._lost[peer_id]

    def forget(self, peer_id: bytes) -> list[bytes]:
        """A peer is gone for good.

        Returns:
            The keys that are nobody's now.
        """
        keys = [key for key, ends in self._ends.items() if peer_id in ends]
        return [key for key in keys if self._drop(key, peer_id)]

    def forget_key(self, key: bytes, peer_id: bytes) -> bool:
        """A peer that is here will not use this key any more.

        Returns:
            Whether it is nobody's now.
        """
        return self._drop(key, peer_id)

    def next_deadline(self) -> float | None:
        """When to call :meth:`expire`."""
        return self._deadlines[0][0] if self._deadlines else None

    def expire(self, now: float) -> list[bytes]:
        """The keys that became nobody's by now."""
        gone = []
        while self._deadlines and self._deadlines[0][0] <= now:
            deadline, key, peer_id = self._deadlines.popleft()
            if self._ends.get(key, {}).get(peer_id) == deadline and self._drop(
                key, peer_id
            ):
                gone.append(key)
        return gone

    def _drop(self, key: bytes, peer_id: bytes) -> bool:
        self._find_again(key, peer_id)
        ends = self._ends.get(key)
        if ends is None or ends.pop(peer_id, None) is None or ends:
            return False
        del self._ends[key]
        return True

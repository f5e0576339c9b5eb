"""A queue that drops its oldest items: packets rather late than never are no use.

No tasks here: whoever fills it wakes whoever empties it.
"""

from __future__ import annotations

from collections import deque
from typing import Generic, TypeVar

__all__ = ("DropOldestQueue",)

T = TypeVar("T")


class DropOldestQueue(Generic[T]):
    """Items in order, bounded by their number and by the sum of their sizes.

    It always holds the newest item, however large that is.

    Args:
        max_items: Number of items.
        max_bytes: Sum of their sizes, in bytes.

    Attributes:
        bytes: Sum of the sizes of the items in it.
    """

    __slots__ = ("_items", "_max_bytes", "_max_items", "bytes")

    def __init__(self, max_items: int, max_bytes: int) -> None:
        self._items: deque[tuple[T, int]] = deque()
        self._max_items = max_items
        self._max_bytes = max_bytes
        self.bytes = 0

    def __len__(self) -> int:
        return len(self._items)

    def fits(self, size: int) -> bool:
        """Whether an item of ``size`` bytes drops no other."""
        return not self._items or (
            len(self._items) < self._max_items and self.bytes + size <= self._max_bytes
        )

    def put(self, item: T, size: int) -> list[T]:
        """Add an item at the end.

        Args:
            item: What to add.
            size: Bytes.

        Returns:
            The items that had to go for it, oldest first.
        """
        dropped = []
        while not self.fits(size):
            dropped.append(self.take())
        self._items.append((item, size))
        self.bytes += size
        return dropped

    def take(self) -> T:
        """Remove the oldest item.

        Raises:
            IndexError: There is none.
        """
        item, size = self._items.popleft()
        self.bytes -= size
        return item

    def take_all(self) -> list[T]:
        """Remove all items, oldest first."""
        items = [item for item, _ in self._items]
        self._items.clear()
        self.bytes = 0
        return items

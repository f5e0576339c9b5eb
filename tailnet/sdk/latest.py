"""A value that changes, for readers who want the latest one."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Generic, TypeVar

import trio

__all__ = ("Latest",)

T = TypeVar("T")


class Latest(Generic[T]):
    """Holds a value. Each reader gets it, and then each change of it.

    A reader who is slow misses what was replaced meanwhile.
    """

    def __init__(self) -> None:
        self._value: T | None = None
        self._changes = 0
        self._closed = False
        self._readers = trio.lowlevel.ParkingLot()

    @property
    def value(self) -> T | None:
        """The value; None as long as there was none."""
        return self._value

    def set(self, value: T) -> None:
        """Set it. To the same value again is no change."""
        if self._changes and value == self._value:
            return
        self._value = value
        self._changes += 1
        self._readers.unpark_all()

    def close(self) -> None:
        """There will be no more; readers come to their end."""
        self._closed = True
        self._readers.unpark_all()

    def __aiter__(self) -> AsyncIterator[T]:
        return _Reader(self)


class _Reader(AsyncIterator[T]):
    def __init__(self, latest: Latest[T]) -> None:
        self._latest = latest
        self._seen = 0

    async def __anext__(self) -> T:
        latest = self._latest
        await trio.lowlevel.checkpoint()
        while latest._changes == self._seen:
            if latest._closed:
                raise StopAsyncIteration
            await latest._readers.park()
        self._seen = latest._changes
        assert latest._value is not None
        return latest._value

"""Giving memory back to the system after a crowd has left."""

from __future__ import annotations

import ctypes
from typing import Final

__all__ = ("HeapTrimmer",)

# Fewer connections than this are not worth the walk through the heap.
MIN_LEFT: Final = 1000


class HeapTrimmer:
    """Decides when to have the C library return free memory.

    OpenSSL allocates with ``malloc``. glibc keeps what is freed for later,
    also after 5,000 connections have gone (some 90 MB) and nothing like them
    comes back. Trimming takes milliseconds, so it is done once when most of
    a crowd has left, not each time.
    """

    def __init__(self) -> None:
        self._peak = 0

    def note_connections(self, current: int) -> bool:
        """Note how many connections there are, and trim if it is time.

        Returns:
            Whether memory was given back.
        """
        self._peak = max(self._peak, current)
        if self._peak - current < MIN_LEFT or current > self._peak // 2:
            return False
        self._peak = current
        return _trim()


def _trim() -> bool:
    # glibc has it; musl and other systems do not, and need it less.
    malloc_trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    return malloc_trim is not None and bool(malloc_trim(0))

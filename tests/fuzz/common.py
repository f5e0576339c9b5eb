"""What the fuzz targets share: keys, and ways to cut a stream."""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from typing import Final

from tailnet.keys import NodePrivate

__all__ = ("CLIENT", "SERVER", "pieces", "single_bytes")

SERVER: Final = NodePrivate(b"\x10" + b"\x11" * 30 + b"\x51")
CLIENT: Final = NodePrivate(b"\x20" + b"\x22" * 30 + b"\x62")

# Byte by byte takes time squared for some buffers; so only what is short.
_MAX_SINGLE: Final = 100


def pieces(data: bytes) -> list[bytes]:
    """``data`` in pieces of sizes that depend on it, the same in every run."""
    sizes = _sizes(zlib.crc32(data))
    cut, start = [], 0
    while start < len(data):
        end = start + next(sizes)
        cut.append(data[start:end])
        start = end
    return cut


def single_bytes(data: bytes) -> list[bytes]:
    """``data`` byte by byte, as far as that is cheap; then the rest."""
    short = min(len(data), _MAX_SINGLE)
    cut = [data[i : i + 1] for i in range(short)]
    return [*cut, data[short:]] if data[short:] else cut


def _sizes(seed: int) -> Iterator[int]:
    while True:
        # Knuth's multiplicative hash: good enough to vary, and without state.
        seed = (seed * 2654435761 + 1) & 0xFFFFFFFF
        yield 1 + (seed >> 16) % (7 if seed & 3 else 500)

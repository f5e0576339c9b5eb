"""CoordinateResponses, put together from parts that are encoded already.

A node is encoded once, when its peer publishes it; a response about it is then
a few bytes around the same ones. The generated classes would parse and write
the node again for each of them.
"""

from __future__ import annotations

import enum
from collections.abc import Iterable, Iterator
from functools import cache
from typing import Final

__all__ = (
    "MAX_BATCH",
    "MAX_BATCH_SIZE",
    "Kind",
    "encode_error",
    "encode_update",
    "join_updates",
)

# coordinator.go: so many updates in one response.
MAX_BATCH: Final = 1024

# A dRPC message has 4 MiB; nodes are seldom more than 1 KiB.
MAX_BATCH_SIZE: Final = 1 << 20

# Tags: field number << 3 | wire type (2 is length-delimited, 0 a varint).
_PEER_UPDATES: Final = b"\x0a"
_ERROR: Final = b"\x12"
_ID: Final = b"\x0a\x10"  # and the length of a UUID
_NODE: Final = b"\x12"
_KIND: Final = b"\x18"
_REASON: Final = b"\x22"


class Kind(enum.IntEnum):
    """``PeerUpdate.Kind``."""

    NODE = 1
    DISCONNECTED = 2
    LOST = 3
    READY_FOR_HANDSHAKE = 4


def encode_update(
    peer_id: bytes, kind: Kind, reason: str = "", node: bytes | None = None
) -> bytes:
    """Encode a response with one update.

    Args:
        peer_id: Whom it is about: the 16 bytes of a UUID.
        kind: What happened.
        reason: Why; for people.
        node: An encoded Node, for Kind.NODE.
    """
    tail = _tail(kind, reason)
    if node is None:
        update = b"".join((_ID, peer_id, tail))
    else:
        update = b"".join((_ID, peer_id, _NODE, _varint(len(node)), node, tail))
    return b"".join((_PEER_UPDATES, _varint(len(update)), update))


@cache
def _tail(kind: Kind, reason: str) -> bytes:
    """Kind and reason. There are a dozen pairs, since all reasons are ours."""
    tail = _KIND + _varint(kind)
    return tail + _text(_REASON, reason) if reason else tail


def encode_error(text: str) -> bytes:
    """Encode a response with an error."""
    return _text(_ERROR, text)


def join_updates(updates: Iterable[bytes]) -> Iterator[bytes]:
    """Put responses together, up to MAX_BATCH updates in each.

    Encoded messages that stand behind each other are one message, with the
    repeated fields of all.

    Args:
        updates: From :func:`encode_update`.

    Yields:
        Encoded responses of about MAX_BATCH_SIZE bytes at most.
    """
    batch: list[bytes] = []
    size = 0
    for update in updates:
        if len(batch) == MAX_BATCH or (batch and size + len(update) > MAX_BATCH_SIZE):
            yield b"".join(batch)
            batch, size = [], 0
        batch.append(update)
        size += len(update)
    if batch:
        yield b"".join(batch)


def _text(tag: bytes, text: str) -> bytes:
    # What a peer sent as text may hold anything; protobuf's texts are UTF-8.
    raw = text.encode(errors="replace")
    return tag + _varint(len(raw)) + raw


def _varint(number: int) -> bytes:
    encoded = bytearray()
    while number > 0x7F:
        encoded.append(number & 0x7F | 0x80)
        number >>= 7
    encoded.append(number)
    return bytes(encoded)

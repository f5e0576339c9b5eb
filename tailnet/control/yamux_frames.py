"""yamux frames: the 12-byte header, bytes in and bytes out.

Wire format: hashicorp/yamux ``const.go`` and ``spec.md``. A frame is::

    1 byte   version, 0
    1 byte   type
    2 bytes  flags
    4 bytes  stream id; 0 is the session itself
    4 bytes  length: of the data that follows, or a number (see FrameType)

all big-endian. Only data frames have something behind the header.

- ``decode_*`` raises RemoteProtocolError and nothing else, whatever the bytes.
- Sizes are in bytes.
"""

from __future__ import annotations

import enum
import struct
from typing import Final, NamedTuple

from tailnet.errors import RemoteProtocolError

__all__ = (
    "ACK",
    "FIN",
    "HEADER_LEN",
    "INITIAL_WINDOW",
    "MAX_STREAM_ID",
    "RST",
    "SYN",
    "VERSION",
    "FrameHeader",
    "FrameType",
    "GoAwayCode",
    "decode_header",
    "encode_header",
)

_HEADER: Final = struct.Struct("!BBHII")
HEADER_LEN: Final = _HEADER.size

# const.go protoVersion.
VERSION: Final = 0

# const.go initialStreamWindow: the credit of a new stream, each way. It is
# also MaxStreamWindowSize of Go's default configuration, so no more is given.
INITIAL_WINDOW: Final = 256 << 10

# session.go OpenStream: ErrStreamsExhausted from here on.
MAX_STREAM_ID: Final = 2**32 - 2

# const.go; plain numbers, since they are tested for every frame.
SYN: Final = 1
ACK: Final = 2
FIN: Final = 4
RST: Final = 8


class FrameType(enum.IntEnum):
    """Second byte of a frame."""

    DATA = 0  # length: of the data
    WINDOW_UPDATE = 1  # length: credit given
    PING = 2  # length: a value to be sent back
    GO_AWAY = 3  # length: a GoAwayCode


class GoAwayCode(enum.IntEnum):
    """Why a peer wants no more streams."""

    NORMAL = 0
    PROTOCOL_ERROR = 1
    INTERNAL_ERROR = 2


class FrameHeader(NamedTuple):
    """A header as it is on the wire."""

    type: int
    flags: int
    stream_id: int
    length: int


_NEWEST_TYPE: Final = int(FrameType.GO_AWAY)


def decode_header(buffer: bytes, offset: int = 0) -> FrameHeader:
    """Decode the header at ``offset``; HEADER_LEN bytes have to be there.

    Raises:
        RemoteProtocolError: A version or type that yamux does not have.
    """
    version, kind, flags, stream_id, length = _HEADER.unpack_from(buffer, offset)
    if version != VERSION:
        raise RemoteProtocolError(f"yamux version {version}, not {VERSION}")
    if kind > _NEWEST_TYPE:
        raise RemoteProtocolError(f"yamux frame type {kind}")
    return FrameHeader(kind, flags, stream_id, length)


def encode_header(kind: FrameType, flags: int, stream_id: int, length: int) -> bytes:
    """Encode one header; the numbers have to fit their fields."""
    return _HEADER.pack(VERSION, kind, flags, stream_id, length)

"""dRPC frames and packets, bytes in and bytes out, no I/O.

Wire format: storj/drpc ``drpcwire``. A frame is::

    1 byte   bit 0: last of its packet; bits 1-6: kind; bit 7: control
    varint   stream id
    varint   message id
    varint   length
    n bytes  data

A packet is one frame or several with the same ids and kind. Varints are
LEB128, at most ten bytes.

- ``decode_*`` and :class:`PacketDecoder` raise RemoteProtocolError and nothing
  else, whatever the bytes. ``encode_*`` raises LocalProtocolError for what the
  peer would not take.
- Sizes are in bytes.
"""

from __future__ import annotations

import enum
from typing import Final, NamedTuple

from tailnet.errors import LocalProtocolError, RemoteProtocolError, RpcError

__all__ = (
    "MAX_METADATA_ENTRIES",
    "MAX_PACKET_LEN",
    "SPLIT_LEN",
    "UNIMPLEMENTED",
    "Kind",
    "Packet",
    "PacketDecoder",
    "decode_error",
    "decode_metadata",
    "encode_error",
    "encode_metadata",
    "encode_packet",
    "encode_varint",
)

# reader.go NewReaderWithOptions: MaximumBufferSize.
MAX_PACKET_LEN: Final = 4 << 20

# drpcstream: SplitSize. Data of one frame when a packet is split.
SPLIT_LEN: Final = 64 << 10

# drpcerr.Unimplemented, the only code that the networking code looks at.
UNIMPLEMENTED: Final = 12

# Ours: pairs of one InvokeMetadata. Coder sends none.
MAX_METADATA_ENTRIES: Final = 128

_DONE: Final = 0x01
_KIND: Final = 0x7E
_CONTROL: Final = 0x80

_MAX_VARINT_LEN: Final = 10
_UINT64: Final = 2**64 - 1
_CODE_LEN: Final = 8
_MAX_ERROR_LEN: Final = 8 << 10


class Kind(enum.IntEnum):
    """What a packet is; packet.go."""

    INVOKE = 1
    MESSAGE = 2
    ERROR = 3
    CANCEL = 4
    CLOSE = 5
    CLOSE_SEND = 6
    INVOKE_METADATA = 7


class Packet(NamedTuple):
    """A whole packet.

    Attributes:
        stream_id: Which call; 1, where each call has its own transport.
        message_id: Counted by its sender.
        kind: A :class:`Kind`, or a value newer than this code.
        data: What it carries.
        control: To be ignored by those who do not know the kind.
    """

    stream_id: int
    message_id: int
    kind: int
    data: bytes
    control: bool = False


def _encode_varint(value: int) -> bytes:
    encoded = bytearray()
    while value >= 0x80:
        encoded.append(value & 0x7F | 0x80)
        value >>= 7
    encoded.append(value)
    return bytes(encoded)


# Most lengths and ids; a look here takes a tenth of the time.
_VARINTS: Final = tuple(_encode_varint(value) for value in range(2048))


def encode_varint(value: int) -> bytes:
    """Encode a number from 0 to 2**64 - 1."""
    return _VARINTS[value] if value < len(_VARINTS) else _encode_varint(value)


def encode_packet(
    kind: Kind,
    stream_id: int,
    message_id: int,
    data: bytes = b"",
    *,
    control: bool = False,
) -> bytes:
    """Encode a packet, in frames of at most SPLIT_LEN.

    Raises:
        LocalProtocolError: It is longer than MAX_PACKET_LEN.
    """
    if len(data) > MAX_PACKET_LEN:
        raise LocalProtocolError(
            f"packet of {len(data)} bytes, the limit is {MAX_PACKET_LEN}"
        )
    first = kind << 1 | (_CONTROL if control else 0)
    ids = encode_varint(stream_id) + encode_varint(message_id)
    parts: list[bytes] = []
    for start in range(0, len(data) or 1, SPLIT_LEN):
        piece = data[start : start + SPLIT_LEN]
        done = _DONE if start + SPLIT_LEN >= len(data) else 0
        parts += (bytes((first | done,)), ids, encode_varint(len(piece)), piece)
    return b"".join(parts)


class PacketDecoder:
    """Makes packets of bytes, and holds the peer to the order of ids.

    reader.go ReadPacketUsing: ids never go down; a frame with higher ids than
    those of an unfinished packet replaces it.
    """

    __slots__ = ("_buffer", "_control", "_done", "_fault", "_ids", "_kind", "_left",
                 "_next", "_packet")  # fmt: skip

    def __init__(self) -> None:
        self._buffer = bytearray()
        # Bytes of the current frame that have not come.
        self._left = 0
        self._done = False
        # The packet that is being put together: None between two packets.
        self._packet: bytearray | None = None
        self._ids = (0, 0)
        self._kind = 0
        self._control = False
        # The lowest ids that the peer may use.
        self._next = (1, 1)
        self._fault: str | None = None

    @property
    def held(self) -> int:
        """Bytes that are kept until more come, or until they are asked for."""
        packet = self._packet
        return len(self._buffer) + (0 if packet is None else len(packet))

    @property
    def is_inside_packet(self) -> bool:
        """Whether a packet has begun and is not whole."""
        return bool(self._buffer) or self._packet is not None

    @property
    def undecoded(self) -> int:
        """Bytes that ``next_packet`` has not looked at."""
        return len(self._buffer)

    def receive_data(self, data: bytes) -> None:
        """Add bytes from the stream."""
        self._buffer += data

    def next_packet(self) -> Packet | None:
        """The next packet, or None if more bytes are needed for it.

        Raises:
            RemoteProtocolError: The peer broke the protocol; nothing more can
                be had from this stream.
        """
        if self._fault is not None:
            raise RemoteProtocolError(self._fault)
        try:
            while self._packet is not None or self._receive_header():
                packet = self._receive_body()
                if packet is not None:
                    return packet
                if self._left or not self._receive_header():
                    return None
        except RemoteProtocolError as exc:
            self._fault = str(exc)
            self._buffer.clear()
            raise
        return None

    def _receive_header(self) -> bool:
        """Take the header of a frame off the buffer, if all of it is there."""
        buffer = self._buffer
        if len(buffer) < 4:
            return False
        first = buffer[0]
        stream_id, position = _read_varint(buffer, 1)
        message_id, position = _read_varint(buffer, position)
        length, position = _read_varint(buffer, position)
        if position < 0:
            return False
        del buffer[:position]
        self._start_frame(first, (stream_id, message_id), length)
        return True

    def _start_frame(self, first: int, ids: tuple[int, int], length: int) -> None:
        kind = (first & _KIND) >> 1
        if ids < self._next:
            raise RemoteProtocolError(
                f"id monotonicity violation (frame {ids}, at least {self._next})"
            )
        if self._packet is None or ids != self._ids:
            self._packet, self._control = bytearray(), False
            self._kind, self._ids = kind, ids
        elif kind != self._kind:
            raise RemoteProtocolError(f"packet kind change ({self._kind} to {kind})")
        # Before waiting for the body.
        size = len(self._packet) + length
        if size > MAX_PACKET_LEN:
            raise RemoteProtocolError(f"data overflow (len:{size})")
        self._next = ids
        self._control = self._control or bool(first & _CONTROL)
        self._done = bool(first & _DONE)
        self._left = length

    def _receive_body(self) -> Packet | None:
        assert self._packet is not None
        if self._left:
            piece = self._buffer[: self._left]
            del self._buffer[: len(piece)]
            self._packet += piece
            self._left -= len(piece)
        if self._left or not self._done:
            return None
        (stream_id, message_id), data = self._ids, bytes(self._packet)
        self._packet, self._done = None, False
        # No frame of this packet may follow.
        self._next = (stream_id, message_id + 1)
        return Packet(stream_id, message_id, self._kind, data, self._control)


def _read_varint(buffer: bytes | bytearray, position: int) -> tuple[int, int]:
    """A number and the position behind it; -1 if it goes on behind the end."""
    if position < 0:
        return 0, -1
    value = 0
    for index in range(_MAX_VARINT_LEN):
        if position == len(buffer):
            return 0, -1
        byte = buffer[position]
        position += 1
        value |= (byte & 0x7F) << (7 * index)
        if byte < 0x80:
            # varint.go: what goes beyond 64 bits is lost.
            return value & _UINT64, position
    raise RemoteProtocolError("varint too long")


# -- what packets carry -------------------------------------------------------


def encode_error(error: RpcError) -> bytes:
    """The data of an Error packet: drpcwire ``error.go``.

    A text that has grown beyond reason is cut.
    """
    text = error.text.encode("utf-8", "backslashreplace")[:_MAX_ERROR_LEN]
    return error.code.to_bytes(_CODE_LEN, "big") + text


def decode_error(data: bytes) -> RpcError:
    """The error in an Error packet; any bytes are one."""
    if len(data) < _CODE_LEN:
        text = data.decode("utf-8", "replace")
        return RpcError(f"{text} (invalid error data)")
    code = int.from_bytes(data[:_CODE_LEN], "big")
    return RpcError(data[_CODE_LEN:].decode("utf-8", "replace"), code)


_ENTRY: Final = 1 << 3 | 2
_KEY: Final = 1 << 3 | 2
_VALUE: Final = 2 << 3 | 2


def encode_metadata(metadata: dict[str, str]) -> bytes:
    """The data of an InvokeMetadata packet: drpcmetadata ``serialize.go``."""
    parts: list[bytes] = []
    for key, value in metadata.items():
        entry = _encode_field(_KEY, key.encode()) + _encode_field(
            _VALUE, value.encode()
        )
        parts.append(_encode_field(_ENTRY, entry))
    return b"".join(parts)


def _encode_field(tag: int, data: bytes) -> bytes:
    return bytes((tag,)) + encode_varint(len(data)) + data


def decode_metadata(data: bytes) -> dict[str, str]:
    """The pairs in an InvokeMetadata packet; of equal keys, the last.

    Raises:
        RemoteProtocolError: It is not of the one form that Go reads, or has
            more than MAX_METADATA_ENTRIES.
    """
    pairs: dict[str, str] = {}
    position = 0
    while position < len(data):
        entry, position = _read_field(data, position, _ENTRY)
        key, middle = _read_field(entry, 0, _KEY)
        value, end = _read_field(entry, middle, _VALUE)
        if end != len(entry):
            raise RemoteProtocolError("invalid metadata")
        pairs[key.decode("utf-8", "replace")] = value.decode("utf-8", "replace")
        if len(pairs) > MAX_METADATA_ENTRIES:
            raise RemoteProtocolError("too much metadata")
    return pairs


def _read_field(data: bytes, position: int, tag: int) -> tuple[bytes, int]:
    if position >= len(data) or data[position] != tag:
        raise RemoteProtocolError("invalid metadata")
    length, start = _read_varint(data, position + 1)
    if start < 0 or length > len(data) - start:
        raise RemoteProtocolError("invalid metadata")
    return data[start : start + length], start + length

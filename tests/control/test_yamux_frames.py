from __future__ import annotations

import pytest
from hypothesis import given, strategies as st

from tailnet.control.yamux_frames import (
    ACK,
    FIN,
    HEADER_LEN,
    SYN,
    FrameHeader,
    FrameType,
    GoAwayCode,
    decode_header,
    encode_header,
)
from tailnet.errors import RemoteProtocolError

VECTORS = [
    # version and type, flags, stream id, length
    ("0001 0001 00000001 00000000", FrameType.WINDOW_UPDATE, SYN, 1, 0),
    ("0001 0002 00000001 00000000", FrameType.WINDOW_UPDATE, ACK, 1, 0),
    ("0000 0000 00000001 0000002c", FrameType.DATA, 0, 1, 44),
    ("0001 0004 00000001 00000000", FrameType.WINDOW_UPDATE, FIN, 1, 0),
    ("0001 0000 00000003 00020000", FrameType.WINDOW_UPDATE, 0, 3, 131072),
    ("0002 0001 00000000 00000007", FrameType.PING, SYN, 0, 7),
    ("0002 0002 00000000 00000007", FrameType.PING, ACK, 0, 7),
    ("0003 0000 00000000 00000001", FrameType.GO_AWAY, 0, 0, GoAwayCode.PROTOCOL_ERROR),
]


@pytest.mark.parametrize(("wire", "kind", "flags", "stream_id", "length"), VECTORS)
def test_vectors(
    wire: str, kind: FrameType, flags: int, stream_id: int, length: int
) -> None:
    assert encode_header(kind, flags, stream_id, length) == bytes.fromhex(wire)
    header = FrameHeader(kind, flags, stream_id, length)
    assert decode_header(bytes.fromhex(wire)) == header
    assert decode_header(b"??" + bytes.fromhex(wire) + b"?", 2) == header


@pytest.mark.parametrize(
    ("wire", "text"),
    [
        ("0101 0001 00000001 00000000", "yamux version 1, not 0"),
        ("0004 0000 00000001 00000000", "yamux frame type 4"),
    ],
)
def test_unknown_versions_and_types(wire: str, text: str) -> None:
    with pytest.raises(RemoteProtocolError, match=text):
        decode_header(bytes.fromhex(wire))


@given(st.binary(min_size=HEADER_LEN, max_size=HEADER_LEN))
def test_any_header(wire: bytes) -> None:
    try:
        header = decode_header(wire)
    except RemoteProtocolError:
        return
    assert encode_header(FrameType(header.type), *header[1:]) == wire

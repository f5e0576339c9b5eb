"""dRPC packets: vectors, limits, and any bytes."""

from __future__ import annotations

import pytest
from hypothesis import given, strategies as st

from tailnet.control.drpc import (
    MAX_METADATA_ENTRIES,
    MAX_PACKET_LEN,
    SPLIT_LEN,
    Kind,
    Packet,
    PacketDecoder,
    decode_error,
    decode_metadata,
    encode_error,
    encode_metadata,
    encode_packet,
    encode_varint,
)
from tailnet.errors import LocalProtocolError, RemoteProtocolError, RpcError
from tests.fuzz.common import pieces

MAPS = b"/coder.tailnet.v2.Tailnet/StreamDERPMaps"
COORDINATE = b"/coder.tailnet.v2.Tailnet/Coordinate"


def decode(*chunks: bytes) -> list[Packet]:
    decoder, packets = PacketDecoder(), []
    for chunk in chunks:
        decoder.receive_data(chunk)
        while (packet := decoder.next_packet()) is not None:
            packets.append(packet)
    return packets


VECTORS = [
    ("03 01 01 28" + MAPS.hex(), Packet(1, 1, Kind.INVOKE, MAPS)),
    ("03 01 01 24" + COORDINATE.hex(), Packet(1, 1, Kind.INVOKE, COORDINATE)),
    ("05 01 02 00", Packet(1, 2, Kind.MESSAGE, b"")),
    ("0d 01 03 00", Packet(1, 3, Kind.CLOSE_SEND, b"")),
    ("0b 01 04 00", Packet(1, 4, Kind.CLOSE, b"")),
    ("89 01 04 00", Packet(1, 4, Kind.CANCEL, b"", control=True)),
    (
        "07 01 01 15 00000000 0000000c" + b"Unimplemented".hex(),
        Packet(1, 1, Kind.ERROR, bytes(7) + b"\x0cUnimplemented"),
    ),
    # Varints of two bytes each: stream 300, message 128, 200 bytes.
    ("05 ac02 8001 c801" + "00" * 200, Packet(300, 128, Kind.MESSAGE, bytes(200))),
]


@pytest.mark.parametrize(("wire", "packet"), VECTORS)
def test_vectors(wire: str, packet: Packet) -> None:
    assert decode(bytes.fromhex(wire)) == [packet]
    encoded = encode_packet(
        Kind(packet.kind),
        packet.stream_id,
        packet.message_id,
        packet.data,
        control=packet.control,
    )
    assert encoded == bytes.fromhex(wire)


def test_an_error() -> None:
    wire = encode_error(RpcError("Unimplemented", 12))
    assert wire == bytes.fromhex("00000000 0000000c") + b"Unimplemented"
    error = decode_error(wire)
    assert (error.text, error.code, str(error)) == (
        "Unimplemented",
        12,
        "Unimplemented",
    )
    # drpcwire's UnmarshalError takes anything.
    assert decode_error(b"short").text == "short (invalid error data)"
    assert decode_error(bytes(8) + b"\xff").text == "\ufffd"
    assert len(encode_error(RpcError("\udcff" * 100_000))) == 8 + 8192


def test_a_large_packet_is_split() -> None:
    data = bytes(range(250)) * 600
    wire = encode_packet(Kind.MESSAGE, 1, 2, data)
    first, second = data[:SPLIT_LEN], data[SPLIT_LEN : 2 * SPLIT_LEN]
    head = bytes.fromhex("04 01 02 808004")
    last = data[2 * SPLIT_LEN :]
    assert wire == (
        head + first + head + second + b"\x05\x01\x02" + encode_varint(len(last)) + last
    )
    assert decode(wire) == [Packet(1, 2, Kind.MESSAGE, data)]
    # Exactly one frame, and exactly two.
    for size in (SPLIT_LEN, 2 * SPLIT_LEN):
        wire = encode_packet(Kind.MESSAGE, 1, 2, bytes(size))
        assert len(wire) == size + 6 * (size // SPLIT_LEN)


def test_the_longest_packet() -> None:
    data = bytes(MAX_PACKET_LEN)
    wire = encode_packet(Kind.MESSAGE, 1, 1, data)
    assert decode(wire) == [Packet(1, 1, Kind.MESSAGE, data)]
    with pytest.raises(LocalProtocolError, match="4194305 bytes"):
        encode_packet(Kind.MESSAGE, 1, 1, data + b"x")


def test_data_overflow_before_the_data_comes() -> None:
    head = bytes.fromhex("05 01 01") + encode_varint(MAX_PACKET_LEN + 1)
    with pytest.raises(RemoteProtocolError, match=r"data overflow \(len:4194305\)"):
        decode(head)
    # The sum counts, also of frames of nothing new.
    most = encode_packet(Kind.MESSAGE, 1, 1, bytes(MAX_PACKET_LEN))
    unfinished = most[: -SPLIT_LEN - 6] + b"\x04" + most[-SPLIT_LEN - 5 :]
    assert decode(unfinished) == []
    with pytest.raises(RemoteProtocolError, match="data overflow"):
        decode(unfinished + bytes.fromhex("05 01 01 01"))


# -- ids --------------------------------------------------------------------


def frame(stream: int, message: int, *, done: bool = True, kind: int = 2) -> bytes:
    return bytes((kind << 1 | done, stream, message, 1)) + b"x"


@pytest.mark.parametrize(
    "wire",
    [
        frame(0, 1),
        frame(1, 0),
        frame(0, 0),
        frame(1, 1) + frame(1, 1),
        frame(1, 5) + frame(1, 4),
        frame(2, 1) + frame(1, 9),
        frame(1, 5, done=False) + frame(1, 4),
    ],
)
def test_ids_that_go_down(wire: bytes) -> None:
    with pytest.raises(RemoteProtocolError, match="id monotonicity violation"):
        decode(wire)


def test_ids_that_leave_gaps() -> None:
    wire = frame(1, 1) + frame(1, 9) + frame(3, 1)
    assert [(p.stream_id, p.message_id) for p in decode(wire)] == [
        (1, 1),
        (1, 9),
        (3, 1),
    ]


def test_a_packet_that_is_replaced() -> None:
    wire = frame(1, 1, done=False) + frame(1, 2, kind=6)
    assert decode(wire) == [Packet(1, 2, 6, b"x")]


def test_kind_may_not_change() -> None:
    with pytest.raises(RemoteProtocolError, match="packet kind change"):
        decode(frame(1, 1, done=False) + frame(1, 1, kind=3))


def test_one_control_frame_makes_a_control_packet() -> None:
    control = bytes((2 << 1 | 0x80, 1, 1, 1)) + b"a"
    assert decode(control + frame(1, 1)) == [Packet(1, 1, 2, b"ax", control=True)]


def test_long_varints() -> None:
    # Ten bytes at most; what exceeds 64 bits is lost, as in Go.
    wire = b"\x05" + b"\x81" + b"\x80" * 8 + b"\x7e" + b"\x01\x00"
    assert decode(wire) == [Packet(1, 1, Kind.MESSAGE, b"")]
    with pytest.raises(RemoteProtocolError, match="varint too long"):
        decode(b"\x05" + b"\x80" * 10)
    # A length beyond all reason.
    with pytest.raises(RemoteProtocolError, match="data overflow"):
        decode(b"\x05\x01\x01" + b"\xff" * 9 + b"\x01")


def test_a_fault_is_for_good() -> None:
    decoder = PacketDecoder()
    decoder.receive_data(frame(0, 1))
    for _ in range(2):
        with pytest.raises(RemoteProtocolError):
            decoder.next_packet()
        decoder.receive_data(frame(1, 1))


def test_what_is_held() -> None:
    decoder = PacketDecoder()
    decoder.receive_data(frame(1, 1, done=False) + b"\x05\x01")
    assert decoder.next_packet() is None
    assert (decoder.held, decoder.undecoded) == (3, 2)
    assert decoder.is_inside_packet
    decoder.receive_data(frame(1, 1)[2:] + b"more")
    assert decoder.next_packet() == Packet(1, 1, 2, b"xx")
    assert (decoder.held, decoder.undecoded) == (4, 4)


# -- properties -------------------------------------------------------------


def outcome(chunks: list[bytes]) -> tuple[list[Packet], str]:
    decoder, packets = PacketDecoder(), []
    try:
        for chunk in chunks:
            decoder.receive_data(chunk)
            while (packet := decoder.next_packet()) is not None:
                packets.append(packet)
    except RemoteProtocolError as exc:
        return packets, str(exc)
    return packets, ""


FRAMES = st.one_of(
    st.binary(max_size=20),
    st.builds(
        lambda first, message, data: (
            bytes((first, 1, message)) + encode_varint(len(data)) + data
        ),
        st.sampled_from([0x04, 0x05, 0x03, 0x0D, 0x85, 0x90]),
        st.integers(1, 5),
        st.binary(max_size=200),
    ),
)


@given(st.lists(FRAMES, max_size=10).map(b"".join))
def test_it_does_not_matter_how_a_stream_is_cut(wire: bytes) -> None:
    whole = outcome([wire])
    assert outcome(pieces(wire)) == whole
    assert outcome([wire[i : i + 1] for i in range(len(wire))]) == whole


@given(
    st.lists(
        st.tuples(
            st.sampled_from(Kind), st.binary(max_size=300), st.integers(1, 2**40)
        ),
        max_size=10,
    )
)
def test_what_is_encoded_is_decoded(items: list[tuple[Kind, bytes, int]]) -> None:
    wire, packets, message_id = b"", [], 0
    for kind, data, gap in items:
        message_id += gap
        wire += encode_packet(kind, 7, message_id, data)
        packets.append(Packet(7, message_id, kind, data))
    assert decode(*pieces(wire)) == packets


@given(st.integers(0, 2**64 - 1))
def test_varints(value: int) -> None:
    encoded = encode_varint(value)
    assert len(encoded) == max(1, -(-value.bit_length() // 7))
    if value:
        wire = b"\x05" + encoded + b"\x01\x00"
        assert decode(wire) == [Packet(value, 1, Kind.MESSAGE, b"")]


# -- metadata ---------------------------------------------------------------


def test_metadata_on_the_wire() -> None:
    wire = bytes.fromhex("0a 09 0a 03") + b"key" + bytes.fromhex("12 02") + b"ab"
    assert encode_metadata({"key": "ab"}) == wire
    assert decode_metadata(wire) == {"key": "ab"}
    assert decode_metadata(b"") == {}
    # Of equal keys, the last.
    assert decode_metadata(wire + encode_metadata({"key": ""})) == {"key": ""}


@pytest.mark.parametrize(
    "wire",
    ["0a", "0b00", "0a00", "0a020a00", "0a05 0a01 61 1205", "0a06 0a00 1200 1200",
     "0a04 1200 0a00", "0a04 0a00 1200 00"],
)  # fmt: skip
def test_bad_metadata(wire: str) -> None:
    with pytest.raises(RemoteProtocolError, match="invalid metadata"):
        decode_metadata(bytes.fromhex(wire))


def test_too_much_metadata() -> None:
    pairs = {str(number): "" for number in range(MAX_METADATA_ENTRIES)}
    assert decode_metadata(encode_metadata(pairs)) == pairs
    with pytest.raises(RemoteProtocolError, match="too much metadata"):
        decode_metadata(encode_metadata({**pairs, "x": ""}))


@given(st.dictionaries(st.text(), st.text(max_size=200), max_size=5))
def test_any_metadata(pairs: dict[str, str]) -> None:
    assert decode_metadata(encode_metadata(pairs)) == pairs


@given(st.binary(max_size=60))
def test_any_bytes_as_metadata(wire: bytes) -> None:
    try:
        decode_metadata(wire)
    except RemoteProtocolError:
        pass

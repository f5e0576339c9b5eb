"""DERP frames: every one as hex by field, every size rule, any bytes."""

from __future__ import annotations

import ipaddress

import pytest
from hypothesis import given, strategies as st

from tailnet.derp.frame_buffer import FrameBuffer, decode_frame
from tailnet.derp.frames import (
    DISCO_MAGIC,
    FRAME_HEADER,
    KEEP_ALIVE,
    MAX_BODY_LEN,
    MAX_PACKET_SIZE,
    MIN_DISCO_LEN,
    ClosePeer,
    ForwardPacket,
    FrameType,
    Health,
    KeepAlive,
    NotePreferred,
    PeerGone,
    PeerGoneReason,
    PeerPresent,
    PeerPresentFlags,
    Ping,
    Pong,
    RawFrame,
    RecvPacket,
    Restarting,
    SendPacket,
    UnknownFrame,
    WatchConns,
    decode_client_frame,
    decode_server_frame,
    encode_close_peer,
    encode_forward_packet,
    encode_frame,
    encode_health,
    encode_note_preferred,
    encode_peer_gone,
    encode_peer_present,
    encode_ping,
    encode_pong,
    encode_recv_packet,
    encode_restarting,
    encode_send_packet,
    encode_watch_conns,
    looks_like_disco,
)
from tailnet.errors import LocalProtocolError, RemoteProtocolError
from tailnet.keys import NodePublic

SERVER_HEX = "7b4e909bbe7ffe44c465a220037d608ee35897d31ef972f07f74892cb0f73f13"
CLIENT_HEX = "0faa684ed28867b97f4a6a2dee5df8ce974e76b7018e3f22a1c4cf2678570f20"
SERVER = NodePublic.from_hex(SERVER_HEX)
CLIENT = NodePublic.from_hex(CLIENT_HEX)
V4 = ipaddress.IPv4Address("192.0.2.1")
V6 = ipaddress.IPv6Address("2001:db8::1")


def raw(frame_type: int, body: bytes) -> RawFrame:
    return RawFrame(frame_type, memoryview(body))


def split(*chunks: bytes) -> list[tuple[int, bytes]]:
    """Feed ``chunks`` one by one, as a socket would deliver them."""
    buffer, frames = FrameBuffer(), []
    for chunk in chunks:
        buffer.receive_data(chunk)
        while (frame := buffer.next_frame()) is not None:
            frames.append((frame.type, bytes(frame.body)))
    return frames


def only(wire: bytes) -> RawFrame:
    """The one frame that ``wire`` is."""
    decoded = decode_frame(memoryview(wire))
    assert decoded is not None
    frame, used = decoded
    assert used == len(wire)
    return frame


# -- on the wire ------------------------------------------------------------

SEND = bytes.fromhex("04 00000022" + SERVER_HEX + "6869")
RECV = bytes.fromhex("05 00000022" + CLIENT_HEX + "6869")
FORWARD = bytes.fromhex("0a 00000042" + CLIENT_HEX + SERVER_HEX + "6869")
PRESENT = bytes.fromhex(
    "09 00000033" + CLIENT_HEX + "00000000000000000000ffffc0000201 1092 01"
)
PRESENT_V6 = bytes.fromhex(
    "09 00000033" + CLIENT_HEX + "20010db8000000000000000000000001 ffff 0e"
)
PRESENT_UNKNOWN = bytes.fromhex("09 00000033" + CLIENT_HEX + "00" * 16 + "0000 02")


@pytest.mark.parametrize(
    ("encoded", "wire", "frame"),
    [
        (encode_send_packet(SERVER, b"hi"), SEND, SendPacket(SERVER, b"hi")),
        (
            encode_send_packet(SERVER, b""),
            bytes.fromhex("04 00000020" + SERVER_HEX),
            SendPacket(SERVER, b""),
        ),
        (
            encode_forward_packet(CLIENT, SERVER, b"hi"),
            FORWARD,
            ForwardPacket(CLIENT, SERVER, b"hi"),
        ),
        (
            encode_note_preferred(preferred=True),
            bytes.fromhex("07 00000001 01"),
            NotePreferred(preferred=True),
        ),
        (
            encode_note_preferred(preferred=False),
            bytes.fromhex("07 00000001 00"),
            NotePreferred(preferred=False),
        ),
        (encode_watch_conns(), bytes.fromhex("10 00000000"), WatchConns()),
        (
            encode_close_peer(CLIENT),
            bytes.fromhex("11 00000020" + CLIENT_HEX),
            ClosePeer(CLIENT),
        ),
        (
            encode_ping(b"abcdefgh"),
            bytes.fromhex("12 00000008 6162636465666768"),
            Ping(b"abcdefgh"),
        ),
    ],
)
def test_frames_of_clients(encoded: bytes, wire: bytes, frame: object) -> None:
    assert encoded == wire
    assert decode_client_frame(only(wire)) == frame


@pytest.mark.parametrize(
    ("encoded", "wire", "frame"),
    [
        (encode_recv_packet(CLIENT, b"hi"), RECV, RecvPacket(CLIENT, b"hi")),
        (
            encode_recv_packet(CLIENT, b""),
            bytes.fromhex("05 00000020" + CLIENT_HEX),
            RecvPacket(CLIENT, b""),
        ),
        (KEEP_ALIVE, bytes.fromhex("06 00000000"), KeepAlive()),
        (
            encode_peer_gone(CLIENT, PeerGoneReason.NOT_HERE),
            bytes.fromhex("08 00000021" + CLIENT_HEX + "01"),
            PeerGone(CLIENT, PeerGoneReason.NOT_HERE),
        ),
        (
            encode_peer_gone(CLIENT, PeerGoneReason.DISCONNECTED),
            bytes.fromhex("08 00000021" + CLIENT_HEX + "00"),
            PeerGone(CLIENT, PeerGoneReason.DISCONNECTED),
        ),
        (
            encode_peer_present(
                PeerPresent(CLIENT, V4, 4242, PeerPresentFlags.REGULAR)
            ),
            PRESENT,
            PeerPresent(CLIENT, V4, 4242, PeerPresentFlags.REGULAR),
        ),
        (
            encode_peer_present(PeerPresent(CLIENT, V6, 65535, PeerPresentFlags(14))),
            PRESENT_V6,
            PeerPresent(
                CLIENT,
                V6,
                65535,
                PeerPresentFlags.MESH_PEER
                | PeerPresentFlags.PROBER
                | PeerPresentFlags.NOT_IDEAL,
            ),
        ),
        (
            encode_peer_present(
                PeerPresent(CLIENT, None, 0, PeerPresentFlags.MESH_PEER)
            ),
            PRESENT_UNKNOWN,
            PeerPresent(CLIENT, None, 0, PeerPresentFlags.MESH_PEER),
        ),
        (
            encode_ping(b"abcdefgh"),
            bytes.fromhex("12 00000008 6162636465666768"),
            Ping(b"abcdefgh"),
        ),
        (
            encode_pong(b"abcdefgh"),
            bytes.fromhex("13 00000008 6162636465666768"),
            Pong(b"abcdefgh"),
        ),
        (
            encode_health("n\N{LATIN SMALL LETTER O WITH DIAERESIS}"),
            bytes.fromhex("14 00000003 6e c3b6"),
            Health("n\N{LATIN SMALL LETTER O WITH DIAERESIS}"),
        ),
        (encode_health(""), bytes.fromhex("14 00000000"), Health("")),
        (
            encode_restarting(1.5, 5.0),
            bytes.fromhex("15 00000008 000005dc 00001388"),
            Restarting(1.5, 5.0),
        ),
    ],
)
def test_frames_of_relays(encoded: bytes, wire: bytes, frame: object) -> None:
    assert encoded == wire
    assert decode_server_frame(only(wire)) == frame


# -- sizes, as a relay judges them ------------------------------------------


@pytest.mark.parametrize(
    ("frame_type", "good", "bad"),
    [
        (FrameType.SEND_PACKET, (32, 65_568), (0, 31, 65_569)),
        (FrameType.FORWARD_PACKET, (64, 65_600), (0, 63, 65_601)),
        (FrameType.NOTE_PREFERRED, (1,), (0, 2)),
        (FrameType.WATCH_CONNS, (0,), (1,)),
        (FrameType.CLOSE_PEER, (32,), (0, 31, 33)),
        (FrameType.PING, (8, 1000), (0, 7, 1001)),
    ],
)
def test_sizes_for_relays(
    frame_type: FrameType, good: tuple[int, ...], bad: tuple[int, ...]
) -> None:
    for size in good:
        assert not isinstance(
            decode_client_frame(raw(frame_type, bytes(size))), UnknownFrame
        )
    for size in bad:
        with pytest.raises(RemoteProtocolError, match=f"a {size}-byte body"):
            decode_client_frame(raw(frame_type, bytes(size)))


@pytest.mark.parametrize("value", [1, 2, 0xFF])
def test_any_byte_but_zero_is_a_preference(value: int) -> None:
    frame = decode_client_frame(raw(FrameType.NOTE_PREFERRED, bytes([value])))
    assert frame == NotePreferred(preferred=True)


def test_long_ping_keeps_its_first_8_bytes() -> None:
    body = b"abcdefgh" + bytes(992)
    assert decode_client_frame(raw(FrameType.PING, body)) == Ping(b"abcdefgh")


@pytest.mark.parametrize(
    "frame_type", [0x00, 0x01, 0x02, 0x03, 0x05, 0x06, 0x08, 0x13, 0x14, 0x7F, 0xFF]
)
@pytest.mark.parametrize("size", [0, 8, 100_000])
def test_relays_skip_what_they_do_not_expect(frame_type: int, size: int) -> None:
    frame = decode_client_frame(raw(frame_type, bytes(size)))
    assert frame == UnknownFrame(frame_type, size)


# -- sizes, as a client judges them -----------------------------------------


@pytest.mark.parametrize(
    ("frame_type", "smallest"),
    [
        (FrameType.RECV_PACKET, 32),
        (FrameType.PEER_GONE, 32),
        (FrameType.PEER_PRESENT, 32),
        (FrameType.PING, 8),
        (FrameType.PONG, 8),
        (FrameType.RESTARTING, 8),
    ],
)
def test_clients_drop_what_is_too_short(frame_type: FrameType, smallest: int) -> None:
    assert decode_server_frame(raw(frame_type, bytes(smallest - 1))) is None
    assert decode_server_frame(raw(frame_type, b"")) is None
    assert decode_server_frame(raw(frame_type, bytes(smallest))) is not None


def test_old_and_new_peer_gone() -> None:
    body = bytes(CLIENT)
    assert decode_server_frame(raw(0x08, body)) == PeerGone(CLIENT, 0)
    assert decode_server_frame(raw(0x08, body + b"\xf0")) == PeerGone(CLIENT, 0xF0)
    assert decode_server_frame(raw(0x08, body + b"\x01new")) == PeerGone(CLIENT, 1)


def test_old_and_new_peer_present() -> None:
    body = PRESENT[FRAME_HEADER.size :]
    none = PeerPresentFlags(0)
    for size, expected in [
        (32, PeerPresent(CLIENT, None, 0, none)),
        (49, PeerPresent(CLIENT, None, 0, none)),
        (50, PeerPresent(CLIENT, V4, 4242, none)),
        (51, PeerPresent(CLIENT, V4, 4242, PeerPresentFlags.REGULAR)),
    ]:
        assert decode_server_frame(raw(0x09, body[:size])) == expected
    longer = decode_server_frame(raw(0x09, body + b"new"))
    assert longer == PeerPresent(CLIENT, V4, 4242, PeerPresentFlags.REGULAR)


def test_flags_of_the_future_are_kept() -> None:
    body = PRESENT[FRAME_HEADER.size : -1] + b"\x81"
    frame = decode_server_frame(raw(0x09, body))
    assert isinstance(frame, PeerPresent)
    assert frame.flags == 0x81
    assert PeerPresentFlags.REGULAR in frame.flags


def test_longer_bodies_are_cut() -> None:
    assert decode_server_frame(raw(0x12, b"abcdefgh+")) == Ping(b"abcdefgh")
    assert decode_server_frame(raw(0x13, b"abcdefgh+")) == Pong(b"abcdefgh")
    assert decode_server_frame(raw(0x15, bytes(12))) == Restarting(0, 0)
    assert decode_server_frame(raw(0x06, b"why not")) == KeepAlive()


def test_health_that_is_no_utf8_is_still_a_problem() -> None:
    assert decode_server_frame(raw(0x14, b"a\xff")) == Health(
        "a\N{REPLACEMENT CHARACTER}"
    )


@pytest.mark.parametrize("frame_type", [0x00, 0x01, 0x02, 0x03, 0x04, 0x0A, 0x7F])
def test_clients_skip_what_they_do_not_expect(frame_type: int) -> None:
    assert decode_server_frame(raw(frame_type, b"!")) == UnknownFrame(frame_type, 1)


# -- what cannot be sent ----------------------------------------------------


def test_oversized_packets_are_our_mistake() -> None:
    packet = bytes(MAX_PACKET_SIZE + 1)
    for encode in (encode_send_packet, encode_recv_packet):
        with pytest.raises(LocalProtocolError, match="packet of 65537 bytes"):
            encode(CLIENT, packet)
    with pytest.raises(LocalProtocolError, match="packet of 65537 bytes"):
        encode_forward_packet(CLIENT, SERVER, packet)
    assert len(encode_forward_packet(CLIENT, SERVER, packet[1:])) == 5 + 65_600


@pytest.mark.parametrize("frame_type", [-1, 256])
def test_frame_types_are_bytes(frame_type: int) -> None:
    with pytest.raises(LocalProtocolError, match="no frame type"):
        encode_frame(frame_type, b"")


def test_oversized_bodies_are_our_mistake() -> None:
    assert len(encode_frame(0x7F, bytes(MAX_BODY_LEN))) == MAX_BODY_LEN + 5
    with pytest.raises(LocalProtocolError, match="body of 1048577 bytes"):
        encode_frame(0x7F, bytes(MAX_BODY_LEN + 1))
    with pytest.raises(LocalProtocolError, match="body of 1048577 bytes"):
        encode_health("x" * (MAX_BODY_LEN + 1))


@pytest.mark.parametrize("data", [b"", b"1234567", b"123456789"])
def test_pings_carry_8_bytes(data: bytes) -> None:
    for encode in (encode_ping, encode_pong):
        with pytest.raises(LocalProtocolError, match="8 bytes"):
            encode(data)


@pytest.mark.parametrize("reason", [-1, 256])
def test_reasons_are_bytes(reason: int) -> None:
    with pytest.raises(LocalProtocolError, match="no reason"):
        encode_peer_gone(CLIENT, reason)


@pytest.mark.parametrize(("port", "flags"), [(-1, 0), (65536, 0), (0, 256)])
def test_what_peer_present_cannot_carry(port: int, flags: int) -> None:
    with pytest.raises(LocalProtocolError, match="PeerPresent cannot carry"):
        encode_peer_present(PeerPresent(CLIENT, V4, port, PeerPresentFlags(flags)))


@pytest.mark.parametrize(
    ("reconnect_in", "try_for"),
    [(-0.001, 0), (0, -1), (4_294_967.296, 0), (0, float("inf")), (float("nan"), 0)],
)
def test_what_restarting_cannot_carry(reconnect_in: float, try_for: float) -> None:
    with pytest.raises(LocalProtocolError, match="Restarting cannot carry"):
        encode_restarting(reconnect_in, try_for)


def test_health_is_unicode() -> None:
    with pytest.raises(LocalProtocolError, match="no Unicode"):
        encode_health("\ud800")


# -- disco ------------------------------------------------------------------


def test_what_looks_like_disco() -> None:
    assert MIN_DISCO_LEN == 62
    shortest = DISCO_MAGIC + bytes(56)
    assert looks_like_disco(shortest)
    assert looks_like_disco(memoryview(shortest))
    assert not looks_like_disco(shortest[:-1])
    assert not looks_like_disco(b"TT" + shortest[2:])
    assert not looks_like_disco(b"")


# -- splitting --------------------------------------------------------------


@given(
    data=st.one_of(
        st.binary(max_size=60),
        st.lists(
            st.builds(
                lambda frame_type, size, body: (
                    FRAME_HEADER.pack(frame_type, size) + body
                ),
                st.integers(0, 0x16),
                st.sampled_from([0, 1, 8, 33, MAX_BODY_LEN + 1]),
                st.binary(max_size=40),
            ),
            max_size=3,
        ).map(b"".join),
    )
)
def test_any_bytes_decode_or_raise_protocol_error(data: bytes) -> None:
    """One chunk and one byte at a time agree; nothing else is raised."""
    try:
        whole = split(data)
    except RemoteProtocolError:
        with pytest.raises(RemoteProtocolError):
            split(*(data[i : i + 1] for i in range(len(data))))
        return
    assert split(*(data[i : i + 1] for i in range(len(data)))) == whole
    for frame_type, body in whole:
        decode_server_frame(raw(frame_type, body))
        try:
            decode_client_frame(raw(frame_type, body))
        except RemoteProtocolError:
            pass

"""The DERP handshake: vectors, JSON of other clients, and lies."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given, strategies as st

from tailnet.derp.frame_buffer import decode_frame
from tailnet.derp.frames import (
    MAGIC,
    MAX_CLIENT_INFO_LEN,
    MAX_SERVER_INFO_LEN,
    FrameType,
    RawFrame,
)
from tailnet.derp.handshake import (
    MAX_SERVER_KEY_LEN,
    MIN_CLIENT_INFO_LEN,
    ClientInfo,
    ServerInfo,
    decode_client_info,
    decode_server_info,
    decode_server_key,
    encode_client_info,
    encode_server_info,
    encode_server_key,
)
from tailnet.errors import LocalProtocolError, RemoteProtocolError
from tailnet.keys import MeshKey, NodePrivate, NodePublic

SERVER = NodePrivate.from_hex("10" + "11" * 30 + "51")
CLIENT = NodePrivate.from_hex("20" + "22" * 30 + "62")
SERVER_HEX = "7b4e909bbe7ffe44c465a220037d608ee35897d31ef972f07f74892cb0f73f13"
CLIENT_HEX = "0faa684ed28867b97f4a6a2dee5df8ce974e76b7018e3f22a1c4cf2678570f20"
MESH_HEX = "0123456789abcdef" * 4

# Computed with libsodium from outside this project.
SERVER_KEY_WIRE = bytes.fromhex("01 00000028 44455250f09f9491" + SERVER_HEX)
# JSON {"version":2,"CanAckPings":true}, nonce 00 to 17.
CLIENT_INFO_WIRE = bytes.fromhex(
    "02 00000068" + CLIENT_HEX + "000102030405060708090a0b0c0d0e0f1011121314151617"
    "a858a062bb55fbd0e565bf952225b5e220ae6ff32ce093a7548f0f9efd7331db8b94711fe454"
    "6f1ed0d738121d94abe3"
)
# JSON {"version":2}, nonce 18 to 2f.
SERVER_INFO_WIRE = bytes.fromhex(
    "03 00000035 18191a1b1c1d1e1f202122232425262728292a2b2c2d2e2f"
    "48d4e10bb2f1dedcba9b4640f9c2b79086782b02b3b9514bd41e78bc86"
)


def raw(frame_type: int, body: bytes) -> RawFrame:
    return RawFrame(frame_type, memoryview(body))


def only(wire: bytes) -> RawFrame:
    decoded = decode_frame(memoryview(wire))
    assert decoded is not None
    frame, used = decoded
    assert used == len(wire)
    return frame


def client_info_frame(text: bytes) -> RawFrame:
    """A ClientInfo with the given text in its box."""
    sealed = CLIENT.seal_to(SERVER.public(), text)
    return raw(FrameType.CLIENT_INFO, bytes(CLIENT.public()) + sealed)


def read_client_info(value: object) -> ClientInfo:
    """What a relay makes of a client that sends ``value`` as JSON."""
    text = value if isinstance(value, bytes) else json.dumps(value).encode()
    key, info = decode_client_info(SERVER, client_info_frame(text))
    assert key == CLIENT.public()
    return info


def read_server_info(value: object) -> ServerInfo:
    text = value if isinstance(value, bytes) else json.dumps(value).encode()
    sealed = SERVER.seal_to(CLIENT.public(), text)
    frame = raw(FrameType.SERVER_INFO, sealed)
    return decode_server_info(CLIENT, SERVER.public(), frame)


# -- ServerKey --------------------------------------------------------------


def test_server_key_on_the_wire() -> None:
    assert encode_server_key(SERVER.public()) == SERVER_KEY_WIRE
    assert decode_server_key(only(SERVER_KEY_WIRE)) == SERVER.public()


def test_server_key_with_bytes_of_the_future() -> None:
    body = MAGIC + bytes(SERVER.public())
    for size in (41, MAX_SERVER_KEY_LEN):
        frame = raw(FrameType.SERVER_KEY, body.ljust(size, b"?"))
        assert decode_server_key(frame) == SERVER.public()


@pytest.mark.parametrize(
    "frame",
    [
        raw(FrameType.CLIENT_INFO, MAGIC + bytes(32)),
        raw(FrameType.SERVER_KEY, b""),
        raw(FrameType.SERVER_KEY, MAGIC + bytes(31)),
        raw(FrameType.SERVER_KEY, (MAGIC + bytes(32)).ljust(1025, b"?")),
        raw(FrameType.SERVER_KEY, b"DERP\xf0\x9f\x94\x92" + bytes(32)),
    ],
)
def test_bad_server_keys(frame: RawFrame) -> None:
    with pytest.raises(RemoteProtocolError, match="does not greet"):
        decode_server_key(frame)


# -- ClientInfo -------------------------------------------------------------


def test_client_info_on_the_wire() -> None:
    wire = encode_client_info(
        CLIENT, SERVER.public(), ClientInfo(can_ack_pings=True), nonce=bytes(range(24))
    )
    assert wire == CLIENT_INFO_WIRE
    assert decode_client_info(SERVER, only(wire)) == (
        CLIENT.public(),
        ClientInfo(can_ack_pings=True),
    )


def test_client_info_is_written_in_the_order_of_go() -> None:
    info = ClientInfo(
        mesh_key=MeshKey.from_hex(MESH_HEX), is_prober=True, app_name="probe"
    )
    frame = only(encode_client_info(CLIENT, SERVER.public(), info))
    text = SERVER.open_from(CLIENT.public(), bytes(frame.body[32:]))
    assert text.decode() == (
        f'{{"meshKey":"{MESH_HEX}","version":2,"CanAckPings":false,'
        '"IsProber":true,"AppName":"probe"}'
    )
    assert decode_client_info(SERVER, frame) == (CLIENT.public(), info)


def test_client_info_leaves_out_what_is_empty() -> None:
    frame = only(encode_client_info(CLIENT, SERVER.public(), ClientInfo(version=0)))
    text = SERVER.open_from(CLIENT.public(), bytes(frame.body[32:]))
    assert text == b'{"CanAckPings":false}'


@pytest.mark.parametrize(
    ("value", "info"),
    [
        ({}, ClientInfo(version=0)),
        # encoding/json: null into a struct changes nothing.
        (None, ClientInfo(version=0)),
        ({"version": None, "CanAckPings": None}, ClientInfo(version=0)),
        ({"version": 2}, ClientInfo()),
        # Go matches names whatever their case; clients of old wrote them so.
        (
            {
                "MeshKey": MESH_HEX,
                "Version": 2,
                "canackpings": True,
                "ISPROBER": True,
                "appName": "x",
            },
            ClientInfo(2, MeshKey.from_hex(MESH_HEX), True, True, "x"),
        ),
        ({"meshKey": MESH_HEX.upper()}, ClientInfo(0, MeshKey.from_hex(MESH_HEX))),
        # The long s is an s to Go's fold, the Kelvin sign a k.
        ({"IsProber": False, "i\u017fProber": True}, ClientInfo(0, is_prober=True)),
        # What is no UTF-8, or half a UTF-16 pair, becomes U+FFFD.
        (b'{"x":"\xff","AppName":"\xff"}', ClientInfo(0, app_name="\ufffd")),
        (b'{"AppName":"a\\udc00"}', ClientInfo(0, app_name="a\ufffd")),
        (b'{"version":1,"Version":2,"VERSION":null}', ClientInfo()),
        # tailscale-rs: these names match nothing, "none" is no mesh key.
        (
            {
                "can_ack_pings": False,
                "is_prober": False,
                "mesh_key": "none",
                "version": 2,
            },
            ClientInfo(),
        ),
        ({"version": 2, "future": {"deep": [1, 2.5, None]}}, ClientInfo()),
        ({"version": -(1 << 63)}, ClientInfo(-(1 << 63))),
    ],
)
def test_client_infos_of_others(value: object, info: ClientInfo) -> None:
    assert read_client_info(value) == info


@pytest.mark.parametrize(
    "mesh_key", ["", "none", MESH_HEX[:-1], MESH_HEX + "0", "g" * 64, " " + MESH_HEX]
)
def test_malformed_mesh_keys_are_refused(mesh_key: str) -> None:
    with pytest.raises(RemoteProtocolError, match="malformed mesh key") as caught:
        read_client_info({"meshKey": mesh_key})
    assert not mesh_key or mesh_key not in str(caught.value)


@pytest.mark.parametrize(
    "value",
    [
        b"",
        b"{",
        b"\xff",
        b"\xef\xbb\xbf{}",
        b'{"version":NaN}',
        b'[["version",2]]',
        b'{"AppName":"a\nb"}',
        # Right in the end, but Go has stumbled by then.
        b'{"version":"2","version":2}',
        b"{} x",
        b"[" * 100_000,
        [],
        "text",
        2,
        {"version": "2"},
        {"version": 2.0},
        {"version": True},
        {"version": 1 << 63},
        {"CanAckPings": 1},
        {"IsProber": "true"},
        {"AppName": 7},
        {"meshKey": 7},
        # Go's key type reads null itself, and refuses it.
        {"meshKey": None},
        {"me\u017fhKey": "none"},
    ],
)
def test_bad_json_is_refused(value: Any) -> None:
    with pytest.raises(RemoteProtocolError):
        read_client_info(value)


@pytest.mark.parametrize(
    "size", [0, 1, MIN_CLIENT_INFO_LEN - 1, MAX_CLIENT_INFO_LEN + 1]
)
def test_sizes_of_client_info(size: int) -> None:
    with pytest.raises(RemoteProtocolError, match=f"a {size}-byte body"):
        decode_client_info(SERVER, raw(FrameType.CLIENT_INFO, bytes(size)))


@pytest.mark.parametrize("size", [MIN_CLIENT_INFO_LEN, MAX_CLIENT_INFO_LEN])
def test_boxes_that_do_not_open(size: int) -> None:
    with pytest.raises(RemoteProtocolError, match="does not open"):
        decode_client_info(SERVER, raw(FrameType.CLIENT_INFO, bytes(size)))


def test_first_frame_has_to_be_client_info() -> None:
    frame = raw(FrameType.SEND_PACKET, client_info_frame(b"{}").body.tobytes())
    with pytest.raises(RemoteProtocolError, match="type 0x04, not ClientInfo"):
        decode_client_info(SERVER, frame)


def test_client_info_for_another_relay() -> None:
    with pytest.raises(RemoteProtocolError, match="does not open"):
        decode_client_info(NodePrivate(b"\x08" * 32), client_info_frame(b"{}"))


def test_client_info_in_the_name_of_another() -> None:
    """The box proves the key: with any other in front it does not open."""
    body = bytearray(client_info_frame(b"{}").body)
    body[:32] = bytes(NodePrivate(b"\x08" * 32).public())
    with pytest.raises(RemoteProtocolError, match="does not open"):
        decode_client_info(SERVER, raw(FrameType.CLIENT_INFO, bytes(body)))


def test_top_bit_of_a_key_is_nobodys() -> None:
    """X25519 does not look at it (RFC 7748 5), here and in Go.

    So a client can come under two keys. They are two clients to a relay, and
    an admission controller is asked for the one that was sent.
    """
    body = bytearray(client_info_frame(b"{}").body)
    body[31] |= 0x80
    key, _ = decode_client_info(SERVER, raw(FrameType.CLIENT_INFO, bytes(body)))
    assert bytes(key) == bytes(body[:32])
    assert key != CLIENT.public()


@pytest.mark.parametrize(
    "point", ["00" * 32, "01" + "00" * 31, "ec" + "ff" * 30 + "7f"]
)
def test_low_order_points(point: str) -> None:
    """With these the box's secret would be known to everybody."""
    body = bytes.fromhex(point) + bytes(60)
    with pytest.raises(RemoteProtocolError, match="does not open"):
        decode_client_info(SERVER, raw(FrameType.CLIENT_INFO, body))
    with pytest.raises(RemoteProtocolError, match="no box"):
        encode_client_info(CLIENT, NodePublic.from_hex(point), ClientInfo())


def test_client_info_that_cannot_be_sent() -> None:
    with pytest.raises(LocalProtocolError, match="no Unicode"):
        encode_client_info(CLIENT, SERVER.public(), ClientInfo(app_name="\ud800"))
    longest = "x" * (
        MAX_CLIENT_INFO_LEN - 72 - len('{"CanAckPings":false,"AppName":""}')
    )
    info = ClientInfo(version=0, app_name=longest)
    kept = ClientInfo(version=0, app_name="x" * 64)
    assert decode_client_info(
        SERVER, only(encode_client_info(CLIENT, SERVER.public(), info))
    ) == (CLIENT.public(), kept)
    info = ClientInfo(version=0, app_name=longest + "x")
    with pytest.raises(LocalProtocolError, match="262145 bytes"):
        encode_client_info(CLIENT, SERVER.public(), info)


# -- ServerInfo -------------------------------------------------------------


def test_server_info_on_the_wire() -> None:
    wire = encode_server_info(
        SERVER, CLIENT.public(), ServerInfo(), nonce=bytes(range(24, 48))
    )
    assert wire == SERVER_INFO_WIRE
    assert decode_server_info(CLIENT, SERVER.public(), only(wire)) == ServerInfo()


def test_server_info_is_written_in_the_order_of_go() -> None:
    info = ServerInfo(token_bucket_rate=1000, token_bucket_burst=5000)
    frame = only(encode_server_info(SERVER, CLIENT.public(), info))
    assert CLIENT.open_from(SERVER.public(), bytes(frame.body)) == (
        b'{"version":2,"TokenBucketBytesPerSecond":1000,"TokenBucketBytesBurst":5000}'
    )


@pytest.mark.parametrize(
    ("value", "info"),
    [
        ({}, ServerInfo(0)),
        (None, ServerInfo(0)),
        ({"version": 2, "new": True}, ServerInfo()),
        (
            {"Version": 3, "tokenBucketBytesPerSecond": 7, "TOKENBUCKETBYTESBURST": 8},
            ServerInfo(3, 7, 8),
        ),
    ],
)
def test_server_infos_of_others(value: object, info: ServerInfo) -> None:
    assert read_server_info(value) == info


@pytest.mark.parametrize(
    "value", [b"", b"\xff", [], {"version": "2"}, {"TokenBucketBytesBurst": 1.5}]
)
def test_bad_server_infos(value: Any) -> None:
    with pytest.raises(RemoteProtocolError):
        read_server_info(value)


@pytest.mark.parametrize("size", [0, 23, MAX_SERVER_INFO_LEN + 1])
def test_sizes_of_server_info(size: int) -> None:
    with pytest.raises(RemoteProtocolError, match=f"with {size} bytes"):
        decode_server_info(
            CLIENT, SERVER.public(), raw(FrameType.SERVER_INFO, bytes(size))
        )


def test_server_info_that_is_none() -> None:
    frame = raw(FrameType.HEALTH, bytes(only(SERVER_INFO_WIRE).body))
    with pytest.raises(RemoteProtocolError, match="expected ServerInfo"):
        decode_server_info(CLIENT, SERVER.public(), frame)
    with pytest.raises(RemoteProtocolError, match="does not open"):
        decode_server_info(CLIENT, SERVER.public(), raw(0x03, bytes(60)))


# -- anything ---------------------------------------------------------------

INT64 = st.integers(-(1 << 63), (1 << 63) - 1)


@given(
    info=st.builds(
        ClientInfo,
        INT64,
        st.none() | st.binary(min_size=32, max_size=32).map(MeshKey),
        st.booleans(),
        st.booleans(),
        st.text('a\\"\0é\U0001f4ac', max_size=9),
    )
)
def test_client_infos_come_back(info: ClientInfo) -> None:
    frame = only(encode_client_info(CLIENT, SERVER.public(), info))
    assert decode_client_info(SERVER, frame) == (CLIENT.public(), info)


@given(info=st.builds(ServerInfo, INT64, INT64, INT64))
def test_server_infos_come_back(info: ServerInfo) -> None:
    frame = only(encode_server_info(SERVER, CLIENT.public(), info))
    assert decode_server_info(CLIENT, SERVER.public(), frame) == info


@given(frame_type=st.integers(0, 255), body=st.binary(max_size=120), text=st.binary())
def test_any_bytes_decode_or_raise_protocol_error(
    frame_type: int, body: bytes, text: bytes
) -> None:
    for attempt in (
        lambda: decode_server_key(raw(frame_type, body)),
        lambda: decode_server_key(raw(0x01, MAGIC + body)),
        lambda: decode_client_info(SERVER, raw(frame_type, body)),
        lambda: read_client_info(text),
        lambda: decode_server_info(CLIENT, SERVER.public(), raw(frame_type, body)),
        lambda: read_server_info(text),
    ):
        try:
            attempt()
        except RemoteProtocolError:
            pass

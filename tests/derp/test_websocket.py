"""DERP over websockets, against wsproto's own other end and raw bytes."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given, strategies as st
from wsproto.connection import Connection, ConnectionState, ConnectionType
from wsproto.events import BytesMessage, CloseConnection, Event, Ping, Pong, TextMessage

from tailnet.derp.websocket import (
    CLOSE_POLICY_VIOLATION,
    CLOSE_UNSUPPORTED_DATA,
    MAX_MESSAGE_LEN,
    MUST_SPEAK_DERP,
    WebsocketStream,
)
from tailnet.errors import LocalProtocolError, RemoteProtocolError

# RFC 6455 1.3 has this key and its answer.
KEY = "dGhlIHNhbXBsZSBub25jZQ=="
ACCEPT = b"s3pPLMBiTxaQ9kYGzzhZRbK+xOo="

GOOD_REQUEST = [
    (b"host", b"derp.example"),
    (b"connection", b"keep-alive, upgrade"),
    (b"upgrade", b"WebSocket"),
    (b"sec-websocket-version", b"13"),
    (b"sec-websocket-key", KEY.encode()),
    (b"sec-websocket-protocol", b"derp"),
]


def masked(first: int, payload: bytes, *, mask: bytes = b"\x01\x20\x03\xff") -> bytes:
    """A client's frame, written out from RFC 6455 5.2."""
    size = len(payload)
    if size < 126:
        head = bytes([first, 0x80 | size])
    elif size < 1 << 16:
        head = bytes([first, 0x80 | 126]) + size.to_bytes(2, "big")
    else:
        head = bytes([first, 0x80 | 127]) + size.to_bytes(8, "big")
    return head + mask + bytes(c ^ mask[i % 4] for i, c in enumerate(payload))


def wsproto_end(*, server: bool) -> Connection:
    return Connection(ConnectionType.SERVER if server else ConnectionType.CLIENT)


def events(connection: Connection, data: bytes) -> list[Event]:
    connection.receive_data(data)
    return list(connection.events())


def receive(stream: WebsocketStream, *chunks: bytes) -> bytes:
    return b"".join(stream.receive_data(chunk) for chunk in chunks)


def one_by_one(data: bytes) -> list[bytes]:
    return [data[i : i + 1] for i in range(len(data))]


# -- out --------------------------------------------------------------------


@pytest.mark.parametrize("size", [1, 125, 126, 1400, MAX_MESSAGE_LEN])
def test_server_frames_are_those_of_wsproto(size: int) -> None:
    data = bytes(range(256)) * (size // 256 + 1)
    data = data[:size]
    expected = bytes(wsproto_end(server=True).send(BytesMessage(data=data)))
    assert WebsocketStream(server=True).encode(data) == expected


def test_server_frame_on_the_wire() -> None:
    stream = WebsocketStream(server=True)
    assert stream.encode(b"hi") == bytes.fromhex("82 02 6869")
    assert stream.encode(bytes(126))[:4] == bytes.fromhex("82 7e 007e")
    assert stream.encode(b"") == b""


@pytest.mark.parametrize("server", [True, False])
def test_messages_out_are_short_enough_for_go(server: bool) -> None:
    data = b"x" * (2 * MAX_MESSAGE_LEN) + b"y"
    wire = WebsocketStream(server=server).encode(data)
    messages = [
        event.data
        for event in events(wsproto_end(server=not server), wire)
        if isinstance(event, BytesMessage) and event.message_finished
    ]
    assert [len(m) for m in messages] == [MAX_MESSAGE_LEN, MAX_MESSAGE_LEN, 1]
    assert b"".join(messages) == data


def test_client_masks_what_it_sends() -> None:
    wire = WebsocketStream(server=False).encode(b"hello")
    mask, payload = wire[2:6], wire[6:]
    assert wire[:2] == bytes.fromhex("82 85")
    assert bytes(c ^ mask[i % 4] for i, c in enumerate(payload)) == b"hello"


# -- in ---------------------------------------------------------------------


@pytest.mark.parametrize("server", [True, False])
@pytest.mark.parametrize("step", [1, 7, 4096, 1 << 20])
def test_both_ends_agree(server: bool, step: int) -> None:
    near, far = WebsocketStream(server=server), WebsocketStream(server=not server)
    sent = [b"a", b"b" * 125, b"c" * 126, b"d" * 20_000]
    if step > 1:
        sent.append(b"e" * 70_000)
    wire = b"".join(near.encode(data) for data in sent)
    chunks = [wire[i : i + step] for i in range(0, len(wire), step)]
    assert receive(far, *chunks) == b"".join(sent)
    assert far.data_to_send() == b""


def test_fragments_with_pings_between_them() -> None:
    wire = (
        masked(0x02, b"ab")
        + masked(0x89, b"ping")
        + masked(0x00, b"")
        + masked(0x8A, b"pong that nobody asked for")
        + masked(0x80, b"cd")
        + masked(0x82, b"ef")
    )
    for chunks in ([wire], one_by_one(wire)):
        stream = WebsocketStream(server=True)
        assert receive(stream, *chunks) == b"abcdef"
        assert stream.data_to_send() == b"\x8a\x04ping"
        assert stream.data_to_send() == b""


def test_long_message_is_handed_on_as_it_comes() -> None:
    stream = WebsocketStream(server=True)
    wire = masked(0x82, b"x" * 500_000)
    assert len(receive(stream, wire[:100_000])) == 100_000 - 14
    assert len(receive(stream, wire[100_000:-1])) == 400_014 - 1
    assert receive(stream, wire[-1:] + masked(0x82, b"next")) == b"xnext"


def test_ping_flood_is_answered_once() -> None:
    stream = WebsocketStream(server=True)
    for number in range(1000):
        stream.receive_data(masked(0x89, b"%d" % number))
    assert stream.data_to_send() == b"\x8a\x03999"


def test_pending_tells_whether_there_is_something_to_send() -> None:
    stream = WebsocketStream(server=True)
    assert not stream.pending
    stream.receive_data(masked(0x89, b""))
    assert stream.pending
    stream.data_to_send()
    assert not stream.pending
    stream.close()
    assert stream.pending


def test_a_new_message_may_not_begin_inside_another() -> None:
    stream = WebsocketStream(server=True)
    assert stream.receive_data(masked(0x02, b"ab")) == b"ab"
    with pytest.raises(RemoteProtocolError, match="CONTINUATION"):
        stream.receive_data(masked(0x82, b"cd"))


@pytest.mark.parametrize("first", [0x81, 0x01])
@pytest.mark.parametrize("text", [b"hello", b"", b"no UTF-8: \xff"])
@pytest.mark.parametrize("step", [1, 100])
def test_text_is_refused_with_1003(first: int, text: bytes, step: int) -> None:
    stream = WebsocketStream(server=True)
    wire = masked(first, text)
    with pytest.raises(RemoteProtocolError, match="binary messages"):
        receive(stream, *(wire[i : i + step] for i in range(0, len(wire), step)))
    (close,) = events(wsproto_end(server=False), stream.data_to_send())
    assert isinstance(close, CloseConnection)
    assert close.code == CLOSE_UNSUPPORTED_DATA
    assert stream.closed
    assert stream.receive_data(masked(0x82, b"late")) == b""


@pytest.mark.parametrize(
    "wire",
    [
        pytest.param(b"\x82\x02hi", id="not masked"),
        pytest.param(masked(0xC2, b"hi"), id="compressed"),
        pytest.param(masked(0x83, b"hi"), id="reserved opcode"),
        pytest.param(masked(0x80, b"hi"), id="continues nothing"),
        pytest.param(masked(0x09, b"hi"), id="ping in parts"),
        pytest.param(masked(0x89, b"x" * 126), id="long ping"),
        pytest.param(masked(0x88, b"x"), id="close with half a code"),
        pytest.param(bytes.fromhex("82 fe 0002 00000000 6869"), id="long length"),
        pytest.param(bytes.fromhex("82 fe 007d 00000000"), id="length 125 in two"),
        pytest.param(bytes.fromhex("82 ff") + bytes(12), id="longer length"),
        pytest.param(bytes.fromhex("82 ff 80") + bytes(11), id="negative length"),
    ],
)
def test_broken_frames_are_refused_with_1002(wire: bytes) -> None:
    for chunks in ([wire], one_by_one(wire)):
        stream = WebsocketStream(server=True)
        with pytest.raises(RemoteProtocolError):
            receive(stream, *chunks)
        (close,) = events(wsproto_end(server=False), stream.data_to_send())
        assert isinstance(close, CloseConnection)
        assert close.code == 1002
        assert stream.closed


def test_client_refuses_masked_frames() -> None:
    with pytest.raises(RemoteProtocolError):
        WebsocketStream(server=False).receive_data(masked(0x82, b"hi"))


# -- closing ----------------------------------------------------------------


def test_peer_closes() -> None:
    stream = WebsocketStream(server=True)
    wire = masked(0x82, b"last") + masked(0x88, b"\x03\xe9bye") + b"ignored"
    assert stream.receive_data(wire) == b"last"
    assert (stream.closed, stream.close_code, stream.close_reason) == (
        True,
        1001,
        "bye",
    )
    assert stream.data_to_send() == b"\x88\x05\x03\xe9bye"
    with pytest.raises(LocalProtocolError):
        stream.encode(b"x")
    stream.close()
    assert stream.data_to_send() == b""
    assert stream.receive_data(b"ignored") == b""


def test_peer_closes_without_a_code() -> None:
    stream = WebsocketStream(server=True)
    stream.receive_data(masked(0x88, b""))
    assert (stream.closed, stream.close_code) == (True, 1005)
    assert stream.data_to_send() == b"\x88\x00"


def test_we_close() -> None:
    near, far = WebsocketStream(server=True), WebsocketStream(server=False)
    near.close(CLOSE_POLICY_VIOLATION, MUST_SPEAK_DERP)
    wire = near.data_to_send()
    assert wire == b"\x88\x28\x03\xf0client must speak the derp subprotocol"
    with pytest.raises(LocalProtocolError):
        near.encode(b"x")
    # What the peer has sent before it saw our Close still counts.
    assert near.receive_data(far.encode(b"late")) == b"late"

    assert far.receive_data(wire) == b""
    assert (far.close_code, far.close_reason) == (1008, MUST_SPEAK_DERP)
    near.receive_data(far.data_to_send())
    assert (near.closed, near.close_code) == (True, 1008)
    assert near.data_to_send() == b""


def test_long_reason_is_cut() -> None:
    stream = WebsocketStream(server=True)
    stream.close(1000, "\N{SNOWMAN}" * 100)
    assert len(stream.data_to_send()) == 2 + 2 + 123


# -- any bytes --------------------------------------------------------------

FRAMES = st.builds(
    masked,
    st.sampled_from([0x82, 0x82, 0x82, 0x02, 0x00, 0x80, 0x89, 0x8A, 0x81, 0x88]),
    st.one_of(st.binary(max_size=200), st.integers(0, 20_000).map(bytes)),
    mask=st.binary(min_size=4, max_size=4),
)


@given(
    data=st.one_of(st.binary(max_size=60), st.lists(FRAMES, max_size=6).map(b"".join)),
    cuts=st.lists(st.integers(0, 60_000), max_size=8),
)
def test_any_bytes_in_any_chunks_give_what_wsproto_gives(
    data: bytes, cuts: list[int]
) -> None:
    reference, expected, refused, closed = wsproto_end(server=True), b"", False, False
    for event in events(reference, data):
        match event:
            case BytesMessage():
                expected += event.data
            case Ping() | Pong():
                pass
            case TextMessage():
                refused = True
                break
            case CloseConnection():
                closed = True
                refused = reference.state is ConnectionState.OPEN

    edges = sorted({0, len(data), *(cut % (len(data) + 1) for cut in cuts)})
    stream, got = WebsocketStream(server=True), b""
    try:
        for start, end in itertools.pairwise(edges):
            got += stream.receive_data(data[start:end])
    except RemoteProtocolError:
        assert refused
        assert expected.startswith(got)
    else:
        assert got == expected
        if refused:
            # wsproto may refuse half a header; we read it when it is whole.
            with pytest.raises(RemoteProtocolError):
                stream.receive_data(bytes(16))
            return
        assert stream.closed == closed

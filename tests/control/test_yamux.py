"""yamux: vectors, and two ends that talk to each other."""

from __future__ import annotations

import itertools
from collections.abc import Iterable

import pytest
from hypothesis import given, settings, strategies as st

from tailnet.control.yamux import (
    CLOSE_TIMEOUT,
    MAX_STREAMS,
    MAX_UNACKNOWLEDGED,
    OPEN_TIMEOUT,
    TRANSITIONS,
    CreditReceived,
    DataReceived,
    GoAwayReceived,
    PongReceived,
    Role,
    StreamAccepted,
    StreamEnded,
    StreamInput,
    StreamOpened,
    StreamReset,
    StreamState,
    YamuxConnection,
    YamuxEvent,
    YamuxStream,
)
from tailnet.control.yamux_frames import (
    ACK,
    FIN,
    INITIAL_WINDOW,
    RST,
    SYN,
    FrameType,
    encode_header,
)
from tailnet.errors import LocalProtocolError, RemoteProtocolError
from tests.fuzz.common import pieces

SYN_1 = bytes.fromhex("0001 0001 00000001 00000000")
ACK_1 = bytes.fromhex("0001 0002 00000001 00000000")
FIN_1 = bytes.fromhex("0001 0004 00000001 00000000")
RST_1 = bytes.fromhex("0001 0008 00000001 00000000")
GO_AWAY = bytes.fromhex("0003 0000 00000000 00000001")


def data_frame(stream_id: int, data: bytes, flags: int = 0) -> bytes:
    return encode_header(FrameType.DATA, flags, stream_id, len(data)) + data


def update(stream_id: int, flags: int, credit: int = 0) -> bytes:
    return encode_header(FrameType.WINDOW_UPDATE, flags, stream_id, credit)


def feed(end: YamuxConnection, *chunks: bytes) -> list[YamuxEvent]:
    events = []
    for chunk in chunks:
        end.receive_data(chunk)
        while (event := end.next_event()) is not None:
            events.append(event)
    return events


def server_with_stream() -> tuple[YamuxConnection, YamuxStream]:
    server = YamuxConnection(Role.SERVER)
    (opened,) = feed(server, SYN_1)
    assert server.data_to_send() == ACK_1
    assert isinstance(opened, StreamOpened)
    return server, opened.stream


# -- vectors ----------------------------------------------------------------


def test_a_stream_from_open_to_close() -> None:
    client, server = YamuxConnection(Role.CLIENT), YamuxConnection(Role.SERVER)
    near = client.open_stream(0.0)
    assert near.id == 1
    assert client.data_to_send() == SYN_1
    # Data may follow at once.
    wire = near.data_header(44) + bytes(44)
    assert wire[:12] == bytes.fromhex("0000 0000 00000001 0000002c")
    opened, data = feed(server, SYN_1 + wire)
    assert isinstance(opened, StreamOpened)
    far = opened.stream
    assert data == DataReceived(far, bytes(44))
    assert server.data_to_send() == ACK_1
    assert feed(client, ACK_1) == [StreamAccepted(near)]
    client.close_stream(near, 1.0)
    assert client.data_to_send() == FIN_1
    assert feed(server, FIN_1) == [StreamEnded(far)]
    assert server.data_to_send() == b""
    server.close_stream(far, 1.0)
    assert server.data_to_send() == FIN_1
    assert server.streams == {}
    assert feed(client, FIN_1) == [StreamEnded(near)]
    assert client.streams == {}
    assert client.open_stream(2.0).id == 3


def test_ping() -> None:
    client, server = YamuxConnection(Role.CLIENT), YamuxConnection(Role.SERVER)
    server.send_ping(7)
    ping = server.data_to_send()
    assert ping == bytes.fromhex("0002 0001 00000000 00000007")
    assert feed(client, ping) == []
    pong = client.data_to_send()
    assert pong == bytes.fromhex("0002 0002 00000000 00000007")
    assert feed(server, pong) == [PongReceived(7)]


def test_reset() -> None:
    server, stream = server_with_stream()
    server.reset_stream(stream)
    assert server.data_to_send() == RST_1
    server.reset_stream(stream)
    server.close_stream(stream, 0.0)
    server.consume(stream, INITIAL_WINDOW)
    assert server.data_to_send() == b""
    # What was on its way is of no interest.
    assert feed(server, data_frame(1, b"late") + FIN_1 + RST_1) == []
    # And the peer's reset:
    server, stream = server_with_stream()
    assert feed(server, RST_1) == [StreamReset(stream)]
    assert stream.state is StreamState.RESET
    assert not stream.is_writable


def test_go_away() -> None:
    client = YamuxConnection(Role.CLIENT)
    stream = client.open_stream(0.0)
    assert feed(client, encode_header(FrameType.GO_AWAY, 0, 0, 0)) == [GoAwayReceived()]
    with pytest.raises(LocalProtocolError, match="takes no new streams"):
        client.open_stream(0.0)
    # Those there are go on.
    assert feed(client, data_frame(1, b"x")) == [DataReceived(stream, b"x")]


@pytest.mark.parametrize(
    ("code", "text"),
    [(1, "yamux protocol error"), (2, "yamux internal error"), (9, "unknown code 9")],
)
def test_go_away_for_a_reason(code: int, text: str) -> None:
    with pytest.raises(RemoteProtocolError, match=text):
        feed(YamuxConnection(Role.CLIENT), encode_header(FrameType.GO_AWAY, 0, 0, code))


# -- what is refused, and what is not ---------------------------------------


@pytest.mark.parametrize(
    ("wire", "text"),
    [
        (SYN_1, "duplicate stream 1 declared"),
        (update(2, SYN), "may not open stream 2"),
        (update(0, SYN), "may not open stream 0"),
        (FIN_1 + FIN_1, r"unexpected FIN flag on stream 1 \(remote close\)"),
        (
            encode_header(FrameType.DATA, 0, 1, INITIAL_WINDOW + 1),
            r"receive window exceeded \(stream: 1, remain: 262144, recv: 262145\)",
        ),
        (
            data_frame(1, bytes(INITIAL_WINDOW)) + data_frame(1, b"x"),
            r"receive window exceeded \(stream: 1, remain: 0, recv: 1\)",
        ),
        (encode_header(FrameType.DATA, 0, 99, 2**32 - 1), "receive window exceeded"),
        (b"\x01" + bytes(11), "yamux version 1"),
        (b"\x00\x09" + bytes(10), "yamux frame type 9"),
    ],
)
def test_faults_end_the_session(wire: bytes, text: str) -> None:
    server, _ = server_with_stream()
    with pytest.raises(RemoteProtocolError, match=text):
        feed(server, wire)
    assert server.data_to_send() == GO_AWAY
    # For good.
    with pytest.raises(RemoteProtocolError, match=text):
        feed(server, SYN_1)
    assert server.data_to_send() == b""


@pytest.mark.parametrize(
    "wire",
    [
        update(9, ACK),
        update(9, FIN),
        update(9, RST),
        update(9, 0, 5),
        data_frame(9, b"for nobody"),
        data_frame(9, b""),
        ACK_1,  # of a stream that the client has opened
        encode_header(FrameType.PING, ACK, 0, 9),
        encode_header(FrameType.DATA, 0, 1, 0),
    ],
)
def test_what_go_tolerates(wire: bytes) -> None:
    server, stream = server_with_stream()
    events = feed(server, wire)
    assert events in ([], [PongReceived(9)])
    assert feed(server, data_frame(1, b"x")) == [DataReceived(stream, b"x")]


def test_flags_on_data() -> None:
    server = YamuxConnection(Role.SERVER)
    opened, data, ended = feed(server, data_frame(1, b"all", SYN | FIN))
    assert isinstance(opened, StreamOpened)
    assert data == DataReceived(opened.stream, b"all")
    assert ended == StreamEnded(opened.stream)
    # The body of a reset is discarded.
    opened, reset = feed(server, data_frame(3, b"all", SYN | RST))
    assert isinstance(opened, StreamOpened)
    assert reset == StreamReset(opened.stream)
    client = YamuxConnection(Role.CLIENT)
    near = client.open_stream(0.0)
    assert feed(client, data_frame(1, b"x", ACK)) == [
        StreamAccepted(near),
        DataReceived(near, b"x"),
    ]


def test_a_body_in_parts_that_ends_the_stream() -> None:
    server, stream = server_with_stream()
    wire = data_frame(1, b"abc", FIN)
    assert feed(server, *(wire[i : i + 1] for i in range(len(wire)))) == [
        DataReceived(stream, b"a"),
        DataReceived(stream, b"b"),
        DataReceived(stream, b"c"),
        StreamEnded(stream),
    ]


def test_a_stream_that_is_reset_within_its_body() -> None:
    server, stream = server_with_stream()
    wire = data_frame(1, b"abc", FIN)
    assert feed(server, wire[:13]) == [DataReceived(stream, b"a")]
    server.reset_stream(stream)
    assert feed(server, wire[13:]) == []


def test_data_behind_a_fin_is_dropped() -> None:
    server, stream = server_with_stream()
    assert feed(server, FIN_1 + data_frame(1, b"late")) == [StreamEnded(stream)]


def test_more_streams_than_allowed() -> None:
    server = YamuxConnection(Role.SERVER)
    syns = b"".join(update(1 + 2 * i, SYN) for i in range(10_000))
    events = feed(server, syns)
    assert len(events) == len(server.streams) == MAX_STREAMS
    assert server.refused == 10_000 - MAX_STREAMS
    answers = server.data_to_send()
    first = 1 + 2 * MAX_STREAMS
    assert answers[MAX_STREAMS * 12 :].startswith(update(first, RST))
    # A place that becomes free can be used.
    stream = server.streams[1]
    server.reset_stream(stream)
    assert len(feed(server, update(30_001, SYN))) == 1
    assert len(feed(server, update(30_003, SYN))) == 0


def test_a_client_takes_no_streams() -> None:
    client = YamuxConnection(Role.CLIENT, max_streams=0)
    assert feed(client, update(2, SYN)) == []
    assert client.data_to_send() == update(2, RST)


def test_streams_that_the_peer_does_not_acknowledge() -> None:
    client = YamuxConnection(Role.CLIENT)
    streams = [client.open_stream(0.0) for _ in range(MAX_UNACKNOWLEDGED)]
    with pytest.raises(LocalProtocolError, match="256 streams wait"):
        client.open_stream(0.0)
    feed(client, ACK_1, ACK_1)
    client.open_stream(0.0)
    client.reset_stream(streams[1])
    client.open_stream(0.0)
    with pytest.raises(LocalProtocolError):
        client.open_stream(0.0)


# -- flow control -----------------------------------------------------------


def test_credit_is_given_by_halves_of_the_window() -> None:
    server, stream = server_with_stream()
    half = INITIAL_WINDOW // 2
    feed(server, data_frame(1, bytes(INITIAL_WINDOW)))
    server.consume(stream, half - 1)
    assert server.data_to_send() == b""
    server.consume(stream, 1)
    assert server.data_to_send() == update(1, 0, half)
    feed(server, data_frame(1, bytes(half)))
    with pytest.raises(RemoteProtocolError, match="remain: 0"):
        feed(server, data_frame(1, b"x"))


def test_credit_is_spent_and_received() -> None:
    server, stream = server_with_stream()
    assert stream.send_credit == INITIAL_WINDOW
    assert stream.data_header(1000) == bytes.fromhex("0000 0000 00000001 000003e8")
    assert stream.send_credit == INITIAL_WINDOW - 1000
    assert feed(server, update(1, 0, 400)) == [CreditReceived(stream)]
    assert stream.send_credit == INITIAL_WINDOW - 600
    # A window larger than ours, as a peer may have configured.
    opened = feed(server, update(3, SYN, 100))[0]
    assert isinstance(opened, StreamOpened)
    assert opened.stream.send_credit == INITIAL_WINDOW + 100


def test_no_credit_for_what_has_ended() -> None:
    server, stream = server_with_stream()
    feed(server, data_frame(1, bytes(INITIAL_WINDOW), FIN))
    server.consume(stream, INITIAL_WINDOW)
    assert server.data_to_send() == b""


# -- time -------------------------------------------------------------------


def test_stream_that_is_not_acknowledged_ends_the_session() -> None:
    client = YamuxConnection(Role.CLIENT)
    assert client.next_deadline() is None
    client.open_stream(10.0)
    client.open_stream(20.0)
    assert client.next_deadline() == 10.0 + OPEN_TIMEOUT
    client.handle_timeout(10.0 + OPEN_TIMEOUT - 1)
    feed(client, ACK_1)
    assert client.next_deadline() == 20.0 + OPEN_TIMEOUT
    client.handle_timeout(10.0 + OPEN_TIMEOUT)
    with pytest.raises(RemoteProtocolError, match="stream 3 was not acknowledged"):
        client.handle_timeout(20.0 + OPEN_TIMEOUT)


def test_half_closed_stream_is_reset_in_time() -> None:
    server, stream = server_with_stream()
    server.close_stream(stream, 10.0)
    server.close_stream(stream, 20.0)
    assert server.data_to_send() == FIN_1
    assert server.next_deadline() == 10.0 + CLOSE_TIMEOUT
    server.handle_timeout(10.0 + CLOSE_TIMEOUT - 1)
    assert feed(server, b"") == []
    server.handle_timeout(10.0 + CLOSE_TIMEOUT)
    assert feed(server, b"") == [StreamReset(stream)]
    assert server.data_to_send() == RST_1
    assert (server.streams, server.next_deadline()) == ({}, None)


def test_stream_that_the_peer_should_close() -> None:
    server, stream = server_with_stream()
    server.expect_close(stream, 10.0)
    server.expect_close(stream, 20.0)
    assert server.next_deadline() == 10.0 + CLOSE_TIMEOUT
    feed(server, FIN_1)
    server.close_stream(stream, 30.0)
    assert server.next_deadline() is None
    server.expect_close(stream, 40.0)
    assert server.next_deadline() is None


# -- properties -------------------------------------------------------------


def test_transitions_are_all_that_can_happen() -> None:
    """What is not in the table: a dead stream, FIN twice, SYN sent twice."""
    gone = {StreamState.CLOSED, StreamState.RESET}
    missing = set(itertools.product(StreamState, StreamInput)) - set(TRANSITIONS)
    assert missing == {
        *itertools.product(gone, StreamInput),
        (StreamState.LOCAL_CLOSE, StreamInput.LOCAL_FIN),
        (StreamState.REMOTE_CLOSE, StreamInput.REMOTE_FIN),
    }
    # FIN both ways closes, in either order, and nothing leads back.
    for first, second in itertools.permutations(
        (StreamInput.LOCAL_FIN, StreamInput.REMOTE_FIN)
    ):
        for state in (StreamState.SYN_SENT, StreamState.ESTABLISHED):
            half = TRANSITIONS[state, first]
            assert TRANSITIONS[half, StreamInput.ACK] is half
            assert TRANSITIONS[half, second] is StreamState.CLOSED


def meaning(events: Iterable[YamuxEvent]) -> list[object]:
    """Events without the bounds between chunks of data, and objects as ids."""
    merged: list[object] = []
    for event in events:
        if isinstance(event, DataReceived):
            last = merged[-1] if merged else None
            if isinstance(last, tuple) and last[0] == event.stream.id:
                merged[-1] = (event.stream.id, last[1] + event.data)
            else:
                merged.append((event.stream.id, event.data))
        elif isinstance(event, PongReceived | GoAwayReceived):
            merged.append(event)
        else:
            merged.append((type(event).__name__, event.stream.id))
    return merged


def outcome(chunks: list[bytes]) -> tuple[list[object], bytes, str]:
    end, events = YamuxConnection(Role.SERVER, max_streams=3), []
    fault = ""
    try:
        for chunk in chunks:
            end.receive_data(chunk)
            while (event := end.next_event()) is not None:
                events.append(event)
    except RemoteProtocolError as exc:
        fault = str(exc)
    return meaning(events), end.data_to_send(), fault


FRAMES = st.one_of(
    st.builds(
        lambda i, d, f: data_frame(i, d, f),
        st.sampled_from([1, 3, 5, 7]),
        st.binary(max_size=20),
        st.sampled_from([0, 0, SYN, FIN, RST, ACK, SYN | FIN]),
    ),
    st.builds(
        update,
        st.sampled_from([1, 3, 5, 7, 2]),
        st.sampled_from([0, SYN, SYN, FIN, RST, ACK]),
        st.integers(0, 2**32 - 1),
    ),
    st.builds(
        lambda f, v: encode_header(FrameType.PING, f, 0, v),
        st.sampled_from([SYN, ACK]),
        st.integers(0, 2**32 - 1),
    ),
    st.binary(max_size=30),
)


@given(st.lists(FRAMES, max_size=30).map(b"".join))
def test_it_does_not_matter_how_a_stream_is_cut(wire: bytes) -> None:
    whole = outcome([wire])
    assert outcome(pieces(wire)) == whole
    assert outcome([wire[i : i + 1] for i in range(len(wire))]) == whole


@settings(max_examples=60)
@given(st.data())
def test_two_ends_carry_all_streams(data: st.DataObject) -> None:
    """Any order of opening, sending, reading and closing: all arrives, in order."""
    client, server = YamuxConnection(Role.CLIENT), YamuxConnection(Role.SERVER)
    ends = [client, server]
    # Bytes on their way to each end.
    wires = {0: bytearray(), 1: bytearray()}
    sent: dict[tuple[int, int], bytearray] = {}
    got: dict[tuple[int, int], bytearray] = {}
    unread: dict[tuple[int, int], int] = {}

    def collect(index: int) -> None:
        wires[1 - index] += ends[index].data_to_send()

    for _ in range(data.draw(st.integers(1, 60))):
        index = data.draw(st.integers(0, 1))
        end = ends[index]
        action = data.draw(st.sampled_from(["open", "send", "read", "close", "carry"]))
        writable = [s for s in end.streams.values() if s.is_writable]
        if action == "open" and index == 0:
            end.open_stream(0.0)
        elif action == "send" and writable:
            stream = data.draw(st.sampled_from(writable))
            size = data.draw(st.integers(0, min(stream.send_credit, 200_000)))
            before = sent.setdefault((index, stream.id), bytearray())
            body = (b"%d:%d " % (stream.id, len(before))).ljust(size, b".")[:size]
            collect(index)
            wires[1 - index] += stream.data_header(size) + body
            before += body
            got.setdefault((index, stream.id), bytearray())
        elif action == "close" and writable:
            end.close_stream(data.draw(st.sampled_from(writable)), 0.0)
        elif action == "read":
            for stream in end.streams.values():
                end.consume(stream, unread.pop((index, stream.id), 0))
        elif action == "carry":
            cut = data.draw(st.integers(0, len(wires[index])))
            for event in feed(end, bytes(wires[index][:cut])):
                if isinstance(event, DataReceived):
                    key = index, event.stream.id
                    got.setdefault((1 - index, event.stream.id), bytearray())
                    got[1 - index, event.stream.id] += event.data
                    unread[key] = unread.get(key, 0) + len(event.data)
            del wires[index][:cut]
        collect(index)
    for _ in range(3):
        for index in (0, 1):
            for event in feed(ends[index], bytes(wires[index])):
                if isinstance(event, DataReceived):
                    got[1 - index, event.stream.id] += event.data
            wires[index].clear()
            collect(index)
    assert got == sent
    assert set(client.streams) == set(server.streams)
    for stream_id, near in client.streams.items():
        assert near.is_writable == (
            server.streams[stream_id].state is not StreamState.REMOTE_CLOSE
        )

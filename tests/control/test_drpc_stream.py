"""One call, end against end."""

from __future__ import annotations

import itertools

import pytest

from tailnet.control.drpc import Kind, Packet, PacketDecoder, encode_metadata
from tailnet.control.drpc_stream import (
    CALL_TRANSITIONS,
    MAX_METHOD_LEN,
    CallInput,
    CallState,
    DrpcStream,
    Ended,
    Invoked,
    Message,
    SendClosed,
    StreamEvent,
)
from tailnet.errors import LocalProtocolError, RemoteProtocolError, RpcError

METHOD = "/coder.tailnet.v2.Tailnet/StreamDERPMaps"


class End:
    """A call with its decoder."""

    def __init__(self, *, server: bool) -> None:
        self.stream = DrpcStream(server=server)
        self.decoder = PacketDecoder()

    def hears(self, wire: bytes) -> list[StreamEvent | None]:
        self.decoder.receive_data(wire)
        events = []
        while (packet := self.decoder.next_packet()) is not None:
            events.append(self.stream.handle_packet(packet))
        return events


def pair() -> tuple[End, End]:
    client, server = End(server=False), End(server=True)
    assert server.hears(client.stream.encode_invoke(METHOD)) == [Invoked(METHOD)]
    return client, server


def test_a_call_on_the_wire() -> None:
    client = DrpcStream(server=False)
    assert client.encode_invoke(METHOD) == b"\x03\x01\x01\x28" + METHOD.encode()
    assert client.encode_message(b"") == bytes.fromhex("05 01 02 00")
    assert client.message_header(3) == bytes.fromhex("05 01 03 03")
    assert client.encode_close_send() == bytes.fromhex("0d 01 04 00")
    assert client.encode_close_send() == b""
    assert client.encode_close() == bytes.fromhex("0b 01 05 00")
    assert client.encode_close() == b""
    assert client.encode_error(RpcError("late")) == b""


def test_unary_shape() -> None:
    client, server = pair()
    wire = client.stream.encode_message(b"ask") + client.stream.encode_close_send()
    assert server.hears(wire) == [Message(b"ask"), SendClosed()]
    wire = server.stream.encode_message(b"answer") + server.stream.encode_close_send()
    assert client.hears(wire[:10]) == [Message(b"answer")]
    # Go's client often does not wait for the CloseSend.
    close = client.stream.encode_close()
    assert server.stream.state is CallState.TERMINATED
    assert server.hears(close) == [None]
    assert client.hears(wire[10:]) == [None]


def test_error_ends_both_ways() -> None:
    client, server = pair()
    (ended,) = client.hears(server.stream.encode_error(RpcError("no", 12)))
    assert isinstance(ended, Ended)
    assert ended.error is not None
    assert (ended.error.text, ended.error.code) == ("no", 12)
    for end in (client.stream, server.stream):
        assert not end.is_writable
        with pytest.raises(LocalProtocolError):
            end.encode_message(b"x")


@pytest.mark.parametrize("wire", ["0b 01 02 00", "89 01 02 00"])
def test_close_and_cancel(wire: str) -> None:
    _, server = pair()
    assert server.hears(bytes.fromhex(wire)) == [Ended()]
    # All that follows is ignored, whatever it is.
    late = bytes.fromhex("05 01 03 00 03 01 04 00 25 01 05 00")
    assert server.hears(late) == [None, None, None]


def test_messages_behind_close_send_are_dropped() -> None:
    client, server = pair()
    assert server.hears(client.stream.encode_close_send()) == [SendClosed()]
    assert server.hears(bytes.fromhex("05 01 03 00 0d 01 04 00")) == [None, None]
    # The other way is open.
    assert client.hears(server.stream.encode_message(b"x")) == [Message(b"x")]


def test_unknown_kinds() -> None:
    _, server = pair()
    assert server.stream.handle_packet(Packet(1, 2, 9, b"", control=True)) is None
    with pytest.raises(RemoteProtocolError, match="unknown packet kind: 9"):
        server.stream.handle_packet(Packet(1, 3, 9, b""))
    # Go does not know InvokeMetadata within a call either.
    with pytest.raises(RemoteProtocolError, match="unknown packet kind: 7"):
        server.stream.handle_packet(Packet(1, 4, Kind.INVOKE_METADATA, b""))


@pytest.mark.parametrize(
    ("packet", "text"),
    [
        (Packet(1, 2, Kind.INVOKE, b"again"), "invoke on existing stream"),
        (Packet(2, 1, Kind.INVOKE, b"again"), "a second call"),
        (Packet(2, 1, Kind.MESSAGE, b"x"), "a second call"),
    ],
)
def test_more_calls_on_one_transport(packet: Packet, text: str) -> None:
    _, server = pair()
    with pytest.raises(RemoteProtocolError, match=text):
        server.stream.handle_packet(packet)


def test_before_the_invoke() -> None:
    server = DrpcStream(server=True)
    assert server.handle_packet(Packet(1, 1, 9, b"", control=True)) is None
    with pytest.raises(RemoteProtocolError, match="kind 2 before the invoke"):
        server.handle_packet(Packet(1, 2, Kind.MESSAGE, b""))
    with pytest.raises(RemoteProtocolError, match="method name of 1025 bytes"):
        server.handle_packet(Packet(1, 3, Kind.INVOKE, b"x" * (MAX_METHOD_LEN + 1)))
    with pytest.raises(RemoteProtocolError, match="invalid metadata"):
        server.handle_packet(Packet(1, 4, Kind.INVOKE_METADATA, b"x"))


def test_metadata_belongs_to_its_stream() -> None:
    data = encode_metadata({"a": "b"})
    server = DrpcStream(server=True)
    assert server.handle_packet(Packet(1, 1, Kind.INVOKE_METADATA, data)) is None
    invoked = server.handle_packet(Packet(1, 2, Kind.INVOKE, b"m"))
    assert invoked == Invoked("m", {"a": "b"})
    server = DrpcStream(server=True)
    assert server.handle_packet(Packet(1, 1, Kind.INVOKE_METADATA, data)) is None
    assert server.handle_packet(Packet(2, 1, Kind.INVOKE, b"m")) == Invoked("m", {})
    # The answers are on the stream that the client has chosen.
    assert server.encode_message(b"") == bytes.fromhex("05 02 01 00")


def test_a_client_says_metadata_first() -> None:
    client, server = End(server=False), End(server=True)
    wire = client.stream.encode_invoke(METHOD, {"a": "b"})
    assert server.hears(wire) == [None, Invoked(METHOD, {"a": "b"})]


def test_sizes_of_messages() -> None:
    client, server = pair()
    for size in (0, 127, 128, 65_536, 65_537, 4 << 20):
        message = client.stream.encode_message(bytes(size))
        assert server.hears(message) == [Message(bytes(size))]
    with pytest.raises(LocalProtocolError, match="4194305 bytes"):
        client.stream.encode_message(bytes((4 << 20) + 1))


def test_transitions_are_whole() -> None:
    """Every state has every input; a call never opens again."""
    assert set(CALL_TRANSITIONS) == set(itertools.product(CallState, CallInput))
    order = [
        {CallState.OPEN},
        {CallState.SEND_CLOSED, CallState.RECEIVE_CLOSED},
        {CallState.TERMINATED},
    ]
    rank = {state: i for i, states in enumerate(order) for state in states}
    for (state, cause), after in CALL_TRANSITIONS.items():
        assert rank[after] >= rank[state]
        if cause is CallInput.TERMINATE:
            assert after is CallState.TERMINATED
    both = (CallInput.SEND_CLOSE_SEND, CallInput.RECEIVE_CLOSE_SEND)
    for first, second in itertools.permutations(both):
        half = CALL_TRANSITIONS[CallState.OPEN, first]
        assert CALL_TRANSITIONS[half, first] is half
        assert CALL_TRANSITIONS[half, second] is CallState.TERMINATED

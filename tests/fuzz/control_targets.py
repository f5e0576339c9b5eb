"""Fuzz targets of the control transport: yamux and dRPC."""

from __future__ import annotations

from tailnet.control.drpc import (
    MAX_PACKET_LEN,
    Kind,
    Packet,
    PacketDecoder,
    decode_error,
    decode_metadata,
    encode_error,
    encode_metadata,
    encode_packet,
)
from tailnet.control.drpc_stream import CallState, DrpcStream, Message
from tailnet.control.yamux import (
    DataReceived,
    GoAwayReceived,
    PongReceived,
    Role,
    StreamEnded,
    StreamReset,
    YamuxConnection,
    YamuxEvent,
)
from tailnet.control.yamux_frames import INITIAL_WINDOW
from tailnet.errors import RemoteProtocolError
from tests.fuzz.common import pieces, single_bytes

__all__ = ("drpc", "drpc_call", "drpc_metadata", "yamux_client", "yamux_server")

MAX_STREAMS = 4


def yamux_server(data: bytes) -> None:
    """What a client sends to a server."""
    _check_yamux(data, Role.SERVER)


def yamux_client(data: bytes) -> None:
    """What a server sends to a client that has opened three streams."""
    _check_yamux(data, Role.CLIENT)


def _check_yamux(data: bytes, role: Role) -> None:
    whole = _yamux([data], role)
    for chunks in (pieces(data), single_bytes(data)):
        assert _yamux(chunks, role) == whole


def _yamux(chunks: list[bytes], role: Role) -> tuple[list[object], bytes, str]:
    """What happened, without the bounds of chunks; what is said to it; the fault."""
    end = YamuxConnection(role, max_streams=MAX_STREAMS)
    if role is Role.CLIENT:
        for _ in range(3):
            end.open_stream(0.0)
    said, fault = end.data_to_send(), ""
    story: list[object] = []
    received: dict[int, int] = {}
    dead: set[int] = set()
    try:
        for chunk in chunks:
            end.receive_data(chunk)
            while (event := end.next_event()) is not None:
                _note(event, story, received, dead)
                if isinstance(event, DataReceived):
                    # Half of the streams have a reader.
                    if event.stream.id & 2:
                        end.consume(event.stream, len(event.data))
                    else:
                        assert received[event.stream.id] <= INITIAL_WINDOW
                assert len(end.streams) <= MAX_STREAMS + 3
    except RemoteProtocolError as exc:
        fault = str(exc)
    # Timeouts and goodbyes work in any state.
    replies = end.data_to_send()
    for stream in list(end.streams.values()):
        end.close_stream(stream, 1.0)
        end.expect_close(stream, 1.0)
    try:
        end.handle_timeout(1e6)
    except RemoteProtocolError:
        assert end.unacknowledged
    else:
        assert end.streams == {}
    assert len(said + replies) <= 12 * (4 + sum(map(len, chunks)) // 6)
    return story, replies, fault


def _note(
    event: YamuxEvent, story: list[object], received: dict[int, int], dead: set[int]
) -> None:
    if isinstance(event, PongReceived | GoAwayReceived):
        story.append(event)
        return
    stream_id = event.stream.id
    if isinstance(event, DataReceived):
        assert event.data
        assert stream_id not in dead
        received[stream_id] = received.get(stream_id, 0) + len(event.data)
        last = story[-1] if story else None
        if isinstance(last, tuple) and last[0] == stream_id:
            story[-1] = (stream_id, last[1] + event.data)
        else:
            story.append((stream_id, event.data))
        return
    if isinstance(event, StreamEnded | StreamReset):
        dead.add(stream_id)
    elif type(event).__name__ == "StreamOpened":
        dead.discard(stream_id)
        received.pop(stream_id, None)
    story.append(f"{type(event).__name__} {stream_id}")


def drpc(data: bytes) -> None:
    """A stream of packets."""
    packets, fault = _packets([data])
    for chunks in (pieces(data), single_bytes(data)):
        assert _packets(chunks) == (packets, fault)
    last = (0, 0)
    for packet in packets:
        ids = packet.stream_id, packet.message_id
        assert ids > last
        last = ids
        assert len(packet.data) <= min(MAX_PACKET_LEN, len(data))
        if packet.kind in list(Kind):
            wire = encode_packet(
                Kind(packet.kind), *ids, packet.data, control=packet.control
            )
            # Ids of a stream begin at 1, and this one need not.
            again, _ = _packets([wire])
            assert again == [packet]
        decode_error(packet.data)


def _packets(chunks: list[bytes]) -> tuple[list[Packet], str]:
    decoder, packets, size = PacketDecoder(), [], 0
    for chunk in chunks:
        size += len(chunk)
        decoder.receive_data(chunk)
        try:
            while (packet := decoder.next_packet()) is not None:
                packets.append(packet)
        except RemoteProtocolError as exc:
            return packets, str(exc)
        assert decoder.held <= size
        assert decoder.undecoded <= 31
    return packets, ""


def drpc_call(data: bytes) -> None:
    """All that the other end may say in one call; an odd first byte is a server."""
    stream = DrpcStream(server=bool(data[:1] and data[0] & 1))
    packets, _ = _packets([data[1:]])
    for packet in packets:
        before = stream.state
        try:
            event = stream.handle_packet(packet)
        except RemoteProtocolError:
            return
        if isinstance(event, Message):
            assert before in (CallState.OPEN, CallState.SEND_CLOSED)
            if stream.is_writable:
                decoder = PacketDecoder()
                decoder.receive_data(stream.encode_message(event.data))
                answer = decoder.next_packet()
                assert answer is not None
                assert answer.data == event.data
            else:
                stream.encode_close_send()
        elif len(packet.data) & 1:
            stream.encode_close_send()
    over = stream.state is CallState.TERMINATED
    assert bool(stream.encode_error(decode_error(data))) != over
    assert stream.state is CallState.TERMINATED


def drpc_metadata(data: bytes) -> None:
    """What comes with an Invoke, and errors."""
    error = decode_error(data)
    again = decode_error(encode_error(error))
    assert again.code == error.code
    assert again.text[:2000] == error.text[:2000]
    try:
        pairs = decode_metadata(data)
    except RemoteProtocolError:
        return
    assert decode_metadata(encode_metadata(pairs)) == pairs

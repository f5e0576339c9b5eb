"""Our transport against what Coder's programs have said to each other.

``tests/data/coder/*.ws.jsonl`` has every websocket payload between a real
agent, a real client and Coder's coordinator (coder v2.24.0).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping

import pytest
import trio
import trio.testing
from trio.testing import MockClock

from tailnet.control.drpc import Kind, Packet, PacketDecoder, encode_packet
from tailnet.control.drpc_stream import DrpcStream, Invoked
from tailnet.control.server import Handler, ServerCall, serve_rpc
from tailnet.control.yamux import (
    CreditReceived,
    DataReceived,
    Role,
    StreamAccepted,
    StreamEnded,
    StreamOpened,
    YamuxConnection,
)
from tailnet.control.yamux_frames import FIN, FrameType, encode_header
from tests.control.memory_link import link_pair
from tests.control.recorded import FILES, connections, frames

CASES = [(file, conn) for file in FILES for conn in connections(file)]

STREAMING = {
    "/coder.tailnet.v2.Tailnet/StreamDERPMaps",
    "/coder.tailnet.v2.Tailnet/Coordinate",
}
DISCONNECT = bytes.fromhex("12 00")


def test_there_are_recordings() -> None:
    assert FILES == ["block-endpoints.ws.jsonl", "direct.ws.jsonl"]
    assert len(CASES) == 4  # an agent and a client in each


class Side:
    """What one side of a connection says, stream by stream."""

    def __init__(self, *, server: bool) -> None:
        self.decoders: dict[int, PacketDecoder] = {}
        self.streams: dict[int, DrpcStream] = {}
        self.packets: dict[int, list[Packet]] = {}
        self.wire: dict[int, bytes] = {}
        self._server = server

    def hear(self, stream_id: int, data: bytes) -> list[Invoked]:
        """Take data that this side has received; returns the calls in it."""
        decoder = self.decoders.setdefault(stream_id, PacketDecoder())
        call = self.streams.setdefault(stream_id, DrpcStream(server=self._server))
        self.wire[stream_id] = self.wire.get(stream_id, b"") + data
        decoder.receive_data(data)
        invoked = []
        while (packet := decoder.next_packet()) is not None:
            self.packets.setdefault(stream_id, []).append(packet)
            event = call.handle_packet(packet)
            if isinstance(event, Invoked):
                invoked.append(event)
        return invoked


@pytest.mark.parametrize(("file", "conn"), CASES)
def test_every_frame_and_packet_is_understood(file: str, conn: int) -> None:
    """Both directions at once, each by the end that it was meant for."""
    server, client = YamuxConnection(Role.SERVER), YamuxConnection(Role.CLIENT)
    at_server, at_client = Side(server=True), Side(server=False)
    methods: Counter[str] = Counter()
    kinds: Counter[str] = Counter()
    for payload in connections(file)[conn]:
        end, side = (server, at_server) if payload.to_server else (client, at_client)
        end.receive_data(payload.data)
        while (event := end.next_event()) is not None:
            kinds[type(event).__name__] += 1
            match event:
                case StreamOpened(stream):
                    # What the real client did, ours has to do too.
                    assert client.open_stream(0.0).id == stream.id
                case StreamEnded(stream) if payload.to_server:
                    client.close_stream(client.streams[stream.id], 0.0)
                case StreamEnded(stream):
                    server.close_stream(server.streams[stream.id], 0.0)
                case DataReceived(stream, data):
                    for invoked in side.hear(stream.id, data):
                        methods[invoked.method] += 1
                case StreamAccepted() | CreditReceived():
                    pass
    for side in (at_server, at_client):
        for stream_id, packets in side.packets.items():
            assert side.decoders[stream_id].held == 0
            # Encoded again, they are the same bytes.
            assert side.wire[stream_id] == b"".join(
                encode_packet(Kind(p.kind), p.stream_id, p.message_id, p.data)
                for p in packets
            )
    assert kinds["StreamOpened"] == kinds["StreamAccepted"] == sum(methods.values())
    assert set(methods) > STREAMING
    # What yamux itself answers: an ACK to each SYN, as it was recorded.
    recorded = [
        header.stream_id
        for header, _ in frames(said(file, conn, by_server=True))
        if header.flags == 2
    ]
    ours = [h.stream_id for h, _ in frames(server.data_to_send()) if h.flags == 2]
    assert sorted(ours) == sorted(recorded)


def said(file: str, conn: int, *, by_server: bool) -> bytes:
    return b"".join(p.data for p in connections(file)[conn] if p.to_server != by_server)


@pytest.mark.parametrize(("file", "conn"), CASES)
def test_frames_are_encoded_alike(file: str, conn: int) -> None:
    for by_server in (True, False):
        wire = said(file, conn, by_server=by_server)
        assert wire == b"".join(
            encode_header(FrameType(header.type), *header[1:]) + body
            for header, body in frames(wire)
        )


def by_stream(wire: bytes) -> dict[int, tuple[bytes, bool]]:
    """For each stream all its data, and whether it was closed."""
    streams: dict[int, tuple[bytes, bool]] = {}
    for header, body in frames(wire):
        data, closed = streams.get(header.stream_id, (b"", False))
        assert not closed
        streams[header.stream_id] = (data + body, bool(header.flags & FIN))
    return streams


def messages_of(wire: bytes) -> list[bytes]:
    decoder = PacketDecoder()
    decoder.receive_data(wire)
    found = []
    while (packet := decoder.next_packet()) is not None:
        if packet.kind == Kind.MESSAGE:
            found.append(packet.data)
    return found


@pytest.mark.parametrize(("file", "conn"), CASES)
async def test_our_server_says_the_same(
    file: str, conn: int, autojump_clock: MockClock
) -> None:
    """The recorded client speaks to our server; handlers give recorded answers.

    On each stream the same bytes of dRPC, and the same close.
    """
    wanted = by_stream(said(file, conn, by_server=True))
    answers = {i: messages_of(data) for i, (data, _) in wanted.items()}

    async def unary_answer(call: ServerCall) -> None:
        assert await call.receive() is not None
        call.reply(answers[call.stream.id][0])

    async def streamed_answers(call: ServerCall) -> None:
        for message in answers[call.stream.id]:
            await call.send(message)
        while (request := await call.receive()) is not None:
            if request == DISCONNECT:
                return
        await trio.sleep_forever()

    handlers: Mapping[str, Handler] = {
        method: streamed_answers if method in STREAMING else unary_answer
        for method in invoked_methods(file, conn)
    }
    near, far = link_pair()
    with trio.fail_after(60):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(serve_rpc, far, handlers)
            for payload in connections(file)[conn]:
                if payload.to_server:
                    near.send_nowait(payload.data)
                    await trio.testing.wait_all_tasks_blocked()
            got = by_stream(bytes(near.received))
            assert got == wanted
            await near.aclose()


def invoked_methods(file: str, conn: int) -> set[str]:
    methods = set()
    for data, _ in by_stream(said(file, conn, by_server=False)).values():
        decoder = PacketDecoder()
        decoder.receive_data(data)
        packet = decoder.next_packet()
        assert packet is not None
        assert packet.kind == Kind.INVOKE
        methods.add(packet.data.decode())
    return methods

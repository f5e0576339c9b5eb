"""Fuzz targets of the DERP stream: frames, handshake, connection, splitter."""

from __future__ import annotations

from collections.abc import Callable

from relay.derp.split import split_frames
from tailnet.derp.connection import (
    ClientConnection,
    ClientHello,
    ServerConnection,
    ServerGreeting,
    State,
    encode_client_frame,
    encode_server_frame,
)
from tailnet.derp.frame_buffer import FrameBuffer, decode_frame
from tailnet.derp.frames import (
    MAGIC,
    FrameType,
    RawFrame,
    RecvPacket,
    SendPacket,
    UnknownFrame,
    decode_client_frame,
    decode_server_frame,
    encode_frame,
    encode_send_packet,
    looks_like_disco,
)
from tailnet.derp.handshake import (
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
from tailnet.keys import KEY_LEN, NodePublic
from tests.fuzz.common import CLIENT, SERVER, pieces, single_bytes

__all__ = (
    "client_connection",
    "client_info",
    "frames",
    "server_connection",
    "server_info",
    "server_key",
    "splitter",
)

INFO = ClientInfo(can_ack_pings=True)
SERVER_PUBLIC = SERVER.public()
CLIENT_PUBLIC = CLIENT.public()


def _raw(frame_type: int, body: bytes) -> RawFrame:
    return RawFrame(frame_type, memoryview(body))


# -- frames -----------------------------------------------------------------


def frames(data: bytes) -> None:
    """A stream of frames, read by both ends."""
    whole, rest, fault = _split([data])
    for chunks in (pieces(data), single_bytes(data)):
        assert _split(chunks) == (whole, rest, fault)
    if not fault:
        wire = b"".join(encode_frame(*frame) for frame in whole)
        assert wire + rest == data
    for frame_type, body in whole:
        _check_server_frame(_raw(frame_type, body))
        _check_client_frame(_raw(frame_type, body))


def _split(chunks: list[bytes]) -> tuple[list[tuple[int, bytes]], bytes, bool]:
    buffer, found = FrameBuffer(), []
    for chunk in chunks:
        buffer.receive_data(chunk)
        try:
            while (frame := buffer.next_frame()) is not None:
                found.append((frame.type, bytes(frame.body)))
        except RemoteProtocolError:
            return found, b"", True
    return found, buffer.take_rest(), False


def _check_server_frame(raw: RawFrame) -> None:
    frame = decode_server_frame(raw)
    if frame is None or isinstance(frame, UnknownFrame):
        return
    try:
        wire = encode_server_frame(frame)
    except LocalProtocolError:
        # Go's client takes longer packets than any relay may send.
        assert isinstance(frame, RecvPacket)
        return
    again = decode_frame(memoryview(wire))
    assert again is not None
    assert decode_server_frame(again[0]) == frame


def _check_client_frame(raw: RawFrame) -> None:
    try:
        frame = decode_client_frame(raw)
    except RemoteProtocolError:
        return
    if isinstance(frame, UnknownFrame):
        return
    again = decode_frame(memoryview(encode_client_frame(frame)))
    assert again is not None
    assert decode_client_frame(again[0]) == frame


# -- the handshake ----------------------------------------------------------


def server_key(data: bytes) -> None:
    """A ServerKey frame, with the magic in front or without."""
    for body in (data, MAGIC + data):
        try:
            key = decode_server_key(_raw(FrameType.SERVER_KEY, body))
        except RemoteProtocolError:
            continue
        assert encode_server_key(key)[5:] == body[:40]


def client_info(data: bytes) -> None:
    """A ClientInfo frame: a raw one, or JSON in a good box."""
    sealed = CLIENT.seal_to(SERVER_PUBLIC, data)
    for body in (data, bytes(CLIENT_PUBLIC) + sealed):
        try:
            key, info = decode_client_info(SERVER, _raw(FrameType.CLIENT_INFO, body))
        except RemoteProtocolError:
            continue
        # Nobody else can have sealed it; but X25519 does not look at the top
        # bit of a key (RFC 7748 5).
        assert bytes(key)[:31] == bytes(CLIENT_PUBLIC)[:31]
        assert bytes(key)[31] & 0x7F == bytes(CLIENT_PUBLIC)[31]
        wire = encode_client_info(CLIENT, SERVER_PUBLIC, info)
        raw = _raw(FrameType.CLIENT_INFO, wire[5:])
        assert decode_client_info(SERVER, raw) == (CLIENT_PUBLIC, info)


def server_info(data: bytes) -> None:
    """A ServerInfo frame: a raw one, or JSON in a good box."""
    for body in (data, SERVER.seal_to(CLIENT_PUBLIC, data)):
        raw = _raw(FrameType.SERVER_INFO, body)
        try:
            info = decode_server_info(CLIENT, SERVER.public(), raw)
        except RemoteProtocolError:
            continue
        wire = encode_server_info(SERVER, CLIENT.public(), info)
        raw = _raw(FrameType.SERVER_INFO, wire[5:])
        assert decode_server_info(CLIENT, SERVER.public(), raw) == info


# -- the connection ---------------------------------------------------------


def _open_server() -> ServerConnection:
    """The relay's end behind the handshake, without its cost."""
    connection = ServerConnection(SERVER)
    connection.state = State.OPEN
    return connection


def client_connection(data: bytes) -> None:
    """The client's end; an odd first byte begins behind ServerKey."""

    def start() -> ClientConnection:
        connection = ClientConnection(CLIENT, INFO)
        if data[:1] and data[0] & 1:
            connection.server_key = SERVER_PUBLIC
            connection.state = State.OPEN
        return connection

    _check_connection(start, data[1:])


def server_connection(data: bytes) -> None:
    """The relay's end; an odd first byte begins behind the handshake."""

    def start() -> ServerConnection:
        return _open_server() if data[:1] and data[0] & 1 else ServerConnection(SERVER)

    _check_connection(start, data[1:])


def _check_connection(
    start: Callable[[], ClientConnection | ServerConnection], data: bytes
) -> None:
    whole = _events(start(), [data])
    for chunks in (pieces(data), single_bytes(data)):
        assert _events(start(), chunks) == whole


def _events(
    connection: ClientConnection | ServerConnection, chunks: list[bytes]
) -> list[object]:
    """All events, and then the fault if there is one."""
    events: list[object] = []
    for chunk in chunks:
        connection.receive_data(chunk)
        try:
            while (event := connection.next_event()) is not None:
                events.append(event)
                if isinstance(event, ClientHello):
                    assert isinstance(connection, ServerConnection)
                    connection.admit(ServerInfo())
                elif isinstance(event, ServerGreeting):
                    assert connection.data_to_send()
        except RemoteProtocolError as exc:
            return [*events, str(exc)]
    return events


# -- the relay's splitter ---------------------------------------------------


class _Flat:
    """A sink that undoes the runs: what a ServerConnection would tell."""

    def __init__(self) -> None:
        self.frames: list[object] = []

    def packets(self, dst: bytes, frames: bytes, count: int, *, disco: bool) -> None:
        before = len(self.frames)
        buffer = FrameBuffer()
        buffer.receive_data(frames)
        while (raw := buffer.next_frame()) is not None:
            frame = decode_server_frame(raw)
            assert isinstance(frame, RecvPacket)
            assert frame.src == CLIENT_PUBLIC
            assert looks_like_disco(frame.packet) == disco
            self.frames.append(SendPacket(NodePublic(dst), frame.packet))
        assert buffer.take_rest() == b""
        assert len(self.frames) - before == count

    def frame(self, frame_type: int, body: bytes) -> None:
        frame = decode_client_frame(_raw(frame_type, body))
        # Bodies of unknown frames are skipped, so their length is lost.
        self.frames.append(frame_type if isinstance(frame, UnknownFrame) else frame)


def splitter(data: bytes) -> None:
    """The relay's fast splitter tells the same as ServerConnection.

    A first byte that is odd stands for frames of one size to one peer, which
    the splitter reads in a way of their own.
    """
    if data[:1] and data[0] & 1:
        size = data[0] >> 1
        body = data[1:]
        peers = (SERVER_PUBLIC, NodePublic(b"\x2a" * KEY_LEN))
        packets = [body[i : i + size] for i in range(0, len(body), size or 1)]
        data = b"".join(
            encode_send_packet(peers[packet[:1] == b"\x2a"], packet)
            for packet in packets[:40]
        )
    expected = [
        event.type if isinstance(event, UnknownFrame) else event
        for event in _events(_open_server(), [data])
    ]
    refused = bool(expected) and isinstance(expected[-1], str)
    if refused:
        expected.pop()
    for chunks in ([data], pieces(data), single_bytes(data)):
        assert _split_for_relay(chunks) == (expected, refused)


def _split_for_relay(chunks: list[bytes]) -> tuple[list[object], bool]:
    """Feed the splitter as the relay does: not before there is enough for it."""
    sink, waiting, wanted, skip = _Flat(), b"", 0, 0
    for chunk in chunks:
        skipped = min(skip, len(chunk))
        skip -= skipped
        waiting += chunk[skipped:]
        if len(waiting) < wanted:
            continue
        try:
            used, wanted = split_frames(waiting, bytes(CLIENT_PUBLIC), sink)
        except RemoteProtocolError:
            return sink.frames, True
        skip += max(0, used - len(waiting))
        waiting = waiting[used:]
    return sink.frames, False

"""DERP clients of a scenario, with names instead of keys."""

from __future__ import annotations

import zlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Final, Literal, TypeAlias

import trio

from tailnet.derp.frame_buffer import FrameBuffer
from tailnet.derp.frames import (
    FrameType,
    KeepAlive,
    PeerGone,
    Pong,
    RawFrame,
    RecvPacket,
    decode_server_frame,
    encode_frame,
    encode_ping,
    encode_send_packet,
)
from tailnet.derp.handshake import (
    ClientInfo,
    decode_server_key,
    encode_client_info,
)
from tailnet.keys import NodePrivate, NodePublic
from tests.interop.probe.http import Reply, head, read_reply
from tests.interop.probe.websocket import WebSocketWire, websocket_headers
from tests.interop.probe.wire import Target, Wire, dial

__all__ = (
    "CLOSED",
    "DERP_UPGRADE",
    "SILENCE",
    "Cast",
    "Peer",
    "Way",
    "open_cast",
)

Way: TypeAlias = Literal["upgrade", "fast start", "websocket"]

# Events besides frames.
CLOSED: Final = "closed"
SILENCE: Final = "silence"

DERP_UPGRADE: Final = (("Upgrade", "DERP"), ("Connection", "Upgrade"))

# How long something that must come may take on a busy machine. Waiting for
# what must *not* come takes a short time of its own.
PATIENCE: Final = 15.0
QUIET: Final = 0.6


class Peer:
    """A DERP connection.

    Attributes:
        name: Of its key, in answers.
        private: Its key.
        wire: Its connection.
        server: The relay's key, once ServerKey has come.
    """

    def __init__(self, cast: Cast, name: str, private: NodePrivate, wire: Wire) -> None:
        self.name = name
        self.private = private
        self.wire = wire
        self.server: NodePublic | None = None
        self._cast = cast
        self._buffer = FrameBuffer()
        self._pings = 0

    @property
    def public(self) -> NodePublic:
        return self.private.public()

    def receive_data(self, data: bytes) -> None:
        """Add bytes that came before frames were expected."""
        self._buffer.receive_data(data)

    async def send(self, *data: bytes) -> None:
        await self.wire.send(b"".join(data))

    async def send_frame(self, frame_type: int, body: bytes = b"") -> None:
        await self.wire.send(encode_frame(frame_type, body))

    async def send_packet(self, to: Peer | NodePublic, packet: bytes) -> None:
        key = to.public if isinstance(to, Peer) else to
        await self.wire.send(encode_send_packet(key, packet))

    async def send_client_info(self, info: ClientInfo | None = None) -> None:
        """Introduce ourselves; ServerKey must have come."""
        assert self.server is not None
        await self.wire.send(
            encode_client_info(
                self.private, self.server, info or ClientInfo(can_ack_pings=True)
            )
        )

    async def next_frame(self, within: float = PATIENCE) -> RawFrame | None:
        """The next frame; None at the end of the connection.

        Args:
            within: Seconds.

        Raises:
            trio.TooSlowError: None came.
        """
        with trio.fail_after(within):
            while (frame := self._buffer.next_frame()) is None:
                data = await self.wire.receive()
                if not data:
                    return None
                self._buffer.receive_data(data)
        return frame

    async def next_event(self, within: float = PATIENCE) -> str:
        """The next frame as a text, or CLOSED, or SILENCE after ``within``."""
        try:
            frame = await self.next_frame(within)
        except trio.TooSlowError:
            return SILENCE
        return CLOSED if frame is None else self.describe(frame)

    async def events(self, quiet: float = QUIET) -> list[str]:
        """All events until nothing more comes for ``quiet`` seconds."""
        found: list[str] = []
        while not found or found[-1] != CLOSED:
            event = await self.next_event(quiet)
            if event == SILENCE:
                break
            found.append(event)
        return found

    async def flush(self) -> list[str]:
        """All events up to the answer to a Ping sent now.

        What the relay sent to this client before it read the Ping may come
        after the Pong (derper picks among its queues at random), so this
        waits a little longer than that.

        Returns:
            The events without the Pong; CLOSED is the last if the relay
            closed instead.
        """
        self._pings += 1
        data = f"flush{self._pings:03}".encode()
        await self.send(encode_ping(data))
        pong = self._cast.describe_pong(data)
        found: list[str] = []
        while True:
            event = await self.next_event()
            if event == pong:
                return found + await self.events(0.1)
            found.append(event)
            if event in (CLOSED, SILENCE):
                return found

    async def is_alive(self) -> bool:
        """Whether the relay answers a Ping."""
        return (await self.flush())[-1:] not in ([CLOSED], [SILENCE])

    def describe(self, frame: RawFrame) -> str:
        """A frame from the relay as a text."""
        if frame.type == FrameType.SERVER_KEY:
            self.server = decode_server_key(frame)
            return f"ServerKey of {len(frame.body)} bytes"
        if frame.type == FrameType.SERVER_INFO:
            assert self.server is not None
            text = self.private.open_from(self.server, bytes(frame.body))
            return f"ServerInfo {text.decode()}"
        match decode_server_frame(frame):
            case RecvPacket(src, packet):
                return f"RecvPacket({self._cast.name_of(src)}, {show(packet)})"
            case PeerGone(peer, reason) if len(frame.body) == 33:
                return f"PeerGone({self._cast.name_of(peer)}, {reason})"
            case Pong(data) if len(frame.body) == len(data):
                return self._cast.describe_pong(data)
            case KeepAlive() if not frame.body:
                return "KeepAlive"
            case _:
                return f"frame {frame.type:#04x} of {len(frame.body)} bytes"


class Cast:
    """The clients of one scenario.

    Args:
        target: The relay they use.
    """

    def __init__(self, target: Target) -> None:
        self.target = target
        self._keys: dict[str, NodePrivate] = {}
        self._wires: list[Wire] = []

    def key(self, name: str) -> NodePrivate:
        """The key of ``name``, made when it is first asked for."""
        return self._keys.setdefault(name, NodePrivate.generate())

    def name_of(self, key: NodePublic) -> str:
        for name, private in self._keys.items():
            if private.public() == key:
                return name
        return "a stranger"

    @staticmethod
    def describe_pong(data: bytes) -> str:
        return f"Pong({data.decode('ascii', 'backslashreplace')})"

    async def connect(
        self, name: str = "A", *, receive_buffer: int | None = None
    ) -> Peer:
        """A TCP (and TLS) connection on which nothing has been said."""
        wire = await dial(self.target, receive_buffer=receive_buffer)
        self._wires.append(wire)
        return Peer(self, name, self.key(name), wire)

    async def upgrade(
        self,
        name: str = "A",
        *,
        way: Way = "upgrade",
        receive_buffer: int | None = None,
    ) -> Peer:
        """A connection on which ServerKey has come."""
        peer = await self.connect(name, receive_buffer=receive_buffer)
        if way == "fast start":
            fast = (*DERP_UPGRADE, ("Derp-Fast-Start", "1"))
            await peer.send(head(self.target, headers=fast))
        else:
            headers = DERP_UPGRADE if way == "upgrade" else websocket_headers()
            await peer.send(head(self.target, headers=headers))
            reply = await read_reply(peer.wire)
            assert isinstance(reply, Reply), reply
            assert reply.status == 101, reply
            if way == "websocket":
                peer.wire = WebSocketWire(peer.wire, reply.rest)
            else:
                peer.receive_data(reply.rest)
        event = await peer.next_event()
        assert event.startswith("ServerKey"), event
        return peer

    async def join(
        self,
        name: str = "A",
        *,
        way: Way = "upgrade",
        receive_buffer: int | None = None,
    ) -> Peer:
        """A connection on which ServerInfo has come."""
        peer = await self.upgrade(name, way=way, receive_buffer=receive_buffer)
        await peer.send_client_info()
        event = await peer.next_event()
        assert event.startswith("ServerInfo"), event
        return peer

    async def leave(self, peer: Peer) -> None:
        """Close a connection of ours."""
        await peer.wire.aclose()

    async def aclose(self) -> None:
        for wire in self._wires:
            await wire.aclose()


@asynccontextmanager
async def open_cast(target: Target) -> AsyncIterator[Cast]:
    """Clients for one scenario, all closed at its end."""
    cast = Cast(target)
    try:
        yield cast
    finally:
        await cast.aclose()


def show(packet: bytes) -> str:
    """A packet as a text: itself if short, else its length and CRC-32."""
    if len(packet) <= 40 and packet.isascii():
        return repr(packet.decode())
    return f"{len(packet)} bytes {zlib.crc32(packet):08x}"

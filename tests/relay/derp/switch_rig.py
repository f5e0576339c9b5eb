"""A switch with clients on socket pairs, for the tests of every switch.

Sockets of one process deliver at once, and trio's autojump clock moves only
when nothing can be read any more. So what these tests see does not depend on
how fast the machine is.
"""

from __future__ import annotations

import socket
import ssl
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Protocol

import trio
import trio.testing

from relay.derp.switch import ConnId, Hello, Limits, Switch, SwitchStatistics
from relay.front.tls import TlsConnection
from tailnet.derp.frame_buffer import FrameBuffer
from tailnet.derp.frames import (
    DISCO_MAGIC,
    FrameType,
    RecvPacket,
    ServerFrame,
    UnknownFrame,
    decode_server_frame,
    encode_frame,
    encode_send_packet,
)
from tailnet.derp.handshake import ClientInfo
from tailnet.derp.websocket import WebsocketStream
from tailnet.keys import NodePublic
from tests.doubles import (
    ClientCodec,
    PlainCodec,
    StackedCodec,
    WebsocketClient,
    tls_pair,
)

__all__ = ("HELLO", "TRANSPORTS", "MakeSwitch", "Peer", "Rig", "disco", "key")

TRANSPORTS = ("plain", "tls", "websocket", "tls websocket")

# Stands for ServerInfo: the switch does not look into it.
HELLO_BYTES = encode_frame(FrameType.SERVER_INFO, b"hello")
HELLO = UnknownFrame(FrameType.SERVER_INFO, 5)


class MakeSwitch(Protocol):
    """Makes the switch under test."""

    def __call__(
        self, *, limits: Limits, queue_total: int, jitter: Callable[[], float]
    ) -> Switch: ...


def key(name: str) -> NodePublic:
    """A key that is easy to tell from others."""
    return NodePublic(name.encode().ljust(32, b"."))


def disco(size: int = 62, fill: bytes = b"d") -> bytes:
    """A packet that looks like disco."""
    return DISCO_MAGIC + fill * (size - len(DISCO_MAGIC))


class Peer:
    """A client of the switch: the other end of an adopted connection."""

    def __init__(
        self, sock: socket.socket, codec: ClientCodec, key: NodePublic
    ) -> None:
        self.sock = sock
        self.codec = codec
        self.key = key
        self.id = ConnId(0)
        self.hung_up = False  # the relay has closed the socket
        self._buffer = FrameBuffer()
        self._unsent = b""

    def send(self, *frames: bytes) -> None:
        """Send frames; they must fit the socket, or the test is wrong."""
        self.send_raw(self.codec.encode(b"".join(frames)))

    def send_packet(self, dst: Peer | NodePublic, packet: bytes) -> None:
        to = dst.key if isinstance(dst, Peer) else dst
        self.send(encode_send_packet(to, packet))

    def send_raw(self, data: bytes) -> None:
        assert self.sock.send(data) == len(data)

    def send_some(self, frames: bytes) -> bool:
        """Send as much as fits, keep the rest for the next call.

        Returns:
            Whether all of ``frames`` has been taken; if not, call again with
            ``b""`` until it has.
        """
        if frames:
            self._unsent += self.codec.encode(frames)
        try:
            while self._unsent:
                self._unsent = self._unsent[self.sock.send(self._unsent) :]
        except BlockingIOError:
            return False
        return True

    async def send_all(self, frames: bytes) -> None:
        """Send frames as the switch takes them in."""
        done = self.send_some(frames)
        while not done:
            await trio.lowlevel.wait_writable(self.sock)
            done = self.send_some(b"")

    def read(self, limit: int | None = None) -> bytes:
        """Read DERP bytes that are there, at most ``limit`` from the socket."""
        chunks = []
        left = 1 << 40 if limit is None else limit
        while left:
            try:
                chunk = self.sock.recv(min(left, 1 << 16))
            except BlockingIOError:
                break
            except ConnectionResetError:  # it closed with bytes of ours unread
                chunk = b""
            if not chunk:
                self.hung_up = True
                break
            left -= len(chunk)
            chunks.append(self.codec.decode(chunk))
        return b"".join(chunks)

    def has_bytes(self) -> bool:
        """Whether anything waits in the socket."""
        try:
            return bool(self.sock.recv(1, socket.MSG_PEEK))
        except BlockingIOError:
            return False

    def received(self, limit: int | None = None) -> list[ServerFrame]:
        """Take the frames that have come."""
        self._buffer.receive_data(self.read(limit))
        return list(self._frames())

    def _frames(self) -> Iterator[ServerFrame]:
        while (raw := self._buffer.next_frame()) is not None:
            frame = decode_server_frame(raw)
            assert frame is not None, f"too short a frame: {raw.type} {raw.body!r}"
            yield frame

    def packets(self, limit: int | None = None) -> list[bytes]:
        """Take what has come, which must be RecvPacket alone."""
        frames = self.received(limit)
        packets = [f.packet for f in frames if isinstance(f, RecvPacket)]
        assert len(packets) == len(frames), frames
        return packets

    def close(self) -> None:
        """Hang up."""
        self.sock.close()


@dataclass
class Rig:
    """A running switch and its clients.

    Attributes:
        switch: Under test.
        transport: One of TRANSPORTS, for clients to come.
        peers: All that have joined.
    """

    switch: Switch
    transport: str = "plain"
    peers: list[Peer] = field(default_factory=list)

    def adopt(
        self,
        who: NodePublic | str,
        *,
        leftover: bytes = b"",
        limits: Limits | None = None,
        buffers: int | None = None,
        not_ideal: bool = False,
        tls_version: ssl.TLSVersion = ssl.TLSVersion.TLSv1_3,
    ) -> Peer:
        """A client comes; its hello waits in its socket.

        Args:
            who: Its key, or the name of one.
            leftover: Bytes that came behind its handshake.
            limits: Of its own.
            buffers: Of both ends of its socket, in bytes.
            not_ideal: It would rather be elsewhere.
            tls_version: If the transport has TLS.
        """
        near, far = socket.socketpair()
        near.setblocking(False)
        far.setblocking(False)
        if buffers is not None:
            for sock in (near, far):
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, buffers)
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, buffers)
        codec: ClientCodec = PlainCodec()
        tls: TlsConnection | None = None
        websocket: WebsocketStream | None = None
        if "websocket" in self.transport:
            websocket = WebsocketStream(server=True)
            codec = WebsocketClient()
        if "tls" in self.transport:
            tls, outer = tls_pair(tls_version)
            codec = outer if websocket is None else StackedCodec(codec, outer)
        peer = Peer(far, codec, key(who) if isinstance(who, str) else who)
        self.peers.append(peer)
        hello = Hello(
            peer.key,
            ClientInfo(),
            HELLO_BYTES,
            remote=("192.0.2.1", 1000 + len(self.peers)),
            not_ideal=not_ideal,
        )
        peer.id = self.switch.adopt(
            near, hello, leftover=leftover, tls=tls, websocket=websocket, limits=limits
        )
        return peer

    async def join(
        self,
        who: NodePublic | str,
        *,
        limits: Limits | None = None,
        buffers: int | None = None,
        not_ideal: bool = False,
    ) -> Peer:
        """A client comes, and has read its hello."""
        peer = self.adopt(who, limits=limits, buffers=buffers, not_ideal=not_ideal)
        await self.settle()
        assert peer.received() == [HELLO]
        return peer

    async def settle(self) -> None:
        """Wait until the switch has done all it can without us."""
        await trio.testing.wait_all_tasks_blocked()

    async def leave(self, peer: Peer) -> None:
        """A client hangs up, and the switch has seen it."""
        peer.close()
        await self.settle()

    @property
    def counters(self) -> SwitchStatistics:
        return self.switch.statistics()

    def close(self) -> None:
        for peer in self.peers:
            peer.close()

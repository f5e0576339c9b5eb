"""A relay without sockets: the other end of a client's memory streams."""

from __future__ import annotations

import math
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import TypeVar

import trio
import trio.testing

from tailnet.derp.client import DerpClient
from tailnet.derp.connection import ClientHello, ServerConnection
from tailnet.derp.derpmap import DERPNode
from tailnet.derp.events import Connected, ConnectFailed, Disconnected
from tailnet.derp.frames import ClientFrame, ServerFrame
from tailnet.derp.handshake import ServerInfo
from tailnet.derp.upgrade import encode_upgrade_response
from tailnet.keys import NodePrivate

MemoryStream = trio.StapledStream[
    trio.testing.MemorySendStream, trio.testing.MemoryReceiveStream
]

CLIENT_KEY = NodePrivate(bytes.fromhex("20" + "22" * 30 + "62"))
RELAY_KEY = NodePrivate(bytes.fromhex("10" + "11" * 30 + "51"))
PEER = NodePrivate(bytes.fromhex("30" + "33" * 30 + "73")).public()

# One way to reach it, so that no race is run: an address, no IPv6, no TLS.
NODE = DERPNode(
    name="900a",
    region_id=900,
    host_name="derp.test",
    ipv4="192.0.2.1",
    ipv6="none",
    derp_port=3340,
    force_http=True,
)


@dataclass
class MemoryRelay:
    """Takes connections as ``connect`` of a client, and hands them to a test."""

    key: NodePrivate = field(default_factory=lambda: RELAY_KEY)
    dialed: list[tuple[str, int, socket.AddressFamily]] = field(default_factory=list)
    refusing: bool = False

    def __post_init__(self) -> None:
        self._push, self._pop = trio.open_memory_channel[MemoryStream](math.inf)

    async def connect(
        self, host: str, port: int, family: socket.AddressFamily
    ) -> trio.abc.Stream:
        await trio.lowlevel.checkpoint()
        self.dialed.append((host, port, family))
        if self.refusing:
            raise ConnectionRefusedError("refused")
        near, far = trio.testing.memory_stream_pair()
        self._push.send_nowait(far)
        return near

    async def accept(self) -> RelayEnd:
        """The relay's end of the next connection, nothing read yet."""
        return RelayEnd(await self._pop.receive(), ServerConnection(self.key))

    async def admit(self, info: ServerInfo | None = None) -> RelayEnd:
        """Accept the next connection and bring it through the whole login."""
        end = await self.accept()
        await end.upgrade()
        await end.admit(info)
        return end


@dataclass
class RelayEnd:
    """One connection, seen from the relay."""

    stream: MemoryStream | trio.abc.Stream
    connection: ServerConnection
    request: bytes = b""
    hello: ClientHello | None = None

    async def read_head(self) -> bytes:
        """Read an HTTP head; what is behind it goes to the DERP connection."""
        received = b""
        while b"\r\n\r\n" not in received:
            chunk = await self.stream.receive_some()
            assert chunk, "the client has closed"
            received += chunk
        head, end, rest = received.partition(b"\r\n\r\n")
        self.request = head + end
        if rest:
            self.connection.receive_data(rest)
        return self.request

    async def upgrade(self) -> None:
        """Read the request, answer 101 and ServerKey in one write."""
        await self.read_head()
        answer = encode_upgrade_response(RELAY_KEY.public())
        await self.stream.send_all(answer + self.connection.data_to_send())

    async def admit(self, info: ServerInfo | None = None, *frames: ServerFrame) -> None:
        """Read ClientInfo, answer ServerInfo, and frames in the same write."""
        hello = await self._next_event()
        assert isinstance(hello, ClientHello)
        self.hello = hello
        self.connection.admit(info)
        behind = b"".join(map(self.connection.encode, frames))
        await self.stream.send_all(self.connection.data_to_send() + behind)

    async def send(self, *frames: ServerFrame) -> None:
        """Send frames in one write."""
        await self.stream.send_all(b"".join(map(self.connection.encode, frames)))

    async def next_frame(self) -> ClientFrame:
        """The next frame of the client."""
        event = await self._next_event()
        assert not isinstance(event, ClientHello)
        return event

    async def _next_event(self) -> ClientFrame | ClientHello:
        while (event := self.connection.next_event()) is None:
            chunk = bytes(await self.stream.receive_some())
            if not chunk:
                raise trio.EndOfChannel
            self.connection.receive_data(chunk)
        return event


@asynccontextmanager
async def answering(relay: MemoryRelay) -> AsyncIterator[None]:
    """Admit all connections of a block, and keep them silent and open."""

    async def admit_all() -> None:
        ends = []
        while True:
            ends.append(await relay.admit())

    async with trio.open_nursery() as nursery:
        nursery.start_soon(admit_all)
        yield
        nursery.cancel_scope.cancel()


EventT = TypeVar("EventT", Connected, Disconnected, ConnectFailed)


async def wait_event(client: DerpClient, kind: type[EventT]) -> EventT:
    """The next event of a kind; fails after 600 virtual seconds."""
    with trio.fail_after(600):
        while not isinstance(event := await client.receive(), kind):
            pass
    return event

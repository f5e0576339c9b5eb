"""A peer of the control transport that says whatever a test wants it to."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable, Mapping
from contextlib import asynccontextmanager
from functools import partial

import trio
import trio.testing

from tailnet.control.drpc import Kind, Packet, PacketDecoder, encode_packet
from tailnet.control.server import Handler, serve_rpc
from tailnet.control.yamux import MAX_STREAMS
from tailnet.control.yamux_frames import (
    ACK,
    FIN,
    RST,
    SYN,
    FrameType,
    encode_header,
)
from tests.control.memory_link import MemoryLink, link_pair
from tests.control.recorded import frames

__all__ = ("RawPeer", "raw_client", "request")


def request(method: str, *messages: bytes, done: bool = True) -> bytes:
    """The packets of a call: Invoke, messages, and CloseSend if it is ``done``."""
    wire = encode_packet(Kind.INVOKE, 1, 1, method.encode())
    for number, message in enumerate(messages, 2):
        wire += encode_packet(Kind.MESSAGE, 1, number, message)
    if done:
        wire += encode_packet(Kind.CLOSE_SEND, 1, len(messages) + 2)
    return wire


class RawPeer:
    """One end of a link, by hand."""

    def __init__(self, link: MemoryLink) -> None:
        self.link = link

    def update(self, stream_id: int, flags: int, credit: int = 0) -> None:
        self.link.send_nowait(
            encode_header(FrameType.WINDOW_UPDATE, flags, stream_id, credit)
        )

    def open(self, stream_id: int, data: bytes = b"") -> None:
        self.update(stream_id, SYN)
        if data:
            self.data(stream_id, data)

    def accept(self, stream_id: int) -> None:
        self.update(stream_id, ACK)

    def data(self, stream_id: int, data: bytes) -> None:
        header = encode_header(FrameType.DATA, 0, stream_id, len(data))
        self.link.send_nowait(header + data)

    def fin(self, stream_id: int) -> None:
        self.update(stream_id, FIN)

    def rst(self, stream_id: int) -> None:
        self.update(stream_id, RST)

    async def settle(self) -> None:
        """Wait until the other end has done what it had to."""
        await trio.testing.wait_all_tasks_blocked()

    async def read_all(self) -> None:
        """Read what comes, until the end, so that the other end can send."""
        while await self.link.receive():
            pass

    async def answer_pings(self) -> None:
        """Read what comes, and show that somebody is there."""
        while data := await self.link.receive():
            for header, _ in frames(data):
                if header.type == FrameType.PING and header.flags == SYN:
                    self.link.send_nowait(
                        encode_header(FrameType.PING, ACK, 0, header.length)
                    )

    # -- what the other end has said so far ---------------------------------

    def packets(self, stream_id: int) -> list[Packet]:
        decoder = PacketDecoder()
        decoder.receive_data(self.received(stream_id))
        found = []
        while (packet := decoder.next_packet()) is not None:
            found.append(packet)
        assert decoder.held == 0
        return found

    def received(self, stream_id: int) -> bytes:
        return b"".join(
            body
            for header, body in frames(bytes(self.link.received))
            if (header.type, header.stream_id) == (FrameType.DATA, stream_id)
        )

    def flags(self, stream_id: int) -> list[int]:
        """Flags of all frames of a stream that have some."""
        return [
            header.flags
            for header, _ in frames(bytes(self.link.received))
            if header.stream_id == stream_id and header.flags and header.type < 2
        ]

    def credit(self, stream_id: int) -> int:
        return sum(
            header.length
            for header, _ in frames(bytes(self.link.received))
            if (header.type, header.stream_id) == (FrameType.WINDOW_UPDATE, stream_id)
        )


@asynccontextmanager
async def raw_client(
    handlers: Mapping[str, Handler],
    *,
    capacity: int = 1 << 20,
    ping_interval: float | None = None,
    on_pong: Callable[[float], object] | None = None,
    max_streams: int = MAX_STREAMS,
) -> AsyncGenerator[RawPeer]:
    """A client by hand, and a server of ours. It has to end by itself."""
    near, far = link_pair(capacity)
    with trio.fail_after(10_000):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(
                partial(
                    serve_rpc,
                    far,
                    handlers,
                    ping_interval=ping_interval,
                    on_pong=on_pong,
                    max_streams=max_streams,
                )
            )
            yield RawPeer(near)
            await near.aclose()

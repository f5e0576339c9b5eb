"""One connection of a DERP client, from its login to its end.

Two tasks: one reads, one writes. The reader takes as much as there is and
handles every frame in it before it reads again; the writer puts all that is
queued into one write, and there is never more than one write in flight. What
ends the connection ends both, and is the session's result rather than an
exception.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final

import trio

from tailnet.derp.connection import ServerGreeting
from tailnet.derp.events import ClientDropReason, ClientLimits, ClientStatistics
from tailnet.derp.frames import (
    FRAME_HEADER,
    PING_LEN,
    Health,
    KeepAlive,
    PeerGone,
    PeerPresent,
    Ping,
    Pong,
    RecvPacket,
    Restarting,
    UnknownFrame,
    encode_note_preferred,
    encode_ping,
    encode_pong,
    encode_send_packet,
)
from tailnet.derp.handshake import ServerInfo
from tailnet.derp.login import Login
from tailnet.derp.pacing import TokenBucket
from tailnet.derp.queues import DropOldestQueue
from tailnet.errors import LocalProtocolError, NotConnectedError, RemoteProtocolError
from tailnet.keys import KEY_LEN, NodePublic

__all__ = ("PING_TIMEOUT", "READ_TIMEOUT", "Session")

# derp_client.go Recv: two KeepAlives have not come. Seconds.
READ_TIMEOUT: Final = 120.0

# derphttp_client.go Ping waits "at most 5 seconds".
PING_TIMEOUT: Final = 5.0

# Ours: Pongs that may wait to be written. derper answers one Ping at a time.
_MAX_PONGS: Final = 16


@dataclass(slots=True)
class _Outstanding:
    """A Ping of ours that has not been answered."""

    done: trio.Event = field(default_factory=trio.Event)
    answered_at: float | None = None


class Session:
    """A connection on which a relay has admitted us.

    Args:
        login: The connection. The session closes it.
        limits: Of the queue.
        counters: To count in.
        deliver: Takes what the relay sends for the user.

    Attributes:
        login: As given.
        room: Where those wait who want to add to a full queue, or know of the
            end. Woken for both.
        ended: The connection is gone.
    """

    def __init__(
        self,
        login: Login,
        limits: ClientLimits,
        counters: ClientStatistics,
        deliver: Callable[
            [RecvPacket | PeerGone | PeerPresent | Health | Restarting], None
        ],
    ) -> None:
        self.login = login
        self.room = trio.lowlevel.ParkingLot()
        self.ended = False
        self._channel = login.channel
        self._counters = counters
        self._deliver = deliver
        self._queue: DropOldestQueue[bytes] = DropOldestQueue(
            limits.send_packets, limits.send_bytes
        )
        self._control: deque[bytes] = deque()
        self._pongs: deque[bytes] = deque()
        self._pings: dict[bytes, _Outstanding] = {}
        self._work = trio.lowlevel.ParkingLot()
        self._writing = False
        self._bucket: TokenBucket | None = None
        self._obey(login.server_info)
        self._scope = trio.CancelScope()
        self._reason = ""

    async def run(self) -> str:
        """Carry frames until the connection ends, however it does.

        Returns:
            What ended it, for people.
        """
        try:
            with self._scope:
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(self._read)
                    nursery.start_soon(self._write)
        finally:
            self.ended = True
            self._drop(len(self._queue), ClientDropReason.GONE_DISCONNECTED)
            self._queue.take_all()
            self.room.unpark_all()
            for ping in self._pings.values():
                ping.done.set()
            await trio.aclose_forcefully(self._channel.stream)
        return self._reason

    def close(self, reason: str) -> None:
        """End the session; ``run`` returns soon. The first reason stands."""
        self._reason = self._reason or reason
        self._scope.cancel()

    # -- sending ------------------------------------------------------------

    def fits(self, packet: bytes) -> bool:
        """Whether ``put`` would drop nothing that waits."""
        return self._queue.fits(FRAME_HEADER.size + KEY_LEN + len(packet))

    def put(self, dst: NodePublic, packet: bytes) -> None:
        """Queue a packet.

        It is dropped if it is over the relay's limit; if the queue is full,
        the oldest ones are.

        Raises:
            LocalProtocolError: It is longer than 65,536 bytes.
        """
        frame = encode_send_packet(dst, packet)
        size = len(frame)
        if self._bucket is not None and not self._bucket.allow(
            size, trio.current_time()
        ):
            # derp_client.go send: "drop", and no error.
            self._drop(1, ClientDropReason.RATE_LIMIT)
            return
        dropped = self._queue.put(frame, size)
        if dropped:
            self._drop(len(dropped), ClientDropReason.QUEUE_HEAD)
        self._work.unpark_all()

    def note_preferred(self, *, preferred: bool) -> None:
        """Tell the relay whether it is our home."""
        self._control.append(encode_note_preferred(preferred=preferred))
        self._work.unpark_all()

    async def ping(self) -> float:
        """Measure the way to the relay and back; see ``DerpClient.ping``."""
        data = os.urandom(PING_LEN)
        ping = self._pings[data] = _Outstanding()
        started = trio.current_time()
        self._control.append(encode_ping(data))
        self._work.unpark_all()
        try:
            with trio.fail_after(PING_TIMEOUT):
                await ping.done.wait()
        finally:
            del self._pings[data]
        if ping.answered_at is None:
            raise NotConnectedError("the connection was lost before the Pong came")
        return ping.answered_at - started

    @property
    def waiting(self) -> int:
        """Packets in the queue."""
        return len(self._queue)

    async def wait_written(self) -> None:
        """Wait until all that was queued is written, or the end."""
        await trio.lowlevel.checkpoint()
        while not self.ended and (
            self._writing or self._queue or self._control or self._pongs
        ):
            await self.room.park()

    def _drop(self, count: int, reason: ClientDropReason) -> None:
        self._counters.packets_dropped[reason] += count

    async def _write(self) -> None:
        channel, counters = self._channel, self._counters
        try:
            while True:
                while not (
                    self._queue or self._control or self._pongs or channel.has_replies
                ):
                    await self._work.park()
                size = self._queue.bytes
                packets = self._queue.take_all()
                batch = [*self._pongs, *self._control, *packets]
                counters.pings_answered += len(self._pongs)
                self._pongs.clear()
                self._control.clear()
                self._writing = True
                self.room.unpark_all()
                await channel.send(b"".join(batch))
                self._writing = False
                self.room.unpark_all()
                counters.writes += 1
                counters.packets_sent += len(packets)
                counters.bytes_sent += size - len(packets) * (
                    FRAME_HEADER.size + KEY_LEN
                )
        except trio.BrokenResourceError as exc:
            self.close(f"the connection broke: {exc.__cause__ or exc}")
        except LocalProtocolError:
            # Between the relay's Close and the reader's seeing to it.
            self.close("the relay has closed the websocket")

    # -- receiving ----------------------------------------------------------

    async def _read(self) -> None:
        channel = self._channel
        try:
            self._handle_frames()  # that came behind ServerInfo
            while True:
                with trio.fail_after(READ_TIMEOUT):
                    received = await channel.receive()
                self._counters.reads += 1
                self._handle_frames()
                if channel.has_replies:
                    self._work.unpark_all()
                if not received:
                    self.close("the relay closed the connection")
                    return
        except trio.TooSlowError:
            self.close(f"nothing came from the relay for {READ_TIMEOUT:.0f} s")
        except trio.BrokenResourceError as exc:
            self.close(f"the connection broke: {exc.__cause__ or exc}")
        except RemoteProtocolError as exc:
            self.close(f"the relay broke the protocol: {exc}")

    def _handle_frames(self) -> None:
        connection, counters = self._channel.connection, self._counters
        while (event := connection.next_event()) is not None:
            match event:
                case RecvPacket():
                    counters.packets_received += 1
                    counters.bytes_received += len(event.packet)
                    self._deliver(event)
                case PeerGone() | PeerPresent() | Health() | Restarting():
                    self._deliver(event)
                case KeepAlive():
                    counters.keep_alives += 1
                case Ping(data):
                    if len(self._pongs) < _MAX_PONGS:
                        self._pongs.append(encode_pong(data))
                        self._work.unpark_all()
                case Pong(data):
                    ping = self._pings.get(data)
                    if ping is not None and ping.answered_at is None:
                        ping.answered_at = trio.current_time()
                        ping.done.set()
                case ServerInfo():
                    # derp_client.go takes one at any time.
                    self._obey(event)
                case ServerGreeting() | UnknownFrame():
                    counters.unknown_frames += 1

    def _obey(self, info: ServerInfo) -> None:
        """derp_client.go setSendRateLimiter."""
        self._bucket = None
        if info.token_bucket_rate:
            self._bucket = TokenBucket(
                info.token_bucket_rate, info.token_bucket_burst, trio.current_time()
            )

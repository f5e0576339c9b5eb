"""One adopted connection of the pure switch: its socket, both ways.

Reading: socket, TLS, websocket, then :func:`~relay.derp.split.split_frames`,
which calls back with runs of packets and single frames. Writing: the outbox is
joined, framed, sealed, and sent; one write is in flight at a time and goes on
at the exact byte, so a slow reader cannot corrupt its stream. Neither way ever
waits: a full socket is left for the switch to watch.
"""

from __future__ import annotations

import socket
from typing import TYPE_CHECKING, Final

from relay.derp.clients import Client
from relay.derp.outbox import Outbox
from relay.derp.split import PREFIX_LEN, split_frames
from relay.derp.switch import ConnectionStatistics, ConnId, DropReason, Hello, Limits
from relay.front.tls import TlsConnection, TlsError
from tailnet.derp.frames import (
    FRAME_HEADER,
    FrameType,
    PeerGoneReason,
    encode_peer_gone,
    encode_pong,
)
from tailnet.derp.websocket import WebsocketStream
from tailnet.errors import RemoteProtocolError
from tailnet.keys import NodePublic

if TYPE_CHECKING:
    from relay.derp.pure_switch import PureSwitch

__all__ = ("Connection",)

# Sealed ahead of the socket at most. What is sealed can no longer be dropped.
WRITE_BUDGET: Final = 128 << 10

# Pieces of an unfinished frame before they are put together: a client that
# drips bytes must not have us keep an object for each.
_MAX_PIECES: Final = 64

# derpserver.go: rate.NewLimiter(rate.Every(time.Second), 3).
NOT_HERE_BURST: Final = 3.0

# derpserver.go setPreferred: a change sooner than this is the client choosing
# its first home, not moving.
_HOME_MOVE_AFTER: Final = 5.0


class Connection:
    """A client's connection, owned by the switch.

    Args:
        switch: The owner.
        conn_id: Its name for this connection.
        sock: Connected and non-blocking.
        hello: Who it is.
        client: The set of connections that it belongs to.
        tls: Its TLS state, if any.
        websocket: Its websocket state, if any.
        limits: Its bounds.
        now: Seconds.
    """

    __slots__ = (
        "_bytes_received",
        "_carry",
        "_carry_len",
        "_not_here_at",
        "_not_here_tokens",
        "_packets_received",
        "_pong_queued",
        "_skip",
        "_switch",
        "_wanted",
        "_wire",
        "client",
        "closed",
        "connected_at",
        "dirty",
        "heard",
        "hello",
        "home",
        "id",
        "keep_alive_interval",
        "key",
        "limits",
        "outbox",
        "progress_at",
        "sock",
        "tls",
        "watched",
        "websocket",
        "write_timer_runs",
    )

    def __init__(
        self,
        switch: PureSwitch,
        conn_id: ConnId,
        sock: socket.socket,
        hello: Hello,
        client: Client[Connection],
        *,
        tls: TlsConnection | None,
        websocket: WebsocketStream | None,
        limits: Limits,
        now: float,
    ) -> None:
        self._switch = switch
        self.id = conn_id
        self.sock = sock
        self.hello = hello
        self.key = client.key
        self.client = client
        self.tls = tls
        self.websocket = websocket
        self.limits = limits
        self.connected_at = now
        self.closed = False
        self.dirty = False  # on the switch's list of those to flush
        self.home = False
        # Clients whose packets have come here: told to us when they go.
        self.heard: set[Client[Connection]] | None = None
        self.outbox = Outbox(
            switch.counters,
            max_bytes=limits.queue_bytes,
            max_packets=limits.queue_packets,
        )
        self.keep_alive_interval = 0.0  # seconds, jitter included
        self.watched = False  # for room in the socket
        # When the socket last took a byte, or when waiting for it began.
        self.progress_at = now
        self.write_timer_runs = False
        self._wire: memoryview | None = None  # sealed, not yet in the socket
        self._carry: list[bytes] | None = None  # part of a frame
        self._carry_len = 0
        self._wanted = FRAME_HEADER.size  # how much makes the frame whole
        self._skip = 0  # bytes left of an unknown frame
        self._pong_queued = False
        self._not_here_tokens = NOT_HERE_BURST
        self._not_here_at = now
        self._packets_received = 0
        self._bytes_received = 0

    def statistics(self) -> ConnectionStatistics:
        return ConnectionStatistics(
            packets_received=self._packets_received,
            bytes_received=self._bytes_received,
            packets_sent=self.outbox.packets_sent,
            bytes_sent=self.outbox.bytes_sent,
        )

    # -- reading ------------------------------------------------------------

    def handle_readable(self, buffer: memoryview) -> int:
        """Take what the socket has, at most ``len(buffer)`` bytes.

        Args:
            buffer: Scratch memory.

        Returns:
            How many bytes there were.
        """
        try:
            count = self.sock.recv_into(buffer)
        except (BlockingIOError, InterruptedError):
            return 0
        except OSError as exc:
            self._switch.drop_connection(self, f"read: {exc.strerror}")
            return 0
        if not count:
            self._switch.drop_connection(self, "the client hung up")
            return 0
        tls = self.tls
        try:
            if tls is None:
                self.receive_data(bytes(buffer[:count]))
            else:
                data = tls.feed(buffer[:count])
                if data:
                    self.receive_data(data)
                if tls.closed and not self.closed:
                    self._switch.drop_connection(self, "the client closed TLS")
                elif tls.pending:
                    # Key update or alert: answer even if no packet goes out.
                    self._switch.mark_dirty(self)
        except TlsError as exc:
            self._switch.drop_connection(self, f"TLS: {exc}", by_fault=True)
        return count

    def receive_data(self, data: bytes) -> None:
        """Take bytes that came through TLS, if there is TLS."""
        try:
            websocket = self.websocket
            if websocket is not None:
                data = websocket.receive_data(data)
                if websocket.pending:
                    self._switch.mark_dirty(self)
            if data:
                self.receive_derp(data)
            if websocket is not None and websocket.closed and not self.closed:
                self._switch.drop_connection(self, "the client closed the websocket")
        except RemoteProtocolError as exc:
            self._switch.drop_connection(self, str(exc), by_fault=True)

    def receive_derp(self, data: bytes) -> None:
        """Take bytes of the DERP stream.

        Raises:
            RemoteProtocolError: The client broke the protocol.
        """
        if self._skip:
            skipped = min(self._skip, len(data))
            self._skip -= skipped
            if skipped == len(data):
                return
            data = data[skipped:]
        carry = self._carry
        if carry is not None:
            carry.append(data)
            self._carry_len += len(data)
            if self._carry_len < self._wanted:
                if len(carry) >= _MAX_PIECES:
                    self._carry = [b"".join(carry)]
                return
            data = b"".join(carry)
            self._carry = None
            self._carry_len = 0
        if self.client.is_duplicate and len(data) >= FRAME_HEADER.size:
            # Any frame will do, as soon as its header is here.
            self._switch.note_activity(self)
        used, wanted = split_frames(data, self.key, self)
        left = len(data) - used
        if left > 0:
            self._carry = [data[used:] if used else data]
            self._carry_len = left
            self._wanted = wanted
        elif left < 0:
            self._skip = -left

    def packets(self, dst: bytes, frames: bytes, count: int, *, disco: bool) -> None:
        """A run of packets for one destination; see ``split.Sink``."""
        switch = self._switch
        counters = switch.counters
        payload = len(frames) - PREFIX_LEN * count
        counters.packets_received += count
        counters.bytes_received += payload
        self._packets_received += count
        self._bytes_received += payload
        if disco:
            counters.packets_received_disco += count
        target = switch.active.get(dst)
        if target is None:
            self._no_route(dst, payload, count, disco=disco)
            return
        if target not in self.client.heard_by:
            self.client.heard_by.add(target)
            if target.heard is None:
                target.heard = set()
            target.heard.add(self.client)
        target.outbox.put_packets(frames, count, switch.now, disco=disco)
        if not target.dirty:
            target.dirty = True
            switch.dirty.append(target)

    def _no_route(self, dst: bytes, payload: int, count: int, *, disco: bool) -> None:
        """derpserver.go handleFrameSendPacket, when nobody is there."""
        switch = self._switch
        if dst in switch.clients:
            switch.counters.drop(DropReason.DUP_CLIENT, count, payload, disco=disco)
            return
        switch.counters.drop(DropReason.UNKNOWN_DEST, count, payload, disco=disco)
        if disco:
            # Only disco: a node that has moved away is looked for with disco,
            # and would be found gone; its WireGuard packets may be in flight.
            for _ in range(count):
                self._say_not_here(dst)

    def _say_not_here(self, dst: bytes) -> None:
        now = self._switch.now
        tokens = min(NOT_HERE_BURST, self._not_here_tokens + now - self._not_here_at)
        self._not_here_at = now
        if tokens < 1:
            self._not_here_tokens = tokens
            return
        self._not_here_tokens = tokens - 1
        frame = encode_peer_gone(NodePublic(dst), PeerGoneReason.NOT_HERE)
        if self._switch.send_control(self, frame):
            self._switch.counters.peer_gone_not_here_frames += 1

    def frame(self, frame_type: int, body: bytes) -> None:
        """A frame that is not SendPacket; see ``split.Sink``."""
        switch = self._switch
        match frame_type:
            case FrameType.PING:
                switch.counters.got_ping += 1
                # One at a time, as derper: a flood of Pings is no amplifier.
                if not self._pong_queued and switch.send_control(
                    self, encode_pong(body[:8])
                ):
                    self._pong_queued = True
                    switch.counters.sent_pong += 1
            case FrameType.NOTE_PREFERRED:
                self._note_preferred(home=body != b"\0")
            case (
                FrameType.WATCH_CONNS | FrameType.CLOSE_PEER | FrameType.FORWARD_PACKET
            ):
                raise RemoteProtocolError(
                    f"{FrameType(frame_type).name} needs the mesh key"
                )
            case _:
                switch.counters.unknown_frames += 1

    def _note_preferred(self, *, home: bool) -> None:
        if home == self.home:
            return
        self.home = home
        if self._switch.now - self.connected_at > _HOME_MOVE_AFTER:
            if home:
                self._switch.counters.home_moves_in += 1
            else:
                self._switch.counters.home_moves_out += 1

    # -- writing ------------------------------------------------------------

    def flush(self) -> bool:
        """Write what is queued, until the socket is full or nothing is left.

        Returns:
            Whether all is written; if not, call again when the socket has
            room.

        Raises:
            OSError: The connection is broken.
        """
        now = self._switch.now
        wire = self._wire
        while True:
            if wire is None:
                data = self._next_bytes(now)
                if not data:
                    return True
                try:
                    sent = self.sock.send(data)
                except (BlockingIOError, InterruptedError):
                    self._wire = memoryview(data)
                    return False
                self.progress_at = now
                if sent == len(data):
                    continue
                wire = memoryview(data)[sent:]
            try:
                while wire:
                    wire = wire[self.sock.send(wire) :]
                    self.progress_at = now
            except (BlockingIOError, InterruptedError):
                self._wire = wire
                return False
            self._wire = wire = None

    def _next_bytes(self, now: float) -> bytes:
        """Frames that wait, framed and sealed; what is taken is committed."""
        data = self.outbox.take(WRITE_BUDGET, now)
        self._pong_queued = False
        websocket = self.websocket
        if websocket is not None:
            data = websocket.data_to_send() + (websocket.encode(data) if data else b"")
        tls = self.tls
        if tls is not None:
            if data:
                tls.write(data)
            data = tls.take()
        return data

    def last_words(self) -> None:
        """Say goodbye as websocket and TLS want it, if there is room now."""
        if self._wire is not None:
            return
        try:
            data = b""
            if self.websocket is not None:
                self.websocket.close()
                data = self.websocket.data_to_send()
            if self.tls is not None:
                if data:
                    self.tls.write(data)
                self.tls.close()
                data = self.tls.take()
            if data:
                self.sock.send(data)
        except (OSError, TlsError):
            pass

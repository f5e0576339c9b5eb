"""The switch: the seam between the relay's policy and its packets.

Python above it accepts, reads HTTP, shakes hands and decides who is admitted.
Below it packets go from connection to connection. Two implementations stand
behind this Protocol: the pure one (``pure_switch.py``) and, later, a native
one. One test-suite runs against both.
"""

from __future__ import annotations

import enum
import socket
from dataclasses import dataclass, field
from typing import NewType, Protocol

from relay.front.tls import TlsConnection
from tailnet.derp.handshake import ClientInfo
from tailnet.derp.websocket import WebsocketStream
from tailnet.keys import NodePublic

__all__ = (
    "ConnId",
    "ConnectionClosed",
    "ConnectionStatistics",
    "DropReason",
    "Hello",
    "KeyGone",
    "Limits",
    "PacketKind",
    "Switch",
    "SwitchEvent",
    "SwitchStatistics",
)

ConnId = NewType("ConnId", int)


class PacketKind(enum.StrEnum):
    """The two kinds that derper's metrics tell apart."""

    DISCO = "disco"
    OTHER = "other"


class DropReason(enum.StrEnum):
    """Why a packet was dropped, by the names of derper's metrics."""

    UNKNOWN_DEST = "unknown_dest"
    UNKNOWN_DEST_ON_FWD = "unknown_dest_on_fwd"
    GONE_DISCONNECTED = "gone_disconnected"
    QUEUE_HEAD = "queue_head"
    QUEUE_TAIL = "queue_tail"
    WRITE_ERROR = "write_error"
    DUP_CLIENT = "dup_client"


@dataclass(frozen=True, slots=True)
class Hello:
    """Who a connection is, and the frame that it gets first.

    Attributes:
        key: The client's node key, proven by the handshake.
        info: What the client said of itself.
        frames: Whole frames to send before anything else: ServerInfo.
        remote: Address and port of the client, None if unknown.
        not_ideal: The client sent ``Ideal-Node``: it would rather be on
            another relay of the region.
    """

    key: NodePublic
    info: ClientInfo
    frames: bytes
    remote: tuple[str, int] | None = None
    not_ideal: bool = False


@dataclass(frozen=True, slots=True)
class Limits:
    """Bounds of one connection.

    Attributes:
        queue_bytes: Bytes of frames that may wait for the client.
        queue_packets: Packets that may wait, in each of the two lanes.
        write_timeout: Seconds a write may make no progress; 0 for ever.
        keep_alive: Seconds between KeepAlive frames; a jitter of up to
            ``keep_alive_jitter`` seconds, fixed per connection, is added.
        keep_alive_jitter: Seconds.
    """

    queue_bytes: int = 2 << 20
    queue_packets: int = 4096
    write_timeout: float = 2.0
    keep_alive: float = 60.0
    keep_alive_jitter: float = 5.0


@dataclass(frozen=True, slots=True)
class ConnectionClosed:
    """A connection has left the switch; its socket is closed.

    Attributes:
        id: Which.
        key: Whose.
        reason: One line for the log: what ended it.
        by_fault: Whether the client broke the protocol.
        statistics: What it did while it lived.
        remaining: Connections that the switch has left.
    """

    id: ConnId
    key: NodePublic
    reason: str
    by_fault: bool
    statistics: ConnectionStatistics
    remaining: int


@dataclass(frozen=True, slots=True)
class KeyGone:
    """The last connection of a key has left."""

    key: NodePublic


SwitchEvent = ConnectionClosed | KeyGone


@dataclass(slots=True)
class ConnectionStatistics:
    """Counters of one connection; bytes are of packets, without headers."""

    packets_received: int = 0
    bytes_received: int = 0
    packets_sent: int = 0
    bytes_sent: int = 0


@dataclass(slots=True)
class SwitchStatistics:
    """Counters of the whole switch since it started, by derper's names."""

    current_connections: int = 0
    current_home_connections: int = 0
    current_not_ideal_connections: int = 0
    clients: int = 0
    dup_client_keys: int = 0
    dup_client_conns: int = 0
    total_dup_client_conns: int = 0
    accepts: int = 0
    packets_received: int = 0
    bytes_received: int = 0
    packets_sent: int = 0
    bytes_sent: int = 0
    received_by_kind: dict[PacketKind, int] = field(
        default_factory=lambda: dict.fromkeys(PacketKind, 0)
    )
    packets_dropped: dict[tuple[DropReason, PacketKind], int] = field(
        default_factory=lambda: {(r, k): 0 for r in DropReason for k in PacketKind}
    )
    bytes_dropped: dict[tuple[DropReason, PacketKind], int] = field(
        default_factory=lambda: {(r, k): 0 for r in DropReason for k in PacketKind}
    )
    unknown_frames: int = 0
    home_moves_in: int = 0
    home_moves_out: int = 0
    got_ping: int = 0
    sent_pong: int = 0
    keep_alives_sent: int = 0
    peer_gone_disconnected_frames: int = 0
    peer_gone_not_here_frames: int = 0
    write_timeouts: int = 0
    average_queue_duration_ms: float = 0.0
    queued_bytes: int = 0
    # Connections by TLS version, ``TLSv1.3`` and so on; plain ones are not in.
    connections_by_tls: dict[str, int] = field(default_factory=dict)


class Switch(Protocol):
    """Carries packets between adopted connections."""

    name: str

    def adopt(
        self,
        sock: socket.socket,
        hello: Hello,
        *,
        leftover: bytes = b"",
        tls: TlsConnection | None = None,
        websocket: WebsocketStream | None = None,
        limits: Limits | None = None,
    ) -> ConnId:
        """Take over a connection whose handshake is done.

        The route of its key exists before the hello is sent, and the hello is
        sent before any data: a packet that a peer sends as soon as the client
        says it is here finds its way (derper registers before ServerInfo
        too).

        Args:
            sock: A connected, non-blocking stream socket. It belongs to the
                switch from here on; no task may wait on it any more.
            hello: Who it is, and what it is told first.
            leftover: DERP bytes that were read behind the handshake, free of
                TLS and websocket framing.
            tls: The TLS state, if there is any; also moves in.
            websocket: The websocket state, if there is any; also moves in.
            limits: Bounds for this connection, or None for the switch's own.
        """
        ...

    def send(self, conn: ConnId, frames: bytes) -> bool:
        """Queue whole control frames ahead of data.

        Returns:
            False if the connection is gone, or has too many control bytes
            waiting already.
        """
        ...

    def close(self, conn: ConnId, reason: str) -> None:
        """Close one connection, by id: a key may have a newer one already."""
        ...

    def connections(self, key: NodePublic) -> list[ConnId]:
        """The connections of a key, oldest first; empty if it is not here."""
        ...

    def connection_statistics(self, conn: ConnId) -> ConnectionStatistics | None:
        """What one connection did so far, or None if it is gone."""
        ...

    def statistics(self) -> SwitchStatistics:
        """A copy of the counters."""
        ...

    async def wait_events(self) -> list[SwitchEvent]:
        """Wait until something happened, and take all that did."""
        ...

    async def wait_flushed(self) -> None:
        """Wait until all that is queued has gone into the sockets."""
        ...

    async def run(self) -> None:
        """Carry packets until cancelled; then every connection is closed."""
        ...

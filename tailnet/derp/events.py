"""What a DERP client tells its user: events, counters; and what it is told."""

from __future__ import annotations

import enum
from dataclasses import dataclass, field
from typing import TypeAlias

from tailnet.derp.derpmap import DERPNode
from tailnet.derp.frames import Health, PeerGone, PeerPresent, RecvPacket, Restarting
from tailnet.derp.handshake import ServerInfo
from tailnet.keys import NodePublic

__all__ = (
    "ClientDropReason",
    "ClientLimits",
    "ClientStatistics",
    "ConnectFailed",
    "Connected",
    "DerpEvent",
    "Disconnected",
)


@dataclass(frozen=True, slots=True)
class Connected:
    """A relay has admitted us. The first event, and one after each loss.

    Attributes:
        server_key: The relay's key. Another one than last time, for the same
            node, means that something spreads connections over relays.
        server_info: What the relay says of itself.
        node: The node of the region that we are connected to.
        remote: Its address and port.
        fast_start: A round trip was saved thanks to the meta certificate.
        websocket: DERP is carried in a websocket.
        tls_version: ``TLSv1.3``, ``TLSv1.2``, or None for plain HTTP.
        proxy: The proxy on the way, without its password; None if there is
            none.
    """

    server_key: NodePublic
    server_info: ServerInfo
    node: DERPNode
    remote: str
    fast_start: bool
    websocket: bool
    tls_version: str | None
    proxy: str | None = None


@dataclass(frozen=True, slots=True)
class Disconnected:
    """The connection is lost; the client connects again by itself.

    Attributes:
        reason: For people.
        retry_in: Seconds until it begins.
    """

    reason: str
    retry_in: float


@dataclass(frozen=True, slots=True)
class ConnectFailed:
    """An attempt to connect did not work; the client tries again by itself.

    Attributes:
        reason: For people.
        failures: Attempts that failed in a row.
        retry_in: Seconds until the next one.
    """

    reason: str
    failures: int
    retry_in: float


DerpEvent: TypeAlias = (
    RecvPacket
    | PeerGone
    | PeerPresent
    | Health
    | Restarting
    | Connected
    | Disconnected
    | ConnectFailed
)


class ClientDropReason(enum.StrEnum):
    """Why a client dropped a packet; where derper has a name, that one."""

    QUEUE_HEAD = "queue_head"  # the oldest, of too many that wait to be sent
    GONE_DISCONNECTED = "gone_disconnected"  # waited when the connection went
    RATE_LIMIT = "rate_limit"  # over what the relay allows in ServerInfo
    RECEIVE_QUEUE_HEAD = "receive_queue_head"  # the oldest that nobody took


@dataclass(frozen=True, slots=True)
class ClientLimits:
    """How much a client keeps in memory.

    The queues hold at least one packet, whatever the bytes.

    Attributes:
        send_packets: Packets that may wait to be sent. Go's magicsock has 32,
            but wakes up for each; here a batch may come at once.
        send_bytes: Bytes of frames that may wait to be sent.
        receive_packets: Events that may wait to be received.
        receive_bytes: Bytes of packets that may wait to be received.
    """

    send_packets: int = 256
    send_bytes: int = 1 << 20
    receive_packets: int = 4096
    receive_bytes: int = 4 << 20


@dataclass(slots=True)
class ClientStatistics:
    """Counters since the client was opened; bytes are of packets alone.

    Attributes:
        connected: Whether there is a connection now.
        node: Name of the node that it is to; None without a connection.
        connect_attempts: Attempts to connect, the present one included.
        connects: Those that worked.
        connects_by_node: Those that worked, by the node's name.
        dials_by_node: How often each node was dialed, by its name. One
            attempt may dial several.
        fast_starts: Those of them with fast start.
        packets_sent: Handed to the kernel.
        bytes_sent: Bytes.
        writes: Times that something was written; several packets each.
        packets_received: Whether they were taken or not.
        bytes_received: Bytes.
        reads: Times that something was read.
        packets_dropped: By reason.
        send_queue_packets: Packets that wait to be sent now.
        keep_alives: KeepAlive frames.
        pings_answered: Pings of the relay.
        unknown_frames: Frames of a type that is not known, skipped.
        force_websocket_reason: Why the client fell back to websockets, in
            Coder's words (``derp_forced_websocket``); None if it did not.
    """

    connected: bool = False
    node: str | None = None
    connect_attempts: int = 0
    connects: int = 0
    connects_by_node: dict[str, int] = field(default_factory=dict)
    dials_by_node: dict[str, int] = field(default_factory=dict)
    fast_starts: int = 0
    packets_sent: int = 0
    bytes_sent: int = 0
    writes: int = 0
    packets_received: int = 0
    bytes_received: int = 0
    reads: int = 0
    packets_dropped: dict[ClientDropReason, int] = field(
        default_factory=lambda: dict.fromkeys(ClientDropReason, 0)
    )
    send_queue_packets: int = 0
    keep_alives: int = 0
    pings_answered: int = 0
    unknown_frames: int = 0
    force_websocket_reason: str | None = None

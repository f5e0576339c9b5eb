"""The coordinator as a state machine: requests in, responses out, no I/O.

Coder ``tailnet/coordinator.go``. A *tunnel* is a directed pair of peers, source
and destination; it makes both ends see each other's node. It may lead to a
peer that is not connected, and takes effect when that peer appears.

===================  ==========================  =================================
what happens         who is told                 kind, reason
===================  ==========================  =================================
connect              the new connection          NODE ``init``
update_self          who shares a tunnel         NODE ``node update``
add_tunnel           both ends                   NODE ``add tunnel``
remove_tunnel        both ends                   DISCONNECTED ``remove tunnel``
disconnect           who shares a tunnel         DISCONNECTED ``graceful disconnect``
stream lost          who shares a tunnel         LOST ``lost``
queue full           who shares a tunnel         DISCONNECTED ``failed update``
ready_for_handshake  the peer that it names      READY_FOR_HANDSHAKE
peer removed         who shares a tunnel         DISCONNECTED, the caller's reason
coordinator closes   everyone                    LOST ``coordinator close``
===================  ==========================  =================================

Each peer has an *audience*: the connections that were sent its node, all of
them the one it published last. So a node that they have, byte for byte, is not
sent again; and DISCONNECTED and LOST, which end that, go only to them. It is
also what makes an update cheap: the audience is a list of receivers already.

Two things are ours. A tunnel to oneself is ignored. And if a tunnel is removed
while one in the other direction remains, the ends lose sight of each other, as
with Coder; but the next node of one then shows both, not only that one.

What comes out is encoded, once for all who get it. Ids are the 16 bytes of a
UUID: they hash faster than UUIDs do, and they are what is on the wire.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final, Generic, NamedTuple, Self, TypeVar
from uuid import UUID

from tailnet.control.convert import uuid_from_proto
from tailnet.control.proto import tailnet_pb2
from tailnet.coordinator.responses import (
    Kind,
    encode_error,
    encode_update,
    join_updates,
)
from tailnet.errors import LocalProtocolError, RemoteProtocolError

__all__ = (
    "CLOSED_ERROR",
    "MAX_NODE_SIZE",
    "MAX_READY",
    "OVERWRITTEN_ERROR",
    "QUEUE_DEPTH",
    "Connection",
    "CoordinatorCore",
    "Delivery",
    "End",
    "Event",
)

# coordinator.go ResponseBufferSize: responses that may wait for one peer.
QUEUE_DEPTH: Final = 512

# Ours: a node is sent to all who share a tunnel, and QUEUE_DEPTH of them may
# wait for each. A Go node with endpoints of ten networks and the latency of
# fifty regions has 3 KiB.
MAX_NODE_SIZE: Final = 16 << 10

CLOSED_ERROR: Final = "coordinator closed"
OVERWRITTEN_ERROR: Final = "peer ID overwritten by new connection"

# Ours: peers that one request is ready for. Go's agents name one at a time.
MAX_READY: Final = QUEUE_DEPTH

_RFH_ERROR: Final = (
    'ready for handshake error: you do not share a tunnel with "{peer_id}"'
)


class Connection:
    """One stream of one peer, as the core knows it.

    Attributes:
        raw_id: The peer's UUID, 16 bytes.
        name: For people.
        node: What the peer published on this connection, encoded.
        audience: The connections that know the peer, as keys in order.
        shown: The node that they all have. It is ``node`` if there is that,
            else from a connection that this one overwrote.
        ended: Nothing more comes from this connection, nor goes to it.
    """

    __slots__ = (
        "_unseen",
        "audience",
        "ended",
        "name",
        "node",
        "raw_id",
        "shown",
    )

    def __init__(self, peer_id: UUID, name: str = "") -> None:
        self.raw_id = peer_id.bytes
        self.name = name
        self.node: bytes | None = None
        self.audience: dict[Self, None] = {}
        self.shown: bytes | None = None
        self.ended = False
        # Peers that are out of sight though there is a tunnel; mostly none.
        self._unseen: set[bytes] | None = None

    @property
    def peer_id(self) -> UUID:
        return UUID(bytes=self.raw_id)

    def note_unseen(self, raw_id: bytes) -> None:
        """Remember a peer that a tunnel should show, but does not."""
        if self._unseen is None:
            self._unseen = set()
        self._unseen.add(raw_id)

    def take_unseen(self) -> set[bytes]:
        """The peers that were noted since the last call."""
        unseen, self._unseen = self._unseen, None
        return unseen or set()


ConnectionT = TypeVar("ConnectionT", bound=Connection)


class Delivery(NamedTuple, Generic[ConnectionT]):
    """An encoded CoordinateResponse, and who gets it."""

    data: bytes
    receivers: list[ConnectionT]


class End(NamedTuple, Generic[ConnectionT]):
    """Close a stream, behind what was delivered to it."""

    connection: ConnectionT


Event = Delivery[ConnectionT] | End[ConnectionT]


class CoordinatorCore(Generic[ConnectionT]):
    """All peers and tunnels. Events are to be performed in their order."""

    def __init__(self) -> None:
        self._peers: dict[bytes, ConnectionT] = {}
        # Each tunnel is in both; an id without tunnels is in neither.
        self._destinations: dict[bytes, set[bytes]] = {}
        self._sources: dict[bytes, set[bytes]] = {}
        self._closed = False

    # -- what there is ------------------------------------------------------

    @property
    def closed(self) -> bool:
        return self._closed

    @property
    def connections(self) -> list[ConnectionT]:
        """The connection of each peer that is here."""
        return list(self._peers.values())

    @property
    def tunnels(self) -> list[tuple[UUID, UUID]]:
        """Source and destination of each tunnel."""
        return [
            (UUID(bytes=source), UUID(bytes=destination))
            for source, destinations in self._destinations.items()
            for destination in destinations
        ]

    def connection(self, peer_id: UUID) -> ConnectionT | None:
        """A peer's connection, if it is here."""
        return self._peers.get(peer_id.bytes)

    # -- events -------------------------------------------------------------

    def connect(self, connection: ConnectionT) -> list[Event[ConnectionT]]:
        """A peer opens its stream. An older one of the same peer ends.

        Raises:
            LocalProtocolError: The coordinator is closed.
        """
        if self._closed:
            raise LocalProtocolError(CLOSED_ERROR)
        events: list[Event[ConnectionT]] = []
        raw_id = connection.raw_id
        old = self._peers.get(raw_id)
        if old is not None:
            # The others are not told: they have the peer's node, and the new
            # connection will publish one.
            old.ended = True
            connection.audience, old.audience = old.audience, {}
            connection.shown = old.shown
            for other in self._sharing(raw_id):
                other.audience.pop(old, None)
            events += [Delivery(encode_error(OVERWRITTEN_ERROR), [old]), End(old)]
        self._peers[raw_id] = connection
        updates = [
            update
            for other in self._sharing(raw_id)
            if (update := self._show(other, connection, "init")) is not None
        ]
        events += [Delivery(data, [connection]) for data in join_updates(updates)]
        return events

    def handle_request(
        self, connection: ConnectionT, request: tailnet_pb2.CoordinateRequest
    ) -> list[Event[ConnectionT]]:
        """Handle a request that is authorized already.

        Raises:
            RemoteProtocolError: It holds an id that is no UUID, a node longer
                than MAX_NODE_SIZE, or names more than MAX_READY peers. Nothing
                of it was done.
        """
        node = _node_of(request)
        added = _id_of(request, "add_tunnel")
        removed = _id_of(request, "remove_tunnel")
        ready = _ready_of(request)
        if connection.ended:
            return []
        events: list[Event[ConnectionT]] = []
        if node is not None:
            events += self._update_node(connection, node)
        if added is not None:
            events += self._add_tunnel(connection, added)
        if removed is not None:
            events += self._remove_tunnel(connection, removed)
        if request.HasField("disconnect"):
            events += self._leave(connection, Kind.DISCONNECTED, "graceful disconnect")
        for raw_id in ready:
            events += self._ready_for_handshake(connection, raw_id)
        return events

    def handle_lost(self, connection: ConnectionT) -> list[Event[ConnectionT]]:
        """A stream ended without a ``disconnect``."""
        return self._leave(connection, Kind.LOST, "lost")

    def handle_overflow(self, connection: ConnectionT) -> list[Event[ConnectionT]]:
        """More than QUEUE_DEPTH responses wait for a connection."""
        return self._leave(connection, Kind.DISCONNECTED, "failed update")

    def remove_peer(self, peer_id: UUID, reason: str) -> list[Event[ConnectionT]]:
        """A peer will never come back: tunnels to it go too.

        Args:
            peer_id: It need not be connected.
            reason: For people.
        """
        events: list[Event[ConnectionT]] = []
        connection = self._peers.get(peer_id.bytes)
        if connection is not None:
            events = self._leave(connection, Kind.DISCONNECTED, reason)
        for source in list(self._sources.get(peer_id.bytes, ())):
            self._drop_tunnel(source, peer_id.bytes)
        return events

    def close(self) -> list[Event[ConnectionT]]:
        """Tell everyone that all others are lost, and end all streams."""
        self._closed = True
        events: list[Event[ConnectionT]] = []
        for receiver in self._peers.values():
            # Each once, though two tunnels may lead there.
            seen = {
                subject.raw_id: None
                for subject in self._sharing(receiver.raw_id)
                if receiver in subject.audience
            }
            updates = (
                encode_update(raw_id, Kind.LOST, "coordinator close") for raw_id in seen
            )
            events += [Delivery(data, [receiver]) for data in join_updates(updates)]
        for connection in self._peers.values():
            connection.ended = True
            events.append(End(connection))
        self._peers.clear()
        self._destinations.clear()
        self._sources.clear()
        return events

    # -- the parts of a request ---------------------------------------------

    def _update_node(
        self, connection: ConnectionT, node: bytes
    ) -> list[Event[ConnectionT]]:
        audience = connection.audience
        receivers = [] if node == connection.shown else list(audience)
        unseen = connection.take_unseen()
        if connection.node is None or unseen:
            # Only then can there be someone who should have it and has none.
            for other in self._sharing(connection.raw_id):
                if other not in audience:
                    audience[other] = None
                    receivers.append(other)
        connection.node = connection.shown = node
        events: list[Event[ConnectionT]] = []
        if receivers:
            data = encode_update(connection.raw_id, Kind.NODE, "node update", node)
            events.append(Delivery(data, receivers))
        for other_id in unseen:
            subject = self._peers.get(other_id)
            if subject is not None and self._share_tunnel(connection.raw_id, other_id):
                events += self._deliver(subject, connection, "node update")
        return events

    def _add_tunnel(
        self, connection: ConnectionT, destination: bytes
    ) -> list[Event[ConnectionT]]:
        source = connection.raw_id
        if source == destination:
            return []
        self._destinations.setdefault(source, set()).add(destination)
        self._sources.setdefault(destination, set()).add(source)
        other = self._peers.get(destination)
        if other is None:
            return []
        return [
            *self._deliver(other, connection, "add tunnel"),
            *self._deliver(connection, other, "add tunnel"),
        ]

    def _remove_tunnel(
        self, connection: ConnectionT, destination: bytes
    ) -> list[Event[ConnectionT]]:
        source = connection.raw_id
        self._drop_tunnel(source, destination)
        other = self._peers.get(destination)
        if other is None:
            # Whoever is not here was LOST or DISCONNECTED already.
            return []
        if self._share_tunnel(source, destination):
            connection.note_unseen(destination)
            other.note_unseen(source)
        events: list[Event[ConnectionT]] = []
        for subject, receiver in ((other, connection), (connection, other)):
            if receiver in subject.audience:
                del subject.audience[receiver]
                data = encode_update(subject.raw_id, Kind.DISCONNECTED, "remove tunnel")
                events.append(Delivery(data, [receiver]))
        return events

    def _ready_for_handshake(
        self, connection: ConnectionT, destination: bytes
    ) -> list[Event[ConnectionT]]:
        if self._share_tunnel(connection.raw_id, destination):
            other = self._peers.get(destination)
            if other is None:
                return []
            data = encode_update(connection.raw_id, Kind.READY_FOR_HANDSHAKE)
            return [Delivery(data, [other])]
        if connection.ended:
            return []
        # Not fatal: the other end may have removed the tunnel meanwhile.
        text = _RFH_ERROR.format(peer_id=UUID(bytes=destination))
        return [Delivery(encode_error(text), [connection])]

    # -- the parts of those -------------------------------------------------

    def _leave(
        self, connection: ConnectionT, kind: Kind, reason: str
    ) -> list[Event[ConnectionT]]:
        if connection.ended:
            return []
        connection.ended = True
        raw_id = connection.raw_id
        receivers, connection.audience = list(connection.audience), {}
        for other in self._sharing(raw_id):
            other.audience.pop(connection, None)
        # Tunnels to it stay: they show it again as soon as it returns.
        for destination in list(self._destinations.get(raw_id, ())):
            self._drop_tunnel(raw_id, destination)
        del self._peers[raw_id]
        events: list[Event[ConnectionT]] = []
        if receivers:
            events.append(Delivery(encode_update(raw_id, kind, reason), receivers))
        events.append(End(connection))
        return events

    def _deliver(
        self, subject: ConnectionT, receiver: ConnectionT, reason: str
    ) -> list[Event[ConnectionT]]:
        update = self._show(subject, receiver, reason)
        return [] if update is None else [Delivery(update, [receiver])]

    def _show(
        self, subject: ConnectionT, receiver: ConnectionT, reason: str
    ) -> bytes | None:
        """Put a receiver into an audience; None if it is, or there is no node."""
        node = subject.node
        if node is None or receiver in subject.audience:
            return None
        subject.audience[receiver] = None
        return encode_update(subject.raw_id, Kind.NODE, reason, node)

    def _sharing(self, raw_id: bytes) -> Iterator[ConnectionT]:
        """Who is here and shares a tunnel; twice if there are two tunnels."""
        peers = self._peers
        for ids in (self._destinations.get(raw_id), self._sources.get(raw_id)):
            if ids is not None:
                for other_id in ids:
                    if (other := peers.get(other_id)) is not None:
                        yield other

    def _share_tunnel(self, one: bytes, other: bytes) -> bool:
        """Whether there is a tunnel, in either direction."""
        return other in self._destinations.get(
            one, ()
        ) or one in self._destinations.get(other, ())

    def _drop_tunnel(self, source: bytes, destination: bytes) -> None:
        for table, key, value in (
            (self._destinations, source, destination),
            (self._sources, destination, source),
        ):
            if (values := table.get(key)) is not None:
                values.discard(value)
                if not values:
                    del table[key]


# -- requests ---------------------------------------------------------------


def _node_of(request: tailnet_pb2.CoordinateRequest) -> bytes | None:
    if not (request.HasField("update_self") and request.update_self.HasField("node")):
        return None
    # In a fixed order, or an unchanged map might look like a changed one.
    node = request.update_self.node.SerializeToString(deterministic=True)
    if len(node) > MAX_NODE_SIZE:
        raise RemoteProtocolError(
            f"node of {len(node)} bytes, the limit is {MAX_NODE_SIZE}"
        )
    return node


def _ready_of(request: tailnet_pb2.CoordinateRequest) -> list[bytes]:
    # Each is answered, or handed on, by itself.
    if len(request.ready_for_handshake) > MAX_READY:
        raise RemoteProtocolError(
            f"ready for the handshakes of {len(request.ready_for_handshake)} peers, "
            f"the limit is {MAX_READY}"
        )
    return [uuid_from_proto(one.id).bytes for one in request.ready_for_handshake]


def _id_of(request: tailnet_pb2.CoordinateRequest, name: str) -> bytes | None:
    if not request.HasField(name):
        return None
    tunnel: tailnet_pb2.CoordinateRequest.Tunnel = getattr(request, name)
    return uuid_from_proto(tunnel.id).bytes

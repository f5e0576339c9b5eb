"""What a peer tells the coordinator, and what it hears of others; no I/O.

coder ``tailnet/controllers.go`` BasicCoordination and TunnelSrcCoordController:
what we want (a node, tunnels) outlives connections, and is said anew on each
one. What we know of others outlives them too: a peer counts as lost when a
new connection has brought nothing of it, not when the old one went.
"""

from __future__ import annotations

import enum
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final
from uuid import UUID

from google.protobuf.message import DecodeError

from tailnet.control.convert import uuid_from_proto
from tailnet.control.proto import tailnet_pb2
from tailnet.errors import RemoteProtocolError

__all__ = (
    "NOT_ANNOUNCED",
    "CoordinationState",
    "PeerUpdate",
    "PeerUpdateKind",
)

# The reason of the updates that we make ourselves.
NOT_ANNOUNCED: Final = "not announced after a reconnect"

# coordinator.go: an answer with this error ends nothing, see
# ``handleReadyForHandshakeLocked``.
_READY_ERROR: Final = "ready for handshake error"


class PeerUpdateKind(enum.IntEnum):
    """What has become of a peer (tailnet.proto CoordinateResponse.PeerUpdate)."""

    NODE = 1  # here it is, or how it changed
    DISCONNECTED = 2  # it has left, or the tunnel is gone
    LOST = 3  # the coordinator does not hear of it; it may still live
    READY_FOR_HANDSHAKE = 4  # it is ready for WireGuard's handshake


@dataclass(frozen=True, slots=True)
class PeerUpdate:
    """News of a peer.

    Attributes:
        peer_id: Whose.
        kind: What has happened.
        node: With NODE; do not change it.
        reason: For people; may be empty.
    """

    peer_id: UUID
    kind: PeerUpdateKind
    node: tailnet_pb2.Node | None = None
    reason: str = ""


class CoordinationState:
    """One peer's end of coordination, over all its connections."""

    def __init__(self) -> None:
        self._node: tailnet_pb2.Node | None = None
        self._tunnels: dict[UUID, None] = {}  # in the order of adding
        self._peers: set[UUID] = set()
        # Known before this connection, and not heard of on it.
        self._unheard: set[UUID] = set()
        self._connected = False
        self._requests: deque[tailnet_pb2.CoordinateRequest] = deque()

    @property
    def tunnels(self) -> frozenset[UUID]:
        """Peers to which there should be a tunnel."""
        return frozenset(self._tunnels)

    @property
    def peers(self) -> frozenset[UUID]:
        """Peers whose node is known, lost ones not."""
        return frozenset(self._peers)

    # -- what we want -------------------------------------------------------

    def update_node(self, node: tailnet_pb2.Node) -> None:
        """Say who we are; in place of what waits to be said of it."""
        copy = tailnet_pb2.Node()
        copy.CopyFrom(node)
        self._node = copy
        if not self._connected:
            return
        for request in self._requests:
            if request.HasField("update_self"):
                request.update_self.node.CopyFrom(copy)
                return
        self._requests.append(_update_self(copy))

    def add_tunnel(self, peer_id: UUID) -> None:
        """Open a tunnel. Nothing happens if there is one."""
        if peer_id in self._tunnels:
            return
        self._tunnels[peer_id] = None
        if self._connected:
            self._requests.append(_add_tunnel(peer_id))

    def remove_tunnel(self, peer_id: UUID) -> None:
        """Close a tunnel. Nothing happens if there is none."""
        if peer_id not in self._tunnels:
            return
        del self._tunnels[peer_id]
        if self._connected:
            request = tailnet_pb2.CoordinateRequest(remove_tunnel={"id": peer_id.bytes})
            self._requests.append(request)

    def ready_for_handshake(self, peer_ids: Iterable[UUID]) -> None:
        """Tell peers that WireGuard knows them; of this connection only."""
        entries = [
            tailnet_pb2.CoordinateRequest.ReadyForHandshake(id=peer_id.bytes)
            for peer_id in peer_ids
        ]
        if self._connected and entries:
            self._requests.append(
                tailnet_pb2.CoordinateRequest(ready_for_handshake=entries)
            )

    def disconnect(self) -> None:
        """Say good-bye, after all that waits."""
        if self._connected:
            self._requests.append(tailnet_pb2.CoordinateRequest(disconnect={}))

    # -- connections --------------------------------------------------------

    def connection_made(self) -> None:
        """There is a new connection, which knows nothing of us."""
        self._connected = True
        self._unheard = set(self._peers)
        self._requests.clear()
        # As Go's client: tunnels first. The coordinator takes them in any
        # order; a node without a tunnel goes to nobody.
        self._requests += map(_add_tunnel, self._tunnels)
        if self._node is not None:
            self._requests.append(_update_self(self._node))

    def connection_lost(self) -> None:
        """It is gone; what waits is said anew on the next one."""
        self._connected = False
        self._requests.clear()
        self._unheard.clear()

    def next_request(self) -> bytes | None:
        """Take what is to be sent next; None if there is nothing."""
        if not self._requests:
            return None
        return self._requests.popleft().SerializeToString()

    def receive_response(self, data: bytes) -> list[PeerUpdate]:
        """Take a message of the coordinator.

        Updates of a kind that we do not know are skipped.

        Raises:
            RemoteProtocolError: It is none, or it says that coordination has
                failed: it is over then.
        """
        response = tailnet_pb2.CoordinateResponse()
        try:
            response.ParseFromString(data)
        except DecodeError as exc:
            raise RemoteProtocolError(
                "the coordinator sent something that is no CoordinateResponse"
            ) from exc
        if response.error and not response.error.startswith(_READY_ERROR):
            raise RemoteProtocolError(f"coordination failed: {response.error}")
        return [
            known
            for update in response.peer_updates
            if (known := self._take_update(update)) is not None
        ]

    def _take_update(
        self, update: tailnet_pb2.CoordinateResponse.PeerUpdate
    ) -> PeerUpdate | None:
        peer_id = uuid_from_proto(update.id)
        try:
            kind = PeerUpdateKind(update.kind)
        except ValueError:
            return None
        node = None
        match kind:
            case PeerUpdateKind.NODE:
                if not update.HasField("node"):
                    raise RemoteProtocolError(f"no node in the update of {peer_id}")
                node = update.node
                self._peers.add(peer_id)
                self._unheard.discard(peer_id)
            case PeerUpdateKind.DISCONNECTED | PeerUpdateKind.LOST:
                self._peers.discard(peer_id)
                self._unheard.discard(peer_id)
            case PeerUpdateKind.READY_FOR_HANDSHAKE:
                pass
        return PeerUpdate(peer_id, kind, node, update.reason)

    def lose_unheard(self) -> list[PeerUpdate]:
        """Give up peers that this connection has brought nothing of."""
        lost = sorted(self._unheard)
        self._unheard.clear()
        self._peers.difference_update(lost)
        return [
            PeerUpdate(peer_id, PeerUpdateKind.LOST, None, NOT_ANNOUNCED)
            for peer_id in lost
        ]


def _add_tunnel(peer_id: UUID) -> tailnet_pb2.CoordinateRequest:
    return tailnet_pb2.CoordinateRequest(add_tunnel={"id": peer_id.bytes})


def _update_self(node: tailnet_pb2.Node) -> tailnet_pb2.CoordinateRequest:
    return tailnet_pb2.CoordinateRequest(update_self={"node": node})

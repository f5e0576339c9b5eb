"""The coordinator on trio: a peer's stream of requests, and what it is told.

Answers are sent at once, from whichever task made them necessary. So a peer
costs one task, which waits for its requests; and a peer that does not read
holds up nobody, for what its connection cannot take waits there, and when that
is more than QUEUE_DEPTH responses, or MAX_BACKLOG_SIZE bytes, it is dropped.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Final, Protocol
from uuid import UUID

import structlog
import trio
from google.protobuf.message import DecodeError

from tailnet.control.convert import node_key_from_proto
from tailnet.control.proto import tailnet_pb2
from tailnet.coordinator.auth import TunnelAuth
from tailnet.coordinator.core import (
    CLOSED_ERROR,
    MAX_NODE_SIZE,
    QUEUE_DEPTH,
    Connection,
    CoordinatorCore,
    Delivery,
    Event,
)
from tailnet.coordinator.node_keys import GRACE, NodeKeys
from tailnet.coordinator.responses import encode_error
from tailnet.errors import AuthorizationError, RemoteProtocolError
from tailnet.keys import NodePublic

__all__ = (
    "FEW_RESPONSES",
    "MAX_BACKLOG_SIZE",
    "MAX_LOST_PEERS",
    "MAX_REQUEST_SIZE",
    "CoordinateCall",
    "CoordinatorService",
    "CoordinatorSnapshot",
    "PeerSnapshot",
)

log = structlog.get_logger("tailnet.coordinator")

# Ours: lost peers that a snapshot shows. Whoever reconnects without end would
# fill the memory with itself.
MAX_LOST_PEERS: Final = 10_000


# Why a key is not known any more though its time is not over.
KEY_REPLACED: Final = "the peer has had many other keys since"

# Ours, in bytes: a node of the greatest length, and all else. What a message
# of 4 MiB can hold would take seconds to judge: 500,000 addresses.
MAX_REQUEST_SIZE: Final = 2 * MAX_NODE_SIZE


# Ours, in bytes: what may wait for one peer, if it is more than a few responses
# (the first ones may be large, with the nodes of all who wait for the peer).
MAX_BACKLOG_SIZE: Final = 1 << 20
FEW_RESPONSES: Final = 16


class CoordinateCall(Protocol):
    """What is used of :class:`tailnet.control.server.ServerCall`."""

    async def receive(self) -> bytes | None:
        """The next request; None at the end, whatever that was."""
        ...

    def send_nowait(self, message: bytes) -> None:
        """Send a response, or keep it."""
        ...

    @property
    def backlog(self) -> int:
        """Responses that wait."""
        ...

    @property
    def backlog_size(self) -> int:
        """Their bytes, about."""
        ...


@dataclass(frozen=True, slots=True)
class PeerSnapshot:
    """A peer, for people.

    Attributes:
        id: Its UUID.
        name: Its name.
        kind: What it is, as the caller of ``coordinate`` said.
        status: ``ok``; or ``lost``, for as long as others wait for it.
        since: When that began.
        node: What it published last, if it did.
    """

    id: UUID
    name: str
    kind: str
    status: str
    since: datetime
    node: tailnet_pb2.Node | None


@dataclass(frozen=True, slots=True)
class CoordinatorSnapshot:
    """All peers at one moment.

    Attributes:
        peers: First those that are here, then those that are lost.
        tunnels: Source and destination of each.
    """

    peers: tuple[PeerSnapshot, ...]
    tunnels: tuple[tuple[UUID, UUID], ...]


class _Stream(Connection):
    """A peer's stream."""

    __slots__ = ("call", "is_gone", "key", "kind", "scope", "since")

    def __init__(
        self, peer_id: UUID, name: str, kind: str, call: CoordinateCall
    ) -> None:
        super().__init__(peer_id, name)
        self.call = call
        self.kind = kind
        self.scope = trio.CancelScope()
        self.since = datetime.now(UTC)
        # The node key that it published, 32 bytes.
        self.key: bytes | None = None
        # It said goodbye, or was removed: nobody waits for it.
        self.is_gone = False


@dataclass(frozen=True, slots=True)
class _LostPeer:
    """A peer that may return."""

    stream_name: str
    kind: str
    node: bytes | None
    since: datetime
    deadline: float


class CoordinatorService:
    """Serves the Coordinate call of any number of peers.

    All methods but ``coordinate`` and ``run`` are for the thread of the tasks
    that run these.
    """

    def __init__(self) -> None:
        self._core: CoordinatorCore[_Stream] = CoordinatorCore()
        self._keys = NodeKeys()
        # In the order of their deadlines.
        self._lost: dict[bytes, _LostPeer] = {}
        self._key_listeners: list[Callable[[NodePublic, str], object]] = []

    async def run(self) -> None:
        """Forget lost peers when nobody waits for them any more. Never returns."""
        while True:
            now = trio.current_time()
            # What is lost from now on has a later deadline than this.
            deadline = self._keys.next_deadline()
            await trio.sleep_until(now + GRACE if deadline is None else deadline)
            now = trio.current_time()
            self._tell_gone(self._keys.expire(now), "lost")
            self._expire_lost(now)

    async def coordinate(
        self,
        call: CoordinateCall,
        *,
        peer_id: UUID,
        name: str,
        auth: TunnelAuth,
        kind: str,
    ) -> None:
        """Serve one peer, until it leaves or has to.

        Args:
            call: Its stream. The caller closes it behind what was sent.
            peer_id: Who it is. An older stream of the same peer ends.
            name: For people.
            auth: What it may do. What it raises except AuthorizationError is
                raised here, and the peer is lost.
            kind: For people: ``agent``, ``client``.
        """
        if self._core.closed:
            call.send_nowait(encode_error(CLOSED_ERROR))
            return
        stream = _Stream(peer_id, name, kind, call)
        self._lost.pop(stream.raw_id, None)
        with stream.scope:
            try:
                self._perform(self._core.connect(stream))
                error = await self._serve(stream, auth)
                if error is not None:
                    log.info(
                        "coordination refused",
                        peer=str(peer_id),
                        name=name,
                        kind=kind,
                        reason=error,
                    )
                    call.send_nowait(encode_error(error))
            finally:
                self._leave(stream)

    async def _serve(self, stream: _Stream, auth: TunnelAuth) -> str | None:
        """Handle requests; returns the error that ended it, if one did."""
        while (data := await stream.call.receive()) is not None:
            if len(data) > MAX_REQUEST_SIZE:
                return f"request of {len(data)} bytes, the limit is {MAX_REQUEST_SIZE}"
            try:
                request = tailnet_pb2.CoordinateRequest.FromString(data)
                await auth.authorize(request)
                if stream.ended:
                    return None  # meanwhile
                events = self._core.handle_request(stream, request)
            except AuthorizationError as exc:
                return f"authorization: {exc}"
            except RemoteProtocolError as exc:
                return str(exc)
            except DecodeError:
                return "not a CoordinateRequest"
            self._note_key(stream, request)
            if request.HasField("disconnect"):
                self._forget(stream, "graceful disconnect")
            self._perform(events)
        return None

    def _perform(self, events: Iterable[Event[_Stream]]) -> None:
        waiting = deque(events)
        while waiting:
            event = waiting.popleft()
            if not isinstance(event, Delivery):
                event.connection.scope.cancel()
                continue
            data = event.data
            for stream in event.receivers:
                call = stream.call
                call.send_nowait(data)
                if _is_too_slow(call) and not stream.ended:
                    log.info(
                        "peer too slow",
                        peer=str(stream.peer_id),
                        name=stream.name,
                        kind=stream.kind,
                    )
                    waiting.extend(self._core.handle_overflow(stream))

    def _leave(self, stream: _Stream) -> None:
        """The stream is over, in one way or another."""
        self._perform(self._core.handle_lost(stream))
        now = trio.current_time()
        heir = self._core.connection(stream.peer_id)
        if stream.key is not None and (heir is None or heir.key != stream.key):
            self._tell_gone(
                self._keys.lose(stream.key, stream.raw_id, now), KEY_REPLACED
            )
        if stream.is_gone or heir is not None or self._core.closed:
            return
        self._expire_lost(now)
        if len(self._lost) >= MAX_LOST_PEERS:
            del self._lost[next(iter(self._lost))]
        # At the end, for the order.
        self._lost.pop(stream.raw_id, None)
        self._lost[stream.raw_id] = _LostPeer(
            stream.name, stream.kind, stream.node, datetime.now(UTC), now + GRACE
        )

    def _expire_lost(self, now: float) -> None:
        lost = self._lost
        while lost and lost[oldest := next(iter(lost))].deadline <= now:
            del lost[oldest]

    # -- from outside -------------------------------------------------------

    def remove_peer(self, peer_id: UUID, reason: str) -> None:
        """End a peer for good: its stream, the tunnels to it, its keys.

        Args:
            peer_id: It need not be here.
            reason: What the others are told.
        """
        stream = self._core.connection(peer_id)
        if stream is not None:
            stream.is_gone = True
            stream.key = None
        self._lost.pop(peer_id.bytes, None)
        self._perform(self._core.remove_peer(peer_id, reason))
        self._tell_gone(self._keys.forget(peer_id.bytes), reason)

    def close(self) -> None:
        """Tell all peers that the others are lost, and end their streams."""
        self._perform(self._core.close())

    def snapshot(self) -> CoordinatorSnapshot:
        """All peers, and those that may return."""
        self._expire_lost(trio.current_time())
        here = [
            PeerSnapshot(s.peer_id, s.name, s.kind, "ok", s.since, _decode_node(s.node))
            for s in self._core.connections
        ]
        lost = [
            PeerSnapshot(
                UUID(bytes=raw_id),
                peer.stream_name,
                peer.kind,
                "lost",
                peer.since,
                _decode_node(peer.node),
            )
            for raw_id, peer in self._lost.items()
        ]
        return CoordinatorSnapshot((*here, *lost), tuple(self._core.tunnels))

    def peer_ids(self, kind: str) -> set[UUID]:
        """The peers of a kind: those that are here, and those that may return."""
        here = {s.peer_id for s in self._core.connections if s.kind == kind}
        return here | {
            UUID(bytes=raw_id)
            for raw_id, peer in self._lost.items()
            if peer.kind == kind
        }

    # -- node keys ----------------------------------------------------------

    def knows_node_key(self, key: NodePublic) -> bool:
        """Whether a peer that is here, or was lost less than GRACE ago, has it."""
        return self._keys.knows(bytes(key), trio.current_time())

    def on_node_key_gone(self, listener: Callable[[NodePublic, str], object]) -> None:
        """Have a function called when a key is not known any more.

        Args:
            listener: Gets the key and the reason. It must not raise. For keys
                of lost peers it is called by :meth:`run`.
        """
        self._key_listeners.append(listener)

    def _note_key(
        self, stream: _Stream, request: tailnet_pb2.CoordinateRequest
    ) -> None:
        raw_key = request.update_self.node.key
        if not raw_key:
            return
        try:
            key = bytes(node_key_from_proto(raw_key))
        except RemoteProtocolError:
            return  # others will make of it what they can
        if key != stream.key:
            if stream.key is not None:
                gone = self._keys.lose(stream.key, stream.raw_id, trio.current_time())
                self._tell_gone(gone, KEY_REPLACED)
            stream.key = key
            self._keys.publish(key, stream.raw_id)

    def _forget(self, stream: _Stream, reason: str) -> None:
        stream.is_gone = True
        key, stream.key = stream.key, None
        if key is not None and self._keys.forget_key(key, stream.raw_id):
            self._tell_gone([key], reason)

    def _tell_gone(self, keys: Iterable[bytes], reason: str) -> None:
        for key in keys:
            for listener in self._key_listeners:
                listener(NodePublic(key), reason)


def _is_too_slow(call: CoordinateCall) -> bool:
    backlog = call.backlog
    return backlog > QUEUE_DEPTH or (
        backlog > FEW_RESPONSES and call.backlog_size > MAX_BACKLOG_SIZE
    )


def _decode_node(node: bytes | None) -> tailnet_pb2.Node | None:
    return None if node is None else tailnet_pb2.Node.FromString(node)

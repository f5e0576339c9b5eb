"""Peers in one place, for tests of the core: who did what, and who heard it."""

from __future__ import annotations

from collections.abc import Iterable
from uuid import UUID

from tailnet.control.proto import tailnet_pb2
from tailnet.coordinator.core import Connection, CoordinatorCore, Delivery, Event

Update = tuple[str, str, str, int]  # kind, reason, name of the peer, node's id


class Peer(Connection):
    """A connection that keeps what it hears."""

    def __init__(self, number: int, name: str) -> None:
        super().__init__(UUID(int=number), name)
        self.heard: list[tailnet_pb2.CoordinateResponse] = []
        self.closed = False


class World:
    """A core, and the peers that ever connected, by name."""

    def __init__(self) -> None:
        self.core: CoordinatorCore[Peer] = CoordinatorCore()
        self.numbers: dict[str, int] = {}

    def id_of(self, name: str) -> bytes:
        number = self.numbers.setdefault(name, len(self.numbers) + 1)
        return UUID(int=number).bytes

    def perform(self, events: Iterable[Event[Peer]]) -> None:
        for event in events:
            if isinstance(event, Delivery):
                for peer in event.receivers:
                    assert not peer.closed
                    response = tailnet_pb2.CoordinateResponse.FromString(event.data)
                    # As the generated code would have encoded it.
                    again = response.SerializeToString(deterministic=True)
                    assert again == event.data
                    peer.heard.append(response)
            else:
                assert not event.connection.closed
                event.connection.closed = True

    def connect(self, name: str) -> Peer:
        self.id_of(name)
        peer = Peer(self.numbers[name], name)
        self.perform(self.core.connect(peer))
        return peer

    def request(
        self,
        peer: Peer,
        *,
        node: int | None = None,
        add: str | None = None,
        remove: str | None = None,
        disconnect: bool = False,
        ready: Iterable[str] = (),
    ) -> None:
        request = tailnet_pb2.CoordinateRequest()
        if node is not None:
            request.update_self.node.id = node
        if add is not None:
            request.add_tunnel.id = self.id_of(add)
        if remove is not None:
            request.remove_tunnel.id = self.id_of(remove)
        if disconnect:
            request.disconnect.SetInParent()
        for name in ready:
            request.ready_for_handshake.add(id=self.id_of(name))
        self.perform(self.core.handle_request(peer, request))

    def take(self, peer: Peer) -> list[Update | str]:
        """What a peer heard since the last call; errors as their text."""
        names = {UUID(int=number).bytes: name for name, number in self.numbers.items()}
        kinds = tailnet_pb2.CoordinateResponse.PeerUpdate.Kind
        taken: list[Update | str] = []
        for response in peer.heard:
            taken += [
                (kinds.Name(u.kind), u.reason, names[u.id], u.node.id)
                for u in response.peer_updates
            ]
            if response.error:
                taken.append(response.error)
        peer.heard.clear()
        return taken

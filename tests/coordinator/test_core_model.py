"""After any interleaving both ends agree, and nothing is sent twice.

The model knows nothing of records and batches: it says, from who is here, who
has a node and which tunnels there are, who sees whom. What peers heard must add
up to that.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any
from uuid import UUID

import pytest
from hypothesis import settings, strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from tests.coordinator.world import Peer, World

NAMES = ("a", "b", "c")
NAME = st.sampled_from(NAMES)
NODE = st.integers(1, 3)


class Interleavings(RuleBasedStateMachine):
    """Three peers that do whatever they like, and what each must see."""

    def __init__(self) -> None:
        super().__init__()
        self.world = World()
        self.here: dict[str, Peer] = {}
        self.published: dict[str, int] = {}  # on the connection of now
        self.shown: dict[str, int] = {}  # by the peer, on any connection
        self.tunnels: set[tuple[str, str]] = set()
        # Pairs that cannot see each other though there is a tunnel.
        self.parted: set[frozenset[str]] = set()
        # What each connection saw, and how it was told.
        self.views: dict[Peer, dict[str, int]] = {}
        self.old: list[Peer] = []
        self.closed = False

    # -- what peers do ------------------------------------------------------

    @precondition(lambda self: not self.closed)
    @rule(name=NAME)
    def connect(self, name: str) -> None:
        if name in self.here:
            self.old.append(self.here[name])
        self.here[name] = peer = self.world.connect(name)
        self.views[peer] = {}
        self.published.pop(name, None)
        # Who comes is shown all that its tunnels lead to.
        self._unite(name)

    @rule(name=NAME, node=NODE)
    def update(self, name: str, node: int) -> None:
        if name in self.here:
            self.world.request(self.here[name], node=node)
            self._publish(name, node)

    @rule(source=NAME, destination=NAME)
    def add_tunnel(self, source: str, destination: str) -> None:
        if source in self.here:
            self.world.request(self.here[source], add=destination)
            self._add(source, destination)

    @rule(one=NAME, other=NAME, node=NODE)
    def see_each_other(self, one: str, other: str, node: int) -> None:
        """What takes six steps otherwise, so that more happens after it."""
        for source, destination in ((one, other), (other, one)):
            if source not in self.here and not self.closed:
                self.connect(source)
            self.add_tunnel(source, destination)
            self.update(source, node)

    @rule(source=NAME, destination=NAME)
    def remove_tunnel(self, source: str, destination: str) -> None:
        if source in self.here:
            self.world.request(self.here[source], remove=destination)
            self._remove(source, destination)

    @rule(
        name=NAME,
        node=st.none() | NODE,
        add=st.none() | NAME,
        remove=st.none() | NAME,
        disconnect=st.booleans(),
    )
    def everything(
        self,
        name: str,
        node: int | None,
        add: str | None,
        remove: str | None,
        *,
        disconnect: bool,
    ) -> None:
        if name not in self.here:
            return
        self.world.request(
            self.here[name], node=node, add=add, remove=remove, disconnect=disconnect
        )
        if node is not None:
            self._publish(name, node)
        if add is not None:
            self._add(name, add)
        if remove is not None:
            self._remove(name, remove)
        if disconnect:
            self._leave(name)

    @rule(name=NAME, how=st.sampled_from(["lost", "overflow", "remove"]))
    def leave(self, name: str, how: str) -> None:
        core = self.world.core
        if how == "remove":
            peer_id = self.world.id_of(name)
            self.world.perform(core.remove_peer(UUID(bytes=peer_id), "removed"))
        elif name in self.here:
            ways: dict[str, Callable[[Peer], Any]] = {
                "lost": core.handle_lost,
                "overflow": core.handle_overflow,
            }
            self.world.perform(ways[how](self.here[name]))
        if name in self.here:
            self._leave(name)
        if how == "remove":
            self.tunnels = {pair for pair in self.tunnels if name not in pair}

    @rule(data=st.data())
    def end_of_an_old_stream(self, data: st.DataObject) -> None:
        if self.old:
            peer = data.draw(st.sampled_from(self.old))
            assert self.world.core.handle_lost(peer) == []
            assert peer.closed

    @precondition(lambda self: len(self.here) > 2)
    @rule()
    def close(self) -> None:
        self.world.perform(self.world.core.close())
        self.closed = True
        for peer in self.here.values():
            self._listen(peer)
            assert self.views[peer] == {}
            assert peer.closed
        self.here.clear()
        self.tunnels.clear()

    # -- the model ----------------------------------------------------------

    def _publish(self, name: str, node: int) -> None:
        self.published[name] = self.shown[name] = node
        self._unite(name)

    def _unite(self, name: str) -> None:
        self.parted = {pair for pair in self.parted if name not in pair}

    def _add(self, source: str, destination: str) -> None:
        if source != destination:
            self.tunnels.add((source, destination))
            if destination in self.here:
                self.parted.discard(frozenset((source, destination)))

    def _remove(self, source: str, destination: str) -> None:
        self.tunnels.discard((source, destination))
        if destination in self.here and destination != source:
            self.parted.add(frozenset((source, destination)))

    def _leave(self, name: str) -> None:
        del self.here[name]
        self.published.pop(name, None)
        self.shown.pop(name, None)
        self.tunnels = {pair for pair in self.tunnels if pair[0] != name}
        self._unite(name)

    def _sees(self, one: str, other: str) -> bool:
        """Whether ``one`` can see ``other``, if that one has a node."""
        return (
            one != other
            and other in self.here
            and bool({(one, other), (other, one)} & self.tunnels)
            and frozenset((one, other)) not in self.parted
        )

    # -- what they hear -----------------------------------------------------

    def _listen(self, peer: Peer) -> None:
        view = self.views[peer]
        for update in self.world.take(peer):
            if isinstance(update, str):
                assert peer.closed
                continue
            kind, _, name, node = update
            if kind == "NODE":
                assert view.get(name) != node, "sent twice"
                view[name] = node
            else:
                assert kind in {"LOST", "DISCONNECTED"}
                assert name in view, "gone, but never there"
                del view[name]

    @invariant()
    def what_was_heard_is_right(self) -> None:
        for peer in self.views:
            self._listen(peer)
        self._everyone_sees_what_the_model_says()
        self._both_ends_agree()

    def _everyone_sees_what_the_model_says(self) -> None:
        for one, peer in self.here.items():
            seen = self.views[peer]
            for other in NAMES:
                # Who came back in place of itself is seen as it was, by those
                # that saw it; others see what it published since.
                if not self._sees(one, other):
                    assert other not in seen
                elif other in self.published:
                    assert seen[other] == self.published[other]
                elif other in seen:
                    assert seen[other] == self.shown[other]

    def _both_ends_agree(self) -> None:
        for one, peer in self.here.items():
            for other, other_peer in self.here.items():
                if one in self.published and other in self.published:
                    sees = other in self.views[peer]
                    assert sees == (one in self.views[other_peer])

    @invariant()
    def streams_are_open_as_long_as_peers_are_here(self) -> None:
        for peer in self.views:
            assert peer.closed == (peer not in self.here.values())

    @invariant()
    def tunnels_are_kept(self) -> None:
        numbers = self.world.numbers
        expected = {(numbers[a], numbers[b]) for a, b in self.tunnels}
        assert {(a.int, b.int) for a, b in self.world.core.tunnels} == expected


Interleavings.TestCase.settings = settings(
    max_examples=100, stateful_step_count=60, derandomize=True, deadline=None
)
TestInterleavings = Interleavings.TestCase


# -- the cases of Coder's own suite (tailnet/test/cases.go) -----------------


@dataclass(frozen=True)
class Case:
    """What two peers do, one step a line, and what ``first`` has heard then."""

    steps: tuple[tuple[str, dict[str, Any]], ...]
    heard: tuple[object, ...]


NO_TUNNEL = (
    "ready for handshake error: you do not share a tunnel with "
    '"00000000-0000-0000-0000-000000000002"'
)

CASES = {
    "GracefulDisconnect": Case(
        (
            ("first", {"add": "second"}),
            ("first", {"node": 1}),
            ("second", {"node": 2}),
            ("second", {"disconnect": True}),
        ),
        (
            ("NODE", "node update", "second", 2),
            ("DISCONNECTED", "graceful disconnect", "second", 0),
        ),
    ),
    "Lost": Case(
        (
            ("first", {"add": "second"}),
            ("first", {"node": 1}),
            ("second", {"node": 2}),
            ("second", {"lost": True}),
        ),
        (("NODE", "node update", "second", 2), ("LOST", "lost", "second", 0)),
    ),
    "BidirectionalTunnels": Case(
        (
            ("first", {"add": "second"}),
            ("second", {"add": "first"}),
            ("first", {"node": 1}),
            ("second", {"node": 2}),
        ),
        (("NODE", "node update", "second", 2),),
    ),
    "ReadyForHandshake": Case(
        (
            ("first", {"add": "second"}),
            ("second", {"add": "first"}),
            ("first", {"node": 1}),
            ("second", {"node": 2}),
            ("second", {"ready": ["first"]}),
        ),
        (
            ("NODE", "node update", "second", 2),
            ("READY_FOR_HANDSHAKE", "", "second", 0),
        ),
    ),
    "ReadyForHandshakeNoPermission": Case(
        (("first", {"ready": ["second"]}),), (NO_TUNNEL,)
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_case_of_coder(name: str) -> None:
    world = World()
    peers = {peer: world.connect(peer) for peer in ("first", "second")}
    for who, what in CASES[name].steps:
        if "lost" in what:
            world.perform(world.core.handle_lost(peers[who]))
        else:
            world.request(peers[who], **what)
    assert tuple(world.take(peers["first"])) == CASES[name].heard
    assert not peers["first"].closed

"""The coordinator, row by row of the table in its docstring."""

from __future__ import annotations

from uuid import UUID

import pytest

from tailnet.control.proto import tailnet_pb2
from tailnet.coordinator.core import (
    CLOSED_ERROR,
    MAX_NODE_SIZE,
    MAX_READY,
    OVERWRITTEN_ERROR,
    Delivery,
)
from tailnet.errors import LocalProtocolError, RemoteProtocolError
from tests.coordinator.world import Peer, World


@pytest.fixture
def world() -> World:
    return World()


def pair(world: World) -> tuple[Peer, Peer]:
    """Client and agent, which see each other, and have heard so."""
    agent, client = world.connect("agent"), world.connect("client")
    world.request(agent, node=1)
    world.request(client, add="agent", node=2)
    assert world.take(client) == [("NODE", "add tunnel", "agent", 1)]
    assert world.take(agent) == [("NODE", "add tunnel", "client", 2)]
    return client, agent


# -- connect ----------------------------------------------------------------


def test_init(world: World) -> None:
    """A peer that returns hears of all that have tunnels to it."""
    for number, name in enumerate(["one", "two"], start=7):
        world.request(world.connect(name), node=number, add="agent")
    world.request(world.connect("without a node"), add="agent")
    world.request(world.connect("without a tunnel"), node=3)
    agent = world.connect("agent")
    assert len(agent.heard) == 1
    assert sorted(map(str, world.take(agent))) == [
        "('NODE', 'init', 'one', 7)",
        "('NODE', 'init', 'two', 8)",
    ]


def test_nothing_to_hear_at_first(world: World) -> None:
    assert world.take(world.connect("agent")) == []


def test_init_comes_in_batches(world: World) -> None:
    for number in range(1025):
        world.request(world.connect(f"client {number}"), node=number, add="agent")
    agent = world.connect("agent")
    assert [len(response.peer_updates) for response in agent.heard] == [1024, 1]


# -- update_self ------------------------------------------------------------


def test_node_update_goes_both_ways(world: World) -> None:
    client, agent = pair(world)
    other = world.connect("other")
    world.request(agent, node=3)
    world.request(client, node=4)
    assert world.take(client) == [("NODE", "node update", "agent", 3)]
    assert world.take(agent) == [("NODE", "node update", "client", 4)]
    assert world.take(other) == []


def test_the_same_node_is_not_sent_again(world: World) -> None:
    client, agent = pair(world)
    world.request(agent, node=1)
    assert world.take(client) == []
    world.request(agent, node=3)
    world.request(agent, node=1)
    assert [str(update[3]) for update in world.take(client)] == ["3", "1"]


def test_as_of_makes_a_node_another(world: World) -> None:
    client, agent = pair(world)
    request = tailnet_pb2.CoordinateRequest()
    request.update_self.node.id = 1
    request.update_self.node.as_of.seconds = 5
    world.perform(world.core.handle_request(agent, request))
    assert world.take(client) == [("NODE", "node update", "agent", 1)]


def test_order_of_a_map_makes_no_difference(world: World) -> None:
    client, agent = pair(world)
    latencies = [(f"{number}-v4", 0.5) for number in range(20)]
    for items in (latencies, latencies[::-1]):
        request = tailnet_pb2.CoordinateRequest()
        for region, latency in items:
            request.update_self.node.derp_latency[region] = latency
        world.perform(world.core.handle_request(agent, request))
    assert len(world.take(client)) == 1


def test_one_update_is_one_bytes_object(world: World) -> None:
    agent = world.connect("agent")
    clients = [world.connect(f"client {number}") for number in range(5)]
    for client in clients:
        world.request(client, add="agent")
    request = tailnet_pb2.CoordinateRequest()
    request.update_self.node.id = 1
    (event,) = world.core.handle_request(agent, request)
    assert isinstance(event, Delivery)
    assert sorted(event.receivers, key=id) == sorted(clients, key=id)


def test_an_update_without_a_node_is_none(world: World) -> None:
    client, agent = pair(world)
    request = tailnet_pb2.CoordinateRequest()
    request.update_self.SetInParent()
    world.perform(world.core.handle_request(agent, request))
    assert world.take(client) == []
    assert agent.node == tailnet_pb2.Node(id=1).SerializeToString()


def test_a_node_that_would_not_fit(world: World) -> None:
    client, agent = pair(world)
    request = tailnet_pb2.CoordinateRequest()
    request.update_self.node.disco = "x" * MAX_NODE_SIZE
    with pytest.raises(RemoteProtocolError, match="the limit is 16384"):
        world.core.handle_request(agent, request)
    assert world.take(client) == []


def test_ready_for_more_handshakes_than_there_are_peers(world: World) -> None:
    _, agent = pair(world)
    ids = [{"id": UUID(int=number).bytes} for number in range(MAX_READY + 1)]
    request = tailnet_pb2.CoordinateRequest(ready_for_handshake=ids)
    with pytest.raises(RemoteProtocolError, match="513 peers, the limit is 512"):
        world.core.handle_request(agent, request)
    del request.ready_for_handshake[0]
    assert len(world.core.handle_request(agent, request)) == MAX_READY


# -- tunnels ----------------------------------------------------------------


def test_add_tunnel_before_nodes(world: World) -> None:
    agent, client = world.connect("agent"), world.connect("client")
    world.request(client, add="agent")
    assert world.take(client) == world.take(agent) == []
    world.request(client, node=2)
    world.request(agent, node=1)
    assert world.take(client) == [("NODE", "node update", "agent", 1)]
    assert world.take(agent) == [("NODE", "node update", "client", 2)]


def test_add_tunnel_twice(world: World) -> None:
    client, agent = pair(world)
    world.request(client, add="agent")
    world.request(agent, add="client")
    assert world.take(client) == world.take(agent) == []
    assert len(world.core.tunnels) == 2


def test_add_tunnel_to_who_is_not_here(world: World) -> None:
    client = world.connect("client")
    world.request(client, node=2, add="agent")
    agent = world.connect("agent")
    world.request(agent, node=1)
    assert world.take(agent) == [("NODE", "init", "client", 2)]
    assert world.take(client) == [("NODE", "node update", "agent", 1)]


def test_remove_tunnel(world: World) -> None:
    client, agent = pair(world)
    world.request(client, remove="agent")
    assert world.take(client) == [("DISCONNECTED", "remove tunnel", "agent", 0)]
    assert world.take(agent) == [("DISCONNECTED", "remove tunnel", "client", 0)]
    world.request(client, remove="agent")
    world.request(agent, node=3)
    assert world.take(client) == world.take(agent) == []
    assert world.core.tunnels == []


def test_remove_tunnel_of_who_left(world: World) -> None:
    client, agent = pair(world)
    world.perform(world.core.handle_lost(agent))
    world.take(client)
    world.request(client, remove="agent")
    assert world.take(client) == []
    assert world.take(world.connect("agent")) == []


def test_after_remove_a_tunnel_shows_nodes_again(world: World) -> None:
    client, agent = pair(world)
    world.request(client, remove="agent")
    world.take(client)
    world.take(agent)
    world.request(client, add="agent")
    assert world.take(client) == [("NODE", "add tunnel", "agent", 1)]
    assert world.take(agent) == [("NODE", "add tunnel", "client", 2)]


@pytest.mark.parametrize("first", ["client", "agent"])
def test_remove_one_of_two_tunnels(world: World, first: str) -> None:
    """Both ends are told, and find each other with the next node of either."""
    client, agent = pair(world)
    world.request(agent, add="client")
    world.request(client, remove="agent")
    assert world.take(client) == [("DISCONNECTED", "remove tunnel", "agent", 0)]
    assert world.take(agent) == [("DISCONNECTED", "remove tunnel", "client", 0)]
    world.request(agent if first == "agent" else client, node=9)
    nodes = {"client": 2, "agent": 1} | {first: 9}
    assert world.take(client) == [("NODE", "node update", "agent", nodes["agent"])]
    assert world.take(agent) == [("NODE", "node update", "client", nodes["client"])]


def test_a_tunnel_to_oneself(world: World) -> None:
    client = world.connect("client")
    world.request(client, node=1, add="client")
    world.request(client, node=2)
    world.request(client, remove="client", ready=["client"])
    error = 'ready for handshake error: you do not share a tunnel with "{}"'
    assert world.take(client) == [error.format(client.peer_id)]
    assert world.core.tunnels == []


# -- leaving ----------------------------------------------------------------


def test_disconnect(world: World) -> None:
    client, agent = pair(world)
    world.request(client, disconnect=True)
    assert world.take(agent) == [("DISCONNECTED", "graceful disconnect", "client", 0)]
    assert world.take(client) == []
    assert client.closed
    assert not agent.closed
    assert world.core.tunnels == []
    assert world.core.connections == [agent]


def test_disconnect_of_a_destination_keeps_its_tunnels(world: World) -> None:
    client, agent = pair(world)
    world.request(agent, disconnect=True)
    assert world.take(client) == [("DISCONNECTED", "graceful disconnect", "agent", 0)]
    again = world.connect("agent")
    assert world.take(again) == [("NODE", "init", "client", 2)]


def test_lost(world: World) -> None:
    client, agent = pair(world)
    world.perform(world.core.handle_lost(client))
    assert world.take(agent) == [("LOST", "lost", "client", 0)]
    assert client.closed
    assert world.core.tunnels == []


def test_lost_and_back(world: World) -> None:
    """Tunnels to a lost peer are kept, so it is shown again at once."""
    client, agent = pair(world)
    world.perform(world.core.handle_lost(agent))
    assert world.take(client) == [("LOST", "lost", "agent", 0)]
    again = world.connect("agent")
    assert world.take(again) == [("NODE", "init", "client", 2)]
    world.request(again, node=1)
    # The same node as before, but LOST erased the record of it.
    assert world.take(client) == [("NODE", "node update", "agent", 1)]


def test_nothing_is_lost_that_was_not_there(world: World) -> None:
    client, agent = world.connect("client"), world.connect("agent")
    world.request(client, add="agent")
    world.request(agent, disconnect=True)
    world.perform(world.core.handle_lost(client))
    assert world.take(client) == world.take(agent) == []


def test_failed_update(world: World) -> None:
    client, agent = pair(world)
    world.perform(world.core.handle_overflow(client))
    assert world.take(agent) == [("DISCONNECTED", "failed update", "client", 0)]
    assert world.take(client) == []
    assert client.closed


def test_leaving_twice(world: World) -> None:
    client, agent = pair(world)
    world.request(client, disconnect=True)
    world.take(agent)
    for events in (
        world.core.handle_lost(client),
        world.core.handle_overflow(client),
        world.core.handle_request(client, tailnet_pb2.CoordinateRequest()),
    ):
        assert events == []
    world.request(client, node=5, add="agent", ready=["agent"])
    assert world.take(agent) == []
    assert world.core.tunnels == []


def test_remove_peer(world: World) -> None:
    client, agent = pair(world)
    world.perform(world.core.remove_peer(agent.peer_id, "agent deleted"))
    assert world.take(client) == [("DISCONNECTED", "agent deleted", "agent", 0)]
    assert agent.closed
    # Unlike one that left, it leaves no tunnels.
    assert world.core.tunnels == []
    assert world.take(world.connect("agent")) == []


def test_remove_peer_that_is_not_here(world: World) -> None:
    client = world.connect("client")
    world.request(client, add="agent")
    agent_id = UUID(bytes=world.id_of("agent"))
    assert world.core.remove_peer(agent_id, "agent deleted") == []
    assert world.core.tunnels == []


# -- the same peer twice ----------------------------------------------------


def test_overwritten(world: World) -> None:
    client, agent = pair(world)
    again = world.connect("client")
    assert world.take(client) == [OVERWRITTEN_ERROR]
    assert client.closed
    # Tunnels stay, and nobody hears a word until there is a node.
    assert world.take(again) == [("NODE", "init", "agent", 1)]
    assert world.take(agent) == []
    world.request(again, node=3)
    assert world.take(agent) == [("NODE", "node update", "client", 3)]


def test_overwritten_and_its_end(world: World) -> None:
    """The end of the old stream takes nothing from the new connection."""
    client, agent = pair(world)
    again = world.connect("client")
    world.perform(world.core.handle_lost(client))
    assert world.take(agent) == []
    assert world.core.connection(client.peer_id) is again
    world.perform(world.core.handle_lost(again))
    assert world.take(agent) == [("LOST", "lost", "client", 0)]


def test_overwritten_with_the_same_node(world: World) -> None:
    _, agent = pair(world)
    world.request(world.connect("client"), node=2)
    assert world.take(agent) == []


# -- READY_FOR_HANDSHAKE ----------------------------------------------------


@pytest.mark.parametrize("sender", ["client", "agent"])
def test_ready_for_handshake(world: World, sender: str) -> None:
    peers = dict(zip(("client", "agent"), pair(world), strict=True))
    receiver = "agent" if sender == "client" else "client"
    world.request(peers[sender], ready=[receiver])
    expected = [("READY_FOR_HANDSHAKE", "", sender, 0)]
    assert world.take(peers[receiver]) == expected
    assert world.take(peers[sender]) == []


def test_ready_for_handshake_without_a_tunnel(world: World) -> None:
    client, agent = pair(world)
    other = world.connect("other")
    world.request(agent, ready=["other", "client"])
    (error, *rest) = world.take(agent)
    assert error == (
        "ready for handshake error: you do not share a tunnel with "
        '"00000000-0000-0000-0000-000000000003"'
    )
    assert rest == []
    assert not agent.closed
    assert world.take(other) == []
    assert world.take(client) == [("READY_FOR_HANDSHAKE", "", "agent", 0)]


def test_ready_for_handshake_to_who_left(world: World) -> None:
    client, agent = pair(world)
    world.perform(world.core.handle_lost(agent))
    world.take(client)
    world.request(client, ready=["agent"])
    assert world.take(client) == []


# -- one request with everything --------------------------------------------


def test_order_within_a_request(world: World) -> None:
    client, agent = pair(world)
    third = world.connect("third")
    world.request(third, node=3)
    world.request(
        client,
        node=9,
        add="third",
        remove="agent",
        disconnect=True,
        ready=["agent", "third"],
    )
    assert world.take(agent) == [
        ("NODE", "node update", "client", 9),
        ("DISCONNECTED", "remove tunnel", "client", 0),
    ]
    assert world.take(third) == [
        ("NODE", "add tunnel", "client", 9),
        ("DISCONNECTED", "graceful disconnect", "client", 0),
    ]
    # No tunnels are left to be ready for, and there is nobody to tell.
    assert world.take(client) == [
        ("NODE", "add tunnel", "third", 3),
        ("DISCONNECTED", "remove tunnel", "agent", 0),
    ]
    assert client.closed


def test_ready_for_handshake_comes_last(world: World) -> None:
    client, agent = pair(world)
    world.request(agent, disconnect=True, ready=["client"])
    assert world.take(client) == [
        ("DISCONNECTED", "graceful disconnect", "agent", 0),
        ("READY_FOR_HANDSHAKE", "", "agent", 0),
    ]


@pytest.mark.parametrize("field", ["add_tunnel", "remove_tunnel"])
def test_an_id_that_is_none(world: World, field: str) -> None:
    client, agent = pair(world)
    request = tailnet_pb2.CoordinateRequest()
    getattr(request, field).id = bytes(15)
    request.update_self.node.id = 99
    with pytest.raises(RemoteProtocolError, match=r"invalid UUID \(got 15 bytes\)"):
        world.core.handle_request(client, request)
    assert world.take(agent) == []


def test_a_ready_id_that_is_none(world: World) -> None:
    _, agent = pair(world)
    request = tailnet_pb2.CoordinateRequest(ready_for_handshake=[{"id": bytes(17)}])
    with pytest.raises(RemoteProtocolError, match=r"invalid UUID \(got 17 bytes\)"):
        world.core.handle_request(agent, request)


# -- the end ----------------------------------------------------------------


def test_close(world: World) -> None:
    client, agent = pair(world)
    alone = world.connect("alone")
    world.perform(world.core.close())
    assert world.take(client) == [("LOST", "coordinator close", "agent", 0)]
    assert world.take(agent) == [("LOST", "coordinator close", "client", 0)]
    assert world.take(alone) == []
    assert client.closed
    assert agent.closed
    assert alone.closed
    assert world.core.closed
    assert world.core.close() == []
    assert world.core.connections == []
    assert world.core.tunnels == []
    with pytest.raises(LocalProtocolError, match=CLOSED_ERROR):
        world.connect("late")


def test_close_tells_one_peer_of_many_in_batches(world: World) -> None:
    agent = world.connect("agent")
    for number in range(1025):
        world.request(world.connect(f"client {number}"), node=number, add="agent")
    agent.heard.clear()
    world.perform(world.core.close())
    assert [len(response.peer_updates) for response in agent.heard] == [1024, 1]


# -- what it keeps ----------------------------------------------------------


def test_nothing_stays_behind(world: World) -> None:
    for _ in range(3):
        client, agent = pair(world)
        world.request(client, disconnect=True)
        world.perform(world.core.handle_lost(agent))
    assert not world.core.connections
    for name in ("_sources", "_destinations"):
        assert getattr(world.core, name) == {}


def test_an_audience_has_no_one_who_left(world: World) -> None:
    _, agent = pair(world)
    again = world.connect("client")
    assert list(agent.audience) == [again]
    world.perform(world.core.handle_lost(again))
    assert agent.audience == {}

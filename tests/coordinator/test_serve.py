"""The coordinator's streams: how they end, who hears of it, what is kept."""

from __future__ import annotations

import math
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from functools import partial
from uuid import UUID

import pytest
import structlog.testing
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from tailnet.control.convert import node_key_to_proto
from tailnet.control.proto import tailnet_pb2
from tailnet.coordinator import serve
from tailnet.coordinator.auth import (
    AgentAuth,
    ClientAuth,
    SingleTailnetAuth,
    TunnelAuth,
    UserAuth,
)
from tailnet.coordinator.core import MAX_NODE_SIZE, QUEUE_DEPTH
from tailnet.coordinator.node_keys import GRACE
from tailnet.coordinator.serve import (
    FEW_RESPONSES,
    MAX_BACKLOG_SIZE,
    CoordinatorService,
)
from tailnet.keys import NodePublic

AGENT, CLIENT = UUID(int=1), UUID(int=2)
KEY, KEY2 = NodePublic(b"k" * 32), NodePublic(b"l" * 32)
SINGLE = SingleTailnetAuth()

Request = tailnet_pb2.CoordinateRequest


class FakeCall:
    """A stream in memory, which may be as slow as a test likes."""

    def __init__(self) -> None:
        self.say, self._requests = trio.open_memory_channel[bytes | None](math.inf)
        self.told: list[tailnet_pb2.CoordinateResponse] = []
        self.backlog = 0
        self.backlog_size = 0
        self.over = False

    async def receive(self) -> bytes | None:
        return await self._requests.receive()

    def send_nowait(self, message: bytes) -> None:
        assert not self.over, "sent behind the end"
        self.told.append(tailnet_pb2.CoordinateResponse.FromString(message))

    def request(self, request: tailnet_pb2.CoordinateRequest) -> None:
        self.say.send_nowait(request.SerializeToString())

    def publish(self, key: NodePublic | None = None, *, number: int = 0) -> None:
        node = tailnet_pb2.Node(id=number)
        if key is not None:
            node.key = node_key_to_proto(key)
        self.request(Request(update_self={"node": node}))

    def add_tunnel(self, peer_id: UUID) -> None:
        self.request(Request(add_tunnel={"id": peer_id.bytes}))

    def disconnect(self) -> None:
        self.request(Request(disconnect={}))

    def end(self) -> None:
        self.say.send_nowait(None)

    def take(self) -> list[tuple[str, str, UUID] | str]:
        """What it was told since the last call; errors as their text."""
        kinds = tailnet_pb2.CoordinateResponse.PeerUpdate.Kind
        taken: list[tuple[str, str, UUID] | str] = []
        for response in self.told:
            taken += [
                (kinds.Name(u.kind), u.reason, UUID(bytes=u.id))
                for u in response.peer_updates
            ]
            if response.error:
                taken.append(response.error)
        self.told.clear()
        return taken


@dataclass
class Rig:
    service: CoordinatorService
    nursery: trio.Nursery
    gone: list[tuple[NodePublic, str]] = field(default_factory=list)

    async def connect(
        self, peer_id: UUID, auth: TunnelAuth = SINGLE, kind: str = "client"
    ) -> FakeCall:
        call = FakeCall()

        async def coordinate() -> None:
            await self.service.coordinate(
                call, peer_id=peer_id, name=f"peer {peer_id.int}", auth=auth, kind=kind
            )
            call.over = True

        self.nursery.start_soon(coordinate)
        await wait_all_tasks_blocked()
        return call

    async def pair(self) -> tuple[FakeCall, FakeCall]:
        """Client and agent, which see each other, and have heard so."""
        agent = await self.connect(AGENT, AgentAuth(AGENT), "agent")
        client = await self.connect(CLIENT, ClientAuth(AGENT))
        agent.publish(KEY, number=1)
        client.publish(KEY2, number=2)
        client.add_tunnel(AGENT)
        await wait_all_tasks_blocked()
        assert client.take() == [("NODE", "add tunnel", AGENT)]
        assert agent.take() == [("NODE", "add tunnel", CLIENT)]
        return client, agent


@asynccontextmanager
async def open_rig() -> AsyncGenerator[Rig]:
    async with trio.open_nursery() as nursery:
        service = CoordinatorService()
        rig = Rig(service, nursery)
        service.on_node_key_gone(lambda key, reason: rig.gone.append((key, reason)))
        nursery.start_soon(service.run)
        yield rig
        nursery.cancel_scope.cancel()


# Each test takes autojump_clock itself: pytest-trio looks nowhere else for it.
@pytest.fixture
async def rig(autojump_clock: MockClock) -> AsyncGenerator[Rig]:
    async with open_rig() as rig:
        yield rig


settle = wait_all_tasks_blocked


# -- how streams end --------------------------------------------------------


async def test_disconnect(rig: Rig, autojump_clock: MockClock) -> None:
    client, agent = await rig.pair()
    client.disconnect()
    await settle()
    assert client.over
    assert client.take() == []
    assert agent.take() == [("DISCONNECTED", "graceful disconnect", CLIENT)]
    assert not agent.over


async def test_end_without_a_word(rig: Rig, autojump_clock: MockClock) -> None:
    client, agent = await rig.pair()
    client.end()
    await settle()
    assert client.over
    assert agent.take() == [("LOST", "lost", CLIENT)]


async def test_cancelled_from_outside(rig: Rig, autojump_clock: MockClock) -> None:
    """As when the session of the call breaks."""
    agent = await rig.connect(AGENT)
    agent.publish(number=1)
    agent.add_tunnel(CLIENT)
    await settle()
    with trio.move_on_after(1):
        call = FakeCall()
        call.publish(number=2)
        await rig.service.coordinate(
            call, peer_id=CLIENT, name="", auth=SINGLE, kind=""
        )
    assert agent.take() == [
        ("NODE", "node update", CLIENT),
        ("LOST", "lost", CLIENT),
    ]


async def test_overwritten(rig: Rig, autojump_clock: MockClock) -> None:
    client, agent = await rig.pair()
    again = await rig.connect(CLIENT, ClientAuth(AGENT))
    assert client.over
    assert client.take() == ["peer ID overwritten by new connection"]
    assert again.take() == [("NODE", "init", AGENT)]
    assert agent.take() == []
    assert rig.service.snapshot().peers[-1].status == "ok"


@pytest.mark.parametrize("times", [1, 3])
async def test_failed_update(rig: Rig, autojump_clock: MockClock, times: int) -> None:
    client, agent = await rig.pair()
    client.backlog = QUEUE_DEPTH
    agent.publish(number=3)
    await settle()
    assert client.take() == [("NODE", "node update", AGENT)]
    client.backlog += 1
    with structlog.testing.capture_logs() as logs:
        for number in range(times):
            agent.publish(number=4 + number)
        await settle()
    assert client.over
    assert agent.take() == [("DISCONNECTED", "failed update", CLIENT)]
    assert [entry["event"] for entry in logs] == ["peer too slow"]
    assert logs[0]["peer"] == str(CLIENT)


@pytest.mark.parametrize(
    ("responses", "size", "over"),
    [
        (FEW_RESPONSES, 100 * MAX_BACKLOG_SIZE, False),  # as the first ones may be
        (FEW_RESPONSES + 1, MAX_BACKLOG_SIZE, False),
        (FEW_RESPONSES + 1, MAX_BACKLOG_SIZE + 1, True),
    ],
)
async def test_a_backlog_of_many_bytes(
    rig: Rig, autojump_clock: MockClock, responses: int, size: int, over: bool
) -> None:
    client, agent = await rig.pair()
    client.backlog, client.backlog_size = responses, size
    agent.publish(number=3)
    await settle()
    assert client.over is over


async def test_two_slow_peers(rig: Rig, autojump_clock: MockClock) -> None:
    """The second is found slow by what it is told of the first."""
    one, two, agent = [await rig.connect(UUID(int=number)) for number in (1, 2, 3)]
    for number, call in enumerate((one, two, agent)):
        call.publish(number=number + 1)
        call.add_tunnel(UUID(int=1))
        call.add_tunnel(UUID(int=2))
    await settle()
    for call in (one, two, agent):
        call.take()
    one.backlog = two.backlog = QUEUE_DEPTH + 1
    agent.publish(number=9)
    await settle()
    assert one.over
    assert two.over
    assert set(agent.take()) == {
        ("DISCONNECTED", "failed update", UUID(int=number)) for number in (1, 2)
    }


async def test_remove_peer(rig: Rig, autojump_clock: MockClock) -> None:
    client, agent = await rig.pair()
    rig.service.remove_peer(AGENT, "agent deleted")
    await settle()
    assert agent.over
    assert client.take() == [("DISCONNECTED", "agent deleted", AGENT)]
    assert rig.gone == [(KEY, "agent deleted")]
    assert not rig.service.knows_node_key(KEY)
    assert [peer.id for peer in rig.service.snapshot().peers] == [CLIENT]
    assert rig.service.snapshot().tunnels == ()


async def test_close(rig: Rig, autojump_clock: MockClock) -> None:
    client, agent = await rig.pair()
    rig.service.close()
    await settle()
    assert client.over
    assert agent.over
    assert client.take() == [("LOST", "coordinator close", AGENT)]
    assert agent.take() == [("LOST", "coordinator close", CLIENT)]
    late = await rig.connect(CLIENT)
    assert late.over
    assert late.take() == ["coordinator closed"]
    assert rig.service.snapshot().peers == ()


# -- what is refused --------------------------------------------------------


async def refused(rig: Rig, say: Callable[[FakeCall], object]) -> str:
    """What a client is told, whose stream ends; the agent must hear LOST."""
    client, agent = await rig.pair()
    with structlog.testing.capture_logs() as logs:
        say(client)
        client.publish(number=99)
        await settle()
    assert client.over
    assert agent.take() == [("LOST", "lost", CLIENT)]
    (error,) = client.take()
    assert isinstance(error, str)
    assert [(entry["event"], entry["reason"]) for entry in logs] == [
        ("coordination refused", error)
    ]
    return error


async def test_not_authorized(rig: Rig, autojump_clock: MockClock) -> None:
    other = UUID(int=5)
    assert await refused(rig, lambda client: client.add_tunnel(other)) == (
        f"authorization: invalid agent id, expected {AGENT}, got {other}"
    )


async def test_not_a_request(rig: Rig, autojump_clock: MockClock) -> None:
    error = await refused(rig, lambda client: client.say.send_nowait(b"\xff"))
    assert error == "not a CoordinateRequest"


async def test_an_id_that_is_none(rig: Rig, autojump_clock: MockClock) -> None:
    wrong = Request(remove_tunnel={"id": b"short"})
    error = await refused(rig, lambda client: client.request(wrong))
    assert error == "invalid UUID (got 5 bytes)"


async def test_a_node_that_is_too_long(rig: Rig, autojump_clock: MockClock) -> None:
    wrong = Request(update_self={"node": {"disco": "x" * MAX_NODE_SIZE}})
    error = await refused(rig, lambda client: client.request(wrong))
    assert error.startswith("node of 16")


async def test_a_request_that_is_too_long_is_not_even_judged(
    rig: Rig, autojump_clock: MockClock
) -> None:
    addresses = ["::/128"] * 5_000
    wrong = Request(update_self={"node": {"addresses": addresses}})
    error = await refused(rig, lambda client: client.request(wrong))
    assert error == f"request of {wrong.ByteSize()} bytes, the limit is 32768"


async def test_no_tunnel_for_a_handshake_is_not_fatal(
    rig: Rig, autojump_clock: MockClock
) -> None:
    _, agent = await rig.pair()
    agent.request(Request(ready_for_handshake=[{"id": UUID(int=7).bytes}]))
    await settle()
    (error,) = agent.take()
    assert str(error).endswith(f'do not share a tunnel with "{UUID(int=7)}"')
    assert not agent.over


async def test_judges_that_fail(autojump_clock: MockClock) -> None:
    """What an Authorizer raises is its caller's; the peer is lost."""

    async def may_connect(agent_id: UUID) -> bool:
        raise RuntimeError("no database")

    async with open_rig() as rig:
        agent = await rig.connect(AGENT)
        agent.publish(number=1)
        agent.add_tunnel(CLIENT)
        await settle()
        call = FakeCall()
        call.publish(number=2)
        call.add_tunnel(AGENT)
        with pytest.raises(RuntimeError, match="no database"):
            await rig.service.coordinate(
                call, peer_id=CLIENT, name="", auth=UserAuth(may_connect), kind=""
            )
        assert agent.take() == [
            ("NODE", "node update", CLIENT),
            ("LOST", "lost", CLIENT),
        ]


async def test_removed_while_being_judged(rig: Rig, autojump_clock: MockClock) -> None:
    """Whoever is gone by the time it is authorized gets nothing."""

    async def may_connect(agent_id: UUID) -> bool:
        with trio.CancelScope(shield=True):
            await trio.sleep(10)
        return True

    agent = await rig.connect(AGENT)
    agent.publish(number=1)
    call = await rig.connect(CLIENT, UserAuth(may_connect))
    call.add_tunnel(AGENT)
    await settle()
    rig.service.remove_peer(CLIENT, "user deleted")
    await trio.sleep(20)
    assert call.over
    assert call.take() == agent.take() == []
    assert rig.service.snapshot().tunnels == ()


# -- node keys --------------------------------------------------------------


async def test_a_lost_key_has_15_minutes(rig: Rig, autojump_clock: MockClock) -> None:
    client, _ = await rig.pair()
    assert rig.service.knows_node_key(KEY)
    assert rig.service.knows_node_key(KEY2)
    assert not rig.service.knows_node_key(NodePublic(b"m" * 32))
    client.end()
    await trio.sleep(GRACE - 1)
    assert rig.service.knows_node_key(KEY2)
    assert rig.gone == []
    await trio.sleep(2)
    assert not rig.service.knows_node_key(KEY2)
    assert rig.gone == [(KEY2, "lost")]
    await trio.sleep(GRACE * 3)
    assert rig.service.knows_node_key(KEY)


@pytest.mark.parametrize("delay", [0, 1, GRACE - 1, GRACE, GRACE + 1])
async def test_keys_are_told_gone_in_time(
    rig: Rig, autojump_clock: MockClock, delay: float
) -> None:
    """Whenever it is lost, within the turns of ``run``."""
    await trio.sleep(delay)
    client, _ = await rig.pair()
    client.end()
    await trio.sleep(GRACE + 0.001)
    assert rig.gone == [(KEY2, "lost")]


async def test_a_key_that_returns(rig: Rig, autojump_clock: MockClock) -> None:
    client, _ = await rig.pair()
    client.end()
    await trio.sleep(GRACE / 2)
    again = await rig.connect(CLIENT, ClientAuth(AGENT))
    again.publish(KEY2)
    await trio.sleep(GRACE * 2)
    assert rig.service.knows_node_key(KEY2)
    assert rig.gone == []


async def test_goodbye_ends_a_key_at_once(rig: Rig, autojump_clock: MockClock) -> None:
    client, _ = await rig.pair()
    client.disconnect()
    await settle()
    assert not rig.service.knows_node_key(KEY2)
    assert rig.gone == [(KEY2, "graceful disconnect")]
    await trio.sleep(GRACE * 2)
    assert len(rig.gone) == 1


async def test_overwritten_with_the_same_key(
    rig: Rig, autojump_clock: MockClock
) -> None:
    """The end of the old stream takes no key from the new one."""
    await rig.pair()
    again = FakeCall()
    again.publish(KEY2)
    run = partial(
        rig.service.coordinate, again, peer_id=CLIENT, name="", auth=SINGLE, kind=""
    )
    rig.nursery.start_soon(run)
    await trio.sleep(GRACE * 2)
    assert rig.service.knows_node_key(KEY2)
    assert rig.gone == []


async def test_overwritten_with_another_key(
    rig: Rig, autojump_clock: MockClock
) -> None:
    await rig.pair()
    again = await rig.connect(CLIENT, ClientAuth(AGENT))
    again.publish(NodePublic(b"n" * 32))
    await trio.sleep(GRACE - 1)
    assert rig.service.knows_node_key(KEY2)
    await trio.sleep(2)
    assert rig.gone == [(KEY2, "lost")]


async def test_another_key_on_one_stream(rig: Rig, autojump_clock: MockClock) -> None:
    client, _ = await rig.pair()
    client.publish(NodePublic(b"n" * 32))
    await settle()
    assert rig.service.knows_node_key(KEY2)
    await trio.sleep(GRACE + 1)
    assert rig.gone == [(KEY2, "lost")]
    assert rig.service.knows_node_key(NodePublic(b"n" * 32))


async def test_a_lost_peer_is_removed(rig: Rig, autojump_clock: MockClock) -> None:
    _, agent = await rig.pair()
    agent.end()
    await settle()
    assert rig.service.knows_node_key(KEY)
    rig.service.remove_peer(AGENT, "agent deleted")
    assert rig.gone == [(KEY, "agent deleted")]
    assert [peer.id for peer in rig.service.snapshot().peers] == [CLIENT]


async def test_a_key_that_is_none(rig: Rig, autojump_clock: MockClock) -> None:
    client, agent = await rig.pair()
    client.request(Request(update_self={"node": {"key": b"np short"}}))
    await settle()
    assert agent.take() == [("NODE", "node update", CLIENT)]
    assert rig.service.knows_node_key(KEY2)


# -- the snapshot -----------------------------------------------------------


async def test_snapshot(rig: Rig, autojump_clock: MockClock) -> None:
    client, agent = await rig.pair()
    agent.end()
    await settle()
    snapshot = rig.service.snapshot()
    here, lost = snapshot.peers
    assert (here.id, here.name, here.kind, here.status) == (
        CLIENT,
        "peer 2",
        "client",
        "ok",
    )
    assert (lost.id, lost.name, lost.kind, lost.status) == (
        AGENT,
        "peer 1",
        "agent",
        "lost",
    )
    assert here.node is not None
    assert here.node.id == 2
    assert lost.node is not None
    assert lost.node.id == 1
    assert here.since <= lost.since
    assert here.since.tzinfo is not None
    assert snapshot.tunnels == ((CLIENT, AGENT),)
    assert rig.service.peer_ids("client") == {CLIENT}
    assert rig.service.peer_ids("agent") == {AGENT}
    client.disconnect()
    await settle()
    assert [peer.id for peer in rig.service.snapshot().peers] == [AGENT]
    await trio.sleep(GRACE)
    assert rig.service.snapshot().peers == ()


async def test_a_peer_without_a_node(rig: Rig, autojump_clock: MockClock) -> None:
    await rig.connect(CLIENT)
    (peer,) = rig.service.snapshot().peers
    assert peer.node is None


async def test_who_returns_is_lost_no_more(rig: Rig, autojump_clock: MockClock) -> None:
    client, _ = await rig.pair()
    client.end()
    await settle()
    await rig.connect(CLIENT)
    assert [peer.status for peer in rig.service.snapshot().peers] == ["ok", "ok"]


async def test_not_all_lost_peers_are_kept(
    rig: Rig, autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(serve, "MAX_LOST_PEERS", 2)
    for number in range(1, 5):
        (await rig.connect(UUID(int=number))).end()
        await settle()
    assert [peer.id.int for peer in rig.service.snapshot().peers] == [3, 4]

"""A server that starts again under two hundred peers, in pairs with a tunnel.

The peers are our SDK's. Whatever they were told meanwhile, in the end each has
heard last that its other half is there; and each is who it was.
"""

from __future__ import annotations

import signal
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final
from uuid import UUID, uuid4

import pytest
import trio

from tailnet.control.proto import tailnet_pb2
from tailnet.sdk.access import Access
from tailnet.sdk.controller import (
    REANNOUNCE_TIMEOUT,
    Tailnet,
    open_control,
    open_tailnet,
)
from tailnet.sdk.coordination import PeerUpdate, PeerUpdateKind
from tests.interop.coder.inside import Inside, open_inside
from tests.interop.coder.nodes import make_node
from tests.interop.coder.servers import Server, ServerKind, open_server
from tests.interop.programs import POLL, free_port

PAIRS: Final = 100
RPC: Final = "/api/v2/workspaceagents/me/rpc"
# Back-off goes up to 10 s (coder/retry), and all of them come at once.
RETURN: Final = 40.0  # seconds


@dataclass(slots=True)
class End:
    """One end of a tunnel.

    Attributes:
        tailnet: Its connection.
        node: What it publishes.
        told: What it was told of the other end, in order.
    """

    tailnet: Tailnet
    node: tailnet_pb2.Node
    told: list[PeerUpdate] = field(default_factory=list)

    async def listen(self) -> None:
        async for update in self.tailnet.peer_updates:
            self.told.append(update)

    def publish(self) -> None:
        """A node that is unlike all before: who has it has heard of it now."""
        self.node.as_of.GetCurrentTime()
        self.tailnet.update_node(self.node)

    def sees(self, other: End) -> bool:
        """Whether the last that it heard is the other's present node."""
        last = self.told[-1] if self.told else None
        return (
            last is not None
            and last.kind is PeerUpdateKind.NODE
            and last.node == other.node
        )


@dataclass(slots=True)
class Pair:
    """An agent and its client."""

    agent_id: UUID
    agent: End
    client: End

    def is_whole(self) -> bool:
        return self.agent.sees(self.client) and self.client.sees(self.agent)

    def ids(self) -> tuple[UUID, UUID]:
        """Who each is, as the other knows it."""
        return self.client.told[-1].peer_id, self.agent.told[-1].peer_id


async def open_pair(
    server: Server, number: int, stack: AsyncExitStack, listeners: trio.Nursery
) -> Pair:
    agent = server.agents[number]
    agent_id = UUID(agent.id)
    access = Access.parse(server.url, agent.token)
    ends = [
        End(
            await stack.enter_async_context(
                open_control(access, RPC, version=server.kind.version)
            ),
            make_node(agent_id),
        ),
        End(
            await stack.enter_async_context(
                open_tailnet(
                    server.url,
                    server.owner.token,
                    # Both ways that clients come.
                    agent_id if number % 2 else None,
                )
            ),
            make_node(uuid4()),
        ),
    ]
    ends[1].tailnet.add_tunnel(agent_id)
    for end in ends:
        end.publish()
        listeners.start_soon(end.listen)
    return Pair(agent_id, *ends)


async def wait_whole(pairs: list[Pair], timeout: float) -> None:
    with trio.move_on_after(timeout):
        while not all(pair.is_whole() for pair in pairs):
            await trio.sleep(POLL)
    broken = [
        (number, pair.agent.told[-3:], pair.client.told[-3:])
        for number, pair in enumerate(pairs)
        if not pair.is_whole()
    ]
    assert not broken, f"{len(broken)} of {len(pairs)}: {broken[0]}"


@pytest.mark.slow
@pytest.mark.timeout(240)
@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGKILL], ids=lambda s: s.name)
async def test_every_pair_is_whole_again(
    kind: ServerKind, tmp_path: Path, how: signal.Signals
) -> None:
    port = free_port()

    async def start(stack: AsyncExitStack) -> Server:
        return await stack.enter_async_context(
            open_server(
                kind, tmp_path / "server", host="127.0.0.1", port=port, agents=PAIRS
            )
        )

    with trio.fail_after(200):
        async with AsyncExitStack() as servers, trio.open_nursery() as listeners:
            server = await start(servers)
            async with AsyncExitStack() as peers:
                pairs = [
                    await open_pair(server, number, peers, listeners)
                    for number in range(PAIRS)
                ]
                await wait_whole(pairs, RETURN)
                before = [pair.ids() for pair in pairs]
                assert all(
                    ids[0] == p.agent_id for ids, p in zip(before, pairs, strict=True)
                )
                assert len({ids[1] for ids in before}) == PAIRS
                with trio.fail_after(RETURN):
                    while not all(
                        pair.client.tailnet.statistics().resumable for pair in pairs
                    ):
                        await trio.sleep(POLL)

                server.program.process.send_signal(how)
                await server.program.wait(timeout=15)
                server = await start(servers)
                # What is news now was said after the restart.
                for pair in pairs:
                    pair.agent.publish()
                    pair.client.publish()
                await wait_whole(pairs, RETURN)
                # Nor does anybody change their mind, once whoever was to be
                # given up would have been.
                await trio.sleep(REANNOUNCE_TIMEOUT + 1)
                await wait_whole(pairs, 0)
                assert [pair.ids() for pair in pairs] == before
                for pair in pairs:
                    assert pair.client.tailnet.statistics().tunnels == 1
                if kind is ServerKind.OURS:
                    inside = await open_inside(server, tmp_path / "inside")
                    await check_inside(inside, before)
            listeners.cancel_scope.cancel()


async def check_inside(inside: Inside, ids: list[tuple[UUID, UUID]]) -> None:
    """The server has these peers and tunnels, and no others."""
    view = await inside.coordinator()
    assert {peer["status"] for peer in view["peers"]} == {"ok"}
    found = [(UUID(t["destination"]), UUID(t["source"])) for t in view["tunnels"]]
    assert sorted(found) == sorted(ids)
    assert {UUID(peer["id"]) for peer in view["peers"]} == {
        peer_id for pair in ids for peer_id in pair
    }

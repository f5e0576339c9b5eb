"""The coordinator over real sessions."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from uuid import UUID

import pytest
import trio
from trio.testing import MockClock

from tailnet.control.drpc import Kind, encode_packet
from tailnet.control.proto import tailnet_pb2
from tailnet.control.server import ServerCall
from tailnet.coordinator.core import QUEUE_DEPTH
from tailnet.coordinator.serve import (
    CoordinatorService,
)
from tests.control.raw_peer import RawPeer, raw_client, request
from tests.coordinator.golden import METHOD
from tests.coordinator.test_serve import AGENT, CLIENT, SINGLE, Request

# -- over real sessions -----------------------------------------------------


@asynccontextmanager
async def session(
    service: CoordinatorService, peer_id: UUID, *, capacity: int = 1 << 20
) -> AsyncGenerator[RawPeer]:
    async def coordinate(call: ServerCall) -> None:
        await service.coordinate(call, peer_id=peer_id, name="", auth=SINGLE, kind="")

    async with raw_client({METHOD: coordinate}, capacity=capacity) as raw:
        yield raw


def told(raw: RawPeer) -> list[tailnet_pb2.CoordinateResponse]:
    return [
        tailnet_pb2.CoordinateResponse.FromString(packet.data)
        for packet in raw.packets(1)
        if packet.kind == Kind.MESSAGE
    ]


def last_kind(raw: RawPeer) -> int:
    return raw.packets(1)[-1].kind


def publish(node: tailnet_pb2.Node, *tunnels: UUID) -> list[bytes]:
    requests = [Request(update_self={"node": node})]
    requests += [Request(add_tunnel={"id": tunnel.bytes}) for tunnel in tunnels]
    return [one.SerializeToString() for one in requests]


@pytest.mark.parametrize("how", ["reset", "fin", "session"])
async def test_a_session_that_breaks(how: str, autojump_clock: MockClock) -> None:
    service = CoordinatorService()
    async with session(service, AGENT) as agent, session(service, CLIENT) as client:
        hello = request(METHOD, *publish(tailnet_pb2.Node(id=1)), done=False)
        agent.open(1, hello)
        messages = publish(tailnet_pb2.Node(id=2), AGENT)
        client.open(1, request(METHOD, *messages, done=False))
        await agent.settle()
        if how == "reset":
            client.rst(1)
        elif how == "fin":
            client.fin(1)
        else:
            client.link.break_off()
            await client.link.aclose()
        await agent.settle()
        kinds = [
            update.kind for answer in told(agent) for update in answer.peer_updates
        ]
        assert kinds == [1, 3]


async def test_the_error_comes_before_the_end(autojump_clock: MockClock) -> None:
    service = CoordinatorService()
    async with session(service, CLIENT) as client:
        client.open(1, request(METHOD, b"\xff", done=False))
        await client.settle()
        assert [answer.error for answer in told(client)] == ["not a CoordinateRequest"]
        assert last_kind(client) == Kind.CLOSE


async def test_a_client_that_never_reads(autojump_clock: MockClock) -> None:
    """It is dropped when QUEUE_DEPTH answers wait, and no one else notices."""
    service = CoordinatorService()
    async with (
        session(service, AGENT) as agent,
        session(service, CLIENT, capacity=1000) as slow,
        session(service, UUID(int=3)) as reader,
        trio.open_nursery() as nursery,
    ):
        nursery.start_soon(agent.read_all)
        nursery.start_soon(reader.read_all)
        agent.open(1, request(METHOD, *publish(tailnet_pb2.Node(id=1)), done=False))
        for number, client in enumerate((slow, reader), 2):
            messages = publish(tailnet_pb2.Node(id=number), AGENT)
            client.open(1, request(METHOD, *messages, done=False))
        await agent.settle()
        for number in range(count := QUEUE_DEPTH + 20):
            (message,) = publish(tailnet_pb2.Node(id=100 + number))
            agent.data(1, encode_packet(Kind.MESSAGE, 1, 3 + number, message))
            await agent.settle()
        assert len(told(reader)) == count + 1
        updates = [u for answer in told(agent) for u in answer.peer_updates]
        assert [(u.kind, u.reason) for u in updates if u.kind != 1] == [
            (2, "failed update")
        ]
        assert [UUID(bytes=u.id) for u in updates if u.kind == 2] == [CLIENT]
        slow.link.break_off()
        nursery.cancel_scope.cancel()

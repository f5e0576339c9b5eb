"""Recorded sessions, answered by our coordinator as by Coder's."""

from __future__ import annotations

import copy
from collections.abc import AsyncGenerator
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any
from uuid import UUID

import pytest
from trio.testing import MockClock

from tailnet.control.drpc import Kind, encode_packet
from tailnet.control.proto import tailnet_pb2
from tailnet.control.server import ServerCall
from tailnet.coordinator.auth import AgentAuth, ClientAuth, TunnelAuth
from tailnet.coordinator.responses import encode_update
from tailnet.coordinator.serve import CoordinatorService
from tests.control.raw_peer import RawPeer, raw_client
from tests.coordinator.golden import (
    METHOD,
    SESSIONS,
    Packet,
    Recording,
    differences,
    load,
    transcript,
)

KINDS = {
    "Invoke": Kind.INVOKE,
    "Message": Kind.MESSAGE,
    "Close": Kind.CLOSE,
    "CloseSend": Kind.CLOSE_SEND,
}


@asynccontextmanager
async def peer(
    service: CoordinatorService, kind: str, peer_id: UUID, auth: TunnelAuth
) -> AsyncGenerator[RawPeer]:
    """A connection to a server of ours, with nothing sent yet."""

    async def coordinate(call: ServerCall) -> None:
        await service.coordinate(call, peer_id=peer_id, name=kind, auth=auth, kind=kind)

    async with raw_client({METHOD: coordinate}) as raw:
        yield raw


async def replay(recording: Recording) -> dict[str, list[Packet]]:
    """The answers of our coordinator, by peer."""
    service = CoordinatorService()
    agent_id, client_id = recording.ids["agent"], recording.ids["client"]
    async with AsyncExitStack() as stack:
        peers = {
            "agent": await stack.enter_async_context(
                peer(service, "agent", agent_id, AgentAuth(agent_id))
            ),
            "client": await stack.enter_async_context(
                peer(service, "client", client_id, ClientAuth(agent_id))
            ),
        }
        numbers = dict.fromkeys(peers, 0)
        for name, (kind, body) in recording.requests:
            raw = peers[name]
            numbers[name] += 1
            if kind == "Invoke":
                raw.open(1)
                body = METHOD.encode()
            raw.data(1, encode_packet(KINDS[kind], 1, numbers[name], body))
            await raw.settle()
        names = {kind: name for name, kind in KINDS.items()}
        return {
            name: [(names[Kind(p.kind)], bytes(p.data)) for p in raw.packets(1)]
            for name, raw in peers.items()
        }


@pytest.mark.parametrize("session", SESSIONS)
async def test_session(session: str, autojump_clock: MockClock) -> None:
    recording = load(session)
    assert len(recording.requests) >= 6
    ours = await replay(recording)
    for name, theirs in recording.answers.items():
        assert differences(transcript(theirs), transcript(ours[name])) == []


@pytest.mark.parametrize("session", SESSIONS)
async def test_session_without_masks(session: str, autojump_clock: MockClock) -> None:
    """The same requests have the same answers, to the last field."""
    recording = load(session)
    ours = await replay(recording)
    for name, theirs in recording.answers.items():
        assert [(kind, parsed(body)) for kind, body in ours[name]] == [
            (kind, parsed(body)) for kind, body in theirs
        ]


def parsed(body: bytes) -> tailnet_pb2.CoordinateResponse:
    return tailnet_pb2.CoordinateResponse.FromString(body)


# -- the comparer can fail --------------------------------------------------


@pytest.fixture
def told() -> list[Any]:
    """What the agent was told in the session with the most messages."""
    return transcript(load("fallback-ws").answers["agent"])


def test_the_same_is_no_difference(told: list[Any]) -> None:
    assert differences(told, copy.deepcopy(told)) == []
    assert [update["kind"] for r in told for update in r["peer_updates"]] == [
        "NODE",
        "NODE",
        "DISCONNECTED",
    ]


@pytest.mark.parametrize(
    ("field", "value"),
    [("kind", "LOST"), ("reason", "lost"), ("id", "id 7"), ("node", {})],
)
def test_one_changed_field_is_a_difference(
    told: list[Any], field: str, value: object
) -> None:
    for index in range(len(told)):
        changed = copy.deepcopy(told)
        changed[index]["peer_updates"][0][field] = value
        assert len(differences(told, changed)) == 1


def test_another_order_is_a_difference(told: list[Any]) -> None:
    for index in range(len(told) - 1):
        changed = copy.deepcopy(told)
        changed[index : index + 2] = changed[index : index + 2][::-1]
        assert differences(told, changed)


def test_one_more_or_less_is_a_difference(told: list[Any]) -> None:
    assert differences(told, told[:-1])
    assert differences(told, [*told, told[-1]])


def test_another_end_is_a_difference() -> None:
    client = transcript(load("direct").answers["client"])
    assert client[-1] == "Close"
    assert differences(client, [*client[:-1], "CloseSend"])


def test_masks_hide_who_but_not_which() -> None:
    """Other ids are the same; an id that changes in between is not."""
    packets = load("direct").answers["client"]
    other = UUID(int=5).bytes
    agent = load("direct").ids["agent"].bytes
    renamed = [(kind, body.replace(agent, other)) for kind, body in packets]
    assert renamed != packets
    assert transcript(renamed) == transcript(packets)
    assert transcript([packets[0], *renamed[1:]]) != transcript(packets)


async def test_a_wrong_reason_of_ours_is_found(
    monkeypatch: pytest.MonkeyPatch, autojump_clock: MockClock
) -> None:
    def wrong(peer_id: bytes, kind: Any, reason: str = "", *node: Any) -> bytes:
        return encode_update(peer_id, kind, reason.replace("node ", ""), *node)

    monkeypatch.setattr("tailnet.coordinator.core.encode_update", wrong)
    recording = load("direct")
    ours = await replay(recording)
    theirs = recording.answers["agent"]
    assert len(differences(transcript(theirs), transcript(ours["agent"]))) == 1

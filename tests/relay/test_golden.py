"""Recorded sessions, answered by our whole server as by Coder's."""

from __future__ import annotations

import copy
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
import trio
import trio.testing

from relay.addresses import ListenAddress
from relay.api.answers import json_answer
from relay.derpmaps.build import AccessUrl, MapOptions
from relay.pages.page import Response
from relay.serve_settings import ServeSettings
from relay.server import Server, open_server
from relay.store.sql_store import open_store
from tailnet.control.proto import tailnet_pb2
from tailnet.coordinator.responses import Kind, encode_update
from tailnet.derp.frames import encode_recv_packet
from tailnet.derp.handshake import ServerInfo
from tailnet.keys import NodePublic
from tests.control.recorded import connections, frames
from tests.relay.golden import (
    AGENT_ID,
    SESSIONS,
    Recording,
    Transcript,
    changes,
    differences,
    load,
    transcript,
)
from tests.relay.replay import Replay, replay
from tests.relay.store.stores import empty_database

# Of the recorded deployment: what its map says, and its token.
ACCESS_URL = AccessUrl("http", "127.0.0.1", 13002)
TOKEN = "abcdefghij-klmnopqrstuvwxyz012345"


@asynccontextmanager
async def deployment(recording: Recording, data_dir: Path) -> AsyncIterator[Server]:
    """A server like the recorded one, with its agent."""
    (data_dir / "tailnet.db").write_bytes(empty_database())
    settings = ServeSettings(
        http=ListenAddress("127.0.0.1", 0),
        access_url=ACCESS_URL,
        data_dir=data_dir,
        derp_map=MapOptions(block_direct=recording.flag("disable_direct_connections")),
        derp_force_websockets=recording.flag("derp_force_websockets"),
        drain_timeout=1,
    )
    async with open_store(data_dir / "tailnet.db", threads=False) as store:
        owner = await store.create_user("owner")
        await store.create_api_key(owner.id, token=TOKEN)
        workspace = await store.create_workspace(owner.id, "workspace")
        agent_id = UUID(AGENT_ID)
        await store.create_agent(
            workspace.id,
            "agent",
            agent_id=agent_id,
            token=agent_id,
            directory="/workspace",
        )
        async with open_server(settings, store=store) as server:
            yield server


async def replayed(session: str, data_dir: Path) -> tuple[Recording, Replay]:
    recording = load(session)
    with trio.fail_after(600):
        async with deployment(recording, data_dir) as server:
            return recording, await replay(recording, server.addresses["http"])


async def compared(session: str, data_dir: Path) -> list[str]:
    recording, replay = await replayed(session, data_dir)
    return differences(
        transcript(recording.rows, recording.names),
        transcript(replay.rows, replay.names, is_ours=True),
    )


@pytest.mark.parametrize("session", SESSIONS)
async def test_session(
    session: str, tmp_path: Path, autojump_clock: trio.testing.MockClock
) -> None:
    assert await compared(session, tmp_path) == []


async def test_boxes_tokens_and_ends(
    tmp_path: Path, autojump_clock: trio.testing.MockClock
) -> None:
    """What is ours to see, and masked in the comparison."""
    started = time.time()
    _, replay = await replayed("fallback-ws", tmp_path)
    assert replay.server_infos == [ServerInfo(version=2)] * 2
    (answer,) = (
        tailnet_pb2.RefreshResumeTokenResponse.FromString(bytes.fromhex(row["hex"]))
        for row in replay.rows
        if row.get("rpc", "").endswith("RefreshResumeToken") and row.get("hex")
    )
    assert answer.refresh_in.ToTimedelta() == timedelta(hours=12)
    lifetime = answer.expires_at.seconds - started
    assert lifetime == pytest.approx(24 * 3600, abs=60)
    ends = [row for row in replay.rows if row["ev"] == "ws_control"]
    assert {(row["conn"], row["code"], row["reason"]) for row in ends} == {
        (9, 1000, ""),
        (14, 1000, ""),
    }


@pytest.mark.parametrize("session", ["direct", "block-endpoints"])
async def test_control_streams_are_replayed_to_the_byte(
    session: str, tmp_path: Path, autojump_clock: trio.testing.MockClock
) -> None:
    """Of these sessions there are the payloads as they were, too."""
    _, replay = await replayed(session, tmp_path)
    recorded: dict[tuple[int, int], bytes] = {}
    for conn, payloads in connections(f"{session}.ws.jsonl").items():
        data = b"".join(payload.data for payload in payloads if payload.to_server)
        for header, body in frames(data):
            if body:
                key = conn, header.stream_id
                recorded[key] = recorded.get(key, b"") + body
    assert replay.said == recorded


# -- the comparer can fail ----------------------------------------------------


@pytest.fixture(scope="module", params=SESSIONS)
def recorded(request: pytest.FixtureRequest) -> Transcript:
    recording = load(request.param)
    return transcript(recording.rows, recording.names)


def test_the_same_is_no_difference(recorded: Transcript) -> None:
    assert differences(recorded, copy.deepcopy(recorded)) == []


def test_any_one_change_is_a_difference(recorded: Transcript) -> None:
    """A value, a field, an item, a stream; or two items in another order."""
    seen = 0
    for what, changed in changes(recorded):
        assert differences(recorded, changed), what
        assert differences(changed, recorded), what
        seen += 1
    assert seen > 500


def test_changes_are_of_what_matters() -> None:
    """Kinds, reasons, order, JSON, headers, types of frames are among them."""
    recording = load("direct")
    names = [name for name, _ in changes(transcript(recording.rows, recording.names))]
    for part in (
        "10 client DERP s2c, 2: .type",
        "10 client DERP s2c: 1 before",
        "10 client HTTP, 0: .headers.Derp-Version",
        (
            "1 agent dRPC 15 /coder.tailnet.v2.Tailnet/Coordinate, 0: "
            ".message.fields.peer_updates.0.kind"
        ),
        (
            "1 agent dRPC 15 /coder.tailnet.v2.Tailnet/Coordinate, 1: "
            ".message.fields.peer_updates.0.reason"
        ),
        "1 agent dRPC 15 /coder.tailnet.v2.Tailnet/Coordinate: 1 before",
        "1 agent yamux 15",
        "7 client HTTP, 0: .json.derp_map.Regions.999.RegionName",
        "7 client HTTP, 0: .json.disable_direct_connections",
        "8 client HTTP, 0: .headers.Sec-Websocket-Accept",
        "8 client dRPC 1 /coder.tailnet.v2.Tailnet/Coordinate, 2: .kind",
        (
            "8 client dRPC 5 /coder.tailnet.v2.Tailnet/RefreshResumeToken, 0: "
            ".message.header.alg"
        ),
        "8 client end: no 0",
    ):
        assert any(name.startswith(part) for name in names), part


def test_names_hide_who_but_not_which() -> None:
    """Other keys and ids are the same; one that changes in between is not."""
    recording = load("relay")
    theirs = transcript(recording.rows, recording.names)
    for name, data in recording.names.items():
        for hidden, other in ((True, bytes(len(data))), (False, data)):
            names = {**recording.names, name: other}
            mixed = transcript(recording.rows, names)
            assert bool(differences(theirs, mixed)) == hidden, name


def wrong_kind(peer_id: bytes, kind: Kind, reason: str = "", *node: Any) -> bytes:
    lost, gone = Kind.LOST, Kind.DISCONNECTED
    return encode_update(peer_id, lost if kind == gone else kind, reason, *node)


def wrong_reason(peer_id: bytes, kind: Kind, reason: str = "", *node: Any) -> bytes:
    return encode_update(peer_id, kind, reason.replace("graceful ", ""), *node)


def wrong_json(status: int, value: dict[str, Any]) -> Response:
    return json_answer(status, {**value, "disable_direct_connections": 0})


def wrong_frame(peer: NodePublic, reason: int) -> bytes:
    return encode_recv_packet(peer, bytes([reason]))


@pytest.mark.parametrize(
    ("where", "wrong", "stream"),
    [
        ("tailnet.coordinator.core.encode_update", wrong_kind, "1 agent dRPC 15"),
        ("tailnet.coordinator.core.encode_update", wrong_reason, "1 agent dRPC 15"),
        ("relay.api.networking.json_answer", wrong_json, "7 client HTTP"),
        ("relay.api.context.VERSION_HEADER", "X-Build-Version", "8 client HTTP"),
        ("relay.derp.pure_switch.encode_peer_gone", wrong_frame, "4 agent DERP s2c"),
    ],
    ids=["kind", "reason", "JSON", "header", "frame"],
)
async def test_one_wrong_thing_of_ours_is_found(
    where: str,
    wrong: Any,
    stream: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    autojump_clock: trio.testing.MockClock,
) -> None:
    monkeypatch.setattr(where, wrong)
    found = await compared("direct", tmp_path)
    assert found
    assert any(text.startswith(stream) for text in found)

"""Recorded sessions, answered by our whole server as by Coder's."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
import trio
import trio.testing

from relay.addresses import ListenAddress
from relay.derpmaps.build import AccessUrl, MapOptions
from relay.serve_settings import ServeSettings
from relay.server import Server, open_server
from relay.store.sql_store import open_store
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
TOKEN = "abcdefghij-klmnopqrstuvwxyz012345"  # noqa: S105


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

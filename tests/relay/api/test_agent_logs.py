from __future__ import annotations

import json
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from struct import pack
from typing import Any
from uuid import UUID

import pytest
import structlog.testing
import trio
import trio.testing
from wsproto.events import CloseConnection, Ping, Pong, TextMessage

from relay.api import agent_logs
from relay.api.agent_logs import LOG_ROUTES, LOOKS_PER_PING, POLL_INTERVAL
from relay.api.router import Router
from relay.front.router import Front
from relay.store.model import Lifecycle, LifecycleState
from relay.store.report_model import LogLevel, LogLine
from relay.store.sql_store import SqlStore
from tests.relay.api.rig import NOW, Rig, body_of, fetch, open_rig
from tests.relay.api.test_messages import HEAD, Peer
from tests.relay.front.test_router import Client

SOURCE = UUID(int=7)


async def say(rig: Rig, *outputs: str) -> None:
    lines = [LogLine(NOW, LogLevel.WARN, output) for output in outputs]
    assert await rig.store.add_logs(rig.agent.agent.id, SOURCE, lines)


def path(rig: Rig, query: str = "") -> str:
    return f"/api/v2/workspaceagents/{rig.agent.agent.id}/logs{query}"


@asynccontextmanager
async def following(rig: Rig, query: str = "?follow") -> AsyncIterator[Peer]:
    router = Router(rig.context, LOG_ROUTES)
    async with trio.open_nursery() as nursery:
        client = Client(Front(derp=None, pages=router.answer), nursery)
        head = HEAD.replace(b"/x", path(rig, query).encode())
        token = f"Cookie: coder_session_token={rig.token}\r\n\r\n".encode()
        answer = await client.ask(head + token)
        assert answer.startswith(b"HTTP/1.1 101 ")
        peer = Peer(client, answer.partition(b"\r\n\r\n")[2])
        try:
            yield peer
        finally:
            client.sock.close()
        nursery.cancel_scope.cancel()


async def next_lines(peer: Peer) -> list[dict[str, Any]]:
    """The next message; Pings on the way are answered."""
    while True:
        event = await peer.receive()
        if isinstance(event, Ping):
            await peer.send(event.response())
            continue
        assert isinstance(event, TextMessage)
        lines: list[dict[str, Any]] = json.loads(event.data)
        return lines


async def test_all_lines(tmp_path: Path) -> None:
    async with open_rig(tmp_path) as rig:
        router = Router(rig.context, LOG_ROUTES)
        answer = await fetch(router, "GET", path(rig), token=rig.token)
        assert body_of(answer) == []
        await say(rig, "one", "two")
        answer = await fetch(router, "GET", path(rig), token=rig.token)
        first, second = body_of(answer)
        assert first == {
            "id": 1,
            "created_at": "2026-05-04T03:02:01Z",
            "output": "one",
            "level": "warn",
            "source_id": str(SOURCE),
        }
        assert (second["id"], second["output"]) == (2, "two")
        answer = await fetch(router, "GET", path(rig, "?after=1"), token=rig.token)
        assert [line["id"] for line in body_of(answer)] == [2]


@pytest.mark.parametrize("after", ["-1", "x", "1.5", "9" * 30, "%C2%B2"])
async def test_bad_after(tmp_path: Path, after: str) -> None:
    async with open_rig(tmp_path) as rig:
        router = Router(rig.context, LOG_ROUTES)
        answer = await fetch(
            router, "GET", path(rig, f"?after={after}"), token=rig.token
        )
        assert answer.status == 400
        assert body_of(answer)["validations"][0]["field"] == "after"


async def test_logs_of_others(tmp_path: Path) -> None:
    async with open_rig(tmp_path) as rig:
        router = Router(rig.context, LOG_ROUTES)
        assert (await fetch(router, "GET", path(rig))).status == 401
        answer = await fetch(router, "GET", path(rig), token=rig.bob_token)
        assert answer.status == 404


async def test_following(
    tmp_path: Path, autojump_clock: trio.testing.MockClock
) -> None:
    async with open_rig(tmp_path) as rig:
        await say(rig, "one", "two", "three")
        async with following(rig, "?after=1&follow") as peer:
            lines = await next_lines(peer)
            assert [(line["id"], line["output"]) for line in lines] == [
                (2, "two"),
                (3, "three"),
            ]
            assert isinstance(await peer.receive(), Ping)
            await say(rig, "four")
            await trio.sleep(POLL_INTERVAL)
            (line,) = await next_lines(peer)
            assert (line["id"], line["output"]) == (4, "four")
            await peer.send(CloseConnection(code=1000))
            assert isinstance(await peer.receive(), CloseConnection)


async def test_an_agent_that_starts_anew_begins_with_line_one(
    tmp_path: Path, autojump_clock: trio.testing.MockClock
) -> None:
    async with open_rig(tmp_path) as rig:
        await say(rig, "old", "x" * 500_000)
        agent_id = rig.agent.agent.id
        async with following(rig, "?after=2&follow") as peer:
            assert isinstance(await peer.receive(), Ping)
            too_much = [LogLine(NOW, LogLevel.INFO, "y" * 900_000)]
            assert not await rig.store.add_logs(agent_id, SOURCE, too_much)
            await rig.store.save_lifecycle(
                agent_id, Lifecycle(LifecycleState.STARTING, NOW)
            )
            await say(rig, "new")
            await trio.sleep(POLL_INTERVAL)
            (line,) = await next_lines(peer)
            assert (line["id"], line["output"]) == (1, "new")


async def test_a_client_that_answers_no_ping_is_dropped(
    tmp_path: Path, autojump_clock: trio.testing.MockClock
) -> None:
    async with open_rig(tmp_path) as rig, following(rig) as peer:
        started = trio.current_time()
        ping = await peer.receive()
        assert isinstance(ping, Ping)
        await peer.send(ping.response())
        await trio.sleep(LOOKS_PER_PING * POLL_INTERVAL)
        assert isinstance(await peer.receive(), Ping)
        await trio.sleep(LOOKS_PER_PING * POLL_INTERVAL)
        event = await peer.receive()
        assert isinstance(event, CloseConnection)
        assert trio.current_time() - started < 3 * LOOKS_PER_PING * POLL_INTERVAL
        assert not isinstance(event, Pong)


async def test_a_client_that_is_gone_is_no_bug(
    tmp_path: Path, autojump_clock: trio.testing.MockClock
) -> None:
    with structlog.testing.capture_logs() as logs:
        async with open_rig(tmp_path) as rig, following(rig) as peer:
            await say(rig, "one")
            await trio.sleep(POLL_INTERVAL)
            sock = peer.client.sock
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, pack("ii", 1, 0))
            sock.close()  # a reset
            await trio.sleep(POLL_INTERVAL / 2)
    assert not [entry for entry in logs if entry["log_level"] == "error"]


async def test_what_was_seen_is_not_read_again(
    tmp_path: Path,
    autojump_clock: trio.testing.MockClock,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Every follower looks every second, and an agent may have much to say."""
    async with open_rig(tmp_path) as rig:
        monkeypatch.setattr(agent_logs, "MAX_LINES", 3)
        await say(rig, *map(str, range(7)))
        answer = await fetch(
            Router(rig.context, LOG_ROUTES), "GET", path(rig), token=rig.token
        )
        assert [line["output"] for line in body_of(answer)] == list("0123456")

        read, look = [], SqlStore.agent_logs

        async def note(store: SqlStore, agent_id: UUID, **which: int) -> Any:
            count, lines = await look(store, agent_id, **which)
            read.append(len(lines))
            return count, lines

        monkeypatch.setattr(SqlStore, "agent_logs", note)
        monkeypatch.delattr(SqlStore, "agent_reports")
        async with following(rig) as peer:
            got = [line for _ in range(3) for line in await next_lines(peer)]
            assert [line["id"] for line in got] == list(range(1, 8))
            await trio.sleep(10 * POLL_INTERVAL)
        assert sum(read) == 7

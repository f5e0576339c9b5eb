"""The request as endpoints see it, and who waits for changes."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast
from uuid import UUID, uuid4

import pytest
import trio
import trio.testing

from relay.api.context import (
    AgentSessions,
    ApiError,
    Revisions,
    open_websocket,
)
from relay.api.link import WebsocketLink
from relay.pages.page import Response
from tests.relay.api.rig import VERSION, body_of, open_rig


async def test_agents_of_the_path(tmp_path: Path) -> None:
    async with open_rig(tmp_path) as rig:
        mine = rig.request(params={"agent": str(rig.agent.agent.id)})
        assert await mine.agent_param() == rig.agent
        for request in (
            rig.request(params={"agent": str(uuid4())}),
            rig.request(params={"agent": str(rig.agent.agent.id)}, user=rig.bob),
        ):
            with pytest.raises(ApiError) as caught:
                await request.agent_param()
            assert caught.value.answer.status == 404
            assert body_of(caught.value.answer)["message"] == (
                "Agent doesn't exist with that id, or you do not have access to it."
            )


@pytest.mark.parametrize(
    ("text", "detail"),
    [("x", "invalid UUID length: 1"), ("z" * 36, "invalid UUID format")],
)
async def test_no_uuid(text: str, detail: str, tmp_path: Path) -> None:
    async with open_rig(tmp_path) as rig:
        with pytest.raises(ApiError) as caught:
            rig.request(params={"agent": text}).uuid_param("agent")
        assert caught.value.answer.status == 400
        assert body_of(caught.value.answer) == {
            "message": f'Invalid UUID "{text}".', "detail": detail,
        }  # fmt: skip


async def test_all_who_wait_see_a_change(
    autojump_clock: trio.testing.MockClock,
) -> None:
    revisions, seen = Revisions(), list[int]()

    async def wait() -> None:
        seen.append(await revisions.wait_change(revisions.current))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(wait)
        nursery.start_soon(wait)
        await trio.testing.wait_all_tasks_blocked()
        revisions.note(0)
        await trio.testing.wait_all_tasks_blocked()
        assert not seen
        revisions.note(7)
    assert seen == [7, 7]
    assert await revisions.wait_change(3) == 7


class FakeLink:
    def __init__(self) -> None:
        self.failed: list[tuple[int, str]] = []

    def fail(self, code: int, reason: str) -> None:
        self.failed.append((code, reason))


def test_sessions_of_an_agent_end_together() -> None:
    sessions, agent, other = AgentSessions(), UUID(int=1), UUID(int=2)
    links = [FakeLink() for _ in range(3)]
    for agent_id, link in zip((agent, agent, other), links, strict=True):
        sessions.add(agent_id, cast("WebsocketLink", link))
    assert sessions.agent_ids() == {agent, other}
    sessions.close(agent, "gone")
    sessions.close(UUID(int=3), "never was")
    assert [link.failed for link in links] == [[(1001, "gone")]] * 2 + [[]]
    for link in links[:2]:
        sessions.discard(agent, cast("WebsocketLink", link))
    sessions.discard(agent, cast("WebsocketLink", links[0]))
    assert sessions.agent_ids() == {other}


async def test_no_websocket_asked_for(tmp_path: Path) -> None:
    async def serve(link: Any) -> None:
        raise AssertionError

    async with open_rig(tmp_path) as rig:
        answer = open_websocket(rig.request(), serve)
        assert isinstance(answer, Response)
        assert answer.status == 426
        assert VERSION not in str(answer.headers)  # the router says it

"""What a server notices by itself."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast
from uuid import UUID

import trio
import trio.testing

from relay.api.context import AGENT_DELETED
from relay.api.link import WebsocketLink
from relay.derp.switch import ConnId, Switch
from relay.serve_settings import DerpAdmission
from relay.watcher import RENEWAL_INTERVAL, REVISION_INTERVAL, Watcher
from tailnet.keys import NodePrivate
from tests.relay.api.rig import Rig, open_rig

KEY = NodePrivate(bytes([9]) * 32).public()


class FakeSwitch:
    """Has one client, twice."""

    def __init__(self) -> None:
        self.closed: list[tuple[int, str]] = []

    def connections(self, key: Any) -> list[ConnId]:
        return [ConnId(1), ConnId(2)] if key == KEY else []

    def close(self, conn: ConnId, reason: str) -> None:
        self.closed.append((conn, reason))


class FakeLink:
    def __init__(self) -> None:
        self.reasons: list[str] = []

    def fail(self, code: int, reason: str) -> None:
        self.reasons.append(reason)


def make(rig: Rig) -> tuple[Watcher, FakeSwitch]:
    switch = FakeSwitch()
    return Watcher(rig.context, cast("Switch", switch)), switch


async def test_a_deleted_agent_is_out_at_once(
    tmp_path: Path, autojump_clock: trio.testing.MockClock
) -> None:
    async with open_rig(tmp_path) as rig, trio.open_nursery() as nursery:
        watcher, _ = make(rig)
        mine, link, other = rig.agent.agent.id, FakeLink(), FakeLink()
        stays = await rig.store.create_agent(rig.workspace.id, "stays")
        rig.context.agent_sessions.add(mine, cast("WebsocketLink", link))
        rig.context.agent_sessions.add(stays.agent.id, cast("WebsocketLink", other))
        # Its channel is lost, but others may still know its key.
        lost = await rig.store.create_agent(rig.workspace.id, "lost")
        rig.coordinator.agents = {mine, stays.agent.id, lost.agent.id}
        nursery.start_soon(watcher.watch_revisions)
        await trio.sleep(1)
        assert not link.reasons
        await rig.store.delete_agent(mine)
        await rig.store.delete_agent(lost.agent.id)
        await trio.sleep(2 * REVISION_INTERVAL)
        assert set(link.reasons) == {AGENT_DELETED}
        assert not other.reasons
        removed = dict(rig.coordinator.removed)
        assert removed == {mine: AGENT_DELETED, lost.agent.id: AGENT_DELETED}
        nursery.cancel_scope.cancel()


async def test_a_store_that_is_down_is_asked_again(
    tmp_path: Path, autojump_clock: trio.testing.MockClock
) -> None:
    from tailnet.errors import StoreUnavailableError

    async with open_rig(tmp_path) as rig, trio.open_nursery() as nursery:
        watcher, _ = make(rig)
        real, failures = rig.store.revision, 3

        async def revision() -> int:
            nonlocal failures
            if failures:
                failures -= 1
                raise StoreUnavailableError("locked")
            return await real()

        rig.store.revision = revision  # type: ignore[method-assign]
        nursery.start_soon(watcher.watch_revisions)
        before = rig.context.revisions.current
        await rig.store.create_user("carol")
        assert await rig.context.revisions.wait_change(before) != before
        assert failures == 0
        nursery.cancel_scope.cancel()


async def test_who_loses_the_relay(tmp_path: Path) -> None:
    stranger = NodePrivate(bytes([8]) * 32).public()
    async with open_rig(tmp_path) as rig:
        watcher, switch = make(rig)
        watcher.drop_node_key(KEY, "graceful disconnect")
        assert not switch.closed  # an open relay is for everybody
        watcher.drop_node_key(KEY, AGENT_DELETED)
        assert switch.closed == [(1, AGENT_DELETED), (2, AGENT_DELETED)]
    (tmp_path / "2").mkdir()
    async with open_rig(
        tmp_path / "2", derp_admission=DerpAdmission.COORDINATOR
    ) as rig:
        watcher, switch = make(rig)
        watcher.drop_node_key(stranger, "lost")
        assert not switch.closed
        watcher.drop_node_key(KEY, "lost")
        assert switch.closed == [(1, "lost"), (2, "lost")]


async def test_keys_are_loaded_and_renewed(
    tmp_path: Path, autojump_clock: trio.testing.MockClock
) -> None:
    async with open_rig(tmp_path) as rig, trio.open_nursery() as nursery:
        watcher, _ = make(rig)
        await watcher.load_signing_keys()
        token = rig.context.resume_tokens.issue(UUID(int=5)).token
        nursery.start_soon(watcher.renew_signing_keys)
        await trio.sleep(RENEWAL_INTERVAL + 1)
        assert rig.context.resume_tokens.verify(token) == UUID(int=5)
        nursery.cancel_scope.cancel()


async def test_the_end_is_said(tmp_path: Path) -> None:
    async with open_rig(tmp_path) as rig:
        watcher, _ = make(rig)
        watcher.hang_up()
        assert rig.coordinator.closed

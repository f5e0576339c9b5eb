"""An agent's control channel: both services, and whether the agent is there."""

from __future__ import annotations

from pathlib import Path

import pytest
import trio
import trio.testing

from relay.api.agent_session import AGENT_ROUTES, PING_INTERVAL
from relay.api.router import Router
from tailnet.control.proto import agent_pb2
from tailnet.coordinator.auth import AgentAuth
from tailnet.errors import RpcError
from tests.relay.api.clients import open_api
from tests.relay.api.rig import Rig, body_of, fetch, open_rig

RPC = "/api/v2/workspaceagents/me/rpc"
COORDINATE = "/coder.tailnet.v2.Tailnet/Coordinate"
MANIFEST = "/coder.agent.v2.Agent/GetManifest"


async def connection_times(rig: Rig) -> tuple[bool, bool]:
    """Whether the agent has connected, and left."""
    agent = await rig.store.get_agent(rig.agent.agent.id)
    assert agent is not None
    return agent.first_connected_at is not None, agent.disconnected_at is not None


async def test_both_services_on_one_channel(
    tmp_path: Path,
) -> None:
    async with open_rig(tmp_path) as rig, open_api(rig, AGENT_ROUTES) as api:
        assert await connection_times(rig) == (False, False)
        async with api.call(
            f"{RPC}?version=2.11&role=agent", token=str(rig.agent_token)
        ) as client:
            manifest = agent_pb2.Manifest.FromString(await client.unary(MANIFEST, b""))
            assert manifest.agent_id == rig.agent.agent.id.bytes
            async with client.call(COORDINATE) as call:
                await call.send(b"")
                assert await call.receive() == b"coordinated"
            assert rig.context.agent_sessions.agent_ids() == {rig.agent.agent.id}
            assert await connection_times(rig) == (True, False)
        await trio.testing.wait_all_tasks_blocked()
        assert await connection_times(rig) == (True, True)
        assert not rig.context.agent_sessions.agent_ids()
        [peer] = rig.coordinator.calls
        assert peer["peer_id"] == rig.agent.agent.id
        assert peer["name"] == "alice-dev-main"
        assert peer["kind"] == "agent"
        assert isinstance(peer["auth"], AgentAuth)


async def test_pings_tell_that_it_is_still_there(
    tmp_path: Path, mock_clock: trio.testing.MockClock
) -> None:
    saved: list[object] = []
    async with open_rig(tmp_path) as rig, open_api(rig, AGENT_ROUTES) as api:
        real = rig.store.save_connected

        async def save(agent_id: object, at: object) -> None:
            saved.append(at)
            await real(agent_id, at)  # type: ignore[arg-type]

        rig.store.save_connected = save  # type: ignore[method-assign]
        async with api.call(RPC, token=str(rig.agent_token)):
            # By the second, so that each ping has ten to be answered in.
            for _ in range(int(4.5 * PING_INTERVAL)):
                await trio.testing.wait_all_tasks_blocked(0.002)
                mock_clock.jump(1)
        assert len(saved) >= 4
        assert len(set(saved)) > 1  # the answers count, not only the start


async def test_others_say_nothing_of_the_agent(
    tmp_path: Path,
) -> None:
    async with open_rig(tmp_path) as rig, open_api(rig, AGENT_ROUTES) as api:
        async with api.call(f"{RPC}?role=logstream-kube", token=str(rig.agent_token)):
            await trio.testing.wait_all_tasks_blocked()
        await trio.testing.wait_all_tasks_blocked()
        assert await connection_times(rig) == (False, False)


async def test_the_end_of_a_deleted_agent(
    tmp_path: Path,
) -> None:
    async with open_rig(tmp_path) as rig, open_api(rig, AGENT_ROUTES) as api:
        head, link = await api.upgrade(RPC, token=str(rig.agent_token))
        assert head.startswith(b"HTTP/1.1 101 ")
        await trio.testing.wait_all_tasks_blocked()
        await rig.store.delete_agent(rig.agent.agent.id)
        rig.context.agent_sessions.close(rig.agent.agent.id, "the agent was deleted")
        while await link.receive():
            pass
        assert link.websocket.close_code == 1001
        assert link.websocket.close_reason == "the agent was deleted"
        await link.aclose()
        head, link = await api.upgrade(RPC, token=str(rig.agent_token))
        assert head.startswith(b"HTTP/1.1 401 ")
        await link.aclose()


async def test_refusals(tmp_path: Path) -> None:
    async with open_rig(tmp_path) as rig:
        router, token = Router(rig.context, AGENT_ROUTES), str(rig.agent_token)
        assert (await fetch(router, "GET", RPC)).status == 401
        assert (await fetch(router, "GET", RPC, token=rig.token)).status == 401
        got = await fetch(router, "GET", f"{RPC}?version=2.12", token=token)
        assert got.status == 400
        assert body_of(got)["message"] == "Unknown or unsupported API version"
        assert (await fetch(router, "GET", RPC, token=token)).status == 426


async def test_what_is_no_call(
    tmp_path: Path,
) -> None:
    async with open_rig(tmp_path) as rig, open_api(rig, AGENT_ROUTES) as api:
        async with api.call(RPC, token=str(rig.agent_token)) as client:
            with pytest.raises(RpcError, match="unknown rpc"):
                await client.unary("/coder.agent.v2.Agent/AcquireNothing", b"")
        head, link = await api.upgrade(RPC, token=str(rig.agent_token))
        assert head.startswith(b"HTTP/1.1 101 ")
        link.send_nowait(b"this is not yamux")
        await link.flush()
        while await link.receive():
            pass
        assert link.websocket.close_code == 1011
        await link.aclose()
        # Others notice nothing.
        async with api.call(RPC, token=str(rig.agent_token)) as client:
            await client.unary(MANIFEST, b"")

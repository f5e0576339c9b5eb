"""Beside coordination: DERP maps, workspaces, resume tokens."""

from __future__ import annotations

from datetime import timedelta
from uuid import UUID

import pytest
import trio
import trio.testing

from tailnet.control.proto import tailnet_pb2
from tailnet.errors import RpcError
from tailnet.sdk.workspaces import (
    Workspace,
    WorkspaceAgent,
    WorkspaceChange,
    WorkspaceStatus,
)
from tests.sdk.fake_server import SERVICE
from tests.sdk.test_controller import (
    AGENT,
    JSON,
    NOW,
    OTHER,
    OWNER,
    WORKSPACE,
    opening,
    serving,
)

# -- DERP maps --------------------------------------------------------------


def derp_map(host: str, *, embedded: bool = False) -> tailnet_pb2.DERPMap:
    region = tailnet_pb2.DERPMap.Region(
        region_id=999,
        embedded_relay=embedded,
        nodes=[
            tailnet_pb2.DERPMap.Region.Node(
                name="999b", region_id=999, host_name=host, derp_port=443
            )
        ],
    )
    return tailnet_pb2.DERPMap(home_params={}, regions={999: region})


async def test_maps_come_to_every_reader_and_survive_a_reconnect(
    autojump_clock: trio.testing.MockClock,
) -> None:
    seen: dict[str, list[str]] = {"a": [], "b": []}

    async def read(name: str) -> None:
        async for derp in tailnet.derp_maps():
            nodes = derp.region(999).nodes
            assert nodes is not None
            seen[name].append(nodes[0].host_name)

    async with serving() as server:
        server.maps = [derp_map("one.test")]
        async with opening(server) as tailnet:
            server.nursery.start_soon(read, "a")
            peer = await server.accept()
            await trio.testing.wait_all_tasks_blocked()
            server.nursery.start_soon(read, "b")
            assert peer.maps is not None
            await peer.maps.send(derp_map("two.test").SerializeToString())
            await trio.testing.wait_all_tasks_blocked()
            await peer.cut()
            server.maps = [derp_map("two.test"), derp_map("three.test")]
            peer = await server.accept()
            await trio.testing.wait_all_tasks_blocked()
            peer.coordinate_done.set()
    # The same map again is no news; and who is slow may miss one.
    assert seen["a"] == ["one.test", "two.test", "three.test"]
    assert seen["b"] in (["one.test", "two.test", "three.test"], seen["a"][1:])


async def test_embedded_relays_are_where_the_server_is(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with serving() as server:
        server.maps = [derp_map("access-url.test", embedded=True)]
        async with opening(server) as tailnet:
            peer = await server.accept()
            derp = await anext(tailnet.derp_maps())
            nodes = derp.region(999).nodes
            assert nodes is not None
            assert (nodes[0].host_name, nodes[0].derp_port) == ("coder.test", 8080)
            assert nodes[0].force_http
            assert tailnet.derp_map == derp
            peer.coordinate_done.set()


# -- workspaces -------------------------------------------------------------


def workspace(name: str = "dev") -> tailnet_pb2.Workspace:
    return tailnet_pb2.Workspace(id=WORKSPACE.bytes, name=name, status="RUNNING")


def agent(agent_id: UUID) -> tailnet_pb2.Agent:
    return tailnet_pb2.Agent(
        id=agent_id.bytes, name="main", workspace_id=WORKSPACE.bytes
    )


async def test_workspaces_and_what_was_deleted_in_between(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with serving() as server, opening(server, None) as tailnet:
        peer = await server.accept()
        changes = tailnet.workspace_updates(OWNER)
        await peer.change_workspaces(
            upserted_workspaces=[workspace()],
            upserted_agents=[agent(AGENT), agent(OTHER)],
        )
        dev = Workspace(WORKSPACE, "dev", WorkspaceStatus.RUNNING)
        first, other = (WorkspaceAgent(a, "main", WORKSPACE) for a in (AGENT, OTHER))
        assert await anext(changes) == WorkspaceChange(
            upserted_workspaces=(dev,), upserted_agents=(first, other)
        )
        assert peer.workspaces is not None
        request = await peer.workspaces.receive()
        assert request is not None
        assert tailnet_pb2.WorkspaceUpdatesRequest.FromString(request) == (
            tailnet_pb2.WorkspaceUpdatesRequest(workspace_owner_id=OWNER.bytes)
        )
        await peer.cut()

        peer = await server.accept()
        await peer.change_workspaces(
            upserted_workspaces=[workspace()], upserted_agents=[agent(OTHER)]
        )
        assert await anext(changes) == WorkspaceChange(deleted_agents=(first,))
        peer.workspaces_done.set()  # its end is the end of the connection
        await peer.over.wait()

        peer = await server.accept()
        # Nothing new, and then something.
        await peer.change_workspaces(
            upserted_workspaces=[workspace()], upserted_agents=[agent(OTHER)]
        )
        await peer.change_workspaces(upserted_workspaces=[workspace("prod")])
        change = await anext(changes)
        assert [w.name for w in change.upserted_workspaces] == ["prod"]
        peer.coordinate_done.set()
    with pytest.raises(trio.EndOfChannel):
        await changes.receive()


async def test_who_has_no_workspaces_hears_that_and_may_stop_listening(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with serving() as server, opening(server, None) as tailnet:
        changes = tailnet.workspace_updates(OWNER)
        peer = await server.accept()
        await peer.change_workspaces()
        assert await anext(changes) == WorkspaceChange()
        await changes.aclose()
        await peer.change_workspaces(upserted_workspaces=[workspace()])
        await trio.testing.wait_all_tasks_blocked()
        assert tailnet.statistics().connects == 1
        await peer.cut()
        peer = await server.accept()
        await trio.testing.wait_all_tasks_blocked()
        assert peer.workspaces is None
        peer.coordinate_done.set()


async def test_workspaces_that_make_no_sense(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with serving() as server, opening(server, None) as tailnet:
        tailnet.workspace_updates(OWNER)
        peer = await server.accept()
        await peer.change_workspaces(upserted_agents=[agent(AGENT)])
        await peer.over.wait()
        await trio.testing.wait_all_tasks_blocked()
        assert tailnet.statistics().last_failure == (
            "workspace updates: an agent's workspace is not there"
        )
        peer = await server.accept()
        peer.coordinate_done.set()


# -- resume tokens ----------------------------------------------------------


def resume(
    token: str, *, refresh_in: int = 60, lives: int = 3600
) -> tailnet_pb2.RefreshResumeTokenResponse:
    answer = tailnet_pb2.RefreshResumeTokenResponse(token=token)
    answer.refresh_in.FromSeconds(refresh_in)
    answer.expires_at.FromDatetime(NOW + timedelta(seconds=lives))
    return answer


async def test_the_token_is_refreshed_and_used(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with serving() as server:
        server.resume = resume("one")
        async with opening(server) as tailnet:
            peer = await server.accept()
            await trio.testing.wait_all_tasks_blocked()
            assert tailnet.statistics().resumable
            server.resume = resume("two")
            await trio.sleep(61)
            assert server.refreshes == 2
            await peer.cut()
            peer = await server.accept()
            assert peer.query == {"version": "2.0", "resume_token": "two"}
            peer.coordinate_done.set()


async def test_a_rejected_token_is_dropped_and_the_dial_made_again_at_once(
    autojump_clock: trio.testing.MockClock,
) -> None:
    rejection = (
        b'{"message":"Invalid resume token","detail":"x","validations":'
        b'[{"field":"resume_token","detail":"Invalid resume token"}]}'
    )
    async with serving() as server:
        server.resume = resume("old key")
        async with opening(server) as tailnet:
            peer = await server.accept()
            await trio.testing.wait_all_tasks_blocked()
            await peer.cut()
            server.resume = RpcError("no", 12)
            server.refusals.append((401, JSON, rejection))
            peer = await server.accept()
            assert peer.query == {"version": "2.0"}
            assert [at for at, _, _ in server.dialed] == pytest.approx([0, 0.1, 0.1])
            assert not tailnet.statistics().resumable
            peer.coordinate_done.set()


async def test_an_expired_token_is_not_sent(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with serving() as server:
        server.resume = resume("short", lives=30)
        async with opening(server):
            peer = await server.accept()
            await trio.sleep(31)
            await peer.cut()
            peer = await server.accept()
            assert peer.query == {"version": "2.0"}
            peer.coordinate_done.set()


@pytest.mark.parametrize(
    "error",
    [
        RpcError("Unimplemented", 12),
        RpcError(f'protocol error: unknown rpc: "{SERVICE}RefreshResumeToken"'),
    ],
)
async def test_an_old_server_is_not_asked_again(
    error: RpcError, autojump_clock: trio.testing.MockClock
) -> None:
    async with serving() as server:
        server.resume = error
        async with opening(server) as tailnet:
            peer = await server.accept()
            await trio.sleep(3_000)
            assert server.refreshes == 1
            assert tailnet.statistics().connects == 1
            peer.coordinate_done.set()


async def test_a_token_that_cannot_be_had_now_may_be_later(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with serving() as server:
        server.resume = RpcError("database not reachable")
        async with opening(server) as tailnet:
            peer = await server.accept()
            await trio.sleep(1)
            assert server.refreshes == 4  # at 0, 0.1, 0.3, 0.7
            server.resume = resume("at last", refresh_in=0, lives=99_999)
            await trio.sleep(1)
            assert server.refreshes == 5
            assert tailnet.statistics().resumable
            await trio.sleep(30 * 60)  # the server names no time
            assert server.refreshes == 6
            peer.coordinate_done.set()

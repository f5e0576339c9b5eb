"""The SDK against Coder's own coordinator, and ours, with a real Coder agent."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from uuid import UUID, uuid4

import pytest
import trio

from tailnet.errors import ApiError
from tailnet.sdk.access import Access
from tailnet.sdk.controller import Tailnet, open_control, open_tailnet
from tailnet.sdk.coordination import PeerUpdate, PeerUpdateKind
from tailnet.sdk.rest import open_rest_client
from tests.interop.coder.nodes import make_node
from tests.interop.coder.peers import open_agent
from tests.interop.coder.servers import ROOT, Server, ServerKind, open_server
from tests.interop.network import RELAY, Network
from tests.interop.programs import free_port, open_program

pytestmark = pytest.mark.timeout(120)

STRANGE = UUID("99999999-9999-4999-8999-999999999999")


async def next_update(tailnet: Tailnet, kind: PeerUpdateKind) -> PeerUpdate:
    with trio.fail_after(30):
        async for update in tailnet.peer_updates:
            if update.kind is kind:
                return update
    raise AssertionError("the updates have ended")


@contextlib.asynccontextmanager
async def serving(kind: ServerKind, folder: Path) -> AsyncIterator[Server]:
    async with open_server(
        kind, folder / "server", host="127.0.0.1", port=free_port("127.0.0.1")
    ) as server:
        yield server


async def test_what_the_server_says_of_itself(kind: ServerKind, tmp_path: Path) -> None:
    async with (
        serving(kind, tmp_path) as server,
        open_rest_client(Access.parse(server.url, server.owner.token)) as rest,
    ):
        agent_id = UUID(server.agent.id)
        info = await rest.connection_info(agent_id)
        assert info.derp_map.region(999).embedded_relay
        info.derp_map.validate()
        workspace = await rest.workspace(server.agent.workspace)
        assert str(workspace.id) == server.agent.workspace_id
        assert [agent.id for agent in workspace.agents] == [agent_id]
        assert (await rest.agent(agent_id)).name == "main"
        with pytest.raises(ApiError) as caught:
            await rest.connection_info(STRANGE)
        assert caught.value.status == 404


async def test_refusals(kind: ServerKind, tmp_path: Path) -> None:
    async with serving(kind, tmp_path) as server:
        agent_id = UUID(server.agent.id)
        for token, wanted, status in (
            ("aaaaaaaaaa-bbbbbbbbbbbbbbbbbbbbbb", agent_id, 401),
            (server.stranger.token, agent_id, 404),
            (server.owner.token, STRANGE, 404),
        ):
            with trio.fail_after(20), pytest.raises(ApiError) as caught:
                await open_tailnet(server.url, token, wanted).__aenter__()
            assert caught.value.status == status


async def test_maps_and_a_token(kind: ServerKind, tmp_path: Path) -> None:
    async with serving(kind, tmp_path) as server:
        # Another name for the same place, which is then that of the relay.
        url = server.url.replace("127.0.0.1", "localhost")
        async with open_tailnet(
            url, server.owner.token, UUID(server.agent.id)
        ) as tailnet:
            with trio.fail_after(20):
                derp_map = await anext(tailnet.derp_maps())
                nodes = derp_map.region(999).nodes
                assert nodes is not None
                assert nodes[0].host_name == "localhost"
                assert str(nodes[0].derp_port) == url.rpartition(":")[2]
                assert nodes[0].force_http
                while not tailnet.statistics().resumable:
                    await trio.sleep(0.02)
                tailnet.reconnect("to see whether the token is taken")
                while tailnet.statistics().connects < 2:
                    await trio.sleep(0.02)
                await tailnet.wait_connected()
            # A token that was not taken would have cost a dial.
            assert tailnet.statistics().dials == 2


async def test_a_forbidden_tunnel_ends_coordination(
    kind: ServerKind, tmp_path: Path
) -> None:
    async with (
        serving(kind, tmp_path) as server,
        open_tailnet(server.url, server.owner.token, UUID(server.agent.id)) as tailnet,
    ):
        tailnet.add_tunnel(STRANGE)
        with trio.fail_after(20):
            while tailnet.statistics().last_failure is None:
                await trio.sleep(0.02)
        assert str(tailnet.statistics().last_failure).endswith(
            f"authorization: invalid agent id, expected {server.agent.id}, "
            f"got {STRANGE}"
        )


@contextlib.asynccontextmanager
async def as_agent(server: Server) -> AsyncIterator[Tailnet]:
    """The other end of a tunnel: the server's agent, as far as coordination."""
    access = Access.parse(server.url, server.agent.token)
    async with open_control(
        access, "/api/v2/workspaceagents/me/rpc", version=server.kind.version
    ) as tailnet:
        yield tailnet


@pytest.mark.parametrize("for_user", [False, True], ids=["agent", "user"])
async def test_a_tunnel_with_all_that_belongs_to_it(
    kind: ServerKind, for_user: bool, tmp_path: Path
) -> None:
    async with contextlib.AsyncExitStack() as stack:
        server = await stack.enter_async_context(serving(kind, tmp_path))
        agent_id = UUID(server.agent.id)
        agent = await stack.enter_async_context(as_agent(server))
        agent_node, client_node = make_node(agent_id), make_node(uuid4())
        agent.update_node(agent_node)
        async with open_tailnet(
            server.url, server.owner.token, None if for_user else agent_id
        ) as client:
            client.add_tunnel(agent_id)
            client.update_node(client_node)
            seen = await next_update(client, PeerUpdateKind.NODE)
            assert (seen.peer_id, seen.node) == (agent_id, agent_node)
            met = await next_update(agent, PeerUpdateKind.NODE)
            assert met.node == client_node
            agent.ready_for_handshake([met.peer_id])
            ready = await next_update(client, PeerUpdateKind.READY_FOR_HANDSHAKE)
            assert ready.peer_id == agent_id

            agent_node.preferred_derp = 998
            agent.update_node(agent_node)
            assert (await next_update(client, PeerUpdateKind.NODE)).node == agent_node

            # With its token the client is the same peer again, and nobody
            # takes it for lost.
            with trio.fail_after(20):
                while not client.statistics().resumable:
                    await trio.sleep(0.02)
            client.reconnect("to see who we are then")
            again = await next_update(client, PeerUpdateKind.NODE)
            assert again.peer_id == agent_id
            client_node.as_of.GetCurrentTime()
            client.update_node(client_node)
            while (update := await next_update(agent, PeerUpdateKind.NODE)).node != (
                client_node
            ):
                pass
            assert update.peer_id == met.peer_id
        gone = await next_update(agent, PeerUpdateKind.DISCONNECTED)
        assert (gone.peer_id, gone.reason) == (met.peer_id, "graceful disconnect")


async def test_workspace_updates(kind: ServerKind, tmp_path: Path) -> None:
    async with (
        serving(kind, tmp_path) as server,
        open_tailnet(server.url, server.owner.token) as tailnet,
    ):
        changes = tailnet.workspace_updates(UUID(server.owner.id))
        with trio.fail_after(30):
            change = await anext(changes)
            assert [str(a.id) for a in change.upserted_agents] == [server.agent.id]
            assert [w.name for w in change.upserted_workspaces] == ["ws1"]
            added = await server.add_workspace("later")
            change = await anext(changes)
            if not change.upserted_agents:  # a workspace is made before its agent
                assert [w.name for w in change.upserted_workspaces] == ["later"]
                change = await anext(changes)
            assert [str(a.id) for a in change.upserted_agents] == [added.id]
            await server.delete_workspace("later")
            change = await anext(changes)
            assert [str(a.id) for a in change.deleted_agents] == [added.id]
            assert [w.name for w in change.deleted_workspaces] == ["later"]


async def test_a_real_agent(kind: ServerKind, network: Network, tmp_path: Path) -> None:
    """What our client hears of Coder's agent, and that agent of our client."""
    log = tmp_path / "client.jsonl"
    async with (
        open_server(
            kind,
            tmp_path / "server",
            host=RELAY,
            port=8080,
            wrapper=network.enter(network.r),
        ) as server,
        open_agent(
            server, tmp_path / "agent", wrapper=network.enter(network.a)
        ) as agent,
    ):
        async with open_program(
            *network.enter(network.b),
            *(sys.executable, "-m", "tests.interop.coder.sdk_program"),
            *(server.url, server.owner.token, server.agent.id),
            log_file=tmp_path / "client.log",
            stdout=log,
            cwd=ROOT,
            name="SDK client",
        ) as program:
            await program.wait_output(log, "READY_FOR_HANDSHAKE", timeout=30)
            told = log.read_text().split()
            peer = await agent.wait_event("peer")
        kinds = [line.partition(":")[0] for line in told]
        assert kinds[:3] == ["map", "NODE", "READY_FOR_HANDSHAKE"] or (
            kinds[:3] == ["NODE", "map", "READY_FOR_HANDSHAKE"]
        )
        assert f"map:{RELAY}:8080" in told
        assert f"NODE:{server.agent.id}" in told
        assert peer["kind"] == "NODE"
        gone = await agent.wait_event("peer", count=2)
        assert gone["kind"] == "DISCONNECTED", gone

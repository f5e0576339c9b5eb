"""The server as a whole, from outside: on loopback, with the SDK."""

from __future__ import annotations

import dataclasses
import os
import ssl
import stat
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any
from uuid import UUID

import httpx2
import pytest
import trio
import trustme

from relay.addresses import ListenAddress
from relay.derpmaps.build import MapOptions
from relay.serve_settings import ServeSettings
from relay.server import Server, open_server
from relay.store.model import NewAgent, User
from tailnet.control.convert import node_key_from_proto
from tailnet.errors import ConfigError
from tailnet.sdk.access import Access
from tailnet.sdk.controller import Tailnet, open_control, open_tailnet
from tailnet.sdk.coordination import PeerUpdate, PeerUpdateKind
from tests.interop.coder.nodes import make_node

LOOPBACK = ListenAddress("127.0.0.1", 0)
RPC = "/api/v2/workspaceagents/me/rpc"


def settings(data_dir: Path, **changes: Any) -> ServeSettings:
    return dataclasses.replace(
        ServeSettings(http=LOOPBACK, data_dir=data_dir, drain_timeout=1), **changes
    )


@asynccontextmanager
async def running(data_dir: Path, **changes: Any) -> AsyncIterator[Server]:
    with trio.fail_after(60):
        async with open_server(settings(data_dir, **changes)) as server:
            yield server


async def get(server: Server, path: str, **kinds: Any) -> httpx2.Response:
    async with httpx2.AsyncClient(trust_env=False) as client:
        return await client.get(server.access_url + path, **kinds)


async def make_agent(server: Server) -> tuple[User, str, NewAgent]:
    store = server.context.store
    user = await store.create_user("alice")
    key = await store.create_api_key(user.id)
    workspace = await store.create_workspace(user.id, "dev")
    return user, key.token, await store.create_agent(workspace.id, "main")


async def next_update(tailnet: Tailnet, kind: PeerUpdateKind) -> PeerUpdate:
    async for update in tailnet.peer_updates:
        if update.kind is kind:
            return update
    raise AssertionError("the updates have ended")


async def test_one_port_for_all(tmp_path: Path) -> None:
    data = tmp_path / "data"
    async with running(data, stun=LOOPBACK, stun_follows_http=True) as server:
        assert server.addresses["stun"] == server.addresses["http"]
        assert server.access_url == "http://127.0.0.1:{}".format(
            server.addresses["http"][1]
        )
        assert (await get(server, "/healthz")).text == "OK"
        assert (await get(server, "/derp/latency-check")).status_code == 200
        assert (await get(server, "/derp")).status_code == 426
        assert (await get(server, "/api/v2/nothing")).json() == {
            "message": "Route not found."
        }
        assert (await get(server, "/debug/vars")).json()["derp"]["accepts"] == 0
        _, token, _ = await make_agent(server)
        info = await get(
            server,
            "/api/v2/workspaceagents/connection",
            headers={"Coder-Session-Token": token},
        )
        [node] = info.json()["derp_map"]["Regions"]["999"]["Nodes"]
        assert node["STUNPort"] == server.addresses["stun"][1]
        assert node["DERPPort"] == server.addresses["http"][1]
    assert stat.S_IMODE(os.stat(data).st_mode) == 0o700
    for name in ("tailnet.db", "relay.key"):
        assert stat.S_IMODE(os.stat(data / name).st_mode) == 0o600


async def test_without_a_relay(tmp_path: Path) -> None:
    custom = tmp_path / "map.json"
    custom.write_text(
        '{"Regions":{"1":{"RegionID":1,"RegionCode":"a","Nodes":'
        '[{"Name":"1a","RegionID":1,"HostName":"derp.example.com"}]}}}'
    )
    options = MapOptions(serve_embedded=False, config_path=str(custom))
    async with running(tmp_path, derp_map=options) as server:
        assert server.derp is None
        assert (await get(server, "/derp")).status_code == 404


async def test_https_beside_http(tmp_path: Path) -> None:
    authority = trustme.CA()
    issued = authority.issue_cert("127.0.0.1")
    issued.private_key_pem.write_to_path(tmp_path / "key.pem")
    issued.cert_chain_pems[0].write_to_path(tmp_path / "cert.pem")
    async with running(
        tmp_path / "data",
        tls=LOOPBACK,
        tls_cert_file=tmp_path / "cert.pem",
        tls_key_file=tmp_path / "key.pem",
    ) as server:
        assert server.access_url.startswith("https://127.0.0.1:")
        context = ssl.create_default_context()
        authority.configure_trust(context)
        async with httpx2.AsyncClient(verify=context, trust_env=False) as client:
            answer = await client.get(f"{server.access_url}/healthz")
        assert answer.text == "OK"
        before = server.certificates
        server.reload()
        assert server.certificates is before


async def test_the_same_key_and_tokens_after_a_restart(tmp_path: Path) -> None:
    peer = UUID(int=77)
    async with running(tmp_path) as server:
        assert server.derp is not None
        key = server.derp.public_key
        deployment = server.context.deployment_id
        token = server.context.resume_tokens.issue(peer).token
    async with running(tmp_path) as server:
        assert server.derp is not None
        assert server.derp.public_key == key
        assert server.context.deployment_id == deployment
        assert server.context.resume_tokens.verify(token) == peer


async def test_a_client_and_an_agent_meet_until_the_agent_is_deleted(
    tmp_path: Path,
) -> None:
    async with running(tmp_path) as server, AsyncExitStack() as stack:
        _, token, new = await make_agent(server)
        agent_id = new.agent.id
        agent = await stack.enter_async_context(
            open_control(
                Access.parse(server.access_url, str(new.token)), RPC, version="2.11"
            )
        )
        agent.update_node(make_node(agent_id))
        client = await stack.enter_async_context(
            open_tailnet(server.access_url, token, agent_id)
        )
        node = make_node(UUID(int=3))
        client.add_tunnel(agent_id)
        client.update_node(node)
        seen = await next_update(client, PeerUpdateKind.NODE)
        assert (seen.peer_id, seen.reason) == (agent_id, "add tunnel")
        met = await next_update(agent, PeerUpdateKind.NODE)
        assert met.node == node
        coordinator = server.context.coordinator
        assert coordinator.knows_node_key(node_key_from_proto(node.key))
        await server.context.store.delete_agent(agent_id)
        gone = await next_update(client, PeerUpdateKind.DISCONNECTED)
        assert (gone.peer_id, gone.reason) == (agent_id, "the agent was deleted")
        while server.context.agent_sessions.agent_ids():
            await trio.sleep(0.02)


async def test_what_cannot_be_used_is_said_before_anything_listens(
    tmp_path: Path,
) -> None:
    with pytest.raises(ConfigError, match="cannot read the certificate"):
        async with running(
            tmp_path,
            tls=LOOPBACK,
            tls_cert_file=tmp_path / "none.pem",
            tls_key_file=tmp_path / "none.key",
        ):
            raise AssertionError
    async with running(tmp_path) as server:
        host, port = server.addresses["http"]
        taken = ListenAddress(host, port)
        with pytest.raises(ConfigError, match=r"in use.* with --http-address,"):
            async with running(tmp_path / "2", http=taken):
                raise AssertionError
    async with running(tmp_path / "3", stun=LOOPBACK) as server:
        stun = ListenAddress(*server.addresses["stun"])
        with pytest.raises(ConfigError, match=r"in use.* with --stun-address"):
            async with running(tmp_path / "4", stun=stun):
                raise AssertionError


async def test_the_verify_token_is_read_again(tmp_path: Path) -> None:
    token = tmp_path / "token"
    token.write_text("first-token-of-the-relay\n")
    async with running(
        tmp_path / "data",
        verify_token="first-token-of-the-relay",
        verify_token_file=token,
    ) as server:
        token.write_text("second-token-of-the-relay\n")
        server.reload()
        assert server.context.settings.verify_token == "second-token-of-the-relay"
        token.unlink()
        server.reload()
        assert server.context.settings.verify_token == "second-token-of-the-relay"

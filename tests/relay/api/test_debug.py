from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import trio
import trio.testing
from wsproto.events import BytesMessage, CloseConnection, TextMessage

from relay.api.debug import DEBUG_ROUTES, ECHO_TIMEOUT
from relay.api.debug_view import PeerView
from relay.api.router import Router
from relay.derpmaps.build import MapOptions
from relay.front.router import Front
from relay.pages.page import Request, Response
from tests.relay.api.rig import NOW, Rig, body_of, fetch, open_rig
from tests.relay.api.test_messages import HEAD, Peer
from tests.relay.front.test_router import Client

PAGES = ["/api/v2/debug/coordinator", "/api/v2/debug/tailnet"]


@dataclass
class Snapshot:
    """What the coordinator has."""

    peers: list[Any]
    tunnels: list[Any]


async def get(rig: Rig, path: str, accept: str = "text/html") -> Response:
    headers = (
        (b"coder-session-token", rig.root_token.encode()),
        (b"accept", accept.encode()),
    )
    answer = await Router(rig.context, DEBUG_ROUTES).answer(
        Request("GET", path, path, headers=headers)
    )
    assert isinstance(answer, Response)
    return answer


@pytest.mark.parametrize("path", PAGES)
async def test_pages(tmp_path: Path, path: str) -> None:
    async with open_rig(
        tmp_path, derp_map=MapOptions(block_direct=True), derp_force_websockets=True
    ) as rig:
        agent = rig.agent.agent
        rig.coordinator.state = Snapshot(
            [PeerView(agent.id, "alice-dev-main", "agent", "ok", NOW, None)],
            [(rig.alice.id, agent.id)],
        )
        page = await get(rig, path)
        assert page.status == 200
        headers = dict(page.headers)
        assert headers["Content-Type"] == "text/html; charset=utf-8"
        assert "default-src 'none'" in headers["Content-Security-Policy"]
        assert b"alice-dev-main" in page.body

        data = body_of(await get(rig, path, "application/json, text/plain"))
        assert data["version"] == 1
        assert [peer["id"] for peer in data["peers"]] == [str(agent.id)]
        assert data["policy"] == {
            "disable_direct_connections": True,
            "derp_force_websockets": True,
        }
        (tunnel,) = data["tunnels"]
        assert tunnel["relayed_because"][0]["code"] == "blocked_by_server"


@pytest.mark.parametrize("path", [*PAGES, "/api/v2/debug/ws"])
async def test_for_admins_only(tmp_path: Path, path: str) -> None:
    async with open_rig(tmp_path) as rig:
        router = Router(rig.context, DEBUG_ROUTES)
        assert (await fetch(router, "GET", path)).status == 401
        answer = await fetch(router, "GET", path, token=rig.token)
        assert answer.status == 403
        assert body_of(answer)["message"] == "Forbidden."
        answer = await fetch(router, "GET", path, token=str(rig.agent_token))
        assert answer.status == 401


async def test_echo(tmp_path: Path, autojump_clock: trio.testing.MockClock) -> None:
    async with open_rig(tmp_path) as rig, trio.open_nursery() as nursery:
        router = Router(rig.context, DEBUG_ROUTES)
        client = Client(Front(derp=None, pages=router.answer), nursery)
        token = f"Coder-Session-Token: {rig.root_token}\r\n\r\n".encode()
        head = HEAD.replace(b"/x", b"/api/v2/debug/ws") + token
        answer = await client.ask(head)
        assert answer.startswith(b"HTTP/1.1 101 ")
        peer = Peer(client, answer.partition(b"\r\n\r\n")[2])
        # As Coder's health check asks (coderd/healthcheck/websocket.go).
        for number in range(3):
            await peer.send(TextMessage(data=str(number)))
            event = await peer.receive()
            assert isinstance(event, TextMessage)
            assert event.data == str(number)
        await peer.send(BytesMessage(data=b"\xff"))
        assert isinstance(await peer.receive(), BytesMessage)
        # Who says nothing more is not waited for.
        await trio.sleep(ECHO_TIMEOUT)
        event = await peer.receive()
        assert isinstance(event, CloseConnection)
        assert (event.code, event.reason) == (1001, "goodbye")
        client.sock.close()


async def test_echo_is_a_websocket(tmp_path: Path) -> None:
    async with open_rig(tmp_path) as rig:
        assert (await get(rig, "/api/v2/debug/ws")).status == 426

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import trio
import trio.testing
from wsproto.events import BytesMessage, CloseConnection, TextMessage

from relay.api.context import ApiContext
from relay.api.debug import DEBUG_ROUTES, ECHO_TIMEOUT
from relay.api.debug_view import PeerView
from relay.api.router import Router
from relay.derpmaps.build import MapOptions
from relay.front.router import Front
from relay.pages.page import Request, Response
from tailnet.addresses import coder_address
from tailnet.control.proto import tailnet_pb2
from tailnet.coordinator.auth import AgentAuth
from tailnet.coordinator.serve import CoordinatorService
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


async def test_the_coordinator_itself(
    tmp_path: Path, autojump_clock: trio.testing.MockClock
) -> None:
    async with open_rig(tmp_path) as rig, trio.open_nursery() as nursery:
        service = CoordinatorService()
        context = replace(rig.context, coordinator=service)
        agent = rig.agent.agent.id
        node = tailnet_pb2.Node(
            id=7, key=b"np" + bytes(range(32)), preferred_derp=999,
            addresses=[f"{coder_address(agent)}/128"],
        )  # fmt: skip
        requests = trio.open_memory_channel[bytes](2)
        update = tailnet_pb2.CoordinateRequest(
            update_self=tailnet_pb2.CoordinateRequest.UpdateSelf(node=node)
        )
        requests[0].send_nowait(update.SerializeToString())
        nursery.start_soon(
            partial(
                service.coordinate,
                StreamingCall(requests[1]),
                peer_id=agent,
                name="alice-dev-main",
                auth=AgentAuth(agent),
                kind="agent",
            )
        )
        await trio.testing.wait_all_tasks_blocked()
        (peer,) = (await debug_json(context, rig))["peers"]
        assert (peer["id"], peer["status"]) == (str(agent), "ok")
        assert peer["node"]["preferred_derp_name"] == "Embedded"
        assert [reason["code"] for reason in peer["relayed_because"]] == [
            "no_endpoints"
        ]
        requests[0].close()
        await trio.testing.wait_all_tasks_blocked()
        (peer,) = (await debug_json(context, rig))["peers"]
        assert peer["status"] == "lost"
        assert [reason["code"] for reason in peer["relayed_because"]] == ["lost"]


class StreamingCall:
    """A Coordinate call whose requests come through a channel."""

    backlog = 0
    backlog_size = 0

    def __init__(self, requests: trio.MemoryReceiveChannel[bytes]) -> None:
        self._requests = requests

    async def receive(self) -> bytes | None:
        try:
            return await self._requests.receive()
        except trio.EndOfChannel:
            return None

    def send_nowait(self, message: bytes) -> None:
        pass


async def debug_json(context: ApiContext, rig: Rig) -> Any:
    path = PAGES[0]
    headers = (
        (b"coder-session-token", rig.root_token.encode()),
        (b"accept", b"application/json"),
    )
    answer = await Router(context, DEBUG_ROUTES).answer(
        Request("GET", path, path, headers=headers)
    )
    assert isinstance(answer, Response)
    return body_of(answer)

"""Connection info, coordination, and the feed of version 1."""

from __future__ import annotations

from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import msgspec
import pytest

from relay.api.networking import NETWORKING_ROUTES
from relay.api.router import Router
from relay.derpmaps.build import MapOptions
from relay.pages.page import Response
from tailnet.coordinator.auth import ClientAuth, UserAuth
from tailnet.errors import AuthorizationError
from tests.relay.api.clients import open_api
from tests.relay.api.rig import Rig, body_of, derp_map, fetch, open_rig

COORDINATE = "/coder.tailnet.v2.Tailnet/Coordinate"


async def get(rig: Rig, path: str, token: str | None = None) -> Response:
    router = Router(rig.context, NETWORKING_ROUTES)
    return await fetch(
        router, "GET", f"/api/v2{path}", token=rig.token if token is None else token
    )


async def test_connection_info(tmp_path: Path) -> None:
    async with open_rig(tmp_path) as rig:
        expected: dict[str, Any] = {
            "derp_map": msgspec.json.decode(rig.feed.encoded()),
            "derp_force_websockets": False,
            "disable_direct_connections": False,
            "hostname_suffix": "coder",
        }
        got = await get(rig, "/workspaceagents/connection")
        assert (got.status, body_of(got)) == (200, expected)
        agent = f"/workspaceagents/{rig.agent.agent.id}/connection"
        got = await get(rig, agent)
        assert (got.status, body_of(got)) == (200, expected)
        assert (await get(rig, agent, rig.bob_token)).status == 404
        assert (await get(rig, agent, "")).status == 401
        assert (await get(rig, f"/workspaceagents/{uuid4()}/connection")).status == 404
        assert (await get(rig, "/workspaceagents/x/connection")).status == 400


async def test_what_the_server_wants_is_told(tmp_path: Path) -> None:
    async with open_rig(
        tmp_path,
        derp_map=MapOptions(block_direct=True),
        derp_force_websockets=True,
        workspace_hostname_suffix="",
    ) as rig:
        info = body_of(await get(rig, "/workspaceagents/connection"))
        assert info["disable_direct_connections"] is True
        assert info["derp_force_websockets"] is True
        assert "hostname_suffix" not in info


@pytest.mark.parametrize(
    ("version", "detail"),
    [
        ("", "version 1.0 is no longer supported"),
        ("version=1.0", "version 1.0 is no longer supported"),
        (
            "version=2.99",
            "server is at version 2.11, behind requested minor version 2.99",
        ),
        (
            "version=3.0",
            "server is at version 2.11, behind requested major version 3.0",
        ),
        ("version=two", "invalid version string: two"),
        ("version=2", "invalid version string: 2"),
    ],
)
async def test_versions_that_are_not_spoken(
    version: str, detail: str, tmp_path: Path
) -> None:
    async with open_rig(tmp_path) as rig:
        path = f"/workspaceagents/{rig.agent.agent.id}/coordinate?{version}"
        got = await get(rig, path)
        assert got.status == 400
        assert body_of(got) == {
            "message": "Unknown or unsupported API version",
            "validations": [{"field": "version", "detail": detail}],
        }


async def test_the_order_of_checks(tmp_path: Path) -> None:
    """Who, then which agent, then the licence, the version, the token."""
    async with open_rig(tmp_path, browser_only=True) as rig:
        mine = f"/workspaceagents/{rig.agent.agent.id}/coordinate?version=x"
        assert (await get(rig, mine, "")).status == 401
        assert (await get(rig, mine, rig.bob_token)).status == 404
        got = await get(rig, mine)
        assert got.status == 409
        assert body_of(got)["message"] == (
            "Non-browser connections are disabled for your deployment."
        )
        assert (await get(rig, "/tailnet?version=x")).status == 409
    (tmp_path / "2").mkdir()
    async with open_rig(tmp_path / "2") as rig:
        path = f"/workspaceagents/{rig.agent.agent.id}/coordinate"
        got = await get(rig, f"{path}?version=x&resume_token=x")
        assert got.status == 400
        got = await get(rig, f"{path}?version=2.0&resume_token=x")
        assert got.status == 401
        answer = body_of(got)
        assert answer["message"] == "Invalid resume token"
        assert answer["validations"] == [
            {"field": "resume_token", "detail": "Invalid resume token"}
        ]
        # All is well but that it is no websocket.
        assert (await get(rig, f"{path}?version=2.0")).status == 426


async def test_a_client_of_one_agent(
    tmp_path: Path,
) -> None:
    async with open_rig(tmp_path) as rig, open_api(rig, NETWORKING_ROUTES) as api:
        agent_id = rig.agent.agent.id
        path = f"/api/v2/workspaceagents/{agent_id}/coordinate?version=2.0"
        for _ in range(2):
            async with (
                api.call(path, token=rig.token) as client,
                client.call(COORDINATE) as call,
            ):
                await call.send(b"")
                assert await call.receive() == b"coordinated"
        first, second = rig.coordinator.calls
        assert first["name"] == first["kind"] == "client"
        assert isinstance(first["auth"], ClientAuth)
        assert first["peer_id"] != second["peer_id"]


async def test_a_resume_token_gives_the_id_back(
    tmp_path: Path,
) -> None:
    async with open_rig(tmp_path) as rig, open_api(rig, NETWORKING_ROUTES) as api:
        mine = UUID("8c7d5f4e-0b1a-4c2d-9e3f-a1b2c3d4e5f6")
        token = rig.context.resume_tokens.issue(mine, rig.alice.id).token
        async with (
            api.call(
                f"/api/v2/tailnet?resume_token={token}", token=rig.token
            ) as client,
            client.call(COORDINATE) as call,
        ):
            await call.send(b"")
            assert await call.receive() == b"coordinated"
        assert rig.coordinator.calls[0]["peer_id"] == mine


async def test_a_resume_token_is_of_no_use_to_others(tmp_path: Path) -> None:
    async with open_rig(tmp_path) as rig:
        router = Router(rig.context, NETWORKING_ROUTES)
        token = rig.context.resume_tokens.issue(UUID(int=5), rig.alice.id).token
        answer = await fetch(
            router,
            "GET",
            f"/api/v2/tailnet?resume_token={token}",
            token=rig.bob_token,
        )
        assert answer.status == 401
        body = body_of(answer)
        assert body["message"] == "Invalid resume token"
        assert body["detail"] == "issued for another user"


async def test_a_users_client_is_judged_by_tunnel(
    tmp_path: Path,
) -> None:
    from tailnet.control.proto import tailnet_pb2 as pb

    async with open_rig(tmp_path) as rig, open_api(rig, NETWORKING_ROUTES) as api:
        async with (
            api.call("/api/v2/tailnet", token=rig.bob_token) as client,
            client.call(COORDINATE) as call,
        ):
            await call.send(b"")
            assert await call.receive() == b"coordinated"
        auth = rig.coordinator.calls[0]["auth"]
        assert isinstance(auth, UserAuth)
        tunnel = pb.CoordinateRequest.Tunnel(id=rig.agent.agent.id.bytes)
        with pytest.raises(AuthorizationError, match="do not have permission"):
            await auth.authorize(pb.CoordinateRequest(add_tunnel=tunnel))


async def test_the_feed_of_version_1(
    tmp_path: Path,
) -> None:
    async with open_rig(tmp_path) as rig, open_api(rig, NETWORKING_ROUTES) as api:
        head, link = await api.upgrade("/api/v2/derp-map")
        assert head.startswith(b"HTTP/1.1 101 ")
        first = await link.receive()
        assert first == rig.feed.encoded() + b"\n"
        rig.feed.publish(derp_map("Renamed"))
        second = await link.receive()
        assert second == rig.feed.encoded() + b"\n" != first
        link.websocket.close()
        await link.aclose()


async def test_the_feed_says_that_it_goes(
    tmp_path: Path,
) -> None:
    async with open_rig(tmp_path) as rig, open_api(rig, NETWORKING_ROUTES) as api:
        _, link = await api.upgrade("/api/v2/derp-map")
        assert await link.receive()
        rig.context.heartbeats.close_all(1001, "the server stops")
        assert await link.receive() == b""
        assert link.websocket.close_code == 1001
        await link.aclose()

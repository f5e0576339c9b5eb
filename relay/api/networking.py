"""Endpoints by which clients find agents: connection info, coordination, maps.

Sources: coder ``coderd/workspaceagents.go`` and, for the order of checks and
the texts, what v2.24.0 answers.
"""

from __future__ import annotations

from typing import Any, Final
from uuid import UUID, uuid4

import msgspec
import structlog

from relay.api.answers import NOT_FOUND, Validation, error_answer, json_answer
from relay.api.context import ApiContext, ApiError, ApiRequest, open_websocket
from relay.api.link import WebsocketLink, send_only
from relay.api.peer import ApiPeer
from relay.api.router import Auth, Route
from relay.api.tailnet_service import tailnet_handlers
from relay.front.application import Takeover
from relay.pages.page import Response
from tailnet.control.link import CLOSE_GOING_AWAY
from tailnet.control.server import serve_rpc
from tailnet.control.version import check_version
from tailnet.coordinator.auth import ClientAuth, UserAuth
from tailnet.errors import ResumeTokenError, VersionError

__all__ = ("NETWORKING_ROUTES", "check_api_version")

log = structlog.get_logger("relay.api")

# codersdk/workspacesdk: clients compare these word for word.
UNSUPPORTED_VERSION: Final = "Unknown or unsupported API version"
INVALID_RESUME_TOKEN: Final = "Invalid resume token"  # noqa: S105

BROWSER_ONLY: Final = error_answer(
    409, "Non-browser connections are disabled for your deployment."
)


def check_api_version(request: ApiRequest, default: str) -> str:
    """The API version that a request asks for.

    Args:
        request: Has it in the query parameter ``version``.
        default: What it means not to say one.

    Raises:
        ApiError: This server does not speak it.
    """
    version = request.query("version") or default
    try:
        check_version(version)
    except VersionError as exc:
        wrong = Validation("version", str(exc))
        raise ApiError(
            error_answer(400, UNSUPPORTED_VERSION, validations=(wrong,))
        ) from None
    return version


def _peer_id(request: ApiRequest) -> UUID:
    """The peer id of a resume token, or a new one.

    Raises:
        ApiError: There is a token, and it is not good (any more).
    """
    token = request.query("resume_token")
    if not token:
        return uuid4()
    try:
        # A token without a key id is from before there were key ids: its
        # bearer simply gets a new peer id (workspaceagents.go).
        return request.context.resume_tokens.verify(token) or uuid4()
    except ResumeTokenError as exc:
        wrong = Validation("resume_token", INVALID_RESUME_TOKEN)
        raise ApiError(
            error_answer(401, INVALID_RESUME_TOKEN, str(exc), (wrong,))
        ) from None


def _connection_info(context: ApiContext) -> Response:
    settings = context.settings
    info: dict[str, Any] = {
        "derp_map": msgspec.Raw(context.derp_maps.encoded()),
        "derp_force_websockets": settings.derp_force_websockets,
        "disable_direct_connections": settings.block_direct,
    }
    if settings.workspace_hostname_suffix:
        info["hostname_suffix"] = settings.workspace_hostname_suffix
    return json_answer(200, info)


async def _connection(request: ApiRequest) -> Response:
    """``/workspaceagents/connection``: where relays are, and what is allowed."""
    return _connection_info(request.context)


async def _agent_connection(request: ApiRequest) -> Response:
    """``/workspaceagents/{agent}/connection``: the same, for one agent."""
    await request.agent_param()
    return _connection_info(request.context)


async def _coordinate(request: ApiRequest) -> Response | Takeover:
    """``/workspaceagents/{agent}/coordinate``: one client, one agent."""
    context = request.context
    identity = await request.agent_param()
    user = request.need_user()
    if not await context.authorizer.may_connect(user, identity):
        return NOT_FOUND
    if context.settings.browser_only:
        return BROWSER_ONLY
    check_api_version(request, "1.0")
    peer = ApiPeer(
        _peer_id(request), "client", "client", ClientAuth(identity.agent.id), user
    )
    return _serve_client(request, peer)


async def _user_tailnet(request: ApiRequest) -> Response | Takeover:
    """``/tailnet``: one user, many agents; each tunnel is authorized."""
    context = request.context
    user = request.need_user()
    if context.settings.browser_only:
        return BROWSER_ONLY
    check_api_version(request, "2.0")

    async def may_connect(agent_id: UUID) -> bool:
        agent = await context.store.agent_identity(agent_id)
        return agent is not None and await context.authorizer.may_connect(user, agent)

    peer = ApiPeer(_peer_id(request), "client", "client", UserAuth(may_connect), user)
    return _serve_client(request, peer)


def _serve_client(request: ApiRequest, peer: ApiPeer) -> Response | Takeover:
    context = request.context

    async def serve(link: WebsocketLink) -> None:
        await serve_rpc(link, tailnet_handlers(context, peer))

    return open_websocket(request, serve)


async def _derp_map_feed(request: ApiRequest) -> Response | Takeover:
    """``/derp-map``: the feed of version 1, JSON in binary messages."""
    maps = request.context.derp_maps

    async def send(link: WebsocketLink) -> None:
        seen = maps.current
        while True:
            link.send_nowait(maps.encoded() + b"\n")
            await link.flush()
            seen = await maps.wait_change(seen)

    async def serve(link: WebsocketLink) -> None:
        await send_only(link, send)
        await link.aclose(CLOSE_GOING_AWAY)

    return open_websocket(request, serve)


NETWORKING_ROUTES: Final = (
    Route("GET", "/api/v2/derp-map", _derp_map_feed, Auth.NONE),
    Route("GET", "/api/v2/workspaceagents/connection", _connection),
    Route("GET", "/api/v2/workspaceagents/{agent}/connection", _agent_connection),
    Route("GET", "/api/v2/workspaceagents/{agent}/coordinate", _coordinate),
    Route("GET", "/api/v2/tailnet", _user_tailnet),
)

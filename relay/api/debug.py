"""``/api/v2/debug/``: for admins, who want to see why something does not work.

``coordinator`` and ``tailnet`` are one page here. Coder has two, as its server
is a peer of the tailnet with connections of its own; this one is none.
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Final

import trio

from relay.api.answers import json_answer
from relay.api.context import ApiContext, ApiRequest
from relay.api.debug_view import CoordinatorView, PeerView, view_html, view_json
from relay.api.messages import MessageSocket, accept_messages
from relay.api.router import Auth, Route
from relay.front.application import Takeover
from relay.pages.page import Response

__all__ = ("DEBUG_ROUTES", "ECHO_TIMEOUT")

# coderd/healthcheck/websocket.go: for each message. Seconds.
ECHO_TIMEOUT: Final = 10.0

# All that is shown is in the page itself, and nothing in it is trusted.
_HTML_HEADERS: Final = (
    ("Content-Type", "text/html; charset=utf-8"),
    ("Content-Security-Policy", "default-src 'none'; style-src 'unsafe-inline'"),
    ("X-Content-Type-Options", "nosniff"),
    ("Cache-Control", "no-store"),
)


async def _coordinator(request: ApiRequest) -> Response:
    """``/debug/coordinator`` and ``/debug/tailnet``: peers and tunnels."""
    view = _view(request.context)
    if "application/json" in request.request.header("accept").lower():
        return json_answer(200, view_json(view))
    return Response(200, _HTML_HEADERS, view_html(view, "Coordinator"))


def _view(context: ApiContext) -> CoordinatorView:
    snapshot = context.coordinator.snapshot()
    derp_map = context.derp_maps.current
    return CoordinatorView(
        at=datetime.now(UTC),
        peers=[
            PeerView(
                id=peer.id,
                name=peer.name,
                kind=peer.kind,
                status=peer.status,
                since=peer.since,
                node=peer.node,
            )
            for peer in snapshot.peers
        ],
        tunnels=list(snapshot.tunnels),
        region_names={
            region.region_id: region.region_name
            for region in (derp_map.regions or {}).values()
            if region is not None
        },
        blocks_direct=context.settings.block_direct,
        forces_websockets=context.settings.derp_force_websockets,
    )


async def _websocket(request: ApiRequest) -> Response | Takeover:
    """``/debug/ws``: says what it hears, so that websockets can be checked."""
    return accept_messages(request, _echo)


async def _echo(messages: MessageSocket) -> None:
    with trio.CancelScope() as scope:
        while True:
            scope.deadline = trio.current_time() + ECHO_TIMEOUT
            message = await messages.receive()
            if message is None:
                return
            await messages.send(message)


DEBUG_ROUTES: Final = (
    Route("GET", "/api/v2/debug/coordinator", _coordinator, Auth.ADMIN),
    Route("GET", "/api/v2/debug/tailnet", _coordinator, Auth.ADMIN),
    Route("GET", "/api/v2/debug/ws", _websocket, Auth.ADMIN),
)

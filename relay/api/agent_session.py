"""``/workspaceagents/me/rpc``: an agent's whole control channel.

Sources: coder ``coderd/workspaceagentsrpc.go``. While the channel is open its
yamux pings tell whether the agent is there, and the store is told; when the
agent is deleted, the channel ends.
"""

from __future__ import annotations

from collections.abc import Awaitable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Final
from uuid import UUID

import structlog
import trio

from relay.api.agent_service import agent_handlers
from relay.api.context import ApiContext, ApiRequest, open_websocket
from relay.api.link import WebsocketLink
from relay.api.networking import check_api_version
from relay.api.peer import ApiPeer
from relay.api.router import Auth, Route
from relay.api.tailnet_service import tailnet_handlers
from relay.front.application import Takeover
from relay.pages.page import Response
from tailnet.control.server import serve_rpc
from tailnet.coordinator.auth import AgentAuth
from tailnet.errors import NotFoundError, StoreUnavailableError

__all__ = ("AGENT_ROUTES",)

log = structlog.get_logger("relay.api")

# coder coderd/coderd.go AgentConnectionUpdateFrequency; an agent that has not
# answered for two of them is gone.
PING_INTERVAL: Final = 15.0
# For the last report of a session, which must not be lost with it.
LAST_REPORT_TIMEOUT: Final = 5.0


@dataclass(slots=True)
class _Presence:
    """Tells the store that an agent is there, while it is."""

    context: ApiContext
    agent_id: UUID
    seen_at: datetime = field(default_factory=lambda: datetime.now(UTC))

    def note_pong(self, seconds: float) -> None:
        self.seen_at = datetime.now(UTC)

    async def report(self) -> None:
        """Report it now and after each ping."""
        save = self.context.store.save_connected
        while True:
            await self._try(save(self.agent_id, self.seen_at))
            await trio.sleep(PING_INTERVAL)

    async def report_end(self) -> None:
        with trio.move_on_after(LAST_REPORT_TIMEOUT, shield=True):
            save = self.context.store.save_disconnected
            await self._try(save(self.agent_id, datetime.now(UTC)))

    async def _try(self, saving: Awaitable[None]) -> None:
        try:
            await saving
        except NotFoundError:
            pass  # deleted: who watches for that will end the session
        except StoreUnavailableError as exc:
            log.error(
                "cannot save when an agent was there",
                agent=str(self.agent_id),
                reason=str(exc),
            )


async def _agent_rpc(request: ApiRequest) -> Response | Takeover:
    """``/workspaceagents/me/rpc``."""
    context = request.context
    identity = request.need_agent()
    check_api_version(request, "2.0")
    # Others than the agent itself (logstream-kube) use its token too, and say
    # nothing about whether it is there.
    is_agent = request.query("role") in ("", "agent")
    agent_id = identity.agent.id
    name = f"{identity.owner.username}-{identity.workspace.name}-{identity.agent.name}"
    peer = ApiPeer(agent_id, name, "agent", AgentAuth(agent_id))
    handlers = {
        **tailnet_handlers(context, peer),
        **agent_handlers(identity, context),
    }

    async def serve(link: WebsocketLink) -> None:
        context.agent_sessions.add(agent_id, link)
        presence = _Presence(context, agent_id)
        try:
            async with trio.open_nursery() as nursery:
                if is_agent:
                    nursery.start_soon(presence.report)
                await serve_rpc(
                    link,
                    handlers,
                    ping_interval=PING_INTERVAL,
                    on_pong=presence.note_pong,
                )
                nursery.cancel_scope.cancel()
        finally:
            context.agent_sessions.discard(agent_id, link)
            if is_agent:
                await presence.report_end()

    return open_websocket(request, serve)


AGENT_ROUTES: Final = (
    Route("GET", "/api/v2/workspaceagents/me/rpc", _agent_rpc, Auth.AGENT),
)

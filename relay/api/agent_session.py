"""``/workspaceagents/me/rpc``: an agent's whole control channel.

Sources: coder ``coderd/workspaceagentsrpc.go``. While the channel is open its
yamux pings tell whether the agent is there, and the store is told; when the
agent is deleted, the channel ends.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Final
from uuid import UUID

import structlog
import trio

from relay.api.agent_service import agent_handlers
from relay.api.context import ApiContext, ApiRequest
from relay.api.link import CLOSE_GOING_AWAY, WebsocketLink, accept_websocket
from relay.api.networking import check_api_version
from relay.api.peer import ApiPeer
from relay.api.router import Auth, Route
from relay.api.tailnet_service import tailnet_handlers
from relay.front.application import Takeover
from relay.pages.page import Response
from tailnet.control.session import serve_rpc
from tailnet.coordinator.auth import AgentAuth
from tailnet.errors import NotFoundError, StoreUnavailableError

__all__ = ("AGENT_ROUTES", "AgentSessions")

log = structlog.get_logger("relay.api")

# coder coderd/coderd.go AgentConnectionUpdateFrequency; an agent that has not
# answered for two of them is gone.
PING_INTERVAL: Final = 15.0
# For the last report of a session, which must not be lost with it.
LAST_REPORT_TIMEOUT: Final = 5.0

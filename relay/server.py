"""The server as a whole: relay, STUN and the coordinator's API on one port.

:func:`open_server` puts the rooms together and runs them. Everything that can
be wrong with the settings is found before the first port listens.
"""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, ExitStack, asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from socket import socket
from typing import Final

import structlog
import trio

from relay.api.agent_session import AGENT_ROUTES, AgentSessions
from relay.api.context import ApiContext
from relay.api.debug import DEBUG_ROUTES
from relay.api.derp_verify import VERIFY_ROUTES, coordinator_admission
from relay.api.identity import (
    Authenticator,
    Authorizer,
    OwnerAuthorizer,
    StoreAuthenticator,
)
from relay.api.link import CLOSE_GOING_AWAY
from relay.api.networking import NETWORKING_ROUTES
from relay.api.rate_limit import RateLimit
from relay.api.rest import REST_ROUTES
from relay.api.router import Router
from relay.derp.pure_switch import PureSwitch
from relay.derp.session import Admission, DerpService
from relay.derp.switch import Limits
from relay.derpmaps.feed import DerpMapFeed
from relay.front.application import Takeover
from relay.front.certificates import Certificates
from relay.front.listeners import AcceptLimiter, TcpOptions, open_listener
from relay.front.router import Front
from relay.keyfile import load_or_create_key
from relay.pages.access import DebugAccess
from relay.pages.bootstrap_dns import BootstrapDns
from relay.pages.metrics import Metrics
from relay.pages.page import Request, Response
from relay.pages.site import Site
from relay.ports import Port, open_ports
from relay.serve_settings import DerpAdmission, ServeSettings
from relay.signing_keys import load_signing_keys
from relay.store.sql_store import open_store
from relay.store.store import Store
from relay.stun import StunStatistics, open_stun_socket, serve_stun
from tailnet.coordinator.resume import ResumeTokens
from tailnet.coordinator.serve import CoordinatorService
from tailnet.errors import ConfigError, StoreUnavailableError
from tailnet.keys import NodePublic

__all__ = ("Server", "open_server")

log = structlog.get_logger("relay")

# How soon a change of users, workspaces or agents is noticed.
REVISION_INTERVAL: Final = 0.25


@dataclass(slots=True)
class Server:
    """A running server.

    Attributes:
        settings: What it was started with.
        context: The rooms behind the API.
        derp: The relay's handshakes; None if there is no relay.
        switch: The relay's connections.
        sessions: Agents' control channels.
        access_url: Where clients reach it.
        certificates: None without TLS.
        stun: Counters of the STUN responder.
        addresses: Where it listens: ``http``, ``https`` and ``stun``, those
            that there are, each with address and port.
    """

    settings: ServeSettings
    context: ApiContext
    derp: DerpService | None
    switch: PureSwitch
    sessions: AgentSessions
    access_url: str
    certificates: Certificates | None
    stun: StunStatistics
    addresses: dict[str, tuple[str, int]]
    _stopping: trio.Event = field(default_factory=trio.Event)

    @property
    def switch_name(self) -> str:
        """Which switch carries packets."""
        return self.switch.name

    def stop(self) -> None:
        """Begin a graceful stop."""
        self._stopping.set()

    @property
    def is_stopping(self) -> bool:
        return self._stopping.is_set()

    async def wait_stopping(self) -> None:
        """Wait until somebody has called :meth:`stop`."""
        await self._stopping.wait()

    def reload(self) -> None:
        """Read certificate and DERP map again; connections keep what they have."""
        self.context.derp_maps.reload()
        if self.certificates is not None:
            self.certificates.reload_or_log()

    def hang_up(self) -> None:
        """Tell every peer and every websocket that this is the end."""
        self.stop()
        self.context.coordinator.close()
        self.context.heartbeats.close_all(CLOSE_GOING_AWAY, "server is shutting down")

    async def watch_revisions(self) -> None:
        """Notice changes of users, workspaces and agents, whoever makes them."""
        revisions = self.context.revisions
        while True:
            try:
                before = revisions.current
                revisions.note(await self.context.store.revision())
                if revisions.current != before:
                    await self._drop_deleted_agents()
            except StoreUnavailableError as exc:
                log.error("the store does not answer", reason=str(exc))
            await trio.sleep(REVISION_INTERVAL)

    async def _drop_deleted_agents(self) -> None:
        """End what agents still have that are not there any more."""
        present = {agent.id for agent in await self.context.store.list_agents()}
        for agent_id in self.sessions.agent_ids() - present:
            log.info("agent was deleted", agent=str(agent_id))
            self.sessions.close(agent_id, "the agent was deleted")
        for peer_id in self.context.coordinator.peer_ids("agent") - present:
            self.context.coordinator.remove_peer(peer_id, "the agent was deleted")

    def drop_node_key(self, key: NodePublic, reason: str) -> None:
        """Close the relay's connections of a node that is gone for good."""
        for conn in self.switch.connections(key):
            self.switch.close(conn, reason)

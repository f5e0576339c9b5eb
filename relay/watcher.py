"""What a server does unasked: it notices changes, renews keys, says good-bye."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Final

import structlog
import trio

from relay.api.context import AGENT_DELETED, ApiContext
from relay.derp.switch import Switch
from relay.serve_settings import DerpAdmission
from relay.signing_keys import RESUME_TOKEN, load_signing_keys
from tailnet.control.link import CLOSE_GOING_AWAY
from tailnet.coordinator.resume import TOKEN_LIFETIME
from tailnet.errors import StoreUnavailableError
from tailnet.keys import NodePublic

__all__ = ("Watcher",)

log = structlog.get_logger("relay")

# How soon a change of users, workspaces or agents is noticed. A deleted agent
# has to be gone within a second.
REVISION_INTERVAL: Final = 0.25

# How often to look whether it is time for another signing key.
RENEWAL_INTERVAL: Final = 3600.0


@dataclass(slots=True)
class Watcher:
    """Keeps connections in step with the store.

    Attributes:
        context: The rooms behind the API.
        switch: The relay's connections.
    """

    context: ApiContext
    switch: Switch

    def hang_up(self) -> None:
        """Tell every peer and every websocket that the server stops."""
        self.context.coordinator.close()
        self.context.heartbeats.close_all(CLOSE_GOING_AWAY, "the server stops")

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
                log.error("cannot look for changes", reason=str(exc))
            await trio.sleep(REVISION_INTERVAL)

    async def _drop_deleted_agents(self) -> None:
        context = self.context
        present = {agent.id for agent in await context.store.list_agents()}
        # Also those whose channel is lost just now: their keys are known on.
        known = context.agent_sessions.agent_ids() | context.coordinator.peer_ids(
            "agent"
        )
        for agent_id in known - present:
            log.info("an agent was deleted", agent=str(agent_id))
            context.drop_agent(agent_id)

    def drop_node_key(self, key: NodePublic, reason: str) -> None:
        """Close the relay's connections of a node that is gone for good.

        An open relay keeps those who may come back with the same key; only a
        deleted agent has nothing to come back to.
        """
        admission = self.context.settings.derp_admission
        if admission is DerpAdmission.OPEN and reason != AGENT_DELETED:
            return
        for conn in self.switch.connections(key):
            self.switch.close(conn, reason)

    async def load_signing_keys(self) -> None:
        """Take the keys of resume tokens from the store, and new ones in time.

        Raises:
            StoreUnavailableError: The store does not answer.
        """
        keys = await load_signing_keys(
            self.context.store,
            RESUME_TOKEN,
            datetime.now(UTC),
            token_lifetime=TOKEN_LIFETIME,
        )
        self.context.resume_tokens.use([(key.id, key.secret) for key in keys])

    async def renew_signing_keys(self) -> None:
        """Look for keys for ever."""
        while True:
            await trio.sleep(RENEWAL_INTERVAL)
            try:
                await self.load_signing_keys()
            except StoreUnavailableError as exc:
                log.error("cannot look for signing keys", reason=str(exc))

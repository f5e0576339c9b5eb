"""Who is asking, and what may they do? Two seams, and what is built in.

A server that embeds this one brings an :class:`Authenticator` and an
:class:`Authorizer` of its own; :class:`StoreAuthenticator` and
:class:`OwnerAuthorizer` ask the store.

Everything here is asked once per request, and again for each tunnel that a
client wants, so the answers of a store are never older than that.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol
from uuid import UUID

from relay.store.model import AgentIdentity, User
from relay.store.store import Store

__all__ = ("Authenticator", "Authorizer", "OwnerAuthorizer", "StoreAuthenticator")


class Authenticator(Protocol):
    """Turns a secret into the one who has it.

    Secrets are compared in constant time. Raises StoreUnavailableError if it
    cannot say just now.
    """

    async def authenticate_user(self, token: str) -> User | None:
        """Whose API key this is; None if nobody's, expired or revoked."""

    async def authenticate_agent(self, token: str) -> AgentIdentity | None:
        """Whose agent token this is; None if nobody's."""


class Authorizer(Protocol):
    """Decides what a user may do with what there is.

    Raises StoreUnavailableError if it cannot say just now.
    """

    async def may_connect(self, user: User, agent: AgentIdentity) -> bool:
        """Whether the user may open a tunnel to the agent."""

    async def may_read(self, user: User, agent: AgentIdentity) -> bool:
        """Whether the user may know that the agent exists, and how it does."""

    async def may_watch(self, user: User, owner_id: UUID) -> bool:
        """Whether the user may see all workspaces of the owner."""

    async def may_debug(self, user: User) -> bool:
        """Whether the user may see the debug pages."""


@dataclass(frozen=True, slots=True)
class StoreAuthenticator:
    """Knows the API keys and agent tokens of a store."""

    store: Store

    async def authenticate_user(self, token: str) -> User | None:
        """Whose API key this is; None if nobody's, expired or revoked."""
        return await self.store.authenticate_api_key(token)

    async def authenticate_agent(self, token: str) -> AgentIdentity | None:
        """Whose agent token this is; None if nobody's."""
        return await self.store.authenticate_agent(token)


@dataclass(frozen=True, slots=True)
class OwnerAuthorizer:
    """Users may do everything with what is theirs; admins with everything."""

    store: Store

    async def may_connect(self, user: User, agent: AgentIdentity) -> bool:
        """Whether the agent is the user's, or the user is an admin."""
        return user.is_admin or agent.owner.id == user.id

    async def may_read(self, user: User, agent: AgentIdentity) -> bool:
        """Whether the user may connect to it."""
        return await self.may_connect(user, agent)

    async def may_watch(self, user: User, owner_id: UUID) -> bool:
        """Whether they are the owner, or an admin."""
        if user.id == owner_id:
            return True
        return user.is_admin and await self.store.get_user(owner_id) is not None

    async def may_debug(self, user: User) -> bool:
        """Whether they are an admin."""
        return user.is_admin

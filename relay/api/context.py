"""What every endpoint of the API can reach, and the request as it sees it."""

from __future__ import annotations

import urllib.parse
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import Final
from uuid import UUID

import trio

from relay.api.answers import error_answer
from relay.api.identity import Authenticator, Authorizer
from relay.api.link import Heartbeats, WebsocketLink, accept_websocket
from relay.derpmaps.feed import DerpMapFeed
from relay.front.application import Takeover
from relay.pages.page import Request, Response
from relay.serve_settings import ServeSettings
from relay.store.model import AgentIdentity, User
from relay.store.store import Store
from tailnet.control.link import CLOSE_GOING_AWAY
from tailnet.coordinator.resume import ResumeTokens
from tailnet.coordinator.serve import CoordinatorService

__all__ = (
    "AGENT_DELETED",
    "VERSION_HEADER",
    "AgentSessions",
    "ApiContext",
    "ApiError",
    "ApiRequest",
    "Revisions",
    "open_websocket",
)

# Why peers and channels end, for people; the relay, too, looks for it.
AGENT_DELETED: Final = "the agent was deleted"

# codersdk BuildVersionHeader: every answer says who gives it.
VERSION_HEADER: Final = "X-Coder-Build-Version"


class ApiError(Exception):
    """Ends a request with an answer.

    Attributes:
        answer: What the client gets.
    """

    def __init__(self, answer: Response) -> None:
        super().__init__(answer.status)
        self.answer = answer


class AgentSessions:
    """The control channels that are open, by agent."""

    def __init__(self) -> None:
        self._links: dict[UUID, set[WebsocketLink]] = {}

    def agent_ids(self) -> set[UUID]:
        """The agents that have one."""
        return set(self._links)

    def add(self, agent_id: UUID, link: WebsocketLink) -> None:
        self._links.setdefault(agent_id, set()).add(link)

    def discard(self, agent_id: UUID, link: WebsocketLink) -> None:
        links = self._links.get(agent_id, set())
        links.discard(link)
        if not links:
            self._links.pop(agent_id, None)

    def close(self, agent_id: UUID, reason: str) -> None:
        """End the channels of an agent."""
        for link in list(self._links.get(agent_id, ())):
            link.fail(CLOSE_GOING_AWAY, reason)


class Revisions:
    """The store's revision, watched once for all who wait for a change."""

    def __init__(self) -> None:
        self.current = 0
        self._changed = trio.Event()

    def note(self, revision: int) -> None:
        """The store is at ``revision`` now."""
        if revision != self.current:
            self.current = revision
            self._changed.set()
            self._changed = trio.Event()

    async def wait_change(self, seen: int) -> int:
        """Wait until the revision is not ``seen`` any more; return it."""
        while self.current == seen:
            await self._changed.wait()
        return self.current


@dataclass(slots=True)
class ApiContext:
    """The rooms behind the API.

    Attributes:
        settings: What the server was started with.
        store: Users, workspaces, agents, and what agents report.
        authenticator: Whose token is this?
        authorizer: May they?
        coordinator: Tells peers of each other.
        derp_maps: The DERP map, and its changes.
        resume_tokens: Peers keep their id over a reconnect.
        deployment_id: Of this deployment, for ever.
        access_url: Where clients reach the server.
        version: Of this program.
        heartbeats: Watch websockets.
        revisions: Changes of users, workspaces and agents.
        agent_sessions: Agents' control channels.
    """

    settings: ServeSettings
    store: Store
    authenticator: Authenticator
    authorizer: Authorizer
    coordinator: CoordinatorService
    derp_maps: DerpMapFeed
    resume_tokens: ResumeTokens
    deployment_id: UUID
    access_url: str
    version: str
    heartbeats: Heartbeats = field(default_factory=Heartbeats)
    revisions: Revisions = field(default_factory=Revisions)
    agent_sessions: AgentSessions = field(default_factory=AgentSessions)

    def drop_agent(self, agent_id: UUID) -> None:
        """End all that a deleted agent still has; fine if that is nothing."""
        self.coordinator.remove_peer(agent_id, AGENT_DELETED)
        self.agent_sessions.close(agent_id, AGENT_DELETED)


@dataclass(frozen=True, slots=True)
class ApiRequest:
    """A request whose sender is known as far as its route asks for it.

    Attributes:
        request: As it came.
        params: Parts of the path, by name.
        context: The rooms behind the API.
        user: Who asks, on routes for users.
        agent: Which agent asks, on routes for agents.
    """

    request: Request
    params: Mapping[str, str]
    context: ApiContext
    user: User | None = None
    agent: AgentIdentity | None = None

    def query(self, name: str) -> str:
        """The first value of a query parameter, or the empty string."""
        values = urllib.parse.parse_qs(self.request.query, keep_blank_values=True)
        return values.get(name, [""])[0]

    def uuid_param(self, name: str) -> UUID:
        """A part of the path that has to be a UUID.

        Raises:
            ApiError: It is none.
        """
        text = self.params[name]
        try:
            return UUID(text)
        except ValueError:
            # coder coderd/httpmw/httpmw.go ParseUUIDParam; the detail is
            # google/uuid's.
            detail = (
                "invalid UUID format"
                if len(text) in (32, 36, 38, 45)
                else f"invalid UUID length: {len(text)}"
            )
            raise ApiError(
                error_answer(400, f'Invalid UUID "{text}".', detail)
            ) from None

    def need_user(self) -> User:
        """Who asks; the route has made sure that there is one."""
        assert self.user is not None
        return self.user

    def need_agent(self) -> AgentIdentity:
        """Which agent asks; the route has made sure that there is one."""
        assert self.agent is not None
        return self.agent

    async def agent_param(self) -> AgentIdentity:
        """The agent of the path, which the user may see.

        Raises:
            ApiError: There is none, for this user.
        """
        agent_id = self.uuid_param("agent")
        identity = await self.context.store.agent_identity(agent_id)
        if identity is None or not await self.context.authorizer.may_read(
            self.need_user(), identity
        ):
            # coder coderd/httpmw/workspaceagentparam.go
            raise ApiError(
                error_answer(
                    404,
                    "Agent doesn't exist with that id, or you do not have access to "
                    "it.",
                )
            )
        return identity


def open_websocket(
    request: ApiRequest, serve: Callable[[WebsocketLink], Awaitable[None]]
) -> Response | Takeover:
    """Turn a request into a websocket, watched by the server's heart beat.

    Args:
        request: A GET; gets a refusal if it asks for no websocket.
        serve: See :func:`relay.api.link.accept_websocket`.
    """
    context = request.context
    return accept_websocket(
        request.request,
        context.heartbeats,
        serve,
        headers=((VERSION_HEADER, context.version),),
    )

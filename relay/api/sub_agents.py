"""Sub-agents: agents that an agent makes, one for each dev container.

A sub-agent has an id, a token and an address of its own; it connects like any
other agent. It belongs to the agent that made it, which alone may list it,
delete it, or ask for it again.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Final
from uuid import UUID

import structlog

from relay.api.agent_checks import check_uuid
from relay.store.model import AgentIdentity, NewAgent, NewApp
from relay.store.store import Store
from tailnet.control.proto import agent_pb2
from tailnet.errors import AlreadyExistsError, InvalidRecordError, NotFoundError

__all__ = ("MAX_APPS", "NO_TOKEN", "SubAgents")

log = structlog.get_logger("relay.api")

# Ours, of one sub-agent; the store takes no more either.
MAX_APPS: Final = 100

# provisioner/regexes.go AppSlugRegex.
_SLUG: Final = re.compile(r"[a-z0-9](?:-?[a-z0-9])*")
_SLUG_TEXT: Final = "^[a-z0-9](-?[a-z0-9])*$"

_Request = agent_pb2.CreateSubAgentRequest

# codersdk.DisplayApp, in the order of the protocol's numbers.
_DISPLAY_APPS: Final = (
    "vscode",
    "vscode_insiders",
    "web_terminal",
    "ssh_helper",
    "port_forwarding_helper",
)
_SHARES: Final = ("owner", "authenticated", "public", "organization")
_OPEN_INS: Final = ("slim-window", "tab")

# A token is 16 bytes, and a Go agent refuses a list with any other length. The
# store has hashes only, so the list says that there is none. No agent uses
# those of a list: it deletes what it finds in it, or asks for it again.
NO_TOKEN: Final = bytes(16)


class _AppError(Exception):
    """An app that is not made; the sub-agent is."""

    def __init__(self, field: str, detail: str) -> None:
        super().__init__(detail)
        self.field = field
        self.detail = detail


class SubAgents:
    """The sub-agents of one agent.

    Args:
        parent: The agent.
        store: Where they are kept.
        removed: Called with the id of a sub-agent that was deleted.
    """

    def __init__(
        self, parent: AgentIdentity, store: Store, removed: Callable[[UUID], None]
    ) -> None:
        self._parent = parent
        self._store = store
        self._removed = removed

    async def create(self, request: _Request) -> agent_pb2.CreateSubAgentResponse:
        """Make a sub-agent, or give one that there is a new token (API 2.8).

        Apps that break a rule are left out, and the answer says why.
        """
        if request.HasField("id"):
            return _created(await self._renew(check_uuid("id", request.id)))
        if not request.name:
            raise InvalidRecordError("name: agent name cannot be empty")
        if len(request.apps) > MAX_APPS:
            # Also those that would be left out: each has an error to be said.
            raise InvalidRecordError(
                f"{len(request.apps)} apps, the limit is {MAX_APPS}"
            )
        display_apps = []
        for index, number in enumerate(request.display_apps):
            if not 0 <= number < len(_DISPLAY_APPS):
                raise InvalidRecordError(
                    f"display_apps[{index}]: {number} is not a valid display app"
                )
            display_apps.append(_DISPLAY_APPS[number])
        apps: dict[str, NewApp] = {}
        errors = []
        for index, app in enumerate(request.apps):
            try:
                checked = _check_app(app)
                if checked.slug in apps:
                    raise _AppError("slug", f'"{checked.slug}" is already in use')
            except _AppError as exc:
                errors.append(
                    agent_pb2.CreateSubAgentResponse.AppCreationError(
                        index=index, field=exc.field, error=exc.detail
                    )
                )
            else:
                apps[checked.slug] = checked
        try:
            new = await self._store.create_agent(
                self._parent.workspace.id,
                request.name,
                parent_id=self._parent.agent.id,
                directory=request.directory,
                architecture=request.architecture,
                operating_system=request.operating_system,
                display_apps=display_apps,
                apps=list(apps.values()),
            )
        except AlreadyExistsError as exc:
            # agent/agentcontainers/api.go tries another name if it finds the
            # first three words in an error.
            raise AlreadyExistsError(
                f'workspace agent name "{request.name}" already exists '
                "in this workspace"
            ) from exc
        log.info(
            "sub-agent created",
            agent=str(new.agent.id),
            parent=str(self._parent.agent.id),
            name=new.agent.name,
        )
        return _created(new, *errors)

    async def delete(
        self, request: agent_pb2.DeleteSubAgentRequest
    ) -> agent_pb2.DeleteSubAgentResponse:
        """Delete a sub-agent; its connections end."""
        agent_id = check_uuid("id", request.id)
        await self._check_is_ours(agent_id)
        await self._store.delete_agent(agent_id)
        self._removed(agent_id)
        log.info(
            "sub-agent deleted",
            agent=str(agent_id),
            parent=str(self._parent.agent.id),
        )
        return agent_pb2.DeleteSubAgentResponse()

    async def list(
        self, request: agent_pb2.ListSubAgentsRequest
    ) -> agent_pb2.ListSubAgentsResponse:
        """List the sub-agents, without their tokens."""
        agents = await self._store.list_sub_agents(self._parent.agent.id)
        return agent_pb2.ListSubAgentsResponse(
            agents=[
                agent_pb2.SubAgent(
                    name=agent.name, id=agent.id.bytes, auth_token=NO_TOKEN
                )
                for agent in agents
            ]
        )

    async def _renew(self, agent_id: UUID) -> NewAgent:
        await self._check_is_ours(agent_id)
        return await self._store.renew_agent_token(agent_id)

    async def _check_is_ours(self, agent_id: UUID) -> None:
        """Nobody is told of another's agents, not even that there are any."""
        agent = await self._store.get_agent(agent_id)
        if agent is None or agent.parent_id != self._parent.agent.id:
            raise NotFoundError(f"this agent has no sub-agent {agent_id}")


def _created(
    new: NewAgent, *errors: agent_pb2.CreateSubAgentResponse.AppCreationError
) -> agent_pb2.CreateSubAgentResponse:
    return agent_pb2.CreateSubAgentResponse(
        agent=agent_pb2.SubAgent(
            name=new.agent.name, id=new.agent.id.bytes, auth_token=new.token.bytes
        ),
        app_creation_errors=errors,
    )


def _check_app(app: _Request.App) -> NewApp:
    """Check one app by the rules of coder ``coderd/agentapi/subagent.go``.

    Raises:
        _AppError: It breaks one.
    """
    if not app.slug:
        raise _AppError("slug", "must not be empty")
    if not _SLUG.fullmatch(app.slug):
        raise _AppError("slug", f'"{app.slug}" does not match regex "{_SLUG_TEXT}"')
    if not 0 <= app.share < len(_SHARES):
        raise _AppError("share", f'"{app.share}" is not a valid app sharing level')
    if not 0 <= app.open_in < len(_OPEN_INS):
        raise _AppError("open_in", f'"{app.open_in}" is not an open in setting')
    if app.healthcheck.interval < 0 or app.healthcheck.threshold < 0:
        raise _AppError("healthcheck", "interval and threshold must not be negative")
    return NewApp(
        slug=app.slug,
        display_name=app.display_name,
        command=app.command,
        url=app.url,
        icon=app.icon,
        group=app.group,
        order=app.order,
        external=app.external,
        hidden=app.hidden,
        subdomain=app.subdomain,
        share=_SHARES[app.share],
        open_in=_OPEN_INS[app.open_in],
        healthcheck_url=app.healthcheck.url,
        healthcheck_interval=app.healthcheck.interval,
        healthcheck_threshold=app.healthcheck.threshold,
    )

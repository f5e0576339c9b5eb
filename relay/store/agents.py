"""Workspaces and agents in SQL. Functions for ``Database.read`` and ``change``."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Any, Final
from uuid import UUID, uuid4

import msgspec
import sqlalchemy as sa

from relay.store.model import (
    Agent,
    AgentIdentity,
    AppHealth,
    Lifecycle,
    LifecycleState,
    NewAgent,
    NewApp,
    Startup,
    Workspace,
    WorkspaceAgents,
    check_name,
)
from relay.store.schema import agents, apps, users, workspaces
from relay.store.tokens import agent_token_hash, is_same_hash, parse_agent_token
from relay.store.users import get_user, user_from_row
from tailnet.errors import AlreadyExistsError, InvalidRecordError, NotFoundError

__all__ = (
    "agent_identity",
    "authenticate_agent",
    "create_agent",
    "create_workspace",
    "delete_agent",
    "delete_workspace",
    "find_agent",
    "find_workspace",
    "get_agent",
    "get_workspace",
    "list_agents",
    "list_sub_agents",
    "list_workspaces",
    "renew_agent_token",
    "workspaces_of",
)

# What an agent may ask to be kept, in total: it is authenticated, yet
# runs whatever its user wants.
MAX_SUB_AGENTS: Final = 100
MAX_APPS: Final = 100
MAX_SLUG_LEN: Final = 64
MAX_SETTINGS_SIZE: Final = 16 << 10  # bytes of JSON
MAX_TEXT_LEN: Final = 4096

_NIL: Final = UUID(int=0)


# -- workspaces -----------------------------------------------------------

_WORKSPACES: Final = sa.select(
    workspaces, users.c.username.label("owner_name")
).join_from(workspaces, users)


def _workspace_from_row(row: sa.Row[Any]) -> Workspace:
    columns = row._mapping
    return Workspace(
        id=columns[workspaces.c.id],
        owner_id=columns[workspaces.c.owner_id],
        owner_name=columns["owner_name"],
        name=columns[workspaces.c.name],
        created_at=columns[workspaces.c.created_at],
    )


def create_workspace(
    connection: sa.Connection,
    owner_id: UUID,
    name: str,
    *,
    workspace_id: UUID | None,
    now: datetime,
) -> Workspace:
    """See Store.create_workspace."""
    check_name("a workspace", name)
    workspace_id = _wanted("workspace id", workspace_id)
    owner = get_user(connection, owner_id)
    if owner is None:
        raise NotFoundError(f"there is no user {owner_id}")
    if find_workspace(connection, owner.username, name) is not None:
        raise AlreadyExistsError(
            f"there is a workspace {owner.username}/{name} already"
        )
    if get_workspace(connection, workspace_id) is not None:
        raise AlreadyExistsError(f"there is a workspace {workspace_id} already")
    connection.execute(
        workspaces.insert().values(
            id=workspace_id,
            owner_id=owner_id,
            name=name,
            name_key=name.lower(),
            created_at=now,
        )
    )
    return Workspace(workspace_id, owner_id, owner.username, name, now)


def get_workspace(connection: sa.Connection, workspace_id: UUID) -> Workspace | None:
    """See Store.get_workspace."""
    row = connection.execute(_WORKSPACES.where(workspaces.c.id == workspace_id)).first()
    return None if row is None else _workspace_from_row(row)


def find_workspace(
    connection: sa.Connection, owner_name: str, name: str
) -> Workspace | None:
    """See Store.find_workspace."""
    row = connection.execute(
        _WORKSPACES.where(
            users.c.username_key == owner_name.lower(),
            workspaces.c.name_key == name.lower(),
        )
    ).first()
    return None if row is None else _workspace_from_row(row)


def list_workspaces(
    connection: sa.Connection, owner_id: UUID | None
) -> list[Workspace]:
    """See Store.list_workspaces."""
    query = _WORKSPACES.order_by(users.c.username_key, workspaces.c.name_key)
    if owner_id is not None:
        query = query.where(workspaces.c.owner_id == owner_id)
    return [_workspace_from_row(row) for row in connection.execute(query)]


def workspaces_of(connection: sa.Connection, owner_id: UUID) -> list[WorkspaceAgents]:
    """See Store.workspaces_of."""
    belonging: dict[UUID, list[Agent]] = {}
    query = (
        sa.select(agents)
        .join_from(agents, workspaces)
        .where(workspaces.c.owner_id == owner_id)
        .order_by(agents.c.name_key)
    )
    for row in connection.execute(query):
        agent = _agent_from_row(row)
        belonging.setdefault(agent.workspace_id, []).append(agent)
    return [
        WorkspaceAgents(workspace, belonging.get(workspace.id, ()))
        for workspace in list_workspaces(connection, owner_id)
    ]


def delete_workspace(connection: sa.Connection, workspace_id: UUID) -> None:
    """See Store.delete_workspace."""
    gone = connection.execute(
        workspaces.delete().where(workspaces.c.id == workspace_id)
    )
    if not gone.rowcount:
        raise NotFoundError(f"there is no workspace {workspace_id}")


# -- agents ---------------------------------------------------------------


def _agent_from_row(row: sa.Row[Any]) -> Agent:
    columns = row._mapping
    state = columns[agents.c.lifecycle_state]
    startup = columns[agents.c.startup]
    lifecycle = None
    if state is not None:
        changed_at = columns[agents.c.lifecycle_changed_at]
        lifecycle = Lifecycle(LifecycleState(state), changed_at)
    return Agent(
        id=columns[agents.c.id],
        workspace_id=columns[agents.c.workspace_id],
        name=columns[agents.c.name],
        parent_id=columns[agents.c.parent_id],
        created_at=columns[agents.c.created_at],
        directory=columns[agents.c.directory],
        architecture=columns[agents.c.architecture],
        operating_system=columns[agents.c.operating_system],
        display_apps=msgspec.json.decode(
            columns[agents.c.display_apps], type=tuple[str, ...]
        ),
        first_connected_at=columns[agents.c.first_connected_at],
        last_connected_at=columns[agents.c.last_connected_at],
        disconnected_at=columns[agents.c.disconnected_at],
        lifecycle=lifecycle,
        startup=startup and msgspec.json.decode(startup, type=Startup),
    )


def create_agent(
    connection: sa.Connection,
    workspace_id: UUID,
    name: str,
    *,
    agent_id: UUID | None,
    token: UUID | None,
    parent_id: UUID | None,
    directory: str,
    architecture: str,
    operating_system: str,
    display_apps: Sequence[str],
    apps: Sequence[NewApp],
    now: datetime,
) -> NewAgent:
    """See Store.create_agent."""
    check_name("an agent", name)
    agent_id = _wanted("agent id", agent_id)
    token = _wanted("agent token", token)
    shown = msgspec.json.encode(display_apps).decode()
    for text in (directory, architecture, operating_system, shown):
        if len(text) > MAX_TEXT_LEN:
            raise InvalidRecordError(
                f"a text of {len(text)} characters, the limit is {MAX_TEXT_LEN}"
            )
    workspace = get_workspace(connection, workspace_id)
    if workspace is None:
        raise NotFoundError(f"there is no workspace {workspace_id}")
    if parent_id is not None:
        _check_parent(connection, workspace_id, parent_id)
    _check_free(connection, workspace, name, agent_id, token)
    connection.execute(
        agents.insert().values(
            id=agent_id,
            workspace_id=workspace_id,
            parent_id=parent_id,
            name=name,
            name_key=name.lower(),
            token_hash=agent_token_hash(token),
            created_at=now,
            directory=directory,
            architecture=architecture,
            operating_system=operating_system,
            display_apps=shown,
            logs_size=0,
            logs_overflowed=False,
        )
    )
    _create_apps(connection, agent_id, apps)
    agent = get_agent(connection, agent_id)
    assert agent is not None
    return NewAgent(agent, token)


def _check_parent(
    connection: sa.Connection, workspace_id: UUID, parent_id: UUID
) -> None:
    parent = get_agent(connection, parent_id)
    if parent is None:
        raise NotFoundError(f"there is no agent {parent_id}")
    if parent.workspace_id != workspace_id:
        raise InvalidRecordError(f"the agent {parent.name!r} is of another workspace")
    if parent.parent_id is not None:
        raise InvalidRecordError(
            f"{parent.name!r} is a sub-agent, and those have none of their own"
        )
    if len(list_sub_agents(connection, parent_id)) >= MAX_SUB_AGENTS:
        raise InvalidRecordError(
            f"the agent {parent.name!r} has {MAX_SUB_AGENTS} sub-agents, the limit"
        )


def _check_free(
    connection: sa.Connection,
    workspace: Workspace,
    name: str,
    agent_id: UUID,
    token: UUID,
) -> None:
    if find_agent(connection, workspace.owner_name, workspace.name, name) is not None:
        path = f"{workspace.owner_name}/{workspace.name}/{name}"
        raise AlreadyExistsError(f"there is an agent {path} already")
    if get_agent(connection, agent_id) is not None:
        raise AlreadyExistsError(f"there is an agent {agent_id} already")
    same_token = agents.select().where(agents.c.token_hash == agent_token_hash(token))
    if connection.execute(same_token).first() is not None:
        raise AlreadyExistsError("another agent has this token")


def _create_apps(
    connection: sa.Connection, agent_id: UUID, new_apps: Sequence[NewApp]
) -> None:
    if len(new_apps) > MAX_APPS:
        raise InvalidRecordError(f"{len(new_apps)} apps, the limit is {MAX_APPS}")
    slugs = set()
    for app in new_apps:
        settings = msgspec.json.encode(app)
        if not 0 < len(app.slug) <= MAX_SLUG_LEN or len(settings) > MAX_SETTINGS_SIZE:
            raise InvalidRecordError(
                f"an app's slug has 1 to {MAX_SLUG_LEN} characters, its settings at "
                f"most {MAX_SETTINGS_SIZE} bytes"
            )
        if app.slug in slugs:
            raise InvalidRecordError(f"two apps have the slug {app.slug!r}")
        slugs.add(app.slug)
        health = AppHealth.INITIALIZING if app.healthcheck_url else AppHealth.DISABLED
        connection.execute(
            apps.insert().values(
                id=uuid4(),
                agent_id=agent_id,
                slug=app.slug,
                settings=settings.decode(),
                health=health,
            )
        )


def renew_agent_token(connection: sa.Connection, agent_id: UUID) -> NewAgent:
    """See Store.renew_agent_token."""
    agent = get_agent(connection, agent_id)
    if agent is None:
        raise NotFoundError(f"there is no agent {agent_id}")
    token = uuid4()
    connection.execute(
        agents.update()
        .where(agents.c.id == agent_id)
        .values(token_hash=agent_token_hash(token))
    )
    return NewAgent(agent, token)


def get_agent(connection: sa.Connection, agent_id: UUID) -> Agent | None:
    """See Store.get_agent."""
    row = connection.execute(agents.select().where(agents.c.id == agent_id)).first()
    return None if row is None else _agent_from_row(row)


def find_agent(
    connection: sa.Connection, owner_name: str, workspace_name: str, name: str
) -> Agent | None:
    """See Store.find_agent."""
    row = connection.execute(
        sa.select(agents)
        .join_from(agents, workspaces)
        .join(users)
        .where(
            users.c.username_key == owner_name.lower(),
            workspaces.c.name_key == workspace_name.lower(),
            agents.c.name_key == name.lower(),
        )
    ).first()
    return None if row is None else _agent_from_row(row)


def list_agents(connection: sa.Connection, workspace_id: UUID | None) -> list[Agent]:
    """See Store.list_agents."""
    query = agents.select().order_by(agents.c.name_key, agents.c.id)
    if workspace_id is not None:
        query = query.where(agents.c.workspace_id == workspace_id)
    return [_agent_from_row(row) for row in connection.execute(query)]


def list_sub_agents(connection: sa.Connection, parent_id: UUID) -> list[Agent]:
    """See Store.list_sub_agents."""
    query = agents.select().where(agents.c.parent_id == parent_id)
    rows = connection.execute(query.order_by(agents.c.name_key))
    return [_agent_from_row(row) for row in rows]


def delete_agent(connection: sa.Connection, agent_id: UUID) -> None:
    """See Store.delete_agent."""
    gone = connection.execute(agents.delete().where(agents.c.id == agent_id))
    if not gone.rowcount:
        raise NotFoundError(f"there is no agent {agent_id}")


# -- identities -----------------------------------------------------------

_IDENTITIES: Final = (
    sa.select(agents, workspaces, users, users.c.username.label("owner_name"))
    .join_from(agents, workspaces)
    .join(users, users.c.id == workspaces.c.owner_id)
)


def _identity_from_row(row: sa.Row[Any]) -> AgentIdentity:
    return AgentIdentity(
        _agent_from_row(row), _workspace_from_row(row), user_from_row(row)
    )


def authenticate_agent(connection: sa.Connection, token: str) -> AgentIdentity | None:
    """See Store.authenticate_agent."""
    parsed = parse_agent_token(token)
    if parsed is None:
        return None
    given = agent_token_hash(parsed)
    row = connection.execute(_IDENTITIES.where(agents.c.token_hash == given)).first()
    # The index has compared them already, and how long it took tells of the
    # hash alone, of which nothing leads back to the token.
    kept = None if row is None else row._mapping[agents.c.token_hash]
    is_right = is_same_hash(kept, given)
    return None if row is None or not is_right else _identity_from_row(row)


def agent_identity(connection: sa.Connection, agent_id: UUID) -> AgentIdentity | None:
    """See Store.agent_identity."""
    row = connection.execute(_IDENTITIES.where(agents.c.id == agent_id)).first()
    return None if row is None else _identity_from_row(row)


def _wanted(what: str, value: UUID | None) -> UUID:
    if value is None:
        return uuid4()
    if value == _NIL:
        # Coder's agents take the nil UUID for a missing one.
        raise InvalidRecordError(f"the {what} may not be the nil UUID")
    return value

"""What the store holds, as values without behaviour.

Conventions of this module:

- Every time is an aware datetime in UTC, kept to the microsecond.
- Values of the enums are the words that Coder's REST API uses; the members
  are in the order of the numbers of the agent protocol
  (``agent/proto/agent.proto``), counted as each says.
- No secret is in here: tokens are kept as hashes, and shown only by
  :class:`NewApiKey` and :class:`NewAgent`, when they are made.

What agents report over time is in ``report_model.py``.
"""

from __future__ import annotations

import enum
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Final
from uuid import UUID

from tailnet.errors import InvalidRecordError

__all__ = (
    "CONNECTED_FOR",
    "MAX_NAME_LEN",
    "Agent",
    "AgentIdentity",
    "ApiKey",
    "App",
    "AppHealth",
    "ConnectionStatus",
    "Lifecycle",
    "LifecycleState",
    "NewAgent",
    "NewApiKey",
    "NewApp",
    "SigningKey",
    "Startup",
    "User",
    "Workspace",
    "WorkspaceAgents",
    "check_name",
    "connection_status",
)

# codersdk/name.go NameValid.
MAX_NAME_LEN: Final = 32
_NAME: Final = re.compile(r"[a-zA-Z0-9]+(?:-[a-zA-Z0-9]+)*")
# As in NameValid: they are words of paths.
_RESERVED_NAMES: Final = frozenset({"new", "create"})


def check_name(kind: str, name: str) -> None:
    """Check the name of a user, workspace or agent by Coder's rule.

    Args:
        kind: What it names, for the message.
        name: The name.

    Raises:
        InvalidRecordError: It may not be used; the message says the rule.
    """
    if len(name) > MAX_NAME_LEN or not _NAME.fullmatch(name):
        raise InvalidRecordError(
            f"{name!r} is no name for {kind}: a name has 1 to {MAX_NAME_LEN} letters "
            "and digits (ASCII), with single hyphens between them"
        )
    if name in _RESERVED_NAMES:
        raise InvalidRecordError(f"{name!r} is no name for {kind}: it is reserved")


@dataclass(frozen=True, slots=True)
class User:
    """Somebody who owns workspaces and connects to agents.

    Attributes:
        id: Theirs, for ever.
        username: Unique without regard to case.
        is_admin: May connect to every agent and see the debug pages.
        created_at: When.
    """

    id: UUID
    username: str
    is_admin: bool
    created_at: datetime


@dataclass(frozen=True, slots=True)
class ApiKey:
    """An API key, without its secret.

    Attributes:
        id: The first 10 characters of the token.
        user_id: Whose it is.
        username: The name of that user.
        name: What it is for, maybe empty.
        created_at: When.
        expires_at: From then on it is worth nothing; None: never.
    """

    id: str
    user_id: UUID
    username: str
    name: str
    created_at: datetime
    expires_at: datetime | None


@dataclass(frozen=True, slots=True)
class NewApiKey:
    """An API key that has just been made, with its token.

    Attributes:
        key: The key.
        token: 10 characters, a hyphen, 22 characters. Shown here and never again.
    """

    key: ApiKey
    token: str = field(repr=False)


@dataclass(frozen=True, slots=True)
class Workspace:
    """A workspace: some agents that belong to one user.

    Attributes:
        id: Its own.
        owner_id: Whose it is.
        owner_name: The name of that user.
        name: Unique among the owner's, without regard to case.
        created_at: When.
    """

    id: UUID
    owner_id: UUID
    owner_name: str
    name: str
    created_at: datetime


class LifecycleState(enum.StrEnum):
    """How far an agent is. Number n of the protocol is the n-th member."""

    CREATED = "created"
    STARTING = "starting"
    START_TIMEOUT = "start_timeout"
    START_ERROR = "start_error"
    READY = "ready"
    SHUTTING_DOWN = "shutting_down"
    SHUTDOWN_TIMEOUT = "shutdown_timeout"
    SHUTDOWN_ERROR = "shutdown_error"
    OFF = "off"


@dataclass(frozen=True, slots=True)
class Lifecycle:
    """What UpdateLifecycle reports.

    Attributes:
        state: The new state.
        changed_at: Since when, by the agent's clock.
    """

    state: LifecycleState
    changed_at: datetime


@dataclass(frozen=True, slots=True)
class Startup:
    """What UpdateStartup reports.

    Attributes:
        version: Of the agent program.
        expanded_directory: Its working directory, absolute.
        subsystems: Words such as ``envbox``, ``envbuilder``, ``exectrace``.
    """

    version: str
    expanded_directory: str
    subsystems: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Agent:
    """An agent: a node that users connect to.

    Attributes:
        id: Its own, and its identity in the tailnet.
        workspace_id: Where it belongs.
        name: Unique in the workspace, without regard to case.
        parent_id: Of a sub-agent (a dev container), the agent that made it.
        created_at: When.
        directory: Where sessions start, maybe empty.
        architecture: Such as ``amd64``, maybe empty.
        operating_system: Such as ``linux``, maybe empty.
        display_apps: Which built-in apps to show, by Coder's words.
        first_connected_at: None: it never was.
        last_connected_at: When it was last known to be there.
        disconnected_at: When it was last seen to go; see connection_status.
        lifecycle: Its last report, None before the first.
        startup: Its last report, None before the first.
    """

    id: UUID
    workspace_id: UUID
    name: str
    parent_id: UUID | None
    created_at: datetime
    directory: str = ""
    architecture: str = ""
    operating_system: str = ""
    display_apps: tuple[str, ...] = ()
    first_connected_at: datetime | None = None
    last_connected_at: datetime | None = None
    disconnected_at: datetime | None = None
    lifecycle: Lifecycle | None = None
    startup: Startup | None = None


class ConnectionStatus(enum.StrEnum):
    """Whether an agent is there, in the words of Coder's REST API."""

    CONNECTING = "connecting"  # it never was
    CONNECTED = "connected"
    DISCONNECTED = "disconnected"


# How long an agent counts as connected after it was last known to be there.
# A server that was killed could not write down that it left.
CONNECTED_FOR: Final = timedelta(seconds=60)


def connection_status(agent: Agent, now: datetime) -> ConnectionStatus:
    """Whether the agent is there, as far as the store knows.

    Coder's rule (``database.WorkspaceAgent.Status``), less its timeout of the
    first connection: agents here are made before anything runs.
    """
    seen = agent.last_connected_at
    if seen is None:
        return ConnectionStatus.CONNECTING
    gone = agent.disconnected_at
    if (gone is not None and gone > seen) or now - seen > CONNECTED_FOR:
        return ConnectionStatus.DISCONNECTED
    return ConnectionStatus.CONNECTED


@dataclass(frozen=True, slots=True)
class NewAgent:
    """An agent that has just been made, or got a new token.

    Attributes:
        agent: The agent.
        token: Its secret. Shown here and never again.
    """

    agent: Agent
    token: UUID = field(repr=False)


@dataclass(frozen=True, slots=True)
class AgentIdentity:
    """An agent with all it belongs to."""

    agent: Agent
    workspace: Workspace
    owner: User


@dataclass(frozen=True, slots=True)
class WorkspaceAgents:
    """A workspace and its agents, sub-agents among them, by name."""

    workspace: Workspace
    agents: Sequence[Agent]


class AppHealth(enum.StrEnum):
    """Number n of the protocol is the n-th member."""

    DISABLED = "disabled"
    INITIALIZING = "initializing"
    HEALTHY = "healthy"
    UNHEALTHY = "unhealthy"


@dataclass(frozen=True, slots=True)
class NewApp:
    """An app of an agent, before it has an id.

    Attributes:
        slug: Its name in URLs, unique in the agent.
        display_name: Its name for people.
        command: Run in a terminal, if the app is one.
        url: Where the app listens, as seen by the agent.
        icon: A URL or path.
        group: Heading under which it is shown.
        order: Where among the others.
        external: The URL is for the browser, not for the agent.
        hidden: Not shown.
        subdomain: Served on a name of its own.
        share: ``owner``, ``authenticated``, ``public`` or ``organization``.
        open_in: ``slim-window`` or ``tab``.
        healthcheck_url: Asked by the agent; empty: no health check.
        healthcheck_interval: Seconds.
        healthcheck_threshold: Failures that make it unhealthy.
    """

    slug: str
    display_name: str = ""
    command: str = ""
    url: str = ""
    icon: str = ""
    group: str = ""
    order: int = 0
    external: bool = False
    hidden: bool = False
    subdomain: bool = False
    share: str = "owner"
    open_in: str = "slim-window"
    healthcheck_url: str = ""
    healthcheck_interval: int = 0
    healthcheck_threshold: int = 0


@dataclass(frozen=True, slots=True)
class App:
    """An app of an agent.

    Attributes:
        id: Its own.
        agent_id: Where it runs.
        settings: What it was made with.
        health: As the agent last said.
    """

    id: UUID
    agent_id: UUID
    settings: NewApp
    health: AppHealth


@dataclass(frozen=True, slots=True)
class SigningKey:
    """A key that the server signs with, such as that of resume tokens.

    Attributes:
        id: The ``kid`` of what it signed.
        purpose: What it is for, such as ``resume-token``.
        secret: Its bytes.
        created_at: When.
    """

    id: str
    purpose: str
    secret: bytes = field(repr=False)
    created_at: datetime

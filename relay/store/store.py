"""What the server asks of a store. :class:`Store` is the seam.

The built-in one is :class:`relay.store.sql_store.SqlStore`. A server that
embeds this one and has users and workspaces of its own brings another.

Conventions:

- ``get_*`` and ``find_*`` return None for what is not there; whatever changes
  something raises NotFoundError for it.
- Names are compared without regard to case, as in Coder.
- Every method may raise StoreUnavailableError: the database cannot be reached,
  read or written just now. Nothing has then been changed.
- A method that was called finishes, even if its caller is cancelled.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Protocol
from uuid import UUID

from relay.store.model import (
    Agent,
    AgentIdentity,
    ApiKey,
    App,
    AppHealth,
    Lifecycle,
    NewAgent,
    NewApiKey,
    NewApp,
    SigningKey,
    Startup,
    User,
    Workspace,
    WorkspaceAgents,
)
from relay.store.report_model import (
    AgentReports,
    AppStatus,
    ConnectionReport,
    LogLine,
    MetadataResult,
    ResourceUsage,
    ScriptTiming,
    Stats,
    StoredLogLine,
)

__all__ = ("Store",)


class Store(Protocol):
    """Users, API keys, workspaces, agents, what agents report, signing keys."""

    # -- the deployment ---------------------------------------------------

    async def deployment_id(self) -> UUID:
        """The id of this deployment, the same for ever."""

    async def revision(self) -> int:
        """A number that changes when users, keys, workspaces or agents do.

        Whoever changes them, another process too. Reports of agents do not
        count. Cheap enough to ask for several times a second.
        """

    async def list_signing_keys(self, purpose: str) -> list[SigningKey]:
        """The keys for a purpose, the newest first."""

    async def add_signing_key(self, key: SigningKey) -> None:
        """Keep a key.

        Raises:
            AlreadyExistsError: There is one with this id.
        """

    async def delete_signing_key(self, key_id: str) -> None:
        """Forget a key, if it is there."""

    # -- users and API keys -----------------------------------------------

    async def create_user(self, username: str, *, is_admin: bool = False) -> User:
        """Make a user.

        Raises:
            InvalidRecordError: No such name is allowed.
            AlreadyExistsError: The name is taken.
        """

    async def get_user(self, user_id: UUID) -> User | None:
        """Look a user up by id."""

    async def find_user(self, username: str) -> User | None:
        """Look a user up by name."""

    async def list_users(self) -> list[User]:
        """All users, by name."""

    async def delete_user(self, user_id: UUID) -> None:
        """Delete a user and their API keys.

        Raises:
            NotFoundError: There is no such user.
            InUseError: The user owns workspaces.
        """

    async def create_api_key(
        self,
        user_id: UUID,
        *,
        token: str | None = None,
        name: str = "",
        expires_at: datetime | None = None,
    ) -> NewApiKey:
        """Make an API key.

        Args:
            user_id: Whose it will be.
            token: The wanted token; None: a random one.
            name: What it is for.
            expires_at: When it ends; None: never.

        Raises:
            InvalidRecordError: The token has not the shape of one.
            AlreadyExistsError: The token, or its first 10 characters, are taken.
            NotFoundError: There is no such user.
        """

    async def list_api_keys(self, user_id: UUID | None = None) -> list[ApiKey]:
        """The API keys of a user or of all, expired ones too, oldest first."""

    async def delete_api_key(self, key_id: str) -> None:
        """Revoke an API key.

        Raises:
            NotFoundError: There is no such key.
        """

    async def authenticate_api_key(self, token: str) -> User | None:
        """Whose API key this is; None if nobody's, or expired."""

    # -- workspaces -------------------------------------------------------

    async def create_workspace(
        self, owner_id: UUID, name: str, *, workspace_id: UUID | None = None
    ) -> Workspace:
        """Make a workspace.

        Raises:
            InvalidRecordError: No such name is allowed, or the id is nil.
            AlreadyExistsError: The owner has one of that name, or the id is taken.
            NotFoundError: There is no such user.
        """

    async def get_workspace(self, workspace_id: UUID) -> Workspace | None:
        """Look a workspace up by id."""

    async def find_workspace(self, owner_name: str, name: str) -> Workspace | None:
        """Look a workspace up by the names of its owner and itself."""

    async def list_workspaces(self, owner_id: UUID | None = None) -> list[Workspace]:
        """The workspaces of a user or of all, by name."""

    async def workspaces_of(self, owner_id: UUID) -> list[WorkspaceAgents]:
        """The workspaces of a user with their agents, at one moment, by name."""

    async def delete_workspace(self, workspace_id: UUID) -> None:
        """Delete a workspace and its agents.

        Raises:
            NotFoundError: There is no such workspace.
        """

    # -- agents -----------------------------------------------------------

    async def create_agent(
        self,
        workspace_id: UUID,
        name: str,
        *,
        agent_id: UUID | None = None,
        token: UUID | None = None,
        parent_id: UUID | None = None,
        directory: str = "",
        architecture: str = "",
        operating_system: str = "",
        display_apps: Sequence[str] = (),
        apps: Sequence[NewApp] = (),
    ) -> NewAgent:
        """Make an agent, or a sub-agent.

        Args:
            workspace_id: Where it will belong.
            name: Unique in the workspace.
            agent_id: The wanted id; None: a random one.
            token: The wanted token; None: a random one.
            parent_id: The agent that makes it, of the same workspace.
            directory: Where sessions start.
            architecture: Such as ``amd64``.
            operating_system: Such as ``linux``.
            display_apps: Which built-in apps to show.
            apps: Its apps.

        Raises:
            InvalidRecordError: No such name is allowed, the id or token is nil,
                the parent is of another workspace or a sub-agent itself, or two
                apps have one slug.
            AlreadyExistsError: The name, the id or the token is taken.
            NotFoundError: There is no such workspace or parent.
        """

    async def renew_agent_token(self, agent_id: UUID) -> NewAgent:
        """Give an agent another token; the old one is worth nothing then.

        Raises:
            NotFoundError: There is no such agent.
        """

    async def get_agent(self, agent_id: UUID) -> Agent | None:
        """Look an agent up by id."""

    async def find_agent(
        self, owner_name: str, workspace_name: str, name: str
    ) -> Agent | None:
        """Look an agent up by the three names."""

    async def list_agents(self, workspace_id: UUID | None = None) -> list[Agent]:
        """The agents of a workspace or of all, sub-agents too, by name."""

    async def list_sub_agents(self, parent_id: UUID) -> list[Agent]:
        """The sub-agents of an agent, by name."""

    async def list_apps(self, agent_id: UUID) -> list[App]:
        """The apps of an agent, by slug; none if there is no such agent."""

    async def delete_agent(self, agent_id: UUID) -> None:
        """Delete an agent, its sub-agents and all that they reported.

        Raises:
            NotFoundError: There is no such agent.
        """

    async def authenticate_agent(self, token: str) -> AgentIdentity | None:
        """Whose agent token this is: a UUID as text; None if nobody's."""

    async def agent_identity(self, agent_id: UUID) -> AgentIdentity | None:
        """An agent with its workspace and owner, in one query."""

    # -- what agents report -----------------------------------------------
    # All raise NotFoundError if the agent is gone.

    async def save_connected(self, agent_id: UUID, at: datetime) -> None:
        """The agent is there: sets ``last_connected_at``, and the first time too.

        Called when it connects, and again while it stays, more often than
        every CONNECTED_FOR.
        """

    async def save_disconnected(self, agent_id: UUID, at: datetime) -> None:
        """The agent is gone: sets ``disconnected_at``."""

    async def save_lifecycle(self, agent_id: UUID, lifecycle: Lifecycle) -> None:
        """Keep the newest lifecycle.

        An agent that starts anew after too many logs begins with none: it
        could otherwise never log again, since agents here outlive restarts.
        """

    async def save_startup(self, agent_id: UUID, startup: Startup) -> None:
        """Keep the newest startup report."""

    async def add_stats(self, agent_id: UUID, stats: Stats) -> None:
        """Keep a report, among the last MAX_STATS."""

    async def add_logs(
        self, agent_id: UUID, source_id: UUID, lines: Sequence[LogLine]
    ) -> bool:
        """Keep output.

        Returns:
            False if this is more than MAX_LOG_SIZE bytes in all: no line of
            these is kept then, nor any later one (Coder's
            ``log_limit_exceeded``).
        """

    async def save_metadata(
        self, agent_id: UUID, results: Sequence[MetadataResult]
    ) -> None:
        """Keep the newest result of each key.

        Values and errors that are too long are cut, and ``error`` says so.

        Raises:
            InvalidRecordError: The keys together are too long; none is kept.
        """

    async def add_connection_report(
        self, agent_id: UUID, report: ConnectionReport
    ) -> None:
        """Keep a report, among the last MAX_CONNECTION_REPORTS."""

    async def add_script_timing(self, agent_id: UUID, timing: ScriptTiming) -> None:
        """Keep a report, among the last MAX_SCRIPT_TIMINGS."""

    async def save_app_health(
        self, agent_id: UUID, health: Mapping[UUID, AppHealth]
    ) -> None:
        """Keep the health of apps, by their ids.

        Raises:
            NotFoundError: The agent has no such app; nothing is kept.
        """

    async def add_app_status(self, agent_id: UUID, status: AppStatus) -> None:
        """Keep a report, among the last MAX_APP_STATUSES.

        Raises:
            NotFoundError: The agent has no app of that slug.
        """

    async def add_resource_usages(
        self, agent_id: UUID, usages: Sequence[ResourceUsage]
    ) -> None:
        """Keep datapoints, among the last MAX_RESOURCE_USAGES."""

    async def agent_logs(
        self, agent_id: UUID, *, after: int, limit: int
    ) -> tuple[int, Sequence[StoredLogLine]]:
        """Some of an agent's output, cheaply: it is asked for every second.

        Args:
            agent_id: Of one that there may be.
            after: Lines to leave out.
            limit: Lines at most.

        Returns:
            How many lines there are in all, and those that were asked for.
        """

    async def agent_reports(self, agent_id: UUID) -> AgentReports | None:
        """All that is kept of what an agent reported, at one moment."""

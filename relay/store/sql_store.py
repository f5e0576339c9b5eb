"""The built-in store: :class:`SqlStore`, on any database of SQLAlchemy's.

It puts each method of the Store Protocol on a function of SQL (``users``,
``agents``, ``reports``), in a transaction of its own (``database``).

API: :func:`open_store`.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Final
from uuid import UUID

import sqlalchemy as sa
import trio

from relay.store import agents, reports, signing, users
from relay.store.database import Database, open_engine
from relay.store.migrate import migrate
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
from relay.store.store import Store

__all__ = ("SqlStore", "open_store")

# Seconds that a command or the server waits for another program's lock.
BUSY_TIMEOUT: Final = 5.0


def _utc_now() -> datetime:
    return datetime.now(UTC)


@asynccontextmanager
async def open_store(
    target: str | Path,
    *,
    busy_timeout: float = BUSY_TIMEOUT,
    threads: bool = True,
    now: Callable[[], datetime] = _utc_now,
) -> AsyncIterator[SqlStore]:
    """Open a database as a store; make it, or bring it up to date, first.

    Args:
        target: A file of SQLite's, or a database URL.
        busy_timeout: Seconds to wait for another program's lock.
        threads: Run queries in threads. Without, each blocks the caller's
            loop, as a test on a virtual clock wants it.
        now: Tells the time of creation and expiry.

    Raises:
        ConfigError: It cannot be used at all; one line for the operator.
        StoreUnavailableError: It cannot be used now, such as when locked.
    """

    def prepare() -> tuple[sa.Engine, str]:
        engine, where = open_engine(target, busy_timeout=busy_timeout)
        try:
            migrate(engine, where)
        except BaseException:
            engine.dispose()
            raise
        return engine, where

    if threads:
        engine, where = await trio.to_thread.run_sync(prepare)
    else:
        await trio.lowlevel.checkpoint()
        engine, where = prepare()
    database = Database(engine, where, threads=threads)
    try:
        yield SqlStore(database, now=now)
    finally:
        database.close()


class SqlStore(Store):
    """A store on an SQL database. Made by :func:`open_store`."""

    def __init__(
        self, database: Database, *, now: Callable[[], datetime] = _utc_now
    ) -> None:
        self._database = database
        self._now = now

    # -- the deployment ---------------------------------------------------

    async def deployment_id(self) -> UUID:
        """See Store."""
        return await self._database.read(signing.deployment_id)

    async def revision(self) -> int:
        """See Store."""
        return await self._database.read(signing.revision)

    async def list_signing_keys(self, purpose: str) -> list[SigningKey]:
        """See Store."""
        return await self._database.read(signing.list_signing_keys, purpose)

    async def add_signing_key(self, key: SigningKey) -> None:
        """See Store."""
        await self._database.write(signing.add_signing_key, key)

    async def delete_signing_key(self, key_id: str) -> None:
        """See Store."""
        await self._database.write(signing.delete_signing_key, key_id)

    # -- users and API keys -----------------------------------------------

    async def create_user(self, username: str, *, is_admin: bool = False) -> User:
        """See Store."""
        return await self._database.change(
            users.create_user, username, is_admin=is_admin, now=self._now()
        )

    async def get_user(self, user_id: UUID) -> User | None:
        """See Store."""
        return await self._database.read(users.get_user, user_id)

    async def find_user(self, username: str) -> User | None:
        """See Store."""
        return await self._database.read(users.find_user, username)

    async def list_users(self) -> list[User]:
        """See Store."""
        return await self._database.read(users.list_users)

    async def delete_user(self, user_id: UUID) -> None:
        """See Store."""
        await self._database.change(users.delete_user, user_id)

    async def create_api_key(
        self,
        user_id: UUID,
        *,
        token: str | None = None,
        name: str = "",
        expires_at: datetime | None = None,
    ) -> NewApiKey:
        """See Store."""
        return await self._database.change(
            users.create_api_key,
            user_id,
            token=token,
            name=name,
            expires_at=expires_at,
            now=self._now(),
        )

    async def list_api_keys(self, user_id: UUID | None = None) -> list[ApiKey]:
        """See Store."""
        return await self._database.read(users.list_api_keys, user_id)

    async def delete_api_key(self, key_id: str) -> None:
        """See Store."""
        await self._database.change(users.delete_api_key, key_id)

    async def authenticate_api_key(self, token: str) -> User | None:
        """See Store."""
        return await self._database.read(
            users.authenticate_api_key, token, now=self._now()
        )

    # -- workspaces -------------------------------------------------------

    async def create_workspace(
        self, owner_id: UUID, name: str, *, workspace_id: UUID | None = None
    ) -> Workspace:
        """See Store."""
        return await self._database.change(
            agents.create_workspace,
            owner_id,
            name,
            workspace_id=workspace_id,
            now=self._now(),
        )

    async def get_workspace(self, workspace_id: UUID) -> Workspace | None:
        """See Store."""
        return await self._database.read(agents.get_workspace, workspace_id)

    async def find_workspace(self, owner_name: str, name: str) -> Workspace | None:
        """See Store."""
        return await self._database.read(agents.find_workspace, owner_name, name)

    async def list_workspaces(self, owner_id: UUID | None = None) -> list[Workspace]:
        """See Store."""
        return await self._database.read(agents.list_workspaces, owner_id)

    async def workspaces_of(self, owner_id: UUID) -> list[WorkspaceAgents]:
        """See Store."""
        return await self._database.read(agents.workspaces_of, owner_id)

    async def delete_workspace(self, workspace_id: UUID) -> None:
        """See Store."""
        await self._database.change(agents.delete_workspace, workspace_id)

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
        """See Store."""
        return await self._database.change(
            agents.create_agent,
            workspace_id,
            name,
            agent_id=agent_id,
            token=token,
            parent_id=parent_id,
            directory=directory,
            architecture=architecture,
            operating_system=operating_system,
            display_apps=display_apps,
            apps=apps,
            now=self._now(),
        )

    async def renew_agent_token(self, agent_id: UUID) -> NewAgent:
        """See Store."""
        return await self._database.change(agents.renew_agent_token, agent_id)

    async def get_agent(self, agent_id: UUID) -> Agent | None:
        """See Store."""
        return await self._database.read(agents.get_agent, agent_id)

    async def find_agent(
        self, owner_name: str, workspace_name: str, name: str
    ) -> Agent | None:
        """See Store."""
        return await self._database.read(
            agents.find_agent, owner_name, workspace_name, name
        )

    async def list_agents(self, workspace_id: UUID | None = None) -> list[Agent]:
        """See Store."""
        return await self._database.read(agents.list_agents, workspace_id)

    async def list_sub_agents(self, parent_id: UUID) -> list[Agent]:
        """See Store."""
        return await self._database.read(agents.list_sub_agents, parent_id)

    async def list_apps(self, agent_id: UUID) -> list[App]:
        """See Store."""
        return await self._database.read(reports.list_apps, agent_id)

    async def delete_agent(self, agent_id: UUID) -> None:
        """See Store."""
        await self._database.change(agents.delete_agent, agent_id)

    async def authenticate_agent(self, token: str) -> AgentIdentity | None:
        """See Store."""
        return await self._database.read(agents.authenticate_agent, token)

    async def agent_identity(self, agent_id: UUID) -> AgentIdentity | None:
        """See Store."""
        return await self._database.read(agents.agent_identity, agent_id)

    # -- what agents report -----------------------------------------------

    async def save_connected(self, agent_id: UUID, at: datetime) -> None:
        """See Store."""
        await self._database.write(reports.save_connected, agent_id, at)

    async def save_disconnected(self, agent_id: UUID, at: datetime) -> None:
        """See Store."""
        await self._database.write(reports.save_disconnected, agent_id, at)

    async def save_lifecycle(self, agent_id: UUID, lifecycle: Lifecycle) -> None:
        """See Store."""
        await self._database.write(reports.save_lifecycle, agent_id, lifecycle)

    async def save_startup(self, agent_id: UUID, startup: Startup) -> None:
        """See Store."""
        await self._database.write(reports.save_startup, agent_id, startup)

    async def add_stats(self, agent_id: UUID, stats: Stats) -> None:
        """See Store."""
        await self._database.write(reports.add_stats, agent_id, stats)

    async def add_logs(
        self, agent_id: UUID, source_id: UUID, lines: Sequence[LogLine]
    ) -> bool:
        """See Store."""
        return await self._database.write(reports.add_logs, agent_id, source_id, lines)

    async def save_metadata(
        self, agent_id: UUID, results: Sequence[MetadataResult]
    ) -> None:
        """See Store."""
        await self._database.write(reports.save_metadata, agent_id, results)

    async def add_connection_report(
        self, agent_id: UUID, report: ConnectionReport
    ) -> None:
        """See Store."""
        await self._database.write(reports.add_connection_report, agent_id, report)

    async def add_script_timing(self, agent_id: UUID, timing: ScriptTiming) -> None:
        """See Store."""
        await self._database.write(reports.add_script_timing, agent_id, timing)

    async def save_app_health(
        self, agent_id: UUID, health: Mapping[UUID, AppHealth]
    ) -> None:
        """See Store."""
        await self._database.write(reports.save_app_health, agent_id, health)

    async def add_app_status(self, agent_id: UUID, status: AppStatus) -> None:
        """See Store."""
        await self._database.write(reports.add_app_status, agent_id, status)

    async def add_resource_usages(
        self, agent_id: UUID, usages: Sequence[ResourceUsage]
    ) -> None:
        """See Store."""
        await self._database.write(reports.add_resource_usages, agent_id, usages)

    async def agent_logs(
        self, agent_id: UUID, *, after: int, limit: int
    ) -> tuple[int, Sequence[StoredLogLine]]:
        """See Store."""
        return await self._database.read(
            reports.some_logs, agent_id, after=after, limit=limit
        )

    async def agent_reports(self, agent_id: UUID) -> AgentReports | None:
        """See Store."""
        return await self._database.read(reports.all_reports, agent_id)

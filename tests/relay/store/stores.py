"""A store in a temporary directory, and things to put into it."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

import sqlalchemy as sa

from relay.store.database import open_engine
from relay.store.migrate import migrate
from relay.store.model import NewAgent, NewApiKey, User, Workspace
from relay.store.sql_store import SqlStore, open_store

NOW = datetime(2026, 1, 2, 3, 4, 5, 678901, tzinfo=UTC)
SECOND = timedelta(seconds=1)


@dataclass
class Clock:
    """The time, which passes when the test says so."""

    now: datetime = NOW

    def __call__(self) -> datetime:
        return self.now


@dataclass(frozen=True)
class House:
    """A user with a key, a workspace and an agent."""

    owner: User
    key: NewApiKey
    workspace: Workspace
    agent: NewAgent


async def furnish(store: SqlStore, owner_name: str = "alice") -> House:
    owner = await store.create_user(owner_name)
    key = await store.create_api_key(owner.id)
    workspace = await store.create_workspace(owner.id, "dev")
    agent = await store.create_agent(workspace.id, "main")
    return House(owner, key, workspace, agent)


@cache
def empty_database() -> bytes:
    """The file of a new store. Most tests copy it: making it takes longer."""
    with TemporaryDirectory() as directory:
        path = Path(directory) / "tailnet.db"
        with migrated_engine(path):
            pass
        return path.read_bytes()


@asynccontextmanager
async def furnished(path: Path) -> AsyncIterator[tuple[SqlStore, House]]:
    (path / "tailnet.db").write_bytes(empty_database())
    async with open_store(path / "tailnet.db", threads=False, now=Clock()) as store:
        yield store, await furnish(store)


@contextmanager
def migrated_engine(path: Path, revision: str = "head") -> Iterator[sa.Engine]:
    """The database itself, for a look behind the store."""
    engine, where = open_engine(path, busy_timeout=1)
    try:
        migrate(engine, where, revision=revision)
        yield engine
    finally:
        engine.dispose()

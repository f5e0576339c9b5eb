from __future__ import annotations

import sqlite3
import subprocess
import sys
from collections.abc import Awaitable, Callable
from contextlib import closing
from pathlib import Path
from uuid import uuid4

import pytest
import trio

from relay.store.model import Lifecycle, LifecycleState, SigningKey, Startup
from relay.store.sql_store import SqlStore, open_store
from tailnet.errors import (
    ConfigError,
    NotFoundError,
    StoreUnavailableError,
    TailnetError,
)
from tests.relay.store.stores import NOW, House, furnish, furnished

CHANGES: list[Callable[[SqlStore, House], Awaitable[object]]] = [
    lambda store, house: store.create_user("bob"),
    lambda store, house: store.create_api_key(house.owner.id),
    lambda store, house: store.delete_api_key(house.key.key.id),
    lambda store, house: store.create_workspace(house.owner.id, "more"),
    lambda store, house: store.delete_workspace(house.workspace.id),
    lambda store, house: store.create_agent(house.workspace.id, "more"),
    lambda store, house: store.renew_agent_token(house.agent.agent.id),
    lambda store, house: store.delete_agent(house.agent.agent.id),
]

NO_CHANGES: list[Callable[[SqlStore, House], Awaitable[object]]] = [
    lambda store, house: store.authenticate_api_key(house.key.token),
    lambda store, house: store.workspaces_of(house.owner.id),
    lambda store, house: store.save_connected(house.agent.agent.id, NOW),
    lambda store, house: store.save_startup(house.agent.agent.id, Startup("", "")),
    lambda store, house: store.save_lifecycle(
        house.agent.agent.id, Lifecycle(LifecycleState.READY, NOW)
    ),
    lambda store, house: store.add_signing_key(SigningKey("k", "p", b"", NOW)),
]


@pytest.mark.parametrize("change", CHANGES)
async def test_changes_change_the_revision(
    tmp_path: Path, change: Callable[[SqlStore, House], Awaitable[object]]
) -> None:
    async with furnished(tmp_path) as (store, house):
        before = await store.revision()
        await change(store, house)
        assert await store.revision() > before


async def test_deleting_a_user_changes_the_revision(tmp_path: Path) -> None:
    async with open_store(tmp_path / "a.db", threads=False) as store:
        user = await store.create_user("alice")
        before = await store.revision()
        await store.delete_user(user.id)
        assert await store.revision() > before


@pytest.mark.parametrize("call", NO_CHANGES)
async def test_nothing_else_changes_the_revision(
    tmp_path: Path, call: Callable[[SqlStore, House], Awaitable[object]]
) -> None:
    async with furnished(tmp_path) as (store, house):
        before = await store.revision()
        await call(store, house)
        assert await store.revision() == before


async def test_failed_change_does_not_change_the_revision(tmp_path: Path) -> None:
    async with furnished(tmp_path) as (store, _):
        before = await store.revision()
        with pytest.raises(NotFoundError):
            await store.delete_agent(uuid4())
        assert await store.revision() == before


async def test_two_stores_on_one_file(tmp_path: Path) -> None:
    """The server, and an operator's command beside it."""
    path = tmp_path / "a.db"
    async with open_store(path) as server, open_store(path) as command:
        house = await furnish(command)
        assert await server.authenticate_agent(str(house.agent.token)) is not None
        before = await server.revision()
        await command.delete_agent(house.agent.agent.id)
        assert await server.revision() != before
        assert await server.get_agent(house.agent.agent.id) is None


OTHER_PROGRAM = """
import sys, trio
from relay.store.sql_store import open_store

async def main() -> None:
    async with open_store(sys.argv[1]) as store:
        for number in range(20):
            await store.create_user(f"{sys.argv[2]}-{number}")

trio.run(main)
"""


async def test_programs_that_start_and_write_at_once(tmp_path: Path) -> None:
    """Nobody has made the database, and all of them want to."""
    path = tmp_path / "a.db"

    async def run(name: str) -> None:
        command = [sys.executable, "-W", "error", "-c", OTHER_PROGRAM, str(path), name]
        await trio.run_process(command)

    with trio.fail_after(60):
        async with trio.open_nursery() as nursery:
            for name in ("a", "b"):
                nursery.start_soon(run, name)
    async with open_store(path, threads=False) as store:
        users = await store.list_users()
        assert len(users) == 40
        assert await store.revision() == 41


async def test_many_tasks_on_one_store(tmp_path: Path) -> None:
    async with open_store(tmp_path / "a.db") as store:
        house = await furnish(store)
        seen = []

        async def work(number: int) -> None:
            await store.create_agent(house.workspace.id, f"x{number}")
            seen.append(await store.agent_identity(house.agent.agent.id))

        async with trio.open_nursery() as nursery:
            for number in range(40):
                nursery.start_soon(work, number)
        assert len(await store.list_agents()) == 41
        assert len(seen) == 40
        assert None not in seen


async def test_store_without_threads_keeps_a_virtual_clock_honest(
    tmp_path: Path, autojump_clock: trio.testing.MockClock
) -> None:
    async with furnished(tmp_path) as (store, _):
        with trio.fail_after(0.001):
            for _ in range(100):
                await store.revision()


async def test_store_that_cannot_be_opened(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for threads in (False, True):
        with pytest.raises(ConfigError):
            async with open_store(tmp_path / "file" / "a.db", threads=threads):
                pass


async def test_locked_store(tmp_path: Path) -> None:
    path = tmp_path / "a.db"
    async with open_store(path, busy_timeout=0.01) as store:
        house = await furnish(store)
        with closing(sqlite3.connect(path, isolation_level=None)) as other:
            other.execute("BEGIN IMMEDIATE")
            with pytest.raises(StoreUnavailableError, match="locked"):
                await store.create_user("bob")
            # A server whose database somebody locks still knows everybody.
            assert await store.authenticate_api_key(house.key.token) == house.owner
            # So does a command, if nothing is to be migrated.
            async with open_store(path, busy_timeout=0.01) as reader:
                assert await reader.list_users() == [house.owner]
        assert await store.find_user("bob") is None
        await store.create_user("bob")


async def test_file_locked_whole_says_so(tmp_path: Path) -> None:
    path = tmp_path / "a.db"
    async with open_store(path):
        pass
    with closing(sqlite3.connect(path, isolation_level=None)) as other:
        other.execute("PRAGMA locking_mode=EXCLUSIVE")
        other.execute("BEGIN EXCLUSIVE")
        with pytest.raises(TailnetError, match="locked by another program"):
            async with open_store(path, busy_timeout=0.01):
                pass


def test_data_directory_can_be_anywhere_on_the_command_line(tmp_path: Path) -> None:
    """Spaces, percent and question marks are no URL syntax in a path."""
    path = tmp_path / "a b?c=%20&d#e.db"

    async def main() -> None:
        async with open_store(path) as store:
            await store.create_user("alice")

    trio.run(main)
    assert path.exists()
    subprocess.run(["test", "-s", path], check=True)

"""A server's state, for commands that work on it beside the server or without."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import TYPE_CHECKING, Final, TypeVar
from uuid import UUID

import click
import trio

from tailnet.errors import ConfigError, NotFoundError

if TYPE_CHECKING:
    from relay.store.model import Agent, User, Workspace
    from relay.store.store import Store

__all__ = ("require_agent", "require_user", "require_workspace", "run_on_store")

ResultT = TypeVar("ResultT")

# Seconds to wait for the server, or another command, that is writing.
BUSY_TIMEOUT: Final = 5.0


def run_on_store(
    data_dir: Path | None,
    command: Callable[[Store], Awaitable[ResultT]],
    *,
    create: bool = False,
) -> ResultT:
    """Run an async function on the store of a data directory.

    Args:
        data_dir: The directory; None: the user's own.
        command: Gets the store.
        create: Make directory and database if they are not there. Without, a
            mistyped directory is an error and leaves nothing behind.

    Raises:
        ClickException: The store cannot be opened.
        TailnetError: What ``command`` raised.
    """
    from relay.store.location import (
        DATABASE_FILE,
        default_data_dir,
        prepare_data_dir,
    )
    from relay.store.sql_store import open_store

    where = default_data_dir() if data_dir is None else data_dir

    async def run() -> ResultT:
        # Nothing else runs in this loop that a query could hold up.
        async with open_store(
            database, busy_timeout=BUSY_TIMEOUT, threads=False
        ) as store:
            return await command(store)

    try:
        database = where / DATABASE_FILE
        if create:
            database = prepare_data_dir(where)
        elif not _exists(database):
            raise click.ClickException(
                f"there is no {DATABASE_FILE} in {where}: create a user first, or "
                "choose another --data-dir"
            )
        return trio.run(run)
    except ConfigError as exc:
        raise click.ClickException(str(exc)) from exc


def _exists(path: Path) -> bool:
    try:
        return path.exists()
    except (OSError, ValueError) as exc:
        reason = getattr(exc, "strerror", None) or str(exc)
        raise ConfigError(
            f"cannot look for {path}: {reason}; choose another --data-dir"
        ) from exc


async def require_user(store: Store, target: tuple[str, ...] | UUID) -> User:
    """The user of that name or id.

    Raises:
        NotFoundError: There is none.
    """
    if isinstance(target, UUID):
        user = await store.get_user(target)
    else:
        user = await store.find_user(target[0])
    if user is None:
        name = target if isinstance(target, UUID) else repr(target[0])
        raise NotFoundError(f"there is no user {name}; see: tailnet user list")
    return user


async def require_workspace(store: Store, target: tuple[str, ...] | UUID) -> Workspace:
    """The workspace of those names or that id.

    Raises:
        NotFoundError: There is none; the message says if it is for its owner.
    """
    if isinstance(target, UUID):
        workspace = await store.get_workspace(target)
    else:
        await require_user(store, target[:1])
        workspace = await store.find_workspace(*target)
    if workspace is None:
        name = target if isinstance(target, UUID) else "/".join(target)
        raise NotFoundError(
            f"there is no workspace {name}; see: tailnet workspace list"
        )
    return workspace


async def require_agent(store: Store, target: tuple[str, ...] | UUID) -> Agent:
    """The agent of those names or that id.

    Raises:
        NotFoundError: There is none; the message says if it is for its owner or
            workspace.
    """
    if isinstance(target, UUID):
        agent = await store.get_agent(target)
    else:
        await require_workspace(store, target[:2])
        agent = await store.find_agent(*target)
    if agent is None:
        name = target if isinstance(target, UUID) else "/".join(target)
        raise NotFoundError(f"there is no agent {name}; see: tailnet agent list")
    return agent

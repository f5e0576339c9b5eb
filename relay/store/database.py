"""A database that trio tasks can use: its file, its threads, its errors.

SQLite by default: one file in WAL mode, so that the server, and an operator's
commands beside it, read while one of them writes. Every writer takes the lock
when it begins (``BEGIN IMMEDIATE``): a transaction that reads first and then
wants to write would otherwise fail if another came between.
"""

from __future__ import annotations

import os
import sqlite3
import stat
from collections.abc import Callable
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Any, Concatenate, Final, ParamSpec, TypeVar

import sqlalchemy as sa
import trio
from sqlalchemy import event, exc as sa_exc

from relay.store import schema
from tailnet.errors import AlreadyExistsError, ConfigError, StoreUnavailableError

__all__ = ("Database", "open_engine", "unavailable")

P = ParamSpec("P")
ResultT = TypeVar("ResultT")

# Threads that read. Queries take far less than a millisecond; more threads
# would only wait for the interpreter's lock.
READERS: Final = 4


def open_engine(target: str | Path, *, busy_timeout: float) -> tuple[sa.Engine, str]:
    """Make ready to connect, with the file in place and in WAL mode.

    Args:
        target: A file of SQLite's, made if it is not there, or a database URL.
        busy_timeout: Seconds to wait for another program's lock.

    Returns:
        The engine, and what to call the database in messages.

    Raises:
        ConfigError: This file or URL cannot be used.
        StoreUnavailableError: Somebody holds the database locked.
    """
    if isinstance(target, str) and "://" in target:
        try:
            url = sa.make_url(target)
        except (sa_exc.ArgumentError, ValueError) as exc:
            # The URL may hold a password.
            raise ConfigError("the database URL cannot be understood") from exc
    else:
        url = sa.URL.create("sqlite", database=str(target))
    where = url.render_as_string(hide_password=True)
    connect_args: dict[str, Any] = {}
    is_sqlite = url.get_backend_name() == "sqlite"
    if is_sqlite:
        where = url.database or ""
        if where in {"", ":memory:"}:
            raise ConfigError("a database in memory forgets: name a file")
        _prepare_file(Path(where), busy_timeout)
        connect_args["timeout"] = busy_timeout
    try:
        engine = sa.create_engine(
            url, pool_size=READERS + 1, max_overflow=0, connect_args=connect_args
        )
    except (sa_exc.ArgumentError, ImportError) as exc:
        raise ConfigError(f"the database {where} cannot be used: {exc}") from exc
    if is_sqlite:
        event.listen(engine, "connect", _on_connect)
        event.listen(engine, "begin", _on_begin)
    return engine, where


def _prepare_file(path: Path, busy_timeout: float) -> None:
    try:
        # Before SQLite makes it with everybody's permission bits. What it puts
        # beside the file (-wal, -shm) gets the bits of the file.
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
        try:
            if stat.S_IMODE(os.fstat(descriptor).st_mode) & 0o077:
                os.fchmod(descriptor, 0o600)
        finally:
            os.close(descriptor)
    except (OSError, ValueError) as exc:
        reason = getattr(exc, "strerror", None) or str(exc)
        raise ConfigError(
            f"cannot write the database {path}: {reason}; choose another --data-dir"
        ) from exc
    try:
        with closing(sqlite3.connect(path, timeout=busy_timeout)) as connection:
            connection.execute("PRAGMA journal_mode=WAL")
    except sqlite3.OperationalError as exc:
        raise unavailable(str(path), exc) from exc
    except sqlite3.DatabaseError as exc:
        raise ConfigError(
            f"{path} is no database ({exc}): move it away, or choose another --data-dir"
        ) from exc


def _on_connect(connection: sqlite3.Connection, _record: object) -> None:
    # Transactions are begun in _on_begin, not by the sqlite3 module.
    connection.isolation_level = None
    connection.execute("PRAGMA foreign_keys=ON")
    # In WAL mode this loses, at a power failure, the last transactions at
    # worst, never the database; and nobody waits for the disk.
    connection.execute("PRAGMA synchronous=NORMAL")


def _on_begin(connection: sa.Connection) -> None:
    is_writer = connection.get_execution_options().get("is_writer", False)
    connection.exec_driver_sql("BEGIN IMMEDIATE" if is_writer else "BEGIN")


def unavailable(where: str, exc: BaseException) -> StoreUnavailableError:
    """The error for the caller: one line that says what to do, if we know."""
    reason = str(getattr(exc, "orig", None) or exc).partition("\n")[0]
    if "database is locked" in reason:
        return StoreUnavailableError(
            f"the database {where} is locked by another program; try again later"
        )
    return StoreUnavailableError(f"the database {where} cannot be used: {reason}")


class Database:
    """Runs functions on a database, each in a transaction of its own.

    A function gets the connection first and must not keep it. What it raises
    undoes all it did.
    """

    def __init__(self, engine: sa.Engine, where: str, *, threads: bool = True) -> None:
        """Wrap an engine; :meth:`close` ends it.

        Args:
            engine: From :func:`open_engine`.
            where: What to call the database in messages.
            threads: Run in threads. Without, every call blocks the caller's
                loop, which a test on a virtual clock wants: such a clock does
                not know that a thread is busy, and jumps.
        """
        self._engine = engine
        self._where = where
        self._threads = threads
        self._readers = trio.CapacityLimiter(READERS)
        # SQLite has one writer at a time. To wait for it here is cheaper and
        # fairer than inside SQLite, which polls.
        self._writer = trio.CapacityLimiter(1)

    async def read(
        self,
        query: Callable[Concatenate[sa.Connection, P], ResultT],
        *args: P.args,
        **kwargs: P.kwargs,
    ) -> ResultT:
        """Run a function that changes nothing; it sees one moment.

        Raises:
            StoreUnavailableError: The database cannot be used.
        """

        def work(connection: sa.Connection) -> ResultT:
            return query(connection, *args, **kwargs)

        return await self._run(self._readers, work, is_writer=False)

    async def write(
        self,
        command: Callable[Concatenate[sa.Connection, P], ResultT],
        *args: P.args,
        **kwargs: P.kwargs,
    ) -> ResultT:
        """Run a function that changes something, all of it or nothing.

        Raises:
            StoreUnavailableError: The database cannot be used.
        """

        def work(connection: sa.Connection) -> ResultT:
            return command(connection, *args, **kwargs)

        return await self._run(self._writer, work, is_writer=True)

    async def change(
        self,
        command: Callable[Concatenate[sa.Connection, P], ResultT],
        *args: P.args,
        **kwargs: P.kwargs,
    ) -> ResultT:
        """As :meth:`write`, for what others must hear of: counts the revision on.

        Raises:
            StoreUnavailableError: The database cannot be used.
        """

        def work(connection: sa.Connection) -> ResultT:
            result = command(connection, *args, **kwargs)
            table = schema.deployment
            connection.execute(table.update().values(revision=table.c.revision + 1))
            return result

        return await self._run(self._writer, work, is_writer=True)

    async def _run(
        self,
        limiter: trio.CapacityLimiter,
        work: Callable[[sa.Connection], ResultT],
        *,
        is_writer: bool,
    ) -> ResultT:
        if not self._threads:
            await trio.lowlevel.checkpoint()
            return self._transact(work, is_writer=is_writer)
        return await trio.to_thread.run_sync(
            partial(self._transact, work, is_writer=is_writer), limiter=limiter
        )

    def _transact(
        self, work: Callable[[sa.Connection], ResultT], *, is_writer: bool
    ) -> ResultT:
        try:
            with (
                self._engine.connect().execution_options(
                    is_writer=is_writer
                ) as connection,
                connection.begin(),
            ):
                return work(connection)
        except sa_exc.IntegrityError as exc:
            # The functions look before they write, and on SQLite nobody comes
            # between; elsewhere somebody may.
            raise AlreadyExistsError(
                "somebody else made the same at this moment"
            ) from exc
        except (sa_exc.ProgrammingError, sa_exc.DataError):
            raise  # a bug here, not a state of the database
        except (sa_exc.DBAPIError, sa_exc.TimeoutError) as exc:
            raise unavailable(self._where, exc) from exc

    def close(self) -> None:
        """Close all connections. No call may be under way."""
        self._engine.dispose()

from __future__ import annotations

import os
import sqlite3
import stat
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest
import sqlalchemy as sa
import trio

from relay.store.database import Database, open_engine, unavailable
from relay.store.migrate import migrate
from relay.store.schema import deployment
from tailnet.errors import AlreadyExistsError, ConfigError, StoreUnavailableError


@contextmanager
def database(path: Path, *, busy_timeout: float = 5.0) -> Iterator[Database]:
    engine, where = open_engine(path, busy_timeout=busy_timeout)
    migrate(engine, where)
    opened = Database(engine, where)
    try:
        yield opened
    finally:
        opened.close()


def revision(connection: sa.Connection) -> int:
    return int(connection.execute(sa.select(deployment.c.revision)).scalar_one())


def set_revision(connection: sa.Connection, number: int) -> None:
    connection.execute(deployment.update().values(revision=number))


def message(target: str | Path) -> str:
    with pytest.raises(ConfigError) as exc:
        open_engine(target, busy_timeout=0.01)
    assert "\n" not in str(exc.value)
    return str(exc.value)


# -- the file -------------------------------------------------------------


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


async def test_all_files_are_for_their_owner_alone(tmp_path: Path) -> None:
    old = os.umask(0)
    try:
        with database(tmp_path / "a.db") as opened:
            await opened.write(set_revision, 7)
            files = {path.name: mode(path) for path in tmp_path.iterdir()}
    finally:
        os.umask(old)
    assert files == {"a.db": 0o600, "a.db-wal": 0o600, "a.db-shm": 0o600}


def test_file_that_others_may_read_is_closed_to_them(tmp_path: Path) -> None:
    path = tmp_path / "a.db"
    path.touch()
    path.chmod(0o644)
    with database(path):
        assert mode(path) == 0o600


def test_places_that_cannot_be_used(tmp_path: Path) -> None:
    assert "Is a directory" in message(tmp_path)
    assert "No such file" in message(tmp_path / "no" / "a.db")
    (tmp_path / "file").touch()
    assert "Not a directory; choose another" in message(tmp_path / "file" / "a.db")
    assert "null" in message("a\0b")


def test_file_that_is_no_database(tmp_path: Path) -> None:
    path = tmp_path / "a.db"
    path.write_bytes(b"letters\n" * 1000)
    assert "is no database" in message(path)
    assert path.read_bytes() == b"letters\n" * 1000


def test_urls(tmp_path: Path) -> None:
    engine, where = open_engine(f"sqlite:///{tmp_path}/a.db", busy_timeout=1)
    engine.dispose()
    assert where == f"{tmp_path}/a.db"
    assert mode(tmp_path / "a.db") == 0o600
    for url in ("sqlite://", "sqlite:///:memory:"):
        assert "in memory" in message(url)
    for url in ("x://:secret@host:port", "nothing://u:secret@host/db"):
        assert "secret" not in message(url)


# -- transactions ---------------------------------------------------------


async def test_what_fails_is_undone(tmp_path: Path) -> None:
    def fail(connection: sa.Connection) -> None:
        set_revision(connection, 99)
        raise ZeroDivisionError

    with database(tmp_path / "a.db") as opened:
        for run in (opened.write, opened.change):
            with pytest.raises(ZeroDivisionError):
                await run(fail)
        assert await opened.read(revision) == 1


async def test_changes_are_counted_and_writes_are_not(tmp_path: Path) -> None:
    with database(tmp_path / "a.db") as opened:
        await opened.write(lambda connection: None)
        assert await opened.read(revision) == 1
        assert await opened.change(lambda connection: "made") == "made"
        assert await opened.read(revision) == 2


async def test_a_reader_sees_one_moment(tmp_path: Path) -> None:
    """Even while another program writes, which does not wait for it."""
    path = tmp_path / "a.db"

    def read_twice(connection: sa.Connection) -> tuple[int, int]:
        first = revision(connection)
        with closing(sqlite3.connect(path)) as other, other:
            other.execute("UPDATE deployment SET revision = 42")
        return first, revision(connection)

    with database(path) as opened:
        assert await opened.read(read_twice) == (1, 1)
        assert await opened.read(revision) == 42


async def test_writers_take_turns(tmp_path: Path) -> None:
    """Two engines on one file, as of two programs; each reads, then writes."""

    def add_one(connection: sa.Connection) -> None:
        set_revision(connection, revision(connection) + 1)

    path = tmp_path / "a.db"
    with database(path) as one, database(path) as two:
        async with trio.open_nursery() as nursery:
            for opened in (one, two) * 50:
                nursery.start_soon(opened.write, add_one)
        assert await one.read(revision) == 101


async def test_calls_run_in_threads_unless_told_otherwise(tmp_path: Path) -> None:
    import threading

    def thread(_: sa.Connection) -> str:
        return threading.current_thread().name

    here = threading.current_thread().name
    with database(tmp_path / "a.db") as opened:
        assert await opened.read(thread) != here
        assert await opened.write(thread) != here
    engine, where = open_engine(tmp_path / "a.db", busy_timeout=1)
    inline = Database(engine, where, threads=False)
    assert await inline.read(thread) == here
    assert await inline.change(thread) == here
    inline.close()


async def test_begun_write_is_finished_by_a_cancelled_caller(tmp_path: Path) -> None:
    with database(tmp_path / "a.db") as opened:
        with trio.CancelScope() as scope:

            def write(connection: sa.Connection) -> None:
                trio.from_thread.run_sync(scope.cancel)
                set_revision(connection, 5)

            await opened.write(write)
        assert await opened.read(revision) == 5


# -- errors ---------------------------------------------------------------


async def test_locked_database(tmp_path: Path) -> None:
    path = tmp_path / "a.db"
    with (
        database(path, busy_timeout=0.01) as opened,
        closing(sqlite3.connect(path, isolation_level=None)) as other,
    ):
        other.execute("BEGIN IMMEDIATE")
        with pytest.raises(StoreUnavailableError, match="locked by another program"):
            await opened.change(lambda connection: None)
        # Who only reads need not wait.
        assert await opened.read(revision) == 1
        other.execute("ROLLBACK")
        await opened.change(lambda connection: None)


async def test_broken_database(tmp_path: Path) -> None:
    path = tmp_path / "a.db"
    with database(path) as opened:
        size = path.stat().st_size
        await opened.write(lambda connection: None)
    with database(path) as opened:
        path.write_bytes(path.read_bytes()[:4096] + b"\xff" * (size - 4096))
        with pytest.raises(StoreUnavailableError) as exc:
            await opened.read(revision)
    assert str(path) in str(exc.value)
    assert "\n" not in str(exc.value)


async def test_full_disk(tmp_path: Path) -> None:
    """As good as: SQLite stops at a number of pages that the test sets."""

    def fill(connection: sa.Connection) -> None:
        connection.exec_driver_sql("PRAGMA max_page_count=1")
        connection.exec_driver_sql("CREATE TABLE large (bytes BLOB)")
        connection.exec_driver_sql("INSERT INTO large VALUES (zeroblob(1000000))")

    with database(tmp_path / "a.db") as opened:
        with pytest.raises(StoreUnavailableError, match="full"):
            await opened.change(fill)
        assert await opened.read(revision) == 1


async def test_race_for_a_unique_name(tmp_path: Path) -> None:
    with database(tmp_path / "a.db") as opened, pytest.raises(AlreadyExistsError):
        await opened.write(
            lambda c: c.exec_driver_sql("INSERT INTO deployment VALUES (1,'',0)")
        )


def test_unknown_trouble_is_one_line() -> None:
    error = unavailable("a.db", OSError("first line\nsecond line"))
    assert str(error) == "the database a.db cannot be used: first line"

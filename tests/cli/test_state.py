from __future__ import annotations

import os
import sqlite3
import stat
from contextlib import closing
from pathlib import Path
from uuid import uuid4

import pytest

from tailnet.cli.state import require_agent, require_user, require_workspace
from tailnet.errors import NotFoundError
from tests.cli.program import Program
from tests.relay.store.stores import furnished as furnished_store


def test_database_is_made_for_its_owner_alone(program: Program) -> None:
    program.text("user", "create", "alice")
    modes = {
        path.name: stat.S_IMODE(path.stat().st_mode)
        for path in (program.data_dir, *program.data_dir.iterdir())
    }
    assert modes == {"data": 0o700, "tailnet.db": 0o600}


def test_option_beats_the_environment(program: Program, tmp_path: Path) -> None:
    program.text("user", "create", "alice", "--data-dir", tmp_path / "other")
    assert not program.data_dir.exists()
    users = program.json("user", "list", "--data-dir", tmp_path / "other")
    assert [user["username"] for user in users] == ["alice"]


def test_default_is_the_users_own(program: Program, tmp_path: Path) -> None:
    own = Program(
        program.data_dir, {"TAILNET_DATA_DIR": None, "XDG_DATA_HOME": str(tmp_path)}
    )
    own.text("user", "create", "alice")
    assert (tmp_path / "tailnet" / "tailnet.db").exists()


def test_mistyped_directory_is_not_made(program: Program) -> None:
    message = program.error("user", "list", status=1)
    assert message == (
        f"tailnet: there is no tailnet.db in {program.data_dir}: create a user "
        "first, or choose another --data-dir"
    )
    assert not program.data_dir.exists()


def test_directory_that_cannot_be_used(program: Program, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for where in (tmp_path / "file", tmp_path / "file" / "dir"):
        message = program.error("user", "create", "x", "--data-dir", where, status=1)
        assert f"cannot make the data directory {where}" in message
        assert "choose another --data-dir" in message
    program.error("user", "list", "--data-dir", tmp_path / ("x" * 300), status=1)


def test_read_only_directory(program: Program, monkeypatch: pytest.MonkeyPatch) -> None:
    program.data_dir.mkdir(mode=0o500)
    if os.getuid() == 0:  # who may write everywhere
        monkeypatch.setattr(os, "access", lambda path, mode, **_: mode == os.R_OK)
    assert "cannot write" in program.error("user", "create", "x", status=1)


def test_newer_database(furnished: Program) -> None:
    with closing(sqlite3.connect(furnished.data_dir / "tailnet.db")) as db, db:
        db.execute("UPDATE alembic_version SET version_num = '9999'")
    message = furnished.error("user", "list", status=1)
    assert "is of a newer version (schema 9999" in message
    assert "update this program" in message


def test_file_that_is_no_database(program: Program) -> None:
    program.data_dir.mkdir()
    (program.data_dir / "tailnet.db").write_bytes(b"letters\n" * 1000)
    assert "is no database" in program.error("user", "list", status=1)


def test_locked_database(furnished: Program, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tailnet.cli.state.BUSY_TIMEOUT", 0.01)
    path = furnished.data_dir / "tailnet.db"
    with closing(sqlite3.connect(path, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        message = furnished.error("user", "create", "bob", status=1)
        assert message == (
            f"tailnet: the database {path} is locked by another program; try again "
            "later"
        )


async def test_what_is_required_is_found_or_named(tmp_path: Path) -> None:
    async with furnished_store(tmp_path) as (store, house):
        agent = house.agent.agent
        assert await require_user(store, ("Alice",)) == house.owner
        assert await require_user(store, house.owner.id) == house.owner
        assert await require_workspace(store, ("alice", "DEV")) == house.workspace
        assert await require_workspace(store, house.workspace.id) == house.workspace
        assert await require_agent(store, ("alice", "dev", "main")) == agent
        assert await require_agent(store, agent.id) == agent
        nobody = uuid4()
        with pytest.raises(NotFoundError, match=f"no user {nobody}"):
            await require_user(store, nobody)
        with pytest.raises(NotFoundError, match="no user 'bob'"):
            await require_workspace(store, ("bob", "dev"))
        with pytest.raises(NotFoundError, match="no workspace alice/x"):
            await require_agent(store, ("alice", "x", "main"))
        with pytest.raises(NotFoundError, match="no agent alice/dev/x"):
            await require_agent(store, ("alice", "dev", "x"))

from __future__ import annotations

import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path
from uuid import UUID

import pytest
from alembic.config import Config
from alembic.script import ScriptDirectory

from relay.store.database import open_engine
from relay.store.migrate import HEAD, MIGRATIONS, migrate
from tailnet.errors import ConfigError, StoreUnavailableError
from tests.relay.store.stores import migrated_engine


def script_directory() -> ScriptDirectory:
    config = Config()
    config.set_main_option("script_location", str(MIGRATIONS))
    config.set_main_option("path_separator", "os")
    return ScriptDirectory.from_config(config)


def version(path: Path) -> str:
    with closing(sqlite3.connect(path)) as connection:
        (found,) = connection.execute("SELECT version_num FROM alembic_version")
    return str(found[0])


def sql(path: Path, *statements: str) -> None:
    with closing(sqlite3.connect(path)) as connection, connection:
        for statement in statements:
            connection.execute(statement)


def test_head_is_the_newest_step() -> None:
    assert script_directory().get_current_head() == HEAD


def test_from_empty_to_head_step_by_step(tmp_path: Path) -> None:
    path = tmp_path / "a.db"
    steps = [step.revision for step in script_directory().walk_revisions()]
    assert steps
    for step in reversed(steps):
        with migrated_engine(path, step):
            assert version(path) == step
    assert version(path) == HEAD


def test_there_is_one_deployment_with_an_id(tmp_path: Path) -> None:
    ids = set()
    for name in ("a.db", "b.db"):
        with (
            migrated_engine(tmp_path / name) as engine,
            engine.connect() as connection,
        ):
            ((key, raw, revision),) = connection.exec_driver_sql(
                "SELECT id, deployment_id, revision FROM deployment"
            )
        assert (key, revision) == (1, 1)
        assert UUID(raw).version == 4
        ids.add(raw)
    assert len(ids) == 2


def test_again_changes_nothing(tmp_path: Path) -> None:
    path = tmp_path / "a.db"
    with migrated_engine(path) as engine:
        with engine.begin() as connection:
            connection.exec_driver_sql("UPDATE deployment SET revision = 77")
        migrate(engine, "it")
        with engine.connect() as connection:
            row = connection.exec_driver_sql("SELECT revision FROM deployment").one()
    assert row == (77,)


def test_newer_database_is_refused_and_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "a.db"
    with migrated_engine(path):
        pass
    sql(path, "UPDATE alembic_version SET version_num = '9999'")
    with pytest.raises(ConfigError, match=r"newer version \(schema 9999.*update"):  # noqa: SIM117
        with migrated_engine(path):
            pass
    assert version(path) == "9999"


def test_database_of_another_program_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.db"
    sql(path, "CREATE TABLE letters (text TEXT)")
    with pytest.raises(ConfigError, match="belongs to another program"):  # noqa: SIM117
        with migrated_engine(path):
            pass


def test_failed_step_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "a.db"

    def fail() -> UUID:
        raise MemoryError

    # The last thing that the first step needs.
    monkeypatch.setattr("uuid.uuid4", fail)
    engine, where = open_engine(path, busy_timeout=1)
    try:
        with pytest.raises(MemoryError):
            migrate(engine, where)
    finally:
        engine.dispose()
    with closing(sqlite3.connect(path)) as connection:
        assert connection.execute("SELECT name FROM sqlite_master").fetchall() == []


def test_locked_database_says_so(tmp_path: Path) -> None:
    path = tmp_path / "a.db"
    engine, where = open_engine(path, busy_timeout=0.01)
    try:
        with closing(sqlite3.connect(path, isolation_level=None)) as other:
            other.execute("BEGIN IMMEDIATE")
            with pytest.raises(StoreUnavailableError, match="locked by another"):
                migrate(engine, where)
        migrate(engine, where)
    finally:
        engine.dispose()


def test_directory_with_a_percent_sign(tmp_path: Path) -> None:
    """Alembic's configuration interpolates; nothing of ours may reach that."""
    path = tmp_path / "100%(here)s.db"
    with migrated_engine(path):
        assert version(path) == HEAD


def test_current_database_needs_no_alembic(tmp_path: Path) -> None:
    """Loading it takes longer than most commands do."""
    path = tmp_path / "a.db"
    with migrated_engine(path):
        pass
    program = (
        "import sys\n"
        "from tests.relay.store.stores import migrated_engine\n"
        "with migrated_engine(sys.argv[1]): pass\n"
        "assert 'alembic' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", program, path], check=True, timeout=60)

"""Bringing a database to this program's schema, with alembic.

The steps are in ``relay/store/migrations/versions``. All of them run in one
transaction under the writer's lock, so two programs that start at once do not
get in each other's way, and a step that fails leaves what was there.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final

import sqlalchemy as sa

from relay.store.database import unavailable
from tailnet.errors import ConfigError

__all__ = ("HEAD", "MIGRATIONS", "migrate")

# The newest step. Written down so that a program that finds it in the
# database need not load alembic, which takes longer than most commands.
HEAD: Final = "0001"

MIGRATIONS: Final = Path(__file__).parent / "migrations"


def migrate(engine: sa.Engine, where: str, *, revision: str = "head") -> None:
    """Bring the database to a revision, if it is not there already.

    Args:
        engine: Of the database.
        where: What to call it in messages.
        revision: The step to stop at.

    Raises:
        ConfigError: The database is of a newer program, or not of this one.
        StoreUnavailableError: It cannot be used.
    """
    try:
        with engine.connect() as connection:
            if revision == "head" and _revision_of(connection) == HEAD:
                return
        with (
            engine.connect().execution_options(is_writer=True) as connection,
            connection.begin(),
        ):
            # Again, now that nobody else can do the same.
            found = _revision_of(connection)
            if found is None:
                _check_empty(connection, where)
            _upgrade(connection, where, found, revision)
    except sa.exc.DBAPIError as exc:
        raise unavailable(where, exc) from exc


def _revision_of(connection: sa.Connection) -> str | None:
    if not sa.inspect(connection).has_table("alembic_version"):
        return None
    row = connection.exec_driver_sql("SELECT version_num FROM alembic_version").first()
    return None if row is None else str(row[0])


def _check_empty(connection: sa.Connection, where: str) -> None:
    if sa.inspect(connection).get_table_names():
        raise ConfigError(
            f"the database {where} belongs to another program; choose another "
            "--data-dir"
        )


def _upgrade(
    connection: sa.Connection, where: str, found: str | None, revision: str
) -> None:
    from alembic import command
    from alembic.config import Config
    from alembic.script import ScriptDirectory

    config = Config()
    config.set_main_option("script_location", str(MIGRATIONS).replace("%", "%%"))
    config.set_main_option("path_separator", "os")
    config.attributes["connection"] = connection
    if found is not None:
        steps = ScriptDirectory.from_config(config).walk_revisions()
        if found not in {step.revision for step in steps}:
            raise ConfigError(
                f"the database {where} is of a newer version (schema {found}, this "
                f"program knows {HEAD}): update this program, or choose another "
                "--data-dir"
            )
    command.upgrade(config, revision)

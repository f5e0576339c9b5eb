"""The tables. Whoever changes one adds a migration; a test compares the two.

Names are unique without regard to case: beside each is its lower-case form, a
plain column, because an index over ``lower(name)`` cannot be compared with
the database by alembic on SQLite.
"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any, Final

import sqlalchemy as sa

__all__ = (
    "METADATA",
    "UtcTime",
    "agent_logs",
    "agent_metadata",
    "agent_reports",
    "agents",
    "api_keys",
    "apps",
    "deployment",
    "signing_keys",
    "users",
    "workspaces",
)

_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND: Final = timedelta(microseconds=1)


class UtcTime(sa.types.TypeDecorator[datetime]):
    """An aware datetime, kept as microseconds since 1970.

    SQLite has no type for it, and SQLAlchemy's own forgets the time zone.
    """

    impl: type[sa.types.TypeEngine[Any]] | sa.types.TypeEngine[Any] = sa.BigInteger
    cache_ok: bool | None = True

    def process_bind_param(
        self, value: datetime | None, dialect: sa.Dialect
    ) -> int | None:
        """To the database."""
        return None if value is None else (value - _EPOCH) // _MICROSECOND

    def process_result_value(
        self, value: int | None, dialect: sa.Dialect
    ) -> datetime | None:
        """From the database."""
        return None if value is None else _EPOCH + value * _MICROSECOND


METADATA: Final = sa.MetaData(
    # Fixed names, so that migrations can refer to constraints.
    naming_convention={
        "ix": "ix_%(table_name)s_%(column_0_N_name)s",
        "uq": "uq_%(table_name)s_%(column_0_N_name)s",
        "fk": "fk_%(table_name)s_%(column_0_N_name)s",
        "pk": "pk_%(table_name)s",
    }
)

# One row, with id 1. ``revision`` counts changes, see Store.revision.
deployment = sa.Table(
    "deployment",
    METADATA,
    sa.Column("id", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("deployment_id", sa.Uuid, nullable=False),
    sa.Column("revision", sa.BigInteger, nullable=False),
)

signing_keys = sa.Table(
    "signing_keys",
    METADATA,
    sa.Column("id", sa.String(64), primary_key=True),
    sa.Column("purpose", sa.String(64), nullable=False),
    sa.Column("secret", sa.LargeBinary, nullable=False),
    sa.Column("created_at", UtcTime, nullable=False),
)

users = sa.Table(
    "users",
    METADATA,
    sa.Column("id", sa.Uuid, primary_key=True),
    sa.Column("username", sa.String(32), nullable=False),
    sa.Column("username_key", sa.String(32), nullable=False, unique=True),
    sa.Column("is_admin", sa.Boolean, nullable=False),
    sa.Column("created_at", UtcTime, nullable=False),
)

api_keys = sa.Table(
    "api_keys",
    METADATA,
    sa.Column("id", sa.String(10), primary_key=True),
    sa.Column(
        "user_id",
        sa.ForeignKey(users.c.id, ondelete="CASCADE"),
        nullable=False,
        index=True,
    ),
    sa.Column("name", sa.String(64), nullable=False),
    sa.Column("secret_hash", sa.LargeBinary(32), nullable=False),
    sa.Column("created_at", UtcTime, nullable=False),
    sa.Column("expires_at", UtcTime),
)

workspaces = sa.Table(
    "workspaces",
    METADATA,
    sa.Column("id", sa.Uuid, primary_key=True),
    sa.Column("owner_id", sa.ForeignKey(users.c.id), nullable=False),
    sa.Column("name", sa.String(32), nullable=False),
    sa.Column("name_key", sa.String(32), nullable=False),
    sa.Column("created_at", UtcTime, nullable=False),
    sa.UniqueConstraint("owner_id", "name_key"),
)

agents = sa.Table(
    "agents",
    METADATA,
    sa.Column("id", sa.Uuid, primary_key=True),
    sa.Column(
        "workspace_id",
        sa.ForeignKey(workspaces.c.id, ondelete="CASCADE"),
        nullable=False,
    ),
    sa.Column("parent_id", sa.ForeignKey("agents.id", ondelete="CASCADE"), index=True),
    sa.Column("name", sa.String(32), nullable=False),
    sa.Column("name_key", sa.String(32), nullable=False),
    sa.Column("token_hash", sa.LargeBinary(32), nullable=False, unique=True),
    sa.Column("created_at", UtcTime, nullable=False),
    sa.Column("directory", sa.Text, nullable=False),
    sa.Column("architecture", sa.Text, nullable=False),
    sa.Column("operating_system", sa.Text, nullable=False),
    sa.Column("display_apps", sa.Text, nullable=False),  # JSON list
    sa.Column("first_connected_at", UtcTime),
    sa.Column("last_connected_at", UtcTime),
    sa.Column("disconnected_at", UtcTime),
    sa.Column("lifecycle_state", sa.String(32)),
    sa.Column("lifecycle_changed_at", UtcTime),
    sa.Column("startup", sa.Text),  # JSON of Startup
    sa.Column("logs_size", sa.Integer, nullable=False),
    sa.Column("logs_overflowed", sa.Boolean, nullable=False),
    sa.UniqueConstraint("workspace_id", "name_key"),
)

apps = sa.Table(
    "apps",
    METADATA,
    sa.Column("id", sa.Uuid, primary_key=True),
    sa.Column(
        "agent_id", sa.ForeignKey(agents.c.id, ondelete="CASCADE"), nullable=False
    ),
    sa.Column("slug", sa.String(64), nullable=False),
    sa.Column("settings", sa.Text, nullable=False),  # JSON of NewApp
    sa.Column("health", sa.String(16), nullable=False),
    sa.UniqueConstraint("agent_id", "slug"),
)

agent_logs = sa.Table(
    "agent_logs",
    METADATA,
    sa.Column("id", sa.Integer, primary_key=True),
    sa.Column(
        "agent_id",
        sa.ForeignKey(agents.c.id, ondelete="CASCADE"),
        nullable=False,
        index=True,
    ),
    sa.Column("source_id", sa.Uuid, nullable=False),
    sa.Column("created_at", UtcTime, nullable=False),
    sa.Column("level", sa.String(8), nullable=False),
    sa.Column("output", sa.Text, nullable=False),
)

agent_metadata = sa.Table(
    "agent_metadata",
    METADATA,
    sa.Column(
        "agent_id",
        sa.ForeignKey(agents.c.id, ondelete="CASCADE"),
        primary_key=True,
    ),
    sa.Column("key", sa.Text, primary_key=True),
    sa.Column("collected_at", UtcTime, nullable=False),
    sa.Column("age", sa.BigInteger, nullable=False),
    sa.Column("value", sa.Text, nullable=False),
    sa.Column("error", sa.Text, nullable=False),
)

# Reports of which the last few are kept: one table, since the server never
# looks into them. ``body`` is the JSON of the value in ``relay.store.model``.
agent_reports = sa.Table(
    "agent_reports",
    METADATA,
    sa.Column("id", sa.Integer, primary_key=True),
    sa.Column(
        "agent_id", sa.ForeignKey(agents.c.id, ondelete="CASCADE"), nullable=False
    ),
    sa.Column("kind", sa.String(16), nullable=False),
    sa.Column("body", sa.Text, nullable=False),
    sa.Index(None, "agent_id", "kind", "id"),
)

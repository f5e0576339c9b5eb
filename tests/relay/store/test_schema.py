from __future__ import annotations

from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path

import pytest
import sqlalchemy as sa
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from hypothesis import given, strategies as st

from relay.store.schema import METADATA, UtcTime
from tests.relay.store.stores import migrated_engine

DIALECT = sa.create_engine("sqlite://").dialect
# Its lowest and highest values in UTC; another zone could push them out.
TIMES = st.datetimes(timezones=st.just(UTC))


def test_migrations_make_this_schema(tmp_path: Path) -> None:
    with (
        migrated_engine(tmp_path / "a.db") as engine,
        engine.connect() as connection,
    ):
        context = MigrationContext.configure(connection, opts={"compare_type": True})
        assert compare_metadata(context, METADATA) == []


@pytest.mark.parametrize(
    "change",
    [
        "ALTER TABLE users ADD COLUMN more TEXT",
        "ALTER TABLE agents DROP COLUMN directory",
        "DROP INDEX ix_agent_logs_agent_id",
        "CREATE TABLE other (id INTEGER PRIMARY KEY)",
    ],
)
def test_the_comparison_sees_a_difference(tmp_path: Path, change: str) -> None:
    with migrated_engine(tmp_path / "a.db") as engine:
        with engine.begin() as connection:
            connection.exec_driver_sql(change)
        with engine.connect() as connection:
            context = MigrationContext.configure(connection)
            assert len(compare_metadata(context, METADATA)) == 1


@given(TIMES)
def test_times_come_back(time: datetime) -> None:
    column = UtcTime()
    kept = column.process_bind_param(time, DIALECT)
    back = column.process_result_value(kept, DIALECT)
    assert back == time
    assert back is not None
    assert back.tzinfo is UTC


def test_times_of_another_zone_and_none() -> None:
    column = UtcTime()
    there = timezone(timedelta(hours=2))
    time = datetime(1970, 1, 1, 2, 0, 1, tzinfo=there)
    assert column.process_bind_param(time, DIALECT) == 1_000_000
    assert column.process_bind_param(None, DIALECT) is None
    assert column.process_result_value(None, DIALECT) is None


def test_time_without_zone_is_a_bug() -> None:
    with pytest.raises(TypeError):
        UtcTime().process_bind_param(datetime(2026, 1, 1), DIALECT)

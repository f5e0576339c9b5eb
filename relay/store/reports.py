"""What agents report, in SQL. Functions for ``Database.read`` and ``write``.

An agent runs what its user wants, so all that it can have kept is bounded:
by number, by bytes, or both.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import datetime
from typing import Final, TypeVar
from uuid import UUID

import msgspec
import sqlalchemy as sa

from relay.store.model import App, AppHealth, Lifecycle, LifecycleState, NewApp, Startup
from relay.store.report_model import (
    MAX_APP_STATUSES,
    MAX_CONNECTION_REPORTS,
    MAX_LOG_LINES,
    MAX_LOG_SIZE,
    MAX_METADATA_KEYS,
    MAX_METADATA_KEYS_SIZE,
    MAX_METADATA_VALUE_SIZE,
    MAX_RESOURCE_USAGES,
    MAX_SCRIPT_TIMINGS,
    MAX_STATS,
    AgentReports,
    AppStatus,
    ConnectionReport,
    LogLevel,
    LogLine,
    MetadataResult,
    ResourceUsage,
    ScriptTiming,
    Stats,
    StoredLogLine,
)
from relay.store.schema import agent_logs, agent_metadata, agent_reports, agents, apps
from tailnet.errors import InvalidRecordError, NotFoundError

__all__ = (
    "add_app_status",
    "add_connection_report",
    "add_logs",
    "add_resource_usages",
    "add_script_timing",
    "add_stats",
    "all_reports",
    "list_apps",
    "save_app_health",
    "save_connected",
    "save_disconnected",
    "save_lifecycle",
    "save_metadata",
    "save_startup",
    "some_logs",
)

ReportT = TypeVar("ReportT")

# Bytes of JSON of one report. Those of real agents have a few hundred, and
# with many metrics some tens of thousands.
MAX_REPORT_SIZE: Final = 16 << 10
MAX_STATS_SIZE: Final = 64 << 10

# The kinds in the table agent_reports.
STATS: Final = "stats"
CONNECTION: Final = "connection"
SCRIPT_TIMING: Final = "script-timing"
APP_STATUS: Final = "app-status"
RESOURCE_USAGE: Final = "resource-usage"


# -- what is newest -------------------------------------------------------


def save_connected(connection: sa.Connection, agent_id: UUID, at: datetime) -> None:
    """See Store.save_connected."""
    first = sa.func.coalesce(
        agents.c.first_connected_at,
        sa.bindparam("first", at, agents.c.first_connected_at.type),
    )
    _update_agent(connection, agent_id, first_connected_at=first, last_connected_at=at)


def save_disconnected(connection: sa.Connection, agent_id: UUID, at: datetime) -> None:
    """See Store.save_disconnected."""
    _update_agent(connection, agent_id, disconnected_at=at)


def save_lifecycle(
    connection: sa.Connection, agent_id: UUID, lifecycle: Lifecycle
) -> None:
    """See Store.save_lifecycle."""
    _update_agent(
        connection,
        agent_id,
        lifecycle_state=lifecycle.state,
        lifecycle_changed_at=lifecycle.changed_at,
    )
    if lifecycle.state is LifecycleState.STARTING:
        overflowed = connection.execute(
            agents.update()
            .where(agents.c.id == agent_id, agents.c.logs_overflowed)
            .values(logs_size=0, logs_overflowed=False)
        )
        if overflowed.rowcount:
            connection.execute(
                agent_logs.delete().where(agent_logs.c.agent_id == agent_id)
            )


def save_startup(connection: sa.Connection, agent_id: UUID, startup: Startup) -> None:
    """See Store.save_startup."""
    body = _encode(startup, MAX_REPORT_SIZE)
    _update_agent(connection, agent_id, startup=body)


def _update_agent(connection: sa.Connection, agent_id: UUID, **values: object) -> None:
    found = connection.execute(
        agents.update().where(agents.c.id == agent_id).values(**values)
    )
    if not found.rowcount:
        raise _no_agent(agent_id)


def save_app_health(
    connection: sa.Connection, agent_id: UUID, health: Mapping[UUID, AppHealth]
) -> None:
    """See Store.save_app_health."""
    _check_agent(connection, agent_id)
    for app_id, state in health.items():
        found = connection.execute(
            apps.update()
            .where(apps.c.id == app_id, apps.c.agent_id == agent_id)
            .values(health=state)
        )
        if not found.rowcount:
            raise NotFoundError(f"the agent has no app {app_id}")


def save_metadata(
    connection: sa.Connection, agent_id: UUID, results: Sequence[MetadataResult]
) -> None:
    """See Store.save_metadata."""
    _check_agent(connection, agent_id)
    newest = {result.key: result for result in results}
    keys_size = sum(len(key.encode()) for key in newest)
    if keys_size > MAX_METADATA_KEYS_SIZE:
        # coderd/agentapi/metadata.go BatchUpdateMetadata.
        raise InvalidRecordError(
            f"metadata keys of {keys_size} bytes exceeded {MAX_METADATA_KEYS_SIZE} "
            "bytes"
        )
    if not newest:
        return
    table = agent_metadata
    mine = table.c.agent_id == agent_id
    connection.execute(table.delete().where(mine, table.c.key.in_(newest)))
    connection.execute(
        table.insert(),
        [
            {
                "agent_id": agent_id,
                "key": cut.key,
                "collected_at": cut.collected_at,
                "age": cut.age,
                "value": cut.value,
                "error": cut.error,
            }
            for cut in map(_cut, newest.values())
        ],
    )
    # Batch by batch, an agent could invent keys for ever.
    too_old = (
        sa.select(table.c.key)
        .where(mine)
        .order_by(table.c.collected_at.desc(), table.c.key)
        .offset(MAX_METADATA_KEYS)
    )
    connection.execute(table.delete().where(mine, table.c.key.in_(too_old)))


def _cut(result: MetadataResult) -> MetadataResult:
    """As Coder's server does: what is too long is cut, and the error says so."""
    value, value_size = _cut_text(result.value)
    error, error_size = _cut_text(result.error)
    if error_size > MAX_METADATA_VALUE_SIZE:
        error, _ = _cut_text(
            f"error of {error_size} bytes exceeded {MAX_METADATA_VALUE_SIZE} bytes"
        )
    elif value_size > MAX_METADATA_VALUE_SIZE:
        error = f"value of {value_size} bytes exceeded {MAX_METADATA_VALUE_SIZE} bytes"
    return replace(result, value=value, error=error)


def _cut_text(text: str) -> tuple[str, int]:
    raw = text.encode()
    return raw[:MAX_METADATA_VALUE_SIZE].decode(errors="ignore"), len(raw)


# -- output ---------------------------------------------------------------


def add_logs(
    connection: sa.Connection,
    agent_id: UUID,
    source_id: UUID,
    lines: Sequence[LogLine],
) -> bool:
    """See Store.add_logs."""
    row = connection.execute(
        sa.select(agents.c.logs_size, agents.c.logs_overflowed).where(
            agents.c.id == agent_id
        )
    ).first()
    if row is None:
        raise _no_agent(agent_id)
    if row.logs_overflowed:
        return False
    if not lines:
        return True
    size = row.logs_size + sum(len(line.output.encode()) for line in lines)
    kept = _count_logs(connection, agent_id)
    if size > MAX_LOG_SIZE or kept + len(lines) > MAX_LOG_LINES:
        # coderd/agentapi/logs.go: the whole batch is refused, for good.
        _update_agent(connection, agent_id, logs_overflowed=True)
        return False
    _update_agent(connection, agent_id, logs_size=size)
    connection.execute(
        agent_logs.insert(),
        [
            {
                "agent_id": agent_id,
                "source_id": source_id,
                "created_at": line.created_at,
                "level": line.level,
                "output": line.output,
            }
            for line in lines
        ],
    )
    return True


# -- the last few ---------------------------------------------------------


def add_stats(connection: sa.Connection, agent_id: UUID, stats: Stats) -> None:
    """See Store.add_stats."""
    try:
        body = _encode(stats, MAX_STATS_SIZE)
    except InvalidRecordError:
        # The agent's own metrics are what can be long, and what nobody needs.
        body = _encode(replace(stats, metrics=()), MAX_STATS_SIZE)
    _add(connection, agent_id, STATS, [body], keep=MAX_STATS)


def add_connection_report(
    connection: sa.Connection, agent_id: UUID, report: ConnectionReport
) -> None:
    """See Store.add_connection_report."""
    body = _encode(report, MAX_REPORT_SIZE)
    _add(connection, agent_id, CONNECTION, [body], keep=MAX_CONNECTION_REPORTS)


def add_script_timing(
    connection: sa.Connection, agent_id: UUID, timing: ScriptTiming
) -> None:
    """See Store.add_script_timing."""
    body = _encode(timing, MAX_REPORT_SIZE)
    _add(connection, agent_id, SCRIPT_TIMING, [body], keep=MAX_SCRIPT_TIMINGS)


def add_app_status(
    connection: sa.Connection, agent_id: UUID, status: AppStatus
) -> None:
    """See Store.add_app_status."""
    _check_agent(connection, agent_id)
    app = apps.select().where(apps.c.agent_id == agent_id, apps.c.slug == status.slug)
    if connection.execute(app).first() is None:
        raise NotFoundError(f"the agent has no app {status.slug!r}")
    body = _encode(status, MAX_REPORT_SIZE)
    _add(connection, agent_id, APP_STATUS, [body], keep=MAX_APP_STATUSES)


def add_resource_usages(
    connection: sa.Connection, agent_id: UUID, usages: Sequence[ResourceUsage]
) -> None:
    """See Store.add_resource_usages."""
    bodies = [_encode(usage, MAX_REPORT_SIZE) for usage in usages]
    _add(connection, agent_id, RESOURCE_USAGE, bodies, keep=MAX_RESOURCE_USAGES)


def _encode(report: object, limit: int) -> str:
    body = msgspec.json.encode(report)
    if len(body) > limit:
        raise InvalidRecordError(f"a report of {len(body)} bytes, the limit is {limit}")
    return body.decode()


def _add(
    connection: sa.Connection,
    agent_id: UUID,
    kind: str,
    bodies: Sequence[str],
    *,
    keep: int,
) -> None:
    _check_agent(connection, agent_id)
    table = agent_reports
    bodies = bodies[-keep:]
    if not bodies:
        return
    connection.execute(
        table.insert(),
        [{"agent_id": agent_id, "kind": kind, "body": body} for body in bodies],
    )
    mine = sa.and_(table.c.agent_id == agent_id, table.c.kind == kind)
    newest_to_go = (
        sa.select(table.c.id)
        .where(mine)
        .order_by(table.c.id.desc())
        .limit(1)
        .offset(keep)
        .scalar_subquery()
    )
    # Without that many, the comparison with NULL deletes nothing.
    connection.execute(table.delete().where(mine, table.c.id <= newest_to_go))


# -- reading --------------------------------------------------------------


def all_reports(connection: sa.Connection, agent_id: UUID) -> AgentReports | None:
    """See Store.agent_reports."""
    agent = connection.execute(agents.select().where(agents.c.id == agent_id)).first()
    if agent is None:
        return None
    return AgentReports(
        logs=_logs_of(connection, agent_id),
        logs_size=agent.logs_size,
        logs_overflowed=agent.logs_overflowed,
        stats=_last(connection, agent_id, STATS, Stats),
        metadata=_metadata_of(connection, agent_id),
        connections=_last(connection, agent_id, CONNECTION, ConnectionReport),
        script_timings=_last(connection, agent_id, SCRIPT_TIMING, ScriptTiming),
        apps=list_apps(connection, agent_id),
        app_statuses=_last(connection, agent_id, APP_STATUS, AppStatus),
        resource_usages=_last(connection, agent_id, RESOURCE_USAGE, ResourceUsage),
    )


def _last(
    connection: sa.Connection, agent_id: UUID, kind: str, type_: type[ReportT]
) -> list[ReportT]:
    table = agent_reports
    bodies = connection.execute(
        sa.select(table.c.body)
        .where(table.c.agent_id == agent_id, table.c.kind == kind)
        .order_by(table.c.id)
    ).scalars()
    decoder = msgspec.json.Decoder(type_)
    return [decoder.decode(body) for body in bodies]


def some_logs(
    connection: sa.Connection, agent_id: UUID, *, after: int, limit: int
) -> tuple[int, list[StoredLogLine]]:
    """See Store.agent_logs."""
    count = _count_logs(connection, agent_id)
    if count <= after:
        return count, []
    return count, _logs_of(connection, agent_id, after=after, limit=limit)


def _count_logs(connection: sa.Connection, agent_id: UUID) -> int:
    lines = sa.select(sa.func.count()).where(agent_logs.c.agent_id == agent_id)
    return connection.execute(lines).scalar_one()


def _logs_of(
    connection: sa.Connection,
    agent_id: UUID,
    *,
    after: int = 0,
    limit: int = MAX_LOG_LINES,
) -> list[StoredLogLine]:
    table = agent_logs
    query = (
        table.select()
        .where(table.c.agent_id == agent_id)
        .order_by(table.c.id)
        .offset(after)
        .limit(limit)
    )
    return [
        StoredLogLine(
            row.source_id, LogLine(row.created_at, LogLevel(row.level), row.output)
        )
        for row in connection.execute(query)
    ]


def _metadata_of(connection: sa.Connection, agent_id: UUID) -> list[MetadataResult]:
    table = agent_metadata
    query = table.select().where(table.c.agent_id == agent_id).order_by(table.c.key)
    return [
        MetadataResult(row.key, row.collected_at, row.age, row.value, row.error)
        for row in connection.execute(query)
    ]


def list_apps(connection: sa.Connection, agent_id: UUID) -> list[App]:
    """See Store.list_apps."""
    query = apps.select().where(apps.c.agent_id == agent_id).order_by(apps.c.slug)
    return [
        App(
            id=row.id,
            agent_id=agent_id,
            settings=msgspec.json.decode(row.settings, type=NewApp),
            health=AppHealth(row.health),
        )
        for row in connection.execute(query)
    ]


def _check_agent(connection: sa.Connection, agent_id: UUID) -> None:
    known = sa.select(agents.c.id).where(agents.c.id == agent_id)
    if connection.execute(known).first() is None:
        raise _no_agent(agent_id)


def _no_agent(agent_id: UUID) -> NotFoundError:
    return NotFoundError(f"there is no agent {agent_id}")

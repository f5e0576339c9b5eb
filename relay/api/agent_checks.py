"""Reports of agents: from messages of the protocol to values of the store.

Agents are not trusted: whoever has a workspace can have their agent say
anything. So every field is looked at. ``check_*`` returns what the store takes
or raises InvalidRecordError, whose text names the field; the texts are those of
coder ``coderd/agentapi`` where it has one for the case.

Lengths are not looked at here: a request is bounded as a whole
(``relay.api.unary``), and the store keeps so many of each.
"""

from __future__ import annotations

import enum
import ipaddress
import math
import re
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from typing import Final, TypeVar
from uuid import UUID

from google.protobuf.timestamp_pb2 import Timestamp

from relay.store.model import AppHealth, Lifecycle, LifecycleState, Startup
from relay.store.report_model import (
    MAX_METADATA_KEYS_SIZE,
    AppStatus,
    AppStatusState,
    ConnectionAction,
    ConnectionKind,
    ConnectionReport,
    DiskUsage,
    LogLevel,
    LogLine,
    MetadataResult,
    Metric,
    ResourceUsage,
    ScriptStage,
    ScriptStatus,
    ScriptTiming,
    Stats,
)
from tailnet.control.proto import agent_pb2
from tailnet.errors import InvalidRecordError

__all__ = (
    "EXTERNAL_LOG_SOURCE",
    "MAX_METRICS",
    "MAX_SESSION_COUNTS",
    "check_app_health",
    "check_app_status",
    "check_connection",
    "check_lifecycle",
    "check_log_source",
    "check_logs",
    "check_metadata",
    "check_resource_usage",
    "check_script_timing",
    "check_startup",
    "check_stats",
    "check_uuid",
)

_Word = TypeVar("_Word", bound=enum.StrEnum)

# API 2.11: more kinds of sessions than there are.
MAX_SESSION_COUNTS: Final = 64

# Ours. More do not fit into what is kept of a report, and are left out.
MAX_METRICS: Final = 2048

# coderd/workspaceagents.go, patchWorkspaceAgentAppStatus.
MAX_STATUS_MESSAGE_LEN: Final = 160

# codersdk/agentsdk ExternalLogSourceID: of output that says no source.
EXTERNAL_LOG_SOURCE: Final = UUID("3b579bf4-1ed8-4b99-87a8-e9a1e3410410")

# golang.org/x/mod/semver IsValid: a "v" in front, and the last numbers may
# be missing.
_NUMBER = r"(?:0|[1-9][0-9]*)"
_PRE = rf"(?:{_NUMBER}|[0-9]*[a-zA-Z-][0-9a-zA-Z-]*)"
_BUILD = r"[0-9a-zA-Z-]+(?:\.[0-9a-zA-Z-]+)*"
_SUFFIX = rf"(?:-{_PRE}(?:\.{_PRE})*)?(?:\+{_BUILD})?"
_SEMVER: Final = re.compile(
    rf"v{_NUMBER}(?:\.{_NUMBER}(?:\.{_NUMBER}{_SUFFIX})?)?", re.ASCII
)

# The session kinds of an agent before API 2.11, and their fields.
_OLD_SESSION_COUNTS: Final = ("vscode", "jetbrains", "reconnecting_pty", "ssh")


def check_uuid(field: str, raw: bytes) -> UUID:
    """An id, which is 16 bytes."""
    if len(raw) != 16:
        raise InvalidRecordError(f"{field}: invalid UUID (got {len(raw)} bytes)")
    return UUID(bytes=raw)


def check_lifecycle(
    request: agent_pb2.UpdateLifecycleRequest, *, now: datetime
) -> Lifecycle:
    """Of UpdateLifecycle. A time that the agent leaves out is now."""
    if not request.HasField("lifecycle"):
        raise InvalidRecordError("lifecycle is required")
    state = _word(
        LifecycleState, "unknown lifecycle state", request.lifecycle.state, first=1
    )
    if not request.lifecycle.HasField("changed_at"):
        return Lifecycle(state, now)
    return Lifecycle(state, _time("lifecycle.changed_at", request.lifecycle.changed_at))


def check_startup(request: agent_pb2.UpdateStartupRequest) -> Startup:
    """Of UpdateStartup."""
    if not request.HasField("startup"):
        raise InvalidRecordError("startup is required")
    startup = request.startup
    if not _SEMVER.fullmatch(startup.version):
        raise InvalidRecordError(f"invalid agent semver version {startup.version!r}")
    subsystems = set()
    for number in startup.subsystems:
        if number not in agent_pb2.Startup.Subsystem.values() or not number:
            raise InvalidRecordError(f"invalid agent subsystem {number}")
        subsystems.add(agent_pb2.Startup.Subsystem.Name(number).lower())
    return Startup(
        startup.version, startup.expanded_directory, tuple(sorted(subsystems))
    )


def check_stats(stats: agent_pb2.Stats, *, now: datetime) -> Stats:
    """Of UpdateStats."""
    if len(stats.session_counts) > MAX_SESSION_COUNTS:
        raise InvalidRecordError(
            f"session_counts has {len(stats.session_counts)} entries, "
            f"the limit is {MAX_SESSION_COUNTS}"
        )
    if not math.isfinite(stats.connection_median_latency_ms):
        raise InvalidRecordError("connection_median_latency_ms is not finite")
    counters = {
        name: _count(name, getattr(stats, name))
        for name in (
            "connection_count",
            "rx_packets",
            "rx_bytes",
            "tx_packets",
            "tx_bytes",
        )
    }
    sessions = {
        kind: count
        for kind in _OLD_SESSION_COUNTS
        if (count := getattr(stats, f"session_count_{kind}"))
    }
    # An agent that knows the map fills it; what it says counts.
    sessions |= stats.session_counts
    for kind, count in sessions.items():
        _count(f"session_counts[{kind!r}]", count)
    for protocol, count in stats.connections_by_proto.items():
        _count(f"connections_by_proto[{protocol!r}]", count)
    return Stats(
        reported_at=now,
        connections_by_proto=dict(stats.connections_by_proto),
        connection_median_latency=stats.connection_median_latency_ms,
        session_counts=sessions,
        metrics=tuple(
            _metric(index, metric)
            for index, metric in enumerate(
                stats.metrics if len(stats.metrics) <= MAX_METRICS else ()
            )
            # A gauge may well be NaN, but no JSON can say so.
            if math.isfinite(metric.value)
        ),
        **counters,
    )


def check_log_source(raw: bytes) -> UUID:
    """Of BatchCreateLogs: which script said it."""
    source = check_uuid("parse log source ID", raw)
    return source if source.int else EXTERNAL_LOG_SOURCE


def check_logs(logs: Iterable[agent_pb2.Log], *, now: datetime) -> list[LogLine]:
    """Of BatchCreateLogs. What has no level, or an unknown one, is info."""
    levels = list(LogLevel)
    return [
        LogLine(
            created_at=_time(f"logs[{index}].created_at", entry.created_at)
            if entry.HasField("created_at")
            else now,
            level=levels[entry.level - 1]
            if 1 <= entry.level <= len(levels)
            else LogLevel.INFO,
            output=entry.output,
        )
        for index, entry in enumerate(logs)
    ]


def check_metadata(
    entries: Sequence[agent_pb2.Metadata], *, now: datetime
) -> list[MetadataResult]:
    """Of BatchUpdateMetadata. When counts the server's clock, as in Coder."""
    if len(entries) > MAX_METADATA_KEYS_SIZE:
        # Their keys have a byte each, so the store would refuse them too.
        raise InvalidRecordError(
            f"{len(entries)} entries of metadata, the limit is {MAX_METADATA_KEYS_SIZE}"
        )
    results = []
    for index, entry in enumerate(entries):
        if not entry.key:
            raise InvalidRecordError(f"metadata[{index}].key is empty")
        if not entry.HasField("result"):
            raise InvalidRecordError(f"metadata[{index}].result is required")
        results.append(
            MetadataResult(
                key=entry.key,
                collected_at=now,
                age=_count(f"metadata[{index}].result.age", entry.result.age),
                value=entry.result.value,
                error=entry.result.error,
            )
        )
    return results


def check_app_health(
    updates: Iterable[agent_pb2.BatchUpdateAppHealthRequest.HealthUpdate],
) -> dict[UUID, AppHealth]:
    """Of BatchUpdateAppHealths."""
    return {
        (app := check_uuid("parse workspace app ID", update.id)): _word(
            AppHealth, f"unknown health status for app {app}", update.health, first=1
        )
        for update in updates
    }


def check_script_timing(
    request: agent_pb2.WorkspaceAgentScriptCompletedRequest,
) -> ScriptTiming:
    """Of ScriptCompleted."""
    if not request.HasField("timing"):
        raise InvalidRecordError("script timing is required")
    timing = request.timing
    script = check_uuid("script id from bytes", timing.script_id)
    for name in ("start", "end"):
        if not timing.HasField(name):
            raise InvalidRecordError(
                f"script {name} time is required and cannot be zero"
            )
    start, end = _time("start", timing.start), _time("end", timing.end)
    if start > end:
        raise InvalidRecordError("script start time cannot be after end time")
    return ScriptTiming(
        script_id=script,
        started_at=start,
        ended_at=end,
        exit_code=timing.exit_code,
        stage=_word(ScriptStage, "unknown script stage", timing.stage),
        status=_word(ScriptStatus, "unknown script status", timing.status),
    )


def check_connection(
    request: agent_pb2.ReportConnectionRequest, *, now: datetime
) -> ConnectionReport:
    """Of ReportConnection."""
    if not request.HasField("connection"):
        raise InvalidRecordError("connection is required")
    connection = request.connection
    if connection.ip:
        try:
            ipaddress.ip_address(connection.ip)
        except ValueError as exc:
            raise InvalidRecordError(f"connection.ip: {exc}") from exc
    return ConnectionReport(
        connection_id=check_uuid("connection id from bytes", connection.id),
        action=_word(
            ConnectionAction,
            "unknown agent connection action",
            connection.action,
            first=1,
        ),
        kind=_word(ConnectionKind, "unknown connection type", connection.type),
        at=_time("connection.timestamp", connection.timestamp)
        if connection.HasField("timestamp")
        else now,
        ip=connection.ip,
        status_code=connection.status_code,
        reason=connection.reason,
    )


def check_app_status(
    request: agent_pb2.UpdateAppStatusRequest, *, now: datetime
) -> AppStatus:
    """Of UpdateAppStatus."""
    if not request.slug:
        raise InvalidRecordError("slug is required")
    if len(request.message) > MAX_STATUS_MESSAGE_LEN:
        raise InvalidRecordError(
            f"message must be at most {MAX_STATUS_MESSAGE_LEN} characters"
        )
    return AppStatus(
        slug=request.slug,
        state=_word(AppStatusState, "invalid state", request.state),
        message=request.message,
        uri=request.uri,
        reported_at=now,
    )


def check_resource_usage(
    points: Sequence[agent_pb2.PushResourcesMonitoringUsageRequest.Datapoint],
    *,
    now: datetime,
) -> list[ResourceUsage]:
    """Of PushResourcesMonitoringUsage."""
    usages = []
    for index, point in enumerate(points):
        where = f"datapoints[{index}]"
        used = total = None
        if point.HasField("memory"):
            used = _count(f"{where}.memory.used", point.memory.used)
            total = _count(f"{where}.memory.total", point.memory.total)
        usages.append(
            ResourceUsage(
                collected_at=_time(f"{where}.collected_at", point.collected_at)
                if point.HasField("collected_at")
                else now,
                memory_used=used,
                memory_total=total,
                volumes=tuple(
                    DiskUsage(
                        volume.volume,
                        _count(f"{where}.volumes.used", volume.used),
                        _count(f"{where}.volumes.total", volume.total),
                    )
                    for volume in point.volumes
                ),
            )
        )
    return usages


def _metric(index: int, metric: agent_pb2.Stats.Metric) -> Metric:
    kinds = {
        agent_pb2.Stats.Metric.COUNTER: "counter",
        agent_pb2.Stats.Metric.GAUGE: "gauge",
    }
    if metric.type not in kinds:
        raise InvalidRecordError(f"metrics[{index}]: unknown type {metric.type}")
    if not metric.name:
        raise InvalidRecordError(f"metrics[{index}].name is empty")
    return Metric(
        name=metric.name,
        kind=kinds[metric.type],
        value=metric.value,
        labels={label.name: label.value for label in metric.labels},
    )


def _word(words: type[_Word], problem: str, number: int, *, first: int = 0) -> _Word:
    """The member for a number of the protocol, whose first one is ``first``."""
    members = list(words)
    if not 0 <= number - first < len(members):
        raise InvalidRecordError(f"{problem} {number}")
    return members[number - first]


def _count(field: str, value: int) -> int:
    if value < 0:
        raise InvalidRecordError(f"{field} is negative: {value}")
    return value


def _time(field: str, value: Timestamp) -> datetime:
    try:
        return value.ToDatetime(tzinfo=UTC)
    except (ValueError, OverflowError) as exc:
        raise InvalidRecordError(f"{field} is no time: {exc}") from exc

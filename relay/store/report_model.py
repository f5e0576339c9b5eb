"""What agents report, as values without behaviour, and how much of it is kept.

The conventions are those of ``model.py``. What an agent reports is bounded,
report by report; the constants say how.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Final
from uuid import UUID

from relay.store.model import App

__all__ = (
    "MAX_APP_STATUSES",
    "MAX_CONNECTION_REPORTS",
    "MAX_LOG_LINES",
    "MAX_LOG_SIZE",
    "MAX_METADATA_KEYS",
    "MAX_METADATA_KEYS_SIZE",
    "MAX_METADATA_VALUE_SIZE",
    "MAX_RESOURCE_USAGES",
    "MAX_SCRIPT_TIMINGS",
    "MAX_STATS",
    "AgentReports",
    "AppStatus",
    "AppStatusState",
    "ConnectionAction",
    "ConnectionKind",
    "ConnectionReport",
    "DiskUsage",
    "LogLevel",
    "LogLine",
    "MetadataResult",
    "Metric",
    "ResourceUsage",
    "ScriptStage",
    "ScriptStatus",
    "ScriptTiming",
    "Stats",
    "StoredLogLine",
)

# Bytes of log output of one agent; Coder's check max_logs_length.
MAX_LOG_SIZE: Final = 1 << 20
# Ours: empty lines have no bytes, but a row each.
MAX_LOG_LINES: Final = 32_768
# Bytes: maxValueLen and maxAllKeysLen of coderd/agentapi/metadata.go.
MAX_METADATA_VALUE_SIZE: Final = 2048
MAX_METADATA_KEYS_SIZE: Final = 6144
# How many of each the store keeps for one agent, the newest ones. Coder keeps
# most of them for weeks; here an operator looks at them, nothing else.
MAX_METADATA_KEYS: Final = 128
MAX_STATS: Final = 50
MAX_CONNECTION_REPORTS: Final = 500
MAX_SCRIPT_TIMINGS: Final = 200
MAX_APP_STATUSES: Final = 50
# As many as agents are told to send (num_datapoints).
MAX_RESOURCE_USAGES: Final = 20


@dataclass(frozen=True, slots=True)
class Metric:
    """One of an agent's own metrics: ``kind`` is ``counter`` or ``gauge``."""

    name: str
    kind: str
    value: float
    labels: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Stats:
    """What UpdateStats reports: traffic since the last report, and sessions.

    Attributes:
        reported_at: When it came, by the server's clock.
        connections_by_proto: Connections by protocol.
        connection_count: All of them.
        connection_median_latency: Milliseconds; negative if unknown.
        rx_packets: Since the last report.
        rx_bytes: Since the last report.
        tx_packets: Since the last report.
        tx_bytes: Since the last report.
        session_counts: Sessions by kind: ``vscode``, ``ssh``, ...
        metrics: The agent's own.
    """

    reported_at: datetime
    connections_by_proto: Mapping[str, int] = field(default_factory=dict)
    connection_count: int = 0
    connection_median_latency: float = -1.0
    rx_packets: int = 0
    rx_bytes: int = 0
    tx_packets: int = 0
    tx_bytes: int = 0
    session_counts: Mapping[str, int] = field(default_factory=dict)
    metrics: tuple[Metric, ...] = ()


class LogLevel(enum.StrEnum):
    """Number n of the protocol is the n-th member."""

    TRACE = "trace"
    DEBUG = "debug"
    INFO = "info"
    WARN = "warn"
    ERROR = "error"


@dataclass(frozen=True, slots=True)
class LogLine:
    """A line of output of a script."""

    created_at: datetime
    level: LogLevel
    output: str


@dataclass(frozen=True, slots=True)
class StoredLogLine:
    """A line of output, and which log source of the agent it came from."""

    source_id: UUID
    line: LogLine


@dataclass(frozen=True, slots=True)
class MetadataResult:
    """What a metadata script gave.

    Attributes:
        key: Which script.
        collected_at: When.
        age: Seconds between the script's run and the report.
        value: Its output; cut at MAX_METADATA_VALUE_SIZE.
        error: Why there is none; cut likewise.
    """

    key: str
    collected_at: datetime
    age: int = 0
    value: str = ""
    error: str = ""


class ConnectionAction(enum.StrEnum):
    """Number n of the protocol is the n-th member."""

    CONNECT = "connect"
    DISCONNECT = "disconnect"


class ConnectionKind(enum.StrEnum):
    """Number n of the protocol is member n, from 0."""

    UNSPECIFIED = "unspecified"
    SSH = "ssh"
    VSCODE = "vscode"
    JETBRAINS = "jetbrains"
    RECONNECTING_PTY = "reconnecting_pty"


@dataclass(frozen=True, slots=True)
class ConnectionReport:
    """What ReportConnection reports: a session began or ended.

    Attributes:
        connection_id: The same for both ends of a session.
        action: Which of the two.
        kind: What connected.
        at: When, by the agent's clock.
        ip: Where from, maybe empty.
        status_code: How it ended.
        reason: Why it ended, maybe empty.
    """

    connection_id: UUID
    action: ConnectionAction
    kind: ConnectionKind
    at: datetime
    ip: str = ""
    status_code: int = 0
    reason: str = ""


class ScriptStage(enum.StrEnum):
    """Number n of the protocol is member n, from 0."""

    START = "start"
    STOP = "stop"
    CRON = "cron"


class ScriptStatus(enum.StrEnum):
    """Number n of the protocol is member n, from 0."""

    OK = "ok"
    EXIT_FAILURE = "exit_failure"
    TIMED_OUT = "timed_out"
    PIPES_LEFT_OPEN = "pipes_left_open"


@dataclass(frozen=True, slots=True)
class ScriptTiming:
    """What ScriptCompleted reports."""

    script_id: UUID
    started_at: datetime
    ended_at: datetime
    exit_code: int
    stage: ScriptStage
    status: ScriptStatus


class AppStatusState(enum.StrEnum):
    """Number n of the protocol is member n, from 0."""

    WORKING = "working"
    IDLE = "idle"
    COMPLETE = "complete"
    FAILURE = "failure"


@dataclass(frozen=True, slots=True)
class AppStatus:
    """What UpdateAppStatus reports: how far an app's task is."""

    slug: str
    state: AppStatusState
    message: str
    uri: str
    reported_at: datetime


@dataclass(frozen=True, slots=True)
class DiskUsage:
    """Bytes used of a volume."""

    volume: str
    used: int
    total: int


@dataclass(frozen=True, slots=True)
class ResourceUsage:
    """A datapoint of PushResourcesMonitoringUsage.

    Attributes:
        collected_at: When.
        memory_used: Bytes, None if not monitored.
        memory_total: Bytes, None if not monitored.
        volumes: Those that are monitored.
    """

    collected_at: datetime
    memory_used: int | None = None
    memory_total: int | None = None
    volumes: tuple[DiskUsage, ...] = ()


@dataclass(frozen=True, slots=True)
class AgentReports:
    """All that the store keeps of what an agent reported, oldest first.

    Attributes:
        logs: Its output.
        logs_size: Bytes of it.
        logs_overflowed: It wanted to say more than MAX_LOG_SIZE.
        stats: The last MAX_STATS.
        metadata: The newest result of each key.
        connections: The last MAX_CONNECTION_REPORTS.
        script_timings: The last MAX_SCRIPT_TIMINGS.
        apps: Its apps and their health.
        app_statuses: The last MAX_APP_STATUSES.
        resource_usages: The last MAX_RESOURCE_USAGES.
    """

    logs: Sequence[StoredLogLine]
    logs_size: int
    logs_overflowed: bool
    stats: Sequence[Stats]
    metadata: Sequence[MetadataResult]
    connections: Sequence[ConnectionReport]
    script_timings: Sequence[ScriptTiming]
    apps: Sequence[App]
    app_statuses: Sequence[AppStatus]
    resource_usages: Sequence[ResourceUsage]

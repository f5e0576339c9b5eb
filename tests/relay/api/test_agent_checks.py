"""Whatever an agent says, it is a value of the store or InvalidRecordError.

What each check makes of good and bad reports is in ``test_agent_service``.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime
from functools import partial
from typing import Any
from uuid import UUID

import msgspec
import pytest
from google.protobuf.message import DecodeError, Message
from hypothesis import given, strategies as st

from relay.api import agent_checks as checks
from relay.store.report_model import LogLevel
from tailnet.control.proto import agent_pb2 as pb
from tailnet.errors import InvalidRecordError

NOW = datetime(2026, 5, 4, 3, 2, 1, tzinfo=UTC)

Check = Callable[[Any], object]
CHECKS: list[tuple[type[Message], Check]] = [
    (pb.UpdateLifecycleRequest, partial(checks.check_lifecycle, now=NOW)),
    (pb.UpdateStartupRequest, checks.check_startup),
    (pb.Stats, partial(checks.check_stats, now=NOW)),
    (
        pb.BatchCreateLogsRequest,
        lambda request: (
            checks.check_log_source(request.log_source_id),
            checks.check_logs(request.logs, now=NOW),
        ),
    ),
    (
        pb.BatchUpdateMetadataRequest,
        lambda request: checks.check_metadata(request.metadata, now=NOW),
    ),
    (
        pb.BatchUpdateAppHealthRequest,
        lambda request: checks.check_app_health(request.updates),
    ),
    (pb.WorkspaceAgentScriptCompletedRequest, checks.check_script_timing),
    (pb.ReportConnectionRequest, partial(checks.check_connection, now=NOW)),
    (pb.UpdateAppStatusRequest, partial(checks.check_app_status, now=NOW)),
    (
        pb.PushResourcesMonitoringUsageRequest,
        lambda request: checks.check_resource_usage(request.datapoints, now=NOW),
    ),
]


def fields(number: st.SearchStrategy[int], depth: int = 3) -> st.SearchStrategy[bytes]:
    """Bytes that look like a message: tags, numbers, and messages in messages."""
    varint = st.sampled_from([0, 1, 2, 5, 9, 16, 127])
    plain = st.builds(lambda n, v: bytes((n << 3, v)), number, varint)
    text = st.one_of(
        st.sampled_from([b"", b"v1.2.3", b"x", bytes(16), b"127.0.0.1"]),
        fields(number, depth - 1) if depth else st.just(b""),
    )
    long = st.builds(
        lambda n, t: bytes((n << 3 | 2, len(t))) + t,
        number,
        text.filter(lambda t: len(t) < 128),
    )
    return st.lists(st.one_of(plain, long), max_size=6).map(b"".join)


@pytest.mark.parametrize(("kind", "check"), CHECKS, ids=lambda c: "")
@given(data=st.one_of(fields(st.integers(1, 13)), st.binary(max_size=60)))
def test_any_message_is_checked(kind: type[Message], check: Check, data: bytes) -> None:
    try:
        message = kind.FromString(data)
    except DecodeError:
        return
    try:
        value = check(message)
    except InvalidRecordError:
        return
    msgspec.json.encode(value)  # the store and the command can write it


def test_uuid() -> None:
    assert checks.check_uuid("id", bytes(range(16))) == UUID(bytes=bytes(range(16)))
    with pytest.raises(InvalidRecordError, match="id: invalid UUID \\(got 17 bytes\\)"):
        checks.check_uuid("id", bytes(17))


@pytest.mark.parametrize(
    ("number", "level"),
    [(0, LogLevel.INFO), *enumerate(LogLevel, 1), (6, LogLevel.INFO)],
)
def test_log_levels(number: int, level: LogLevel) -> None:
    entry = pb.Log(output="x", level=number)  # type: ignore[arg-type]
    (line,) = checks.check_logs([entry], now=NOW)
    assert line.level is level
    if 0 < number < 6:
        assert pb.Log.Level.Name(number).lower() == level.value

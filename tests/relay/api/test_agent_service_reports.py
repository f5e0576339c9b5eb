"""What agents report: logs, metadata, scripts, connections, apps, resources."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime, timedelta
from pathlib import Path
from uuid import uuid4

import pytest
from google.protobuf.empty_pb2 import Empty
from google.protobuf.timestamp_pb2 import Timestamp

from relay.api import agent_checks
from relay.api.agent_checks import EXTERNAL_LOG_SOURCE
from relay.api.agent_service import (
    AGENT_SERVICE,
    agent_handlers,
)
from relay.store.model import AppHealth, NewApp
from relay.store.report_model import (
    MAX_LOG_LINES,
    MAX_LOG_SIZE,
    MAX_METADATA_KEYS_SIZE,
    MAX_RESOURCE_USAGES,
    LogLevel,
    LogLine,
    ScriptStatus,
)
from tailnet.control.proto import agent_pb2 as pb
from tests.relay.api.rig import NOW, ask, open_rig, refusal
from tests.relay.api.test_agent_service import SOURCE, handlers, stamp

# -- logs and metadata -------------------------------------------------------


async def test_logs(tmp_path: Path) -> None:
    async with open_rig(tmp_path) as rig:
        request = pb.BatchCreateLogsRequest(
            log_source_id=SOURCE.bytes,
            logs=[
                pb.Log(
                    created_at=stamp(NOW - timedelta(1)), output="one", level="ERROR"
                ),
                pb.Log(output="two"),
                pb.Log(output="three", level=77),  # type: ignore[arg-type]
            ],
        )
        answer = await ask(
            handlers(rig)["BatchCreateLogs"], request, pb.BatchCreateLogsResponse
        )
        assert not answer.log_limit_exceeded
        reports = await rig.store.agent_reports(rig.agent.agent.id)
        assert reports is not None
        assert [(e.source_id, e.line.level, e.line.output) for e in reports.logs] == [
            (SOURCE, LogLevel.ERROR, "one"),
            (SOURCE, LogLevel.INFO, "two"),
            (SOURCE, LogLevel.INFO, "three"),
        ]
        assert [e.line.created_at for e in reports.logs] == [
            NOW - timedelta(1), NOW, NOW,
        ]  # fmt: skip


async def test_logs_without_a_source_are_external(tmp_path: Path) -> None:
    async with open_rig(tmp_path) as rig:
        request = pb.BatchCreateLogsRequest(
            log_source_id=bytes(16), logs=[pb.Log(output="x", level="INFO")]
        )
        await ask(handlers(rig)["BatchCreateLogs"], request, pb.BatchCreateLogsResponse)
        reports = await rig.store.agent_reports(rig.agent.agent.id)
        assert reports is not None
        assert reports.logs[0].source_id == EXTERNAL_LOG_SOURCE


async def test_no_logs_need_no_source(tmp_path: Path) -> None:
    async with open_rig(tmp_path) as rig:
        answer = await ask(
            handlers(rig)["BatchCreateLogs"], b"", pb.BatchCreateLogsResponse
        )
        assert not answer.log_limit_exceeded


async def test_bad_log_source(tmp_path: Path) -> None:
    async with open_rig(tmp_path) as rig:
        request = pb.BatchCreateLogsRequest(
            log_source_id=b"short", logs=[pb.Log(output="x")]
        )
        error = await refusal(handlers(rig)["BatchCreateLogs"], request)
        assert error.text == "parse log source ID: invalid UUID (got 5 bytes)"


async def test_too_many_logs(tmp_path: Path) -> None:
    async with open_rig(tmp_path) as rig:
        methods = handlers(rig)
        line = pb.Log(output="x" * (MAX_LOG_SIZE // 2 + 1), level="INFO")
        request = pb.BatchCreateLogsRequest(log_source_id=SOURCE.bytes, logs=[line])
        exceeded = [
            (
                await ask(
                    methods["BatchCreateLogs"], request, pb.BatchCreateLogsResponse
                )
            ).log_limit_exceeded
            for _ in range(3)
        ]
        assert exceeded == [False, True, True]


async def test_empty_lines_without_end(tmp_path: Path) -> None:
    async with open_rig(tmp_path) as rig:
        methods, lines = handlers(rig), []
        check = agent_checks.check_logs

        def note(logs: Sequence[pb.Log], *, now: datetime) -> list[LogLine]:
            lines.append(len(logs))
            return check(logs, now=now)

        # As a peer writes it; a million objects would take too long.
        source = pb.BatchCreateLogsRequest(log_source_id=SOURCE.bytes)
        data = source.SerializeToString() + b"\x12\x00" * 1_000_000
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(agent_checks, "check_logs", note)
            answer = await ask(
                methods["BatchCreateLogs"], data, pb.BatchCreateLogsResponse
            )
        assert answer.log_limit_exceeded
        assert lines == [MAX_LOG_LINES + 1]
        reports = await rig.store.agent_reports(rig.agent.agent.id)
        assert reports is not None
        assert not reports.logs


async def test_metadata(tmp_path: Path) -> None:
    async with open_rig(tmp_path) as rig:
        result = pb.WorkspaceAgentMetadata.Result(
            collected_at=stamp(NOW - timedelta(9)), age=3, value="42", error=""
        )
        request = pb.BatchUpdateMetadataRequest(
            metadata=[pb.Metadata(key="cpu", result=result)]
        )
        await ask(
            handlers(rig)["BatchUpdateMetadata"],
            request,
            pb.BatchUpdateMetadataResponse,
        )
        reports = await rig.store.agent_reports(rig.agent.agent.id)
        assert reports is not None
        (kept,) = reports.metadata
        assert (kept.key, kept.value, kept.age) == ("cpu", "42", 3)
        assert kept.collected_at == NOW  # the server's clock


RESULT = pb.WorkspaceAgentMetadata.Result(value="x")


@pytest.mark.parametrize(
    ("entries", "text"),
    [
        ([pb.Metadata(result=RESULT)], "metadata[0].key is empty"),
        ([pb.Metadata(key="a")], "metadata[0].result is required"),
        (
            [
                pb.Metadata(key="a", result=RESULT),
                pb.Metadata(key="b", result=pb.WorkspaceAgentMetadata.Result(age=-1)),
            ],
            "metadata[1].result.age is negative",
        ),
        ([pb.Metadata(key="k" * 7000, result=RESULT)], "7000"),
        (
            [pb.Metadata(key="k", result=RESULT)] * (MAX_METADATA_KEYS_SIZE + 1),
            "6145 entries of metadata, the limit is 6144",
        ),
    ],
)
async def test_bad_metadata(
    tmp_path: Path, entries: list[pb.Metadata], text: str
) -> None:
    async with open_rig(tmp_path) as rig:
        error = await refusal(
            handlers(rig)["BatchUpdateMetadata"],
            pb.BatchUpdateMetadataRequest(metadata=entries),
        )
        assert text in error.text
        reports = await rig.store.agent_reports(rig.agent.agent.id)
        assert reports is not None
        assert not reports.metadata


# -- scripts, connections, apps, resources -----------------------------------


def timing(**changes: object) -> pb.WorkspaceAgentScriptCompletedRequest:
    fields: dict[str, object] = {
        "script_id": SOURCE.bytes,
        "start": stamp(),
        "end": stamp(NOW + timedelta(seconds=2)),
        "exit_code": 3,
        "stage": 2,
        "status": 1,
    }
    fields |= changes
    kept = {name: value for name, value in fields.items() if value is not None}
    return pb.WorkspaceAgentScriptCompletedRequest(
        timing=pb.Timing(**kept)  # type: ignore[arg-type]
    )


async def test_script_timing(tmp_path: Path) -> None:
    async with open_rig(tmp_path) as rig:
        await ask(
            handlers(rig)["ScriptCompleted"],
            timing(),
            pb.WorkspaceAgentScriptCompletedResponse,
        )
        reports = await rig.store.agent_reports(rig.agent.agent.id)
        assert reports is not None
        (kept,) = reports.script_timings
        assert kept.script_id == SOURCE
        assert kept.ended_at - kept.started_at == timedelta(seconds=2)
        assert (kept.stage.value, kept.status) == ("cron", ScriptStatus.EXIT_FAILURE)
        assert kept.exit_code == 3


@pytest.mark.parametrize(
    ("request_message", "text"),
    [
        (pb.WorkspaceAgentScriptCompletedRequest(), "script timing is required"),
        (timing(script_id=b"x"), "script id from bytes: invalid UUID (got 1 bytes)"),
        (timing(start=None), "script start time is required and cannot be zero"),
        (timing(end=None), "script end time is required and cannot be zero"),
        (
            timing(end=stamp(NOW - timedelta(1))),
            "script start time cannot be after end time",
        ),
        (timing(stage=3), "unknown script stage 3"),
        (timing(status=4), "unknown script status 4"),
        (timing(start=Timestamp(seconds=1 << 60)), "start is no time"),
    ],
)
async def test_bad_script_timing(
    tmp_path: Path,
    request_message: pb.WorkspaceAgentScriptCompletedRequest,
    text: str,
) -> None:
    async with open_rig(tmp_path) as rig:
        error = await refusal(handlers(rig)["ScriptCompleted"], request_message)
        assert text in error.text


def connection(**changes: object) -> pb.ReportConnectionRequest:
    fields: dict[str, object] = {
        "id": SOURCE.bytes,
        "action": 1,
        "type": 1,
        "timestamp": stamp(),
        "ip": "fd7a:115c:a1e0::1",
        "status_code": 0,
    }
    fields |= changes
    kept = {name: value for name, value in fields.items() if value is not None}
    return pb.ReportConnectionRequest(
        connection=pb.Connection(**kept)  # type: ignore[arg-type]
    )


async def test_connection_reports(tmp_path: Path) -> None:
    async with open_rig(tmp_path) as rig:
        handler = handlers(rig)["ReportConnection"]
        await ask(handler, connection(), Empty)
        await ask(
            handler,
            connection(action=2, type=4, reason="bye", status_code=1, ip="",
                       timestamp=None),
            Empty,
        )  # fmt: skip
        reports = await rig.store.agent_reports(rig.agent.agent.id)
        assert reports is not None
        begun, ended = reports.connections
        assert begun.connection_id == ended.connection_id == SOURCE
        assert (begun.action.value, begun.kind.value) == ("connect", "ssh")
        assert begun.ip == "fd7a:115c:a1e0::1"
        assert (ended.action.value, ended.kind.value) == (
            "disconnect",
            "reconnecting_pty",
        )
        assert (ended.reason, ended.status_code, ended.at) == ("bye", 1, NOW)


@pytest.mark.parametrize(
    ("request_message", "text"),
    [
        (pb.ReportConnectionRequest(), "connection is required"),
        (connection(id=b""), "connection id from bytes: invalid UUID (got 0 bytes)"),
        (connection(action=0), "unknown agent connection action 0"),
        (connection(action=3), "unknown agent connection action 3"),
        (connection(type=5), "unknown connection type 5"),
        (connection(ip="localhost"), "connection.ip: 'localhost'"),
        (connection(timestamp=Timestamp(nanos=-1)), "connection.timestamp is no time"),
    ],
)
async def test_bad_connection_report(
    tmp_path: Path, request_message: pb.ReportConnectionRequest, text: str
) -> None:
    async with open_rig(tmp_path) as rig:
        error = await refusal(handlers(rig)["ReportConnection"], request_message)
        assert text in error.text


def health(app: bytes, number: int) -> pb.BatchUpdateAppHealthRequest:
    return pb.BatchUpdateAppHealthRequest(
        updates=[
            pb.BatchUpdateAppHealthRequest.HealthUpdate(
                id=app,
                health=number,  # type: ignore[arg-type]
            )
        ]
    )


async def test_app_health_and_status(tmp_path: Path) -> None:
    async with open_rig(tmp_path) as rig:
        new = await rig.store.create_agent(
            rig.workspace.id,
            "apps",
            apps=[NewApp("web", healthcheck_url="http://x"), NewApp("plain")],
        )
        identity = await rig.store.agent_identity(new.agent.id)
        assert identity is not None
        methods = agent_handlers(identity, rig.context)
        plain, web = await rig.store.list_apps(new.agent.id)
        update = methods[AGENT_SERVICE + "BatchUpdateAppHealths"]
        await ask(update, health(web.id.bytes, 3), pb.BatchUpdateAppHealthResponse)
        await ask(update, b"", pb.BatchUpdateAppHealthResponse)
        _, web = await rig.store.list_apps(new.agent.id)
        assert web.health is AppHealth.HEALTHY

        for request, text in [
            (health(plain.id.bytes, 3), "does not have healthchecks enabled"),
            (health(uuid4().bytes, 3), "app"),
            (health(b"x", 3), "parse workspace app ID: invalid UUID (got 1 bytes)"),
            (health(web.id.bytes, 0), f"unknown health status for app {web.id} 0"),
            (health(web.id.bytes, 5), f"unknown health status for app {web.id} 5"),
        ]:
            assert text in (await refusal(update, request)).text

        status = methods[AGENT_SERVICE + "UpdateAppStatus"]
        await ask(
            status,
            pb.UpdateAppStatusRequest(
                slug="web", state="COMPLETE", message="m", uri="u"
            ),
            pb.UpdateAppStatusResponse,
        )
        reports = await rig.store.agent_reports(new.agent.id)
        assert reports is not None
        (kept,) = reports.app_statuses
        assert (kept.slug, kept.state.value) == ("web", "complete")
        assert (kept.message, kept.uri) == ("m", "u")
        for bad, text in [
            (pb.UpdateAppStatusRequest(), "slug is required"),
            (pb.UpdateAppStatusRequest(slug="nope"), "nope"),
            (pb.UpdateAppStatusRequest(slug="web", state=4), "invalid state 4"),  # type: ignore[arg-type]
            (pb.UpdateAppStatusRequest(slug="web", message="x" * 161), "160"),
        ]:
            assert text in (await refusal(status, bad)).text


Datapoint = pb.PushResourcesMonitoringUsageRequest.Datapoint


async def test_resource_usage(tmp_path: Path) -> None:
    async with open_rig(tmp_path) as rig:
        push = handlers(rig)["PushResourcesMonitoringUsage"]
        point = Datapoint(
            collected_at=stamp(),
            memory=Datapoint.MemoryUsage(used=1, total=2),
            volumes=[Datapoint.VolumeUsage(volume="/", used=3, total=4)],
        )
        request = pb.PushResourcesMonitoringUsageRequest(
            datapoints=[point, Datapoint()]
        )
        await ask(push, request, pb.PushResourcesMonitoringUsageResponse)
        await ask(push, b"", pb.PushResourcesMonitoringUsageResponse)
        reports = await rig.store.agent_reports(rig.agent.agent.id)
        assert reports is not None
        full, empty = reports.resource_usages
        assert (full.memory_used, full.memory_total) == (1, 2)
        assert (full.volumes[0].volume, full.volumes[0].used) == ("/", 3)
        assert empty.memory_used is None
        assert empty.collected_at == NOW

        # Those that would not be kept are not looked at.
        wrong = Datapoint(memory=Datapoint.MemoryUsage(used=-1))
        many = [wrong, *[point] * MAX_RESOURCE_USAGES]
        request = pb.PushResourcesMonitoringUsageRequest(datapoints=many)
        await ask(push, request, pb.PushResourcesMonitoringUsageResponse)

        point.memory.used = -1
        bad = pb.PushResourcesMonitoringUsageRequest(datapoints=[point])
        error = await refusal(push, bad)
        assert error.text == "datapoints[0].memory.used is negative: -1"


@pytest.mark.parametrize(
    ("method", "request_message"),
    [
        (
            "UpdateLifecycle",
            pb.UpdateLifecycleRequest(lifecycle=pb.Lifecycle(state="READY")),
        ),
        (
            "UpdateStartup",
            pb.UpdateStartupRequest(startup=pb.Startup(version="v1.0.0")),
        ),
        ("UpdateStats", pb.UpdateStatsRequest(stats=pb.Stats())),
        ("ScriptCompleted", timing()),
        ("ReportConnection", connection()),
    ],
)
async def test_reports_of_a_deleted_agent(
    tmp_path: Path, method: str, request_message: pb.UpdateStatsRequest
) -> None:
    async with open_rig(tmp_path) as rig:
        handler = handlers(rig)[method]
        await rig.store.delete_agent(rig.agent.agent.id)
        error = await refusal(handler, request_message)
        assert str(rig.agent.agent.id) in error.text

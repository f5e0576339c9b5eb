from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from uuid import UUID, uuid4

import pytest
from google.protobuf.empty_pb2 import Empty
from google.protobuf.timestamp_pb2 import Timestamp

from relay.api import agent_checks
from relay.api.agent_checks import EXTERNAL_LOG_SOURCE, MAX_METRICS
from relay.api.agent_service import (
    AGENT_SERVICE,
    REPORT_INTERVAL,
    AgentService,
    agent_handlers,
)
from relay.api.unary import MAX_REQUEST_LEN
from relay.derpmaps.build import MapOptions
from relay.store.model import AppHealth, LifecycleState, NewApp
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
from tailnet.control.server import Handler
from tests.relay.api.rig import NOW, Rig, ask, open_rig, refusal

SOURCE = UUID(int=7)


def stamp(at: datetime = NOW) -> Timestamp:
    value = Timestamp()
    value.FromDatetime(at)
    return value


def handlers(rig: Rig) -> Mapping[str, Handler]:
    """Those of the rig's agent, by short name, with a clock that stands."""
    service = AgentService(
        rig.agent,
        rig.store,
        rig.feed,
        disable_direct=False,
        force_websockets=False,
        removed=lambda agent_id: None,
        now=lambda: NOW,
    )
    return {
        name.removeprefix(AGENT_SERVICE): handler
        for name, handler in service.handlers().items()
    }


def test_every_method_of_the_service_has_a_handler() -> None:
    service = pb.DESCRIPTOR.services_by_name["Agent"]
    expected = {f"/{service.full_name}/{method.name}" for method in service.methods}
    assert len(expected) == 19


async def test_handlers_have_the_full_names(tmp_path: Path) -> None:
    service = pb.DESCRIPTOR.services_by_name["Agent"]
    async with open_rig(tmp_path) as rig:
        assert set(agent_handlers(rig.agent, rig.context)) == {
            f"/{service.full_name}/{method.name}" for method in service.methods
        }


# -- what an agent asks for --------------------------------------------------


async def test_manifest(tmp_path: Path) -> None:
    async with open_rig(tmp_path) as rig:
        manifest = await ask(
            handlers(rig)["GetManifest"], pb.GetManifestRequest(), pb.Manifest
        )
        assert manifest.agent_id == rig.agent.agent.id.bytes
        assert manifest.workspace_id == rig.workspace.id.bytes
        assert manifest.agent_name == "main"
        assert manifest.workspace_name == "dev"
        assert manifest.owner_username == "alice"
        assert manifest.directory == "/home/alice"
        assert manifest.derp_map.HasField("home_params")  # or a Go agent ends
        assert list(manifest.derp_map.regions) == [999]
        assert not manifest.HasField("parent_id")
        assert not manifest.disable_direct_connections
        assert not manifest.derp_force_websockets
        assert not manifest.apps
        assert not manifest.scripts


async def test_manifest_says_what_the_server_wants(tmp_path: Path) -> None:
    async with open_rig(
        tmp_path, derp_map=MapOptions(block_direct=True), derp_force_websockets=True
    ) as rig:
        handler = agent_handlers(rig.agent, rig.context)[AGENT_SERVICE + "GetManifest"]
        manifest = await ask(handler, b"", pb.Manifest)
        assert manifest.disable_direct_connections
        assert manifest.derp_force_websockets


async def test_manifest_of_a_sub_agent_with_an_app(tmp_path: Path) -> None:
    async with open_rig(tmp_path) as rig:
        new = await rig.store.create_agent(
            rig.workspace.id,
            "sub",
            parent_id=rig.agent.agent.id,
            apps=[
                NewApp("plain"),
                NewApp(
                    "web",
                    display_name="Web",
                    url="http://localhost:80",
                    share="organization",
                    healthcheck_url="http://localhost:80/healthz",
                    healthcheck_interval=5,
                    healthcheck_threshold=6,
                ),
            ],
        )
        identity = await rig.store.agent_identity(new.agent.id)
        assert identity is not None
        handler = agent_handlers(identity, rig.context)[AGENT_SERVICE + "GetManifest"]
        manifest = await ask(handler, b"", pb.Manifest)
        assert manifest.parent_id == rig.agent.agent.id.bytes
        plain, web = manifest.apps
        assert plain.HasField("healthcheck")  # or a Go agent hangs up
        assert plain.health == pb.WorkspaceApp.DISABLED
        assert plain.sharing_level == pb.WorkspaceApp.OWNER
        assert len(plain.id) == 16
        assert web.sharing_level == pb.WorkspaceApp.ORGANIZATION
        assert web.health == pb.WorkspaceApp.INITIALIZING
        assert web.healthcheck.url == "http://localhost:80/healthz"
        assert web.healthcheck.interval.seconds == 5
        assert web.healthcheck.threshold == 6
        assert (web.slug, web.display_name) == ("web", "Web")


async def test_manifest_of_a_deleted_agent(tmp_path: Path) -> None:
    async with open_rig(tmp_path) as rig:
        methods = handlers(rig)
        await rig.store.delete_agent(rig.agent.agent.id)
        error = await refusal(methods["GetManifest"], b"")
        assert error.text == "this agent was deleted"
        assert error.code == 0


async def test_banners_and_monitoring(tmp_path: Path) -> None:
    async with open_rig(tmp_path) as rig:
        methods = handlers(rig)
        banner = await ask(methods["GetServiceBanner"], b"", pb.ServiceBanner)
        assert not banner.enabled
        banners = await ask(
            methods["GetAnnouncementBanners"], b"", pb.GetAnnouncementBannersResponse
        )
        assert not banners.announcement_banners
        monitoring = await ask(
            methods["GetResourcesMonitoringConfiguration"],
            b"",
            pb.GetResourcesMonitoringConfigurationResponse,
        )
        assert monitoring.config.num_datapoints == 20
        assert monitoring.config.collection_interval_seconds == 10
        assert not monitoring.HasField("memory")
        assert not monitoring.volumes


@pytest.mark.parametrize("method", ["PushContextState", "ReportBoundaryLogs"])
async def test_what_is_not_there(tmp_path: Path, method: str) -> None:
    async with open_rig(tmp_path) as rig:
        error = await refusal(handlers(rig)[method], b"")
        assert (error.code, error.text) == (12, "Unimplemented")


# -- lifecycle and startup ---------------------------------------------------


@pytest.mark.parametrize(("number", "state"), list(enumerate(LifecycleState, start=1)))
async def test_lifecycle(tmp_path: Path, number: int, state: LifecycleState) -> None:
    async with open_rig(tmp_path) as rig:
        report = pb.Lifecycle(state=pb.Lifecycle.State.Name(number))
        assert pb.Lifecycle.State.Name(number).lower() == state.value
        report.changed_at.CopyFrom(stamp())
        echo = await ask(
            handlers(rig)["UpdateLifecycle"],
            pb.UpdateLifecycleRequest(lifecycle=report),
            pb.Lifecycle,
        )
        assert echo == report
        agent = await rig.store.get_agent(rig.agent.agent.id)
        assert agent is not None
        assert agent.lifecycle is not None
        assert (agent.lifecycle.state, agent.lifecycle.changed_at) == (state, NOW)


async def test_lifecycle_without_a_time_is_of_now(tmp_path: Path) -> None:
    async with open_rig(tmp_path) as rig:
        echo = await ask(
            handlers(rig)["UpdateLifecycle"],
            pb.UpdateLifecycleRequest(lifecycle=pb.Lifecycle(state="READY")),
            pb.Lifecycle,
        )
        assert echo.changed_at.ToDatetime(UTC) == NOW


def lifecycle_at(seconds: int) -> bytes:
    report = pb.UpdateLifecycleRequest(lifecycle=pb.Lifecycle(state="READY"))
    report.lifecycle.changed_at.seconds = seconds
    return report.SerializeToString()


@pytest.mark.parametrize(
    ("request_bytes", "text"),
    [
        (b"", "lifecycle is required"),
        (b"\x0a\x00", "unknown lifecycle state 0"),
        (b"\x0a\x02\x08\x0a", "unknown lifecycle state 10"),
        (b"\x0a\x0b\x08" + b"\xff" * 9 + b"\x01", "unknown lifecycle state -1"),
        (b"\x0a\x05\x08", "cannot parse UpdateLifecycleRequest"),
        (lifecycle_at(1 << 60), "lifecycle.changed_at is no time"),
        (lifecycle_at(-(1 << 60)), "lifecycle.changed_at is no time"),
        (b"\xff" * (MAX_REQUEST_LEN + 1), "the limit is 262144"),
    ],
)
async def test_bad_lifecycle(tmp_path: Path, request_bytes: bytes, text: str) -> None:
    async with open_rig(tmp_path) as rig:
        error = await refusal(handlers(rig)["UpdateLifecycle"], request_bytes)
        assert text in error.text
        assert error.code == 0
        agent = await rig.store.get_agent(rig.agent.agent.id)
        assert agent is not None
        assert agent.lifecycle is None


async def test_startup(tmp_path: Path) -> None:
    async with open_rig(tmp_path) as rig:
        report = pb.Startup(
            version="v2.24.0-devel+abc",
            expanded_directory="/home/alice",
            subsystems=["EXECTRACE", "ENVBOX", "EXECTRACE"],
        )
        echo = await ask(
            handlers(rig)["UpdateStartup"],
            pb.UpdateStartupRequest(startup=report),
            pb.Startup,
        )
        assert echo == report
        agent = await rig.store.get_agent(rig.agent.agent.id)
        assert agent is not None
        assert agent.startup is not None
        assert agent.startup.version == "v2.24.0-devel+abc"
        assert list(agent.startup.subsystems) == ["envbox", "exectrace"]


@pytest.mark.parametrize(
    "version", ["v0", "v1.2", "v0.0.0-devel+1f2e", "v2.24.0-rc.1", "v1.2.3-0a.-"]
)
async def test_versions_that_go_takes(tmp_path: Path, version: str) -> None:
    async with open_rig(tmp_path) as rig:
        request = pb.UpdateStartupRequest(startup=pb.Startup(version=version))
        await ask(handlers(rig)["UpdateStartup"], request, pb.Startup)


@pytest.mark.parametrize(
    "version", ["", "2.24.0", "v", "v01.2.3", "v1.2.3-01", "v1.2.3-", "v1.2+x", "v1\n"]
)
async def test_versions_that_go_does_not_take(tmp_path: Path, version: str) -> None:
    async with open_rig(tmp_path) as rig:
        request = pb.UpdateStartupRequest(startup=pb.Startup(version=version))
        error = await refusal(handlers(rig)["UpdateStartup"], request)
        assert error.text.startswith("invalid agent semver version")


@pytest.mark.parametrize("subsystem", [0, 4, -1])
async def test_unknown_subsystem(tmp_path: Path, subsystem: int) -> None:
    async with open_rig(tmp_path) as rig:
        request = pb.UpdateStartupRequest(
            startup=pb.Startup(version="v1.0.0", subsystems=[subsystem])  # type: ignore[list-item]
        )
        error = await refusal(handlers(rig)["UpdateStartup"], request)
        assert error.text == f"invalid agent subsystem {subsystem}"


async def test_startup_is_required(tmp_path: Path) -> None:
    async with open_rig(tmp_path) as rig:
        error = await refusal(handlers(rig)["UpdateStartup"], b"")
        assert error.text == "startup is required"


# -- statistics --------------------------------------------------------------


async def test_the_first_stats_only_ask_for_the_interval(tmp_path: Path) -> None:
    async with open_rig(tmp_path) as rig:
        answer = await ask(handlers(rig)["UpdateStats"], b"", pb.UpdateStatsResponse)
        assert answer.report_interval.seconds == REPORT_INTERVAL == 300
        reports = await rig.store.agent_reports(rig.agent.agent.id)
        assert reports is not None
        assert not reports.stats


async def test_stats(tmp_path: Path) -> None:
    async with open_rig(tmp_path) as rig:
        stats = pb.Stats(
            connections_by_proto={"TCP": 3},
            connection_count=3,
            connection_median_latency_ms=1.5,
            rx_packets=1,
            rx_bytes=2,
            tx_packets=3,
            tx_bytes=4,
            session_count_ssh=2,
            session_count_vscode=1,
            session_counts={"ssh": 5, "cursor": 1},
            metrics=[
                pb.Stats.Metric(name="up", type="GAUGE", value=1.0),
                pb.Stats.Metric(name="gone", type="GAUGE", value=math.nan),
                pb.Stats.Metric(
                    name="n",
                    type="COUNTER",
                    value=7.0,
                    labels=[pb.Stats.Metric.Label(name="a", value="b")],
                ),
            ],
        )
        await ask(
            handlers(rig)["UpdateStats"],
            pb.UpdateStatsRequest(stats=stats),
            pb.UpdateStatsResponse,
        )
        reports = await rig.store.agent_reports(rig.agent.agent.id)
        assert reports is not None
        (kept,) = reports.stats
        assert kept.reported_at == NOW
        assert kept.connections_by_proto == {"TCP": 3}
        assert kept.connection_median_latency == 1.5
        assert (kept.rx_packets, kept.rx_bytes) == (1, 2)
        assert (kept.tx_packets, kept.tx_bytes) == (3, 4)
        # The map of API 2.11 counts where both are there.
        assert kept.session_counts == {"ssh": 5, "vscode": 1, "cursor": 1}
        up, n = kept.metrics
        assert (up.name, up.kind, up.value) == ("up", "gauge", 1.0)
        assert (n.name, n.kind, n.labels) == ("n", "counter", {"a": "b"})


async def test_more_metrics_than_anybody_keeps(tmp_path: Path) -> None:
    async with open_rig(tmp_path) as rig:
        one = pb.Stats.Metric(name="x", type="COUNTER", value=1.0)
        for number in (MAX_METRICS + 1, 1):
            stats = pb.Stats(rx_bytes=number, metrics=[one] * number)
            await ask(
                handlers(rig)["UpdateStats"],
                pb.UpdateStatsRequest(stats=stats),
                pb.UpdateStatsResponse,
            )
        reports = await rig.store.agent_reports(rig.agent.agent.id)
        assert reports is not None
        assert [(s.rx_bytes, len(s.metrics)) for s in reports.stats] == [
            (MAX_METRICS + 1, 0),
            (1, 1),
        ]


def metric(**fields: object) -> pb.Stats:
    return pb.Stats(metrics=[pb.Stats.Metric(**fields)])  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("stats", "text"),
    [
        (
            pb.Stats(session_counts={str(n): 1 for n in range(65)}),
            "session_counts has 65 entries, the limit is 64",
        ),
        (pb.Stats(session_counts={"ssh": -1}), "session_counts['ssh'] is negative"),
        (pb.Stats(session_count_ssh=-1), "session_counts['ssh'] is negative"),
        (pb.Stats(rx_bytes=-5), "rx_bytes is negative: -5"),
        (pb.Stats(connections_by_proto={"TCP": -1}), "connections_by_proto['TCP']"),
        (pb.Stats(connection_median_latency_ms=math.inf), "is not finite"),
        (metric(name="x", value=1.0), "metrics[0]: unknown type 0"),
        (metric(name="x", type=9, value=1.0), "metrics[0]: unknown type 9"),
        (metric(type=1, value=1.0), "metrics[0].name is empty"),
    ],
)
async def test_bad_stats(tmp_path: Path, stats: pb.Stats, text: str) -> None:
    async with open_rig(tmp_path) as rig:
        error = await refusal(
            handlers(rig)["UpdateStats"], pb.UpdateStatsRequest(stats=stats)
        )
        assert text in error.text


async def test_64_session_counts_are_fine(tmp_path: Path) -> None:
    async with open_rig(tmp_path) as rig:
        stats = pb.Stats(session_counts={str(n): 1 for n in range(64)})
        await ask(
            handlers(rig)["UpdateStats"],
            pb.UpdateStatsRequest(stats=stats),
            pb.UpdateStatsResponse,
        )


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

from __future__ import annotations

import math
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from uuid import UUID

import pytest
from google.protobuf.timestamp_pb2 import Timestamp

from relay.api.agent_checks import MAX_METRICS
from relay.api.agent_service import (
    AGENT_SERVICE,
    REPORT_INTERVAL,
    AgentService,
    agent_handlers,
)
from relay.api.unary import MAX_REQUEST_LEN
from relay.derpmaps.build import MapOptions
from relay.store.model import LifecycleState, NewApp
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

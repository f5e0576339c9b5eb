"""The Agent service, API 2.0 to 2.11: what an agent asks for and reports.

One :class:`AgentService` serves one agent's session. Whatever a method raises
ends up as an error of that call alone, but a real agent hangs up for it and
dials again (coder ``agent/agent.go``), so nothing is refused that a sane agent
may send.

PushContextState and ReportBoundaryLogs are not there. Agents expect that of
older servers and stop calling them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from typing import Final
from uuid import UUID

import structlog
from google.protobuf.duration_pb2 import Duration
from google.protobuf.empty_pb2 import Empty

from relay.api import agent_checks as checks
from relay.api.agent_manifest import build_manifest
from relay.api.context import ApiContext
from relay.api.sub_agents import SubAgents
from relay.api.tailnet_service import proto_derp_map
from relay.api.unary import refuse, unary
from relay.derpmaps.feed import DerpMapFeed
from relay.store.model import AgentIdentity, AppHealth
from relay.store.report_model import MAX_LOG_LINES, MAX_RESOURCE_USAGES
from relay.store.store import Store
from tailnet.control.proto import agent_pb2 as pb, tailnet_pb2
from tailnet.control.server import Handler
from tailnet.errors import InvalidRecordError, NotFoundError

__all__ = ("AGENT_SERVICE", "REPORT_INTERVAL", "AgentService", "agent_handlers")

log = structlog.get_logger("relay.api")

AGENT_SERVICE: Final = "/coder.agent.v2.Agent/"

# codersdk DeploymentValues.AgentStatRefreshInterval, in seconds.
REPORT_INTERVAL: Final = 300

# coderd/agentapi/api.go: resources monitoring.
DATAPOINTS: Final = 20
COLLECTION_INTERVAL: Final = 10  # seconds

# Bytes. Agents send logs by the MiB at most (codersdk/agentsdk/logs.go
# maxBytesPerBatch), and metadata in values of whatever length.
MAX_LOGS_LEN: Final = 2 << 20


def _utc_now() -> datetime:
    return datetime.now(UTC)


def agent_handlers(
    identity: AgentIdentity, context: ApiContext
) -> Mapping[str, Handler]:
    """A handler for every method of the service, by its full name.

    Args:
        identity: The agent that calls, as it was when it connected.
        context: The rooms behind the API.
    """
    return AgentService(
        identity,
        context.store,
        context.derp_maps,
        disable_direct=context.settings.block_direct,
        force_websockets=context.settings.derp_force_websockets,
        # Whoever watches the store would do the same, a little later.
        removed=context.drop_agent,
    ).handlers()


class AgentService:
    """The methods, for one agent.

    Args:
        identity: The agent, as it was when it connected.
        store: Where reports go.
        derp_maps: The map of now.
        disable_direct: The server allows relayed paths only.
        force_websockets: DERP is to go in websockets at once.
        removed: Called with the id of a sub-agent that was deleted.
        now: The time of day.
        report_interval: Seconds between two reports of statistics.
    """

    def __init__(
        self,
        identity: AgentIdentity,
        store: Store,
        derp_maps: DerpMapFeed,
        *,
        disable_direct: bool,
        force_websockets: bool,
        removed: Callable[[UUID], None],
        now: Callable[[], datetime] = _utc_now,
        report_interval: float = REPORT_INTERVAL,
    ) -> None:
        self._id = identity.agent.id
        self._store = store
        self._derp_maps = derp_maps
        self._disable_direct = disable_direct
        self._force_websockets = force_websockets
        self._now = now
        self._report_interval = report_interval
        self._sub_agents = SubAgents(identity, store, removed)
        self._log = log.bind(agent=str(self._id), name=identity.agent.name)

    def handlers(self) -> Mapping[str, Handler]:
        """A handler for every method of the service, by its full name."""
        by_name: dict[str, Handler] = {
            "GetManifest": unary(pb.GetManifestRequest, self.get_manifest),
            "GetServiceBanner": unary(
                pb.GetServiceBannerRequest, self.get_service_banner
            ),
            "GetAnnouncementBanners": unary(
                pb.GetAnnouncementBannersRequest, self.get_announcement_banners
            ),
            "UpdateStats": unary(pb.UpdateStatsRequest, self.update_stats),
            "UpdateLifecycle": unary(pb.UpdateLifecycleRequest, self.update_lifecycle),
            "UpdateStartup": unary(pb.UpdateStartupRequest, self.update_startup),
            "BatchUpdateAppHealths": unary(
                pb.BatchUpdateAppHealthRequest, self.batch_update_app_healths
            ),
            "BatchUpdateMetadata": unary(
                pb.BatchUpdateMetadataRequest,
                self.batch_update_metadata,
                max_len=MAX_LOGS_LEN,  # values are cut, however long
            ),
            "BatchCreateLogs": unary(
                pb.BatchCreateLogsRequest, self.batch_create_logs, max_len=MAX_LOGS_LEN
            ),
            "ScriptCompleted": unary(
                pb.WorkspaceAgentScriptCompletedRequest, self.script_completed
            ),
            "GetResourcesMonitoringConfiguration": unary(
                pb.GetResourcesMonitoringConfigurationRequest,
                self.get_resources_monitoring_configuration,
            ),
            "PushResourcesMonitoringUsage": unary(
                pb.PushResourcesMonitoringUsageRequest,
                self.push_resources_monitoring_usage,
            ),
            "ReportConnection": unary(
                pb.ReportConnectionRequest, self.report_connection
            ),
            "CreateSubAgent": unary(pb.CreateSubAgentRequest, self._sub_agents.create),
            "DeleteSubAgent": unary(pb.DeleteSubAgentRequest, self._sub_agents.delete),
            "ListSubAgents": unary(pb.ListSubAgentsRequest, self._sub_agents.list),
            "UpdateAppStatus": unary(pb.UpdateAppStatusRequest, self.update_app_status),
            "ReportBoundaryLogs": refuse,
            "PushContextState": refuse,
        }
        return {AGENT_SERVICE + name: handler for name, handler in by_name.items()}

    # -- what it asks for -------------------------------------------------

    async def get_manifest(self, request: pb.GetManifestRequest) -> pb.Manifest:
        """What the agent is, and how to reach others. Read anew each time."""
        identity = await self._store.agent_identity(self._id)
        if identity is None:
            raise NotFoundError("this agent was deleted")
        return build_manifest(
            identity,
            tailnet_pb2.DERPMap.FromString(self._derp_maps.encoded(proto_derp_map)),
            disable_direct=self._disable_direct,
            force_websockets=self._force_websockets,
            apps=await self._store.list_apps(self._id),
        )

    async def get_service_banner(
        self, request: pb.GetServiceBannerRequest
    ) -> pb.ServiceBanner:
        """None. Superseded by announcement banners in API 2.1."""
        return pb.ServiceBanner()

    async def get_announcement_banners(
        self, request: pb.GetAnnouncementBannersRequest
    ) -> pb.GetAnnouncementBannersResponse:
        """None; a networking server has nothing to announce in terminals."""
        return pb.GetAnnouncementBannersResponse()

    async def get_resources_monitoring_configuration(
        self, request: pb.GetResourcesMonitoringConfigurationRequest
    ) -> pb.GetResourcesMonitoringConfigurationResponse:
        """How often to collect; nothing is to be monitored."""
        response = pb.GetResourcesMonitoringConfigurationResponse()
        response.config.num_datapoints = DATAPOINTS
        response.config.collection_interval_seconds = COLLECTION_INTERVAL
        return response

    # -- what it reports --------------------------------------------------

    async def update_lifecycle(
        self, request: pb.UpdateLifecycleRequest
    ) -> pb.Lifecycle:
        """Keep the state, and echo it."""
        lifecycle = checks.check_lifecycle(request, now=self._now())
        await self._store.save_lifecycle(self._id, lifecycle)
        self._log.info("agent lifecycle", state=lifecycle.state.value)
        echo = pb.Lifecycle(state=request.lifecycle.state)
        echo.changed_at.FromDatetime(lifecycle.changed_at)
        return echo

    async def update_startup(self, request: pb.UpdateStartupRequest) -> pb.Startup:
        """Keep version and directory, and echo them."""
        startup = checks.check_startup(request)
        await self._store.save_startup(self._id, startup)
        self._log.info("agent startup", version=startup.version)
        return request.startup

    async def update_stats(
        self, request: pb.UpdateStatsRequest
    ) -> pb.UpdateStatsResponse:
        """Keep traffic and sessions; say when to report next.

        The first call has nothing to report and only asks for the interval.
        """
        if request.HasField("stats"):
            stats = checks.check_stats(request.stats, now=self._now())
            await self._store.add_stats(self._id, stats)
        interval = Duration()
        interval.FromNanoseconds(round(self._report_interval * 1e9))
        return pb.UpdateStatsResponse(report_interval=interval)

    async def batch_update_metadata(
        self, request: pb.BatchUpdateMetadataRequest
    ) -> pb.BatchUpdateMetadataResponse:
        """Keep what metadata scripts gave."""
        results = checks.check_metadata(request.metadata, now=self._now())
        if results:
            await self._store.save_metadata(self._id, results)
        return pb.BatchUpdateMetadataResponse()

    async def batch_create_logs(
        self, request: pb.BatchCreateLogsRequest
    ) -> pb.BatchCreateLogsResponse:
        """Keep output of scripts, up to a limit in all."""
        if not request.logs:
            return pb.BatchCreateLogsResponse()
        source = checks.check_log_source(request.log_source_id)
        # What is more than the store takes need not be read to the end: two
        # million empty lines fit into a request.
        lines = checks.check_logs(request.logs[: MAX_LOG_LINES + 1], now=self._now())
        is_kept = await self._store.add_logs(self._id, source, lines)
        return pb.BatchCreateLogsResponse(log_limit_exceeded=not is_kept)

    async def script_completed(
        self, request: pb.WorkspaceAgentScriptCompletedRequest
    ) -> pb.WorkspaceAgentScriptCompletedResponse:
        """Keep how long a script took, and how it ended."""
        timing = checks.check_script_timing(request)
        await self._store.add_script_timing(self._id, timing)
        return pb.WorkspaceAgentScriptCompletedResponse()

    async def report_connection(self, request: pb.ReportConnectionRequest) -> Empty:
        """Keep that a session began or ended."""
        report = checks.check_connection(request, now=self._now())
        await self._store.add_connection_report(self._id, report)
        self._log.info(
            "agent connection",
            action=report.action.value,
            kind=report.kind.value,
            ip=report.ip,
            connection=str(report.connection_id),
        )
        return Empty()

    async def batch_update_app_healths(
        self, request: pb.BatchUpdateAppHealthRequest
    ) -> pb.BatchUpdateAppHealthResponse:
        """Keep the health of apps."""
        health = checks.check_app_health(request.updates)
        if health:
            await self._check_have_health(health)
            await self._store.save_app_health(self._id, health)
        return pb.BatchUpdateAppHealthResponse()

    async def _check_have_health(self, health: Mapping[UUID, AppHealth]) -> None:
        for app in await self._store.list_apps(self._id):
            if app.id in health and not app.settings.healthcheck_url:
                raise InvalidRecordError(
                    f'workspace app "{app.id}" ("{app.settings.slug}") '
                    "does not have healthchecks enabled"
                )

    async def update_app_status(
        self, request: pb.UpdateAppStatusRequest
    ) -> pb.UpdateAppStatusResponse:
        """Keep how far an app's task is."""
        status = checks.check_app_status(request, now=self._now())
        await self._store.add_app_status(self._id, status)
        return pb.UpdateAppStatusResponse()

    async def push_resources_monitoring_usage(
        self, request: pb.PushResourcesMonitoringUsageRequest
    ) -> pb.PushResourcesMonitoringUsageResponse:
        """Keep datapoints. Nobody is told to send any, so few do."""
        newest = request.datapoints[-MAX_RESOURCE_USAGES:]  # no more are kept
        usages = checks.check_resource_usage(newest, now=self._now())
        if usages:
            await self._store.add_resource_usages(self._id, usages)
        return pb.PushResourcesMonitoringUsageResponse()

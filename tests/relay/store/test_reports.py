from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import replace
from pathlib import Path
from uuid import UUID, uuid4

import pytest

from relay.store.model import AppHealth, Lifecycle, LifecycleState, NewApp, Startup
from relay.store.report_model import (
    MAX_APP_STATUSES,
    MAX_CONNECTION_REPORTS,
    MAX_LOG_LINES,
    MAX_LOG_SIZE,
    MAX_METADATA_KEYS,
    MAX_RESOURCE_USAGES,
    MAX_SCRIPT_TIMINGS,
    MAX_STATS,
    AgentReports,
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
    StoredLogLine,
)
from relay.store.sql_store import SqlStore
from tailnet.errors import InvalidRecordError, NotFoundError
from tests.relay.store.stores import NOW, SECOND, House, furnish, furnished

SOURCE = UUID("aaaaaaaa-bbbb-4ccc-8ddd-eeeeeeeeeeee")
NOBODY = UUID("00000000-0000-4000-8000-000000000000")

STATS = Stats(
    reported_at=NOW,
    connections_by_proto={"tcp": 3},
    connection_count=3,
    connection_median_latency=1.5,
    rx_packets=1,
    rx_bytes=2,
    tx_packets=3,
    tx_bytes=2**62,
    session_counts={"ssh": 2},
    metrics=(Metric("go_threads", "gauge", 7.5, {"a": "b"}),),
)
CONNECTION = ConnectionReport(
    uuid4(), ConnectionAction.CONNECT, ConnectionKind.SSH, NOW, "192.0.2.1", 1, "why"
)
TIMING = ScriptTiming(
    uuid4(), NOW, NOW + SECOND, -1, ScriptStage.CRON, ScriptStatus.TIMED_OUT
)
STATUS = AppStatus("app", AppStatusState.WORKING, "half way", "https://x", NOW)
USAGE = ResourceUsage(NOW, 5, 10, (DiskUsage("/", 1, 2),))
NOTHING = AgentReports([], 0, False, [], [], [], [], [], [], [])


async def reports_of(store: SqlStore, house: House) -> AgentReports:
    reports = await store.agent_reports(house.agent.agent.id)
    assert reports is not None
    return reports


def lines(*outputs: str) -> list[LogLine]:
    return [LogLine(NOW, LogLevel.INFO, output) for output in outputs]


# -- what is newest -------------------------------------------------------


async def test_connected_and_disconnected(tmp_path: Path) -> None:
    async with furnished(tmp_path) as (store, house):
        agent_id = house.agent.agent.id
        await store.save_connected(agent_id, NOW)
        await store.save_connected(agent_id, NOW + SECOND)
        await store.save_disconnected(agent_id, NOW + 2 * SECOND)
        agent = await store.get_agent(agent_id)
        assert agent is not None
        assert agent.first_connected_at == NOW
        assert agent.last_connected_at == NOW + SECOND
        assert agent.disconnected_at == NOW + 2 * SECOND


async def test_lifecycle_and_startup(tmp_path: Path) -> None:
    async with furnished(tmp_path) as (store, house):
        agent_id = house.agent.agent.id
        startup = Startup("v2.24.0", "/home/alice", ("envbox", "exectrace"))
        await store.save_startup(agent_id, startup)
        for state in LifecycleState:
            await store.save_lifecycle(agent_id, Lifecycle(state, NOW))
            agent = await store.get_agent(agent_id)
            assert agent is not None
            assert agent.lifecycle == Lifecycle(state, NOW)
        assert agent is not None
        assert agent.startup == startup
        other = (await furnish(store, "bob")).agent.agent
        assert (other.lifecycle, other.startup) == (None, None)


async def test_app_health(tmp_path: Path) -> None:
    async with furnished(tmp_path) as (store, house):
        made = await store.create_agent(
            house.workspace.id, "x", apps=[NewApp("a"), NewApp("b")]
        )
        agent_id = made.agent.id

        async def apps() -> dict[UUID, AppHealth]:
            reports = await store.agent_reports(agent_id)
            assert reports is not None
            return {app.id: app.health for app in reports.apps}

        first, second = before = await apps()
        with pytest.raises(NotFoundError, match=str(NOBODY)):
            await store.save_app_health(
                agent_id, {first: AppHealth.HEALTHY, NOBODY: AppHealth.HEALTHY}
            )
        assert await apps() == before
        # Nor may one agent speak for the app of another.
        with pytest.raises(NotFoundError):
            await store.save_app_health(
                house.agent.agent.id, {first: AppHealth.HEALTHY}
            )
        await store.save_app_health(agent_id, {second: AppHealth.UNHEALTHY})
        assert await apps() == {**before, second: AppHealth.UNHEALTHY}


# -- metadata -------------------------------------------------------------


async def test_metadata_is_the_newest_of_each_key(tmp_path: Path) -> None:
    async with furnished(tmp_path) as (store, house):
        agent_id = house.agent.agent.id
        cpu = MetadataResult("cpu", NOW, 1, "10%")
        await store.save_metadata(agent_id, [cpu, MetadataResult("mem", NOW)])
        later = MetadataResult("mem", NOW + SECOND, 2, "", "no such file")
        older = replace(later, value="overwritten")
        await store.save_metadata(agent_id, [older, later])
        await store.save_metadata(agent_id, [])
        assert (await reports_of(store, house)).metadata == [cpu, later]


async def test_long_metadata_is_cut_and_says_so(tmp_path: Path) -> None:
    async with furnished(tmp_path) as (store, house):
        results = [
            MetadataResult("a", NOW, value="x" * 2048),
            MetadataResult("b", NOW, value="x" * 2049),
            MetadataResult("c", NOW, error="y" * 3000),
            # Cut in the middle of a character: that one goes.
            MetadataResult("d", NOW, value="x" + "ü" * 1024),
        ]
        await store.save_metadata(house.agent.agent.id, results)
        kept = {r.key: r for r in (await reports_of(store, house)).metadata}
        assert kept["a"] == results[0]
        assert kept["b"].value == "x" * 2048
        # The texts of coderd/agentapi/metadata.go.
        assert kept["b"].error == "value of 2049 bytes exceeded 2048 bytes"
        assert kept["c"].error == "error of 3000 bytes exceeded 2048 bytes"
        assert kept["d"].value == "x" + "ü" * 1023


async def test_metadata_keys_are_bounded(tmp_path: Path) -> None:
    async with furnished(tmp_path) as (store, house):
        agent_id = house.agent.agent.id
        with pytest.raises(InvalidRecordError, match="keys of 6145 bytes exceeded"):
            await store.save_metadata(agent_id, [MetadataResult("k" * 6145, NOW)])
        for number in range(MAX_METADATA_KEYS + 10):
            at = NOW + number * SECOND
            await store.save_metadata(agent_id, [MetadataResult(f"k{number}", at)])
        keys = {result.key for result in (await reports_of(store, house)).metadata}
        assert keys == {f"k{number}" for number in range(10, MAX_METADATA_KEYS + 10)}


# -- output ---------------------------------------------------------------


async def test_logs_come_back_in_order(tmp_path: Path) -> None:
    async with furnished(tmp_path) as (store, house):
        agent_id = house.agent.agent.id
        batch = [LogLine(NOW, level, f"{level} \0 ü") for level in LogLevel]
        assert await store.add_logs(agent_id, SOURCE, batch)
        assert await store.add_logs(agent_id, NOBODY, lines("last"))
        assert await store.add_logs(agent_id, SOURCE, [])
        reports = await reports_of(store, house)
        assert reports.logs == [
            *(StoredLogLine(SOURCE, line) for line in batch),
            StoredLogLine(NOBODY, lines("last")[0]),
        ]
        assert reports.logs_size == sum(
            len(stored.line.output.encode()) for stored in reports.logs
        )
        assert not reports.logs_overflowed


async def test_some_logs(tmp_path: Path) -> None:
    async with furnished(tmp_path) as (store, house):
        agent_id = house.agent.agent.id
        await store.add_logs(agent_id, SOURCE, lines("a", "b", "c", "d"))

        async def some(after: int, limit: int) -> tuple[int, str]:
            count, found = await store.agent_logs(agent_id, after=after, limit=limit)
            return count, "".join(stored.line.output for stored in found)

        assert await some(0, 100) == (4, "abcd")
        assert await some(1, 2) == (4, "bc")
        assert await some(4, 2) == (4, "")
        assert await some(10**18, 2) == (4, "")
        assert await store.agent_logs(NOBODY, after=0, limit=1) == (0, [])


async def test_too_many_logs_are_refused_for_good(tmp_path: Path) -> None:
    async with furnished(tmp_path) as (store, house):
        agent_id = house.agent.agent.id
        # Bytes count, not characters.
        half = lines("ü" * (MAX_LOG_SIZE // 4))
        assert await store.add_logs(agent_id, SOURCE, half)
        assert await store.add_logs(agent_id, SOURCE, half)
        assert (await reports_of(store, house)).logs_size == MAX_LOG_SIZE
        assert await store.add_logs(agent_id, SOURCE, lines(""))
        assert not await store.add_logs(agent_id, SOURCE, lines("x"))
        assert not await store.add_logs(agent_id, SOURCE, lines(""))
        reports = await reports_of(store, house)
        assert (len(reports.logs), reports.logs_overflowed) == (3, True)


async def test_empty_lines_are_not_for_nothing(tmp_path: Path) -> None:
    async with furnished(tmp_path) as (store, house):
        agent_id = house.agent.agent.id
        most = lines(*[""] * (MAX_LOG_LINES - 1))
        assert await store.add_logs(agent_id, SOURCE, most)
        assert await store.add_logs(agent_id, SOURCE, lines(""))
        assert not await store.add_logs(agent_id, SOURCE, lines(""))
        reports = await reports_of(store, house)
        assert (len(reports.logs), reports.logs_overflowed) == (MAX_LOG_LINES, True)


async def test_batch_that_is_too_large_is_refused_whole(tmp_path: Path) -> None:
    async with furnished(tmp_path) as (store, house):
        batch = lines("kept?", "x" * MAX_LOG_SIZE)
        assert not await store.add_logs(house.agent.agent.id, SOURCE, batch)
        reports = await reports_of(store, house)
        assert (reports.logs, reports.logs_size) == ([], 0)
        assert reports.logs_overflowed


async def test_agent_that_starts_anew_may_log_again(tmp_path: Path) -> None:
    async with furnished(tmp_path) as (store, house):
        agent_id = house.agent.agent.id
        starting = Lifecycle(LifecycleState.STARTING, NOW)
        await store.add_logs(agent_id, SOURCE, lines("first run"))
        await store.save_lifecycle(agent_id, starting)
        assert len((await reports_of(store, house)).logs) == 1
        await store.add_logs(agent_id, SOURCE, lines("x" * MAX_LOG_SIZE))
        await store.save_lifecycle(agent_id, Lifecycle(LifecycleState.READY, NOW))
        assert not await store.add_logs(agent_id, SOURCE, lines("x"))
        await store.save_lifecycle(agent_id, starting)
        assert await store.add_logs(agent_id, SOURCE, lines("second run"))
        reports = await reports_of(store, house)
        assert [stored.line.output for stored in reports.logs] == ["second run"]
        assert (reports.logs_size, reports.logs_overflowed) == (10, False)


# -- the last few ---------------------------------------------------------


async def test_reports_come_back_whole_and_to_their_agent(tmp_path: Path) -> None:
    async with furnished(tmp_path) as (store, house):
        made = await store.create_agent(
            house.workspace.id, "x", apps=[NewApp(STATUS.slug)]
        )
        agent_id = made.agent.id
        await store.add_stats(agent_id, STATS)
        await store.add_connection_report(agent_id, CONNECTION)
        await store.add_script_timing(agent_id, TIMING)
        await store.add_app_status(agent_id, STATUS)
        await store.add_resource_usages(agent_id, [USAGE, ResourceUsage(NOW)])
        await store.add_resource_usages(agent_id, [])
        reports = await store.agent_reports(agent_id)
        assert reports is not None
        assert reports.stats == [STATS]
        assert reports.connections == [CONNECTION]
        assert reports.script_timings == [TIMING]
        assert reports.app_statuses == [STATUS]
        assert reports.resource_usages == [USAGE, ResourceUsage(NOW)]
        other = await reports_of(store, house)
        assert other == NOTHING


@pytest.mark.parametrize(
    ("kind", "keep"),
    [
        ("stats", MAX_STATS),
        ("connections", MAX_CONNECTION_REPORTS),
        ("script_timings", MAX_SCRIPT_TIMINGS),
        ("app_statuses", MAX_APP_STATUSES),
        ("resource_usages", MAX_RESOURCE_USAGES),
    ],
)
async def test_the_last_few_are_kept(tmp_path: Path, kind: str, keep: int) -> None:
    async with furnished(tmp_path) as (store, house):
        made = await store.create_agent(house.workspace.id, "x", apps=[NewApp("app")])

        async def add(agent_id: UUID, number: int) -> None:
            match kind:
                case "stats":
                    await store.add_stats(agent_id, replace(STATS, rx_bytes=number))
                case "connections":
                    await store.add_connection_report(
                        agent_id, replace(CONNECTION, status_code=number)
                    )
                case "script_timings":
                    await store.add_script_timing(
                        agent_id, replace(TIMING, exit_code=number)
                    )
                case "app_statuses":
                    await store.add_app_status(
                        agent_id, replace(STATUS, message=str(number))
                    )
                case _:
                    await store.add_resource_usages(
                        agent_id, [replace(USAGE, memory_used=number)]
                    )

        if kind != "app_statuses":  # those need an app
            await add(house.agent.agent.id, 1)
        for number in range(keep + 3):
            await add(made.agent.id, number)
        kept = getattr(await store.agent_reports(made.agent.id), kind)
        numbers = {
            "stats": lambda r: r.rx_bytes,
            "connections": lambda r: r.status_code,
            "script_timings": lambda r: r.exit_code,
            "app_statuses": lambda r: int(r.message),
            "resource_usages": lambda r: r.memory_used,
        }[kind]
        assert list(map(numbers, kept)) == list(range(3, keep + 3))
        if kind != "app_statuses":
            assert len(getattr(await reports_of(store, house), kind)) == 1


async def test_more_datapoints_at_once_than_are_kept(tmp_path: Path) -> None:
    async with furnished(tmp_path) as (store, house):
        usages = [ResourceUsage(NOW, number) for number in range(50)]
        await store.add_resource_usages(house.agent.agent.id, usages)
        kept = (await reports_of(store, house)).resource_usages
        assert kept == usages[-MAX_RESOURCE_USAGES:]


async def test_large_reports(tmp_path: Path) -> None:
    async with furnished(tmp_path) as (store, house):
        agent_id = house.agent.agent.id
        large = "x" * 70_000
        metric = Metric(large, "gauge", 1.0)
        await store.add_stats(agent_id, replace(STATS, metrics=(metric,)))
        assert (await reports_of(store, house)).stats == [replace(STATS, metrics=())]
        for report in (
            store.add_stats(agent_id, replace(STATS, session_counts={large: 1})),
            store.add_connection_report(agent_id, replace(CONNECTION, reason=large)),
            store.save_startup(agent_id, Startup(large, "/")),
            store.add_resource_usages(
                agent_id, [replace(USAGE, volumes=(DiskUsage(large, 1, 2),))]
            ),
        ):
            with pytest.raises(InvalidRecordError, match="the limit is"):
                await report


async def test_status_of_an_app_that_is_not_there(tmp_path: Path) -> None:
    async with furnished(tmp_path) as (store, house):
        with pytest.raises(NotFoundError, match="no app 'app'"):
            await store.add_app_status(house.agent.agent.id, STATUS)


WRITERS: list[Callable[[SqlStore], Awaitable[object]]] = [
    lambda store: store.save_connected(NOBODY, NOW),
    lambda store: store.save_disconnected(NOBODY, NOW),
    lambda store: store.save_lifecycle(NOBODY, Lifecycle(LifecycleState.READY, NOW)),
    lambda store: store.save_startup(NOBODY, Startup("", "")),
    lambda store: store.add_stats(NOBODY, STATS),
    lambda store: store.add_logs(NOBODY, SOURCE, []),
    lambda store: store.save_metadata(NOBODY, []),
    lambda store: store.add_connection_report(NOBODY, CONNECTION),
    lambda store: store.add_script_timing(NOBODY, TIMING),
    lambda store: store.save_app_health(NOBODY, {}),
    lambda store: store.add_app_status(NOBODY, STATUS),
    lambda store: store.add_resource_usages(NOBODY, []),
]


@pytest.mark.parametrize("write", WRITERS)
async def test_reports_of_an_agent_that_is_gone(
    tmp_path: Path, write: Callable[[SqlStore], Awaitable[object]]
) -> None:
    async with furnished(tmp_path) as (store, _):
        with pytest.raises(NotFoundError, match=f"no agent {NOBODY}"):
            await write(store)
        assert await store.agent_reports(NOBODY) is None


async def test_reports_go_with_their_agent(tmp_path: Path) -> None:
    async with furnished(tmp_path) as (store, house):
        agent_id = house.agent.agent.id
        await store.add_stats(agent_id, STATS)
        await store.add_logs(agent_id, SOURCE, lines("x"))
        await store.save_metadata(agent_id, [MetadataResult("k", NOW)])
        await store.delete_agent(agent_id)
        await store.create_agent(house.workspace.id, "main", agent_id=agent_id)
        assert await reports_of(store, house) == NOTHING

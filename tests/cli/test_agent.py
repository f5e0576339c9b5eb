from __future__ import annotations

import re
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest

from relay.store.model import AppHealth, Lifecycle, LifecycleState, NewApp, Startup
from relay.store.report_model import (
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
from relay.store.sql_store import SqlStore
from tests.cli.program import Program

WANTED = "11111111-2222-4333-8444-555555555555"
TOKEN = "0f1e2d3c-4b5a-4978-8695-a4b3c2d1e0f0"
NOW = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
TIME = "2026-01-02T03:04:05Z"

DOCUMENTED = Path(__file__).parents[2] / "docs/reference/agent-show.md"


def test_create_shows_the_token_once(furnished: Program) -> None:
    ran = furnished.run("agent", "create", "alice/dev/two")
    assert ran.status == 0
    assert ran.err == "The token is not shown again.\n"
    found = re.search(r"^token  (\S{36})$", ran.out, re.MULTILINE)
    assert found is not None
    token = found[1]
    identity = furnished.on_store(lambda store: store.authenticate_agent(token))
    assert identity is not None
    assert (identity.owner.username, identity.agent.name) == ("alice", "two")
    for args in (("agent", "show", "alice/dev/two"), ("agent", "list")):
        for more in ((), ("-o", "json")):
            assert token not in furnished.text(*args, *more)


def test_create_with_wanted_id_and_token(furnished: Program) -> None:
    made = furnished.json(
        "agent", "create", "alice/dev/two", "--id", WANTED, "--token", TOKEN
    )
    assert (made["id"], made["token"]) == (WANTED, TOKEN)
    assert (made["owner_name"], made["workspace_name"]) == ("alice", "dev")
    assert (made["name"], made["status"]) == ("two", "connecting")
    identity = furnished.on_store(lambda store: store.authenticate_agent(TOKEN))
    assert identity is not None
    assert str(identity.agent.id) == WANTED


def test_agents_that_cannot_be_made(furnished: Program) -> None:
    create = ("agent", "create")
    furnished.text(*create, "alice/dev/two", "--id", WANTED, "--token", TOKEN)
    for args, status, text in (
        (("alice/dev/Two",), 1, "there is an agent alice/dev/Two already"),
        (("alice/dev/x", "--id", WANTED), 1, f"an agent {WANTED} already"),
        (("alice/dev/x", "--token", TOKEN), 1, "another agent has this token"),
        (("bob/dev/x",), 1, "there is no user 'bob'; see: tailnet user list"),
        (("alice/x/x",), 1, "no workspace alice/x; see: tailnet workspace list"),
        (("alice/dev/x", "--id", "x"), 2, "'--id': 'x' is not a UUID such as"),
        (("alice/dev/x", "--token", "y"), 2, "'--token': 'y' is not a UUID"),
        (("alice/dev/x_y",), 2, "'x_y' is no name for an agent"),
        (("alice/dev",), 2, "'alice/dev' is not OWNER/WORKSPACE/AGENT"),
    ):
        assert text in furnished.error(*create, *args, status=status)
    assert len(furnished.json("agent", "list")) == 2


def test_list(furnished: Program) -> None:
    furnished.text("user", "create", "bob")
    furnished.text("workspace", "create", "bob/dev")
    furnished.text("agent", "create", "bob/dev/main")
    furnished.text("workspace", "create", "alice/more")
    furnished.text("agent", "create", "alice/more/x")

    def paths(*args: str) -> list[str]:
        return [
            f"{agent['owner_name']}/{agent['workspace_name']}/{agent['name']}"
            for agent in furnished.json("agent", "list", *args)
        ]

    assert paths() == ["alice/dev/main", "alice/more/x", "bob/dev/main"]
    assert paths("alice") == ["alice/dev/main", "alice/more/x"]
    assert paths("alice/more") == ["alice/more/x"]
    lines = furnished.text("agent", "list").splitlines()
    assert [line.split()[0] for line in lines] == ["AGENT", *paths()]
    for where in ("a/b/c", "alice/", ""):
        message = furnished.error("agent", "list", where, status=2)
        assert f"{where!r} is not OWNER or OWNER/WORKSPACE" in message
    assert "no user 'x'" in furnished.error("agent", "list", "x", status=1)


def test_another_token(furnished: Program) -> None:
    furnished.text("agent", "create", "alice/dev/two", "--token", TOKEN)
    made = furnished.json("agent", "renew-token", "alice/dev/two")
    assert made["name"] == "two"

    async def known(store: SqlStore) -> list[bool]:
        tokens = (TOKEN, made["token"])
        return [await store.authenticate_agent(token) is not None for token in tokens]

    assert furnished.on_store(known) == [False, True]
    assert "token" in furnished.text("agent", "renew-token", made["id"])


def test_delete_takes_the_sub_agents_along(furnished: Program) -> None:
    shown = furnished.json("agent", "show", "alice/dev/main")

    async def make_sub(store: SqlStore) -> None:
        workspace_id, parent_id = UUID(shown["workspace_id"]), UUID(shown["id"])
        await store.create_agent(workspace_id, "sub", parent_id=parent_id)

    furnished.on_store(make_sub)
    (sub,) = furnished.json("agent", "show", "alice/dev/main")["sub_agents"]
    assert (sub["name"], sub["parent_id"]) == ("sub", shown["id"])
    assert "sub-agents  sub" in furnished.text("agent", "show", "alice/dev/main")
    text = furnished.text("agent", "delete", "alice/dev/main")
    assert text == "deleted agent  alice/dev/main\n"
    assert furnished.json("agent", "list") == []
    made = furnished.json("agent", "create", "alice/dev/main")
    assert furnished.json("agent", "delete", made["id"])["name"] == "main"


@pytest.mark.parametrize("command", ["show", "delete", "renew-token"])
def test_no_such_agent(furnished: Program, command: str) -> None:
    for target, text in (
        ("alice/dev/x", "there is no agent alice/dev/x; see: tailnet agent list"),
        (WANTED, f"there is no agent {WANTED}"),
        ("alice/x/main", "there is no workspace alice/x"),
    ):
        assert text in furnished.error("agent", command, target, status=1)
    message = furnished.error("agent", command, "main", status=2)
    assert "'main' is not OWNER/WORKSPACE/AGENT or a UUID" in message


# -- reports --------------------------------------------------------------


async def report_all(store: SqlStore) -> None:
    """One of each report, to the agent alice/dev/full."""
    workspace = await store.find_workspace("alice", "dev")
    assert workspace is not None
    app = NewApp("web", display_name="Web", url="http://localhost:80")
    made = await store.create_agent(
        workspace.id,
        "full",
        agent_id=UUID(WANTED),
        directory="~",
        architecture="amd64",
        operating_system="linux",
        display_apps=["vscode"],
        apps=[app],
    )
    agent_id, some_id = made.agent.id, UUID(TOKEN)
    await store.save_connected(agent_id, NOW)
    await store.save_disconnected(agent_id, NOW + timedelta(seconds=1))
    await store.save_lifecycle(agent_id, Lifecycle(LifecycleState.READY, NOW))
    await store.save_startup(agent_id, Startup("v2", "/home/alice", ("envbox",)))
    stats = Stats(
        NOW,
        {"tcp": 1},
        1,
        2.5,
        rx_bytes=7,
        session_counts={"ssh": 1},
        metrics=(Metric("m", "gauge", 1.0, {"a": "b"}),),
    )
    await store.add_stats(agent_id, stats)
    line = LogLine(NOW, LogLevel.WARN, "\x1b[31mred")
    await store.add_logs(agent_id, some_id, [line, replace(line, output="next")])
    await store.save_metadata(agent_id, [MetadataResult("cpu", NOW, 1, "5%")])
    await store.add_connection_report(
        agent_id,
        ConnectionReport(
            some_id, ConnectionAction.CONNECT, ConnectionKind.SSH, NOW, "192.0.2.1"
        ),
    )
    await store.add_script_timing(
        agent_id,
        ScriptTiming(some_id, NOW, NOW, 0, ScriptStage.START, ScriptStatus.OK),
    )
    reports = await store.agent_reports(agent_id)
    assert reports is not None
    await store.save_app_health(agent_id, {reports.apps[0].id: AppHealth.HEALTHY})
    await store.add_app_status(
        agent_id, AppStatus("web", AppStatusState.IDLE, "waits", "", NOW)
    )
    await store.add_resource_usages(
        agent_id, [ResourceUsage(NOW, 1, 2, (DiskUsage("/", 3, 4),))]
    )


def test_show_as_json_has_all_reports(furnished: Program) -> None:
    furnished.on_store(report_all)
    shown = furnished.json("agent", "show", "alice/dev/full")
    assert (shown["id"], shown["status"]) == (WANTED, "disconnected")
    assert shown["first_connected_at"] == shown["last_connected_at"] == TIME
    assert shown["lifecycle"] == {"state": "ready", "changed_at": TIME}
    assert shown["startup"] == {
        "version": "v2",
        "expanded_directory": "/home/alice",
        "subsystems": ["envbox"],
    }
    assert [line["output"] for line in shown["logs"]] == ["\x1b[31mred", "next"]
    assert shown["logs"][0]["level"] == "warn"
    assert shown["logs"][0]["source_id"] == TOKEN
    assert shown["stats"][0]["session_counts"] == {"ssh": 1}
    assert shown["metadata"][0]["value"] == "5%"
    assert shown["connections"][0]["kind"] == "ssh"
    assert shown["script_timings"][0]["status"] == "ok"
    assert (shown["apps"][0]["slug"], shown["apps"][0]["health"]) == ("web", "healthy")
    assert shown["app_statuses"][0]["state"] == "idle"
    assert shown["resource_usages"][0]["volumes"][0]["used"] == 3


def shape(value: Any) -> Any:
    """What is in a JSON value, lists by their first item."""
    if isinstance(value, dict):
        return {name: shape(inner) for name, inner in value.items()}
    if isinstance(value, list):
        return [shape(value[0])] if value else []
    return type(value).__name__


def test_shape_is_as_documented(furnished: Program) -> None:
    """The example in the document is the output for the reports above."""
    import json

    furnished.on_store(report_all)
    shown = furnished.json("agent", "show", "alice/dev/full")
    found = re.search(r"```json\n(.*?)```", DOCUMENTED.read_text(), re.DOTALL)
    assert found is not None
    assert shape(json.loads(found[1])) == shape(shown)


def test_show_for_people(furnished: Program) -> None:
    furnished.on_store(report_all)
    text = furnished.text("agent", "show", "alice/dev/full")
    fields = dict(re.split(" {2,}", line, maxsplit=1) for line in text.splitlines())
    assert fields["agent"] == "alice/dev/full"
    assert (fields["status"], fields["lifecycle"]) == ("disconnected", "ready")
    assert (fields["version"], fields["directory"]) == ("v2", "/home/alice")
    assert (fields["sessions"], fields["apps"]) == ("ssh=1", "web=healthy")
    assert fields["log lines"] == "2"


def test_agent_cannot_drive_the_terminal(furnished: Program) -> None:
    shown = furnished.json("agent", "show", "alice/dev/main")
    evil = Startup("\x1b]0;title\x07", "/\r\nhome\u202e")
    furnished.on_store(lambda store: store.save_startup(UUID(shown["id"]), evil))
    text = furnished.text("agent", "show", "alice/dev/main")
    assert not set(text) & {"\x1b", "\x07", "\r", "\u202e"}
    assert r"\x1b]0;title\x07" in text

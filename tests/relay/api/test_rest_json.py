from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from uuid import UUID

import pytest

from relay.api.rest_json import (
    CONNECTION_TIMEOUT,
    DISCONNECT_TIMEOUT,
    agent_json,
    agent_status,
    user_json,
    workspace_json,
)
from relay.store.model import (
    Agent,
    Lifecycle,
    LifecycleState,
    Startup,
    User,
    Workspace,
    WorkspaceAgents,
)

NOW = datetime(2026, 5, 4, 3, 2, 1, tzinfo=UTC)
AGENT = Agent(UUID(int=1), UUID(int=2), "main", None, NOW)


def ago(seconds: float) -> datetime:
    return NOW - timedelta(seconds=seconds)


@pytest.mark.parametrize(
    ("first", "last", "gone", "word", "since"),
    [
        (None, None, None, "connecting", None),
        (900, 0, None, "connected", None),
        (900, DISCONNECT_TIMEOUT, None, "connected", None),
        (900, DISCONNECT_TIMEOUT + 1, None, "disconnected", DISCONNECT_TIMEOUT + 1),
        (900, 10, 5, "disconnected", 5),
        (900, 10, 10, "disconnected", 10),  # at once: gone counts
        (900, 5, 10, "connected", 10),  # back again
        (900, 99, 98, "disconnected", 98),
    ],
)
def test_status(
    first: float | None,
    last: float | None,
    gone: float | None,
    word: str,
    since: float | None,
) -> None:
    times = [None if at is None else ago(at) for at in (first, last, gone, since)]
    agent = replace(
        AGENT,
        first_connected_at=times[0],
        last_connected_at=times[1],
        disconnected_at=times[2],
    )
    status = agent_status(agent, NOW)
    assert (status.word, status.disconnected_at) == (word, times[3])


def test_an_agent_that_never_came_times_out() -> None:
    patience = timedelta(seconds=CONNECTION_TIMEOUT)
    assert agent_status(AGENT, NOW + patience).word == "connecting"
    late = NOW + patience + timedelta(seconds=1)
    assert agent_status(AGENT, late).word == "timeout"


@pytest.mark.parametrize(
    ("state", "is_there", "reason"),
    [
        (LifecycleState.READY, True, None),
        (LifecycleState.STARTING, True, None),
        (LifecycleState.START_TIMEOUT, True, None),
        (
            LifecycleState.START_ERROR,
            True,
            "agent startup script exited with an error",
        ),
        (LifecycleState.SHUTTING_DOWN, True, "agent is shutting down"),
        (LifecycleState.OFF, True, "agent is shutting down"),
        (LifecycleState.OFF, False, "agent is not running"),
        (LifecycleState.READY, False, "agent has lost connection"),
    ],
)
def test_health(state: LifecycleState, is_there: bool, reason: str | None) -> None:
    agent = replace(
        AGENT,
        first_connected_at=ago(900),
        last_connected_at=ago(0 if is_there else 900),
        lifecycle=Lifecycle(state, ago(1)),
    )
    health = agent_json(agent, NOW)["health"]
    expected = {"healthy": True} if reason is None else {
        "healthy": False,
        "reason": reason,
    }  # fmt: skip
    assert health == expected


def test_agent_without_reports() -> None:
    fields = agent_json(AGENT, NOW)
    assert fields["status"] == "connecting"
    assert fields["lifecycle_state"] == "created"
    assert fields["parent_id"] is None
    for name in ("first_connected_at", "started_at", "ready_at"):
        assert name not in fields  # absent is Go's nil
    assert fields["apps"] == []


def test_agent_with_reports() -> None:
    agent = replace(
        AGENT,
        parent_id=UUID(int=9),
        first_connected_at=ago(3),
        last_connected_at=ago(1),
        startup=Startup("v2.24.0", "/home", ("envbox",)),
        display_apps=("vscode",),
    )
    ready = replace(agent, lifecycle=Lifecycle(LifecycleState.READY, ago(2)))
    fields = agent_json(ready, NOW)
    assert fields["parent_id"] == str(UUID(int=9))
    assert (fields["version"], fields["expanded_directory"]) == ("v2.24.0", "/home")
    assert fields["subsystems"] == ["envbox"]
    assert fields["display_apps"] == ["vscode"]
    assert fields["ready_at"] == ago(2)
    assert "started_at" not in fields
    starting = replace(agent, lifecycle=Lifecycle(LifecycleState.STARTING, ago(2)))
    fields = agent_json(starting, NOW)
    assert fields["started_at"] == ago(2)
    assert "ready_at" not in fields


def test_ids_of_what_is_not_kept_stay_the_same() -> None:
    workspace = Workspace(UUID(int=2), UUID(int=3), "alice", "dev", NOW)
    item = WorkspaceAgents(workspace, [AGENT])
    one = workspace_json(item, NOW)
    two = workspace_json(item, NOW + timedelta(1))
    for first, second in ((one, two),):
        assert first["latest_build"]["id"] == second["latest_build"]["id"]
    resource = one["latest_build"]["resources"][0]
    assert resource["agents"][0]["resource_id"] == resource["id"]
    assert one["latest_build"]["job"]["id"] == resource["job_id"]


def test_user() -> None:
    user = User(UUID(int=1), "alice", False, NOW)
    assert user_json(user)["roles"] == []
    assert user_json(replace(user, is_admin=True))["roles"][0]["name"] == "owner"

"""Workspaces, agents and users in JSON, as ``codersdk`` reads them.

This server has no templates, builds or provisioners, which the ``coder``
command wants to see. So a workspace is one that was started successfully when
it was made, from a template that has no properties; ids that nothing stands
behind are the nil UUID, which is what Coder sends for "none" too.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final
from uuid import UUID, uuid5

from relay.store.model import Agent, LifecycleState, User, WorkspaceAgents

__all__ = (
    "CONNECTION_TIMEOUT",
    "DISCONNECT_TIMEOUT",
    "AgentStatus",
    "agent_json",
    "agent_status",
    "user_json",
    "workspace_json",
)

# coder coderd/coderd.go AgentInactiveDisconnectTimeout: an agent that has not
# been heard of for this many seconds is not there, whatever was noted.
DISCONNECT_TIMEOUT: Final = 30.0

# codersdk: the default of coder_agent's connection_timeout, in seconds.
CONNECTION_TIMEOUT: Final = 120

NIL: Final = str(UUID(int=0))

# Of an owner in Coder (rbac RoleOwner), who is called admin here.
_OWNER_ROLE: Final = {"name": "owner", "display_name": "Owner"}

# States that an agent has after it began to stop.
_STOPPING: Final = frozenset(
    {
        LifecycleState.SHUTTING_DOWN,
        LifecycleState.SHUTDOWN_TIMEOUT,
        LifecycleState.SHUTDOWN_ERROR,
        LifecycleState.OFF,
    }
)
# States in which an agent has done with starting, one way or the other.
_STARTED: Final = frozenset(
    {
        LifecycleState.READY,
        LifecycleState.START_TIMEOUT,
        LifecycleState.START_ERROR,
    }
)


@dataclass(frozen=True, slots=True)
class AgentStatus:
    """Whether an agent is there.

    Attributes:
        word: ``connecting``, ``connected``, ``disconnected`` or ``timeout``.
        disconnected_at: Since when it is not, as far as is known.
    """

    word: str
    disconnected_at: datetime | None


def agent_status(agent: Agent, now: datetime) -> AgentStatus:
    """Whether an agent is there (coder ``modelmethods.go``, WorkspaceAgent.Status).

    Args:
        agent: With what is noted of its connections.
        now: The time of day.
    """
    gone_at, seen_at = agent.disconnected_at, agent.last_connected_at
    if agent.first_connected_at is None or seen_at is None:
        waited = (now - agent.created_at).total_seconds()
        return AgentStatus(
            "timeout" if waited > CONNECTION_TIMEOUT else "connecting", gone_at
        )
    if gone_at is not None and gone_at >= seen_at:
        return AgentStatus("disconnected", gone_at)
    if (now - seen_at).total_seconds() > DISCONNECT_TIMEOUT:
        return AgentStatus("disconnected", seen_at)
    return AgentStatus("connected", gone_at)


def agent_json(agent: Agent, now: datetime) -> Mapping[str, Any]:
    """An agent: ``codersdk.WorkspaceAgent``.

    Of its lifecycle only the last change is known, so there is ``started_at``
    until it is ready, and ``ready_at`` from then on.

    Args:
        agent: Any.
        now: The time of day.
    """
    status, lifecycle, startup = (
        agent_status(agent, now),
        agent.lifecycle,
        agent.startup,
    )
    times = {
        "first_connected_at": agent.first_connected_at,
        "last_connected_at": agent.last_connected_at,
        "disconnected_at": status.disconnected_at,
    }
    state = LifecycleState.CREATED
    if lifecycle is not None:
        state = lifecycle.state
        if state is LifecycleState.STARTING:
            times["started_at"] = lifecycle.changed_at
        elif state in _STARTED:
            times["ready_at"] = lifecycle.changed_at
    problem = _problem(status.word, state)
    return {
        "id": str(agent.id),
        "parent_id": agent.parent_id and str(agent.parent_id),
        "created_at": agent.created_at,
        "updated_at": agent.last_connected_at or agent.created_at,
        **{name: at for name, at in times.items() if at is not None},
        "status": status.word,
        "lifecycle_state": state.value,
        "name": agent.name,
        "resource_id": str(_resource_id(agent.workspace_id)),
        "architecture": agent.architecture,
        "environment_variables": {},
        "operating_system": agent.operating_system,
        "logs_length": 0,
        "logs_overflowed": False,
        "directory": agent.directory,
        "expanded_directory": "" if startup is None else startup.expanded_directory,
        "version": "" if startup is None else startup.version,
        "api_version": "",
        "apps": [],
        "connection_timeout_seconds": CONNECTION_TIMEOUT,
        "troubleshooting_url": "",
        "subsystems": [] if startup is None else list(startup.subsystems),
        "health": {"healthy": not problem, **({"reason": problem} if problem else {})},
        "display_apps": list(agent.display_apps),
        "log_sources": [],
        "scripts": [],
        "startup_script_behavior": "non-blocking",
    }


def _problem(status: str, state: LifecycleState) -> str:
    """What is wrong with an agent, in the words of coder ``db2sdk.go``."""
    if status != "connected" and state is LifecycleState.OFF:
        return "agent is not running"
    if status == "timeout":
        return "agent is taking too long to connect"
    if status == "disconnected":
        return "agent has lost connection"
    if state is LifecycleState.START_ERROR:
        return "agent startup script exited with an error"
    return "agent is shutting down" if state in _STOPPING else ""


def workspace_json(item: WorkspaceAgents, now: datetime) -> Mapping[str, Any]:
    """A workspace: ``codersdk.Workspace``.

    Args:
        item: The workspace and its agents.
        now: The time of day.
    """
    workspace = item.workspace
    created_at, workspace_id = workspace.created_at, str(workspace.id)
    agents = [agent_json(a, now) for a in item.agents]
    failing = [agent["id"] for agent in agents if not agent["health"]["healthy"]]
    build_id = str(uuid5(workspace.id, "build"))
    build = {
        "id": build_id,
        "created_at": created_at,
        "updated_at": created_at,
        "workspace_id": workspace_id,
        "workspace_name": workspace.name,
        "workspace_owner_id": str(workspace.owner_id),
        "workspace_owner_name": workspace.owner_name,
        # The command asks for this one: it has to exist.
        "template_version_id": NIL,
        "template_version_name": "",
        "build_number": 1,
        "transition": "start",
        "initiator_id": str(workspace.owner_id),
        "initiator_name": workspace.owner_name,
        # Without completed_at the command believes that the build is queued.
        "job": {
            "id": str(uuid5(workspace.id, "job")),
            "created_at": created_at,
            "started_at": created_at,
            "completed_at": created_at,
            "status": "succeeded",
            "file_id": NIL,
            "tags": {},
            "queue_position": 0,
            "queue_size": 0,
            "organization_id": NIL,
            "input": {},
            "type": "workspace_build",
            "metadata": {
                "template_version_name": "",
                "template_id": NIL,
                "template_name": "",
                "template_display_name": "",
                "template_icon": "",
            },
        },
        "reason": "initiator",
        "resources": [
            {
                "id": str(_resource_id(workspace.id)),
                "created_at": created_at,
                "job_id": str(uuid5(workspace.id, "job")),
                "workspace_transition": "start",
                "type": "tailnet",
                "name": workspace.name,
                "hide": False,
                "icon": "",
                "agents": agents,
                "daily_cost": 0,
            }
        ],
        "status": "running",
        "daily_cost": 0,
    }
    return {
        "id": workspace_id,
        "created_at": created_at,
        "updated_at": created_at,
        "owner_id": str(workspace.owner_id),
        "owner_name": workspace.owner_name,
        "owner_avatar_url": "",
        "organization_id": NIL,
        "organization_name": "",
        "template_id": NIL,
        "template_name": "",
        "template_display_name": "",
        "template_icon": "",
        "template_allow_user_cancel_workspace_jobs": False,
        "template_active_version_id": NIL,
        "template_require_active_version": False,
        "latest_build": build,
        "latest_app_status": None,
        "outdated": False,
        "name": workspace.name,
        "last_used_at": created_at,
        "deleting_at": None,
        "dormant_at": None,
        "health": {"healthy": not failing, "failing_agents": failing},
        "automatic_updates": "never",
        "allow_renames": False,
        "favorite": False,
        "next_start_at": None,
    }


def _resource_id(workspace_id: UUID) -> UUID:
    """Of the one resource of a workspace; the same for ever."""
    return uuid5(workspace_id, "resource")


def user_json(user: User) -> Mapping[str, Any]:
    """A user: ``codersdk.User``. There are no addresses to tell."""
    return {
        "id": str(user.id),
        "username": user.username,
        "name": "",
        "email": "",
        "created_at": user.created_at,
        "updated_at": user.created_at,
        "last_seen_at": user.created_at,
        "status": "active",
        "login_type": "token",
        "organization_ids": [],
        "roles": [_OWNER_ROLE] if user.is_admin else [],
    }

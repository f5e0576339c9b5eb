"""WorkspaceUpdates: what changed among one owner's workspaces and agents.

Coder's client applies a message in the order: upsert workspaces, delete agents,
delete workspaces, upsert agents; it fails on a reference to what it does not
know (``tailnet/controllers.go``). So a workspace is never deleted without its
agents, and no agent comes before its workspace.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TypeAlias
from uuid import UUID

from tailnet.control.proto import tailnet_pb2

__all__ = ("AgentState", "WorkspaceState", "WorkspaceUpdates")

_Status: TypeAlias = tailnet_pb2.Workspace.Status


@dataclass(frozen=True, slots=True)
class AgentState:
    """An agent, as an owner's client should know it."""

    id: UUID
    name: str


@dataclass(frozen=True, slots=True)
class WorkspaceState:
    """A workspace, as an owner's client should know it.

    Attributes:
        id: Its id.
        name: Its name.
        status: A ``Workspace.Status``.
        agents: Sub-agents too. An agent is in one workspace.
    """

    id: UUID
    name: str
    status: _Status = tailnet_pb2.Workspace.RUNNING
    agents: tuple[AgentState, ...] = ()


# An agent, and the id of its workspace.
_Place: TypeAlias = tuple[AgentState, UUID]


class WorkspaceUpdates:
    """Makes messages of snapshots, for one client."""

    def __init__(self) -> None:
        self._workspaces: dict[UUID, WorkspaceState] = {}
        self._agents: dict[UUID, _Place] = {}
        self._has_begun = False

    def update(
        self, snapshot: Iterable[WorkspaceState]
    ) -> tailnet_pb2.WorkspaceUpdate | None:
        """Compare with the last snapshot.

        Args:
            snapshot: All workspaces of the owner, each once.

        Returns:
            The message to send: everything at first, even if that is nothing,
            and then what changed. None if nothing did.
        """
        workspaces = {workspace.id: workspace for workspace in snapshot}
        agents = {
            agent.id: (agent, workspace.id)
            for workspace in workspaces.values()
            for agent in workspace.agents
        }
        message = tailnet_pb2.WorkspaceUpdate(
            upserted_workspaces=[
                _workspace(workspace)
                for workspace in workspaces.values()
                if _differs(self._workspaces.get(workspace.id), workspace)
            ],
            # One that moved is deleted where it was: the client keeps agents
            # within workspaces.
            deleted_agents=[
                _agent(place)
                for agent_id, place in self._agents.items()
                if agent_id not in agents or agents[agent_id][1] != place[1]
            ],
            deleted_workspaces=[
                _workspace(workspace)
                for workspace_id, workspace in self._workspaces.items()
                if workspace_id not in workspaces
            ],
            upserted_agents=[
                _agent(place)
                for agent_id, place in agents.items()
                if self._agents.get(agent_id) != place
            ],
        )
        self._workspaces, self._agents = workspaces, agents
        is_first, self._has_begun = not self._has_begun, True
        return message if is_first or message.ByteSize() else None


def _differs(old: WorkspaceState | None, new: WorkspaceState) -> bool:
    """Whether a workspace is another, its agents aside."""
    return old is None or (old.name, old.status) != (new.name, new.status)


def _workspace(workspace: WorkspaceState) -> tailnet_pb2.Workspace:
    return tailnet_pb2.Workspace(
        id=workspace.id.bytes, name=workspace.name, status=workspace.status
    )


def _agent(place: _Place) -> tailnet_pb2.Agent:
    agent, workspace_id = place
    return tailnet_pb2.Agent(
        id=agent.id.bytes, name=agent.name, workspace_id=workspace_id.bytes
    )

"""One owner's workspaces and agents, as the server tells of them; no I/O.

coder ``tailnet/controllers.go`` tunnelAllWorkspaceUpdatesController. A stream
of updates begins with everything there is. On a new connection it begins
again; here the difference is made, so that whoever follows the changes hears
of what was deleted while nobody listened.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass
from typing import TypeVar
from uuid import UUID

from google.protobuf.message import DecodeError

from tailnet.control.convert import uuid_from_proto
from tailnet.control.proto import tailnet_pb2
from tailnet.errors import RemoteProtocolError

__all__ = (
    "Workspace",
    "WorkspaceAgent",
    "WorkspaceChange",
    "WorkspaceStatus",
    "WorkspaceView",
)


T = TypeVar("T")


class WorkspaceStatus(enum.IntEnum):
    """Of a workspace's latest build (tailnet.proto Workspace.Status)."""

    UNKNOWN = 0  # also one that we do not know
    PENDING = 1
    STARTING = 2
    RUNNING = 3
    STOPPING = 4
    STOPPED = 5
    FAILED = 6
    CANCELING = 7
    CANCELED = 8
    DELETING = 9
    DELETED = 10

    @classmethod
    def _missing_(cls, value: object) -> WorkspaceStatus:
        return cls.UNKNOWN


@dataclass(frozen=True, slots=True)
class Workspace:
    """A workspace.

    Attributes:
        id: Who it is.
        name: Unique among its owner's.
        status: Of its latest build.
    """

    id: UUID
    name: str
    status: WorkspaceStatus


@dataclass(frozen=True, slots=True)
class WorkspaceAgent:
    """An agent.

    Attributes:
        id: Who it is at the coordinator.
        name: Unique in its workspace.
        workspace_id: Where it is.
    """

    id: UUID
    name: str
    workspace_id: UUID


@dataclass(frozen=True, slots=True)
class WorkspaceChange:
    """What has changed. To be applied in the order of the attributes.

    Attributes:
        upserted_workspaces: New, or changed.
        deleted_agents: As they were.
        deleted_workspaces: As they were; their agents are deleted too.
        upserted_agents: New, or changed.
    """

    upserted_workspaces: tuple[Workspace, ...] = ()
    deleted_agents: tuple[WorkspaceAgent, ...] = ()
    deleted_workspaces: tuple[Workspace, ...] = ()
    upserted_agents: tuple[WorkspaceAgent, ...] = ()

    def __bool__(self) -> bool:
        return bool(
            self.upserted_workspaces
            or self.deleted_agents
            or self.deleted_workspaces
            or self.upserted_agents
        )


class WorkspaceView:
    """What is known of one owner's workspaces."""

    def __init__(self) -> None:
        self._workspaces: dict[UUID, Workspace] = {}
        self._agents: dict[UUID, WorkspaceAgent] = {}
        self._expects_snapshot = True

    def connection_made(self) -> None:
        """The next message has everything there is."""
        self._expects_snapshot = True

    def receive_update(self, data: bytes) -> WorkspaceChange:
        """Take a message of the server.

        Raises:
            RemoteProtocolError: It is none, or it speaks of what is not there.
        """
        update = tailnet_pb2.WorkspaceUpdate()
        try:
            update.ParseFromString(data)
        except DecodeError as exc:
            raise RemoteProtocolError(
                "the server sent something that is no WorkspaceUpdate"
            ) from exc
        workspaces = dict(self._workspaces)
        agents = dict(self._agents)
        if self._expects_snapshot:
            workspaces, agents = {}, {}
        _apply(update, workspaces, agents)
        change = WorkspaceChange(
            upserted_workspaces=_new(self._workspaces, workspaces),
            deleted_agents=_gone(self._agents, agents),
            deleted_workspaces=_gone(self._workspaces, workspaces),
            upserted_agents=_new(self._agents, agents),
        )
        self._workspaces, self._agents = workspaces, agents
        self._expects_snapshot = False
        return change


def _apply(
    update: tailnet_pb2.WorkspaceUpdate,
    workspaces: dict[UUID, Workspace],
    agents: dict[UUID, WorkspaceAgent],
) -> None:
    """In Coder's order, with Coder's strictness."""
    for raw in update.upserted_workspaces:
        workspace_id = uuid_from_proto(raw.id)
        status = WorkspaceStatus(raw.status)
        workspaces[workspace_id] = Workspace(workspace_id, raw.name, status)
    for agent in update.deleted_agents:
        if agents.pop(uuid_from_proto(agent.id), None) is None:
            raise RemoteProtocolError("a deleted agent was not there")
    for raw in update.deleted_workspaces:
        workspace_id = uuid_from_proto(raw.id)
        if workspaces.pop(workspace_id, None) is None:
            raise RemoteProtocolError("a deleted workspace was not there")
        if any(agent.workspace_id == workspace_id for agent in agents.values()):
            raise RemoteProtocolError("a deleted workspace has agents")
    for agent in update.upserted_agents:
        agent_id = uuid_from_proto(agent.id)
        workspace_id = uuid_from_proto(agent.workspace_id)
        if workspace_id not in workspaces:
            raise RemoteProtocolError("an agent's workspace is not there")
        agents[agent_id] = WorkspaceAgent(agent_id, agent.name, workspace_id)


def _new(before: dict[UUID, T], after: dict[UUID, T]) -> tuple[T, ...]:
    return tuple(item for key, item in after.items() if before.get(key) != item)


def _gone(before: dict[UUID, T], after: dict[UUID, T]) -> tuple[T, ...]:
    return tuple(item for key, item in before.items() if key not in after)

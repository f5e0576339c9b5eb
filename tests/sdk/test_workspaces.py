"""Snapshots and differences of one owner's workspaces."""

from __future__ import annotations

from uuid import UUID

import pytest
from hypothesis import given, strategies as st

from tailnet.control.proto import tailnet_pb2
from tailnet.errors import RemoteProtocolError
from tailnet.sdk.workspaces import (
    Workspace,
    WorkspaceAgent,
    WorkspaceChange,
    WorkspaceStatus,
    WorkspaceView,
)

W1, W2 = (UUID(int=n) for n in (1, 2))
A1, A2 = (UUID(int=n) for n in (11, 12))


def workspace(key: UUID, name: str = "dev") -> tailnet_pb2.Workspace:
    return tailnet_pb2.Workspace(id=key.bytes, name=name, status="RUNNING")


def agent(key: UUID, parent: UUID, name: str = "main") -> tailnet_pb2.Agent:
    return tailnet_pb2.Agent(id=key.bytes, name=name, workspace_id=parent.bytes)


def update(**fields: object) -> bytes:
    return tailnet_pb2.WorkspaceUpdate(**fields).SerializeToString()  # type: ignore[arg-type]


def seen() -> WorkspaceView:
    """A view of two workspaces with an agent each."""
    view = WorkspaceView()
    view.receive_update(
        update(
            upserted_workspaces=[workspace(W1), workspace(W2)],
            upserted_agents=[agent(A1, W1), agent(A2, W2)],
        )
    )
    return view


def test_the_first_message_has_everything() -> None:
    change = WorkspaceView().receive_update(
        update(upserted_workspaces=[workspace(W1)], upserted_agents=[agent(A1, W1)])
    )
    assert change == WorkspaceChange(
        upserted_workspaces=(Workspace(W1, "dev", WorkspaceStatus.RUNNING),),
        upserted_agents=(WorkspaceAgent(A1, "main", W1),),
    )
    assert change
    assert not WorkspaceView().receive_update(b"")


def test_differences() -> None:
    view = seen()
    change = view.receive_update(
        update(
            upserted_workspaces=[workspace(W1, "new name"), workspace(W2)],
            deleted_agents=[agent(A2, W2)],
            deleted_workspaces=[workspace(W2)],
        )
    )
    assert [w.name for w in change.upserted_workspaces] == ["new name"]
    assert change.deleted_agents == (WorkspaceAgent(A2, "main", W2),)
    assert [w.id for w in change.deleted_workspaces] == [W2]
    assert change.upserted_agents == ()


def test_a_new_connection_begins_again_and_only_the_difference_counts() -> None:
    view = seen()
    view.connection_made()
    change = view.receive_update(
        update(
            upserted_workspaces=[workspace(W2)],
            upserted_agents=[agent(A2, W2, "renamed")],
        )
    )
    assert change.upserted_workspaces == ()
    assert [w.id for w in change.deleted_workspaces] == [W1]
    assert [a.id for a in change.deleted_agents] == [A1]
    assert change.upserted_agents == (WorkspaceAgent(A2, "renamed", W2),)
    # The message after it is a difference again.
    assert not view.receive_update(update(upserted_workspaces=[workspace(W2)]))


def test_a_status_of_the_future() -> None:
    raw = workspace(W1)
    raw.MergeFromString(b"\x18\x63")
    change = WorkspaceView().receive_update(update(upserted_workspaces=[raw]))
    assert change.upserted_workspaces[0].status is WorkspaceStatus.UNKNOWN


@pytest.mark.parametrize(
    ("data", "problem"),
    [
        (b"\xff", "no WorkspaceUpdate"),
        (update(deleted_agents=[agent(UUID(int=9), W1)]), "agent was not there"),
        (update(deleted_workspaces=[workspace(UUID(int=9))]), "workspace was not"),
        (update(deleted_workspaces=[workspace(W1)]), "has agents"),
        (update(upserted_agents=[agent(A1, UUID(int=9))]), "workspace is not there"),
        (update(upserted_workspaces=[tailnet_pb2.Workspace(id=b"x")]), "invalid UUID"),
    ],
)
def test_updates_that_make_no_sense_change_nothing(data: bytes, problem: str) -> None:
    view = seen()
    with pytest.raises(RemoteProtocolError, match=problem):
        view.receive_update(data)
    assert not view.receive_update(update(upserted_workspaces=[workspace(W1)]))


@given(data=st.binary(max_size=80))
def test_any_bytes_are_a_change_or_an_error(data: bytes) -> None:
    try:
        seen().receive_update(data)
    except RemoteProtocolError:
        pass

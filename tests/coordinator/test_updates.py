"""WorkspaceUpdates: differences, in an order that a client can apply."""

from __future__ import annotations

from uuid import UUID

from hypothesis import given, strategies as st

from tailnet.control.proto import tailnet_pb2
from tailnet.coordinator.updates import AgentState, WorkspaceState, WorkspaceUpdates

RUNNING = tailnet_pb2.Workspace.RUNNING
STOPPED = tailnet_pb2.Workspace.STOPPED

W1, W2, A1, A2 = (UUID(int=number) for number in range(1, 5))


def workspace(
    workspace_id: UUID,
    *agents: AgentState,
    name: str = "w",
    status: tailnet_pb2.Workspace.Status = RUNNING,
) -> WorkspaceState:
    return WorkspaceState(workspace_id, name, status, agents)


def agent(agent_id: UUID, name: str = "a") -> AgentState:
    return AgentState(agent_id, name)


def summary(message: tailnet_pb2.WorkspaceUpdate | None) -> dict[str, list[object]]:
    assert message is not None
    found: dict[str, list[object]] = {}
    for w in message.upserted_workspaces:
        found.setdefault("upserted", []).append((UUID(bytes=w.id), w.name, w.status))
    for w in message.deleted_workspaces:
        found.setdefault("deleted", []).append(UUID(bytes=w.id))
    for a in message.upserted_agents:
        place = (UUID(bytes=a.id), a.name, UUID(bytes=a.workspace_id))
        found.setdefault("upserted agents", []).append(place)
    for a in message.deleted_agents:
        place_of = (UUID(bytes=a.id), UUID(bytes=a.workspace_id))
        found.setdefault("deleted agents", []).append(place_of)
    return found


def test_the_first_message_is_complete() -> None:
    updates = WorkspaceUpdates()
    assert summary(updates.update([workspace(W1, agent(A1)), workspace(W2)])) == {
        "upserted": [(W1, "w", RUNNING), (W2, "w", RUNNING)],
        "upserted agents": [(A1, "a", W1)],
    }


def test_the_first_message_may_be_empty() -> None:
    updates = WorkspaceUpdates()
    assert summary(updates.update([])) == {}
    assert updates.update([]) is None


def test_no_difference_is_no_message() -> None:
    updates = WorkspaceUpdates()
    updates.update([workspace(W1, agent(A1)), workspace(W2)])
    assert updates.update([workspace(W2), workspace(W1, agent(A1))]) is None


def test_an_agent_comes_and_goes() -> None:
    updates = WorkspaceUpdates()
    updates.update([workspace(W1)])
    assert summary(updates.update([workspace(W1, agent(A1))])) == {
        "upserted agents": [(A1, "a", W1)]
    }
    assert summary(updates.update([workspace(W1)])) == {"deleted agents": [(A1, W1)]}


def test_a_workspace_goes_with_its_agents() -> None:
    updates = WorkspaceUpdates()
    updates.update([workspace(W1, agent(A1), agent(A2))])
    assert summary(updates.update([])) == {
        "deleted": [W1],
        "deleted agents": [(A1, W1), (A2, W1)],
    }


def test_renamed_and_stopped() -> None:
    updates = WorkspaceUpdates()
    updates.update([workspace(W1, agent(A1)), workspace(W2)])
    after = [workspace(W1, agent(A1, "b"), name="x"), workspace(W2, status=STOPPED)]
    assert summary(updates.update(after)) == {
        "upserted": [(W1, "x", RUNNING), (W2, "w", STOPPED)],
        "upserted agents": [(A1, "b", W1)],
    }


def test_an_agent_moves() -> None:
    updates = WorkspaceUpdates()
    updates.update([workspace(W1, agent(A1))])
    assert summary(updates.update([workspace(W2, agent(A1))])) == {
        "upserted": [(W2, "w", RUNNING)],
        "deleted": [W1],
        "deleted agents": [(A1, W1)],
        "upserted agents": [(A1, "a", W2)],
    }


# -- any snapshots, as Coder's client applies them --------------------------

SNAPSHOT = st.dictionaries(
    st.integers(0, 4),  # agent
    st.tuples(st.integers(10, 13), st.sampled_from("ab")),  # workspace, name
    max_size=5,
).flatmap(
    lambda places: st.tuples(
        st.just(places), st.dictionaries(st.integers(10, 13), st.sampled_from("xy"))
    )
)


@given(st.lists(SNAPSHOT, max_size=5))
def test_any_snapshots(
    snapshots: list[tuple[dict[int, tuple[int, str]], dict[int, str]]],
) -> None:
    updates = WorkspaceUpdates()
    known: dict[bytes, tuple[str, int]] = {}
    known_agents: dict[bytes, dict[bytes, str]] = {}
    for places, names in snapshots:
        ids = sorted(names.keys() | {place[0] for place in places.values()})
        states = [
            WorkspaceState(
                UUID(int=workspace_id),
                names.get(workspace_id, "w"),
                RUNNING,
                tuple(
                    AgentState(UUID(int=agent_id), name)
                    for agent_id, (where, name) in places.items()
                    if where == workspace_id
                ),
            )
            for workspace_id in ids
        ]
        message = updates.update(states) or tailnet_pb2.WorkspaceUpdate()
        for w in message.upserted_workspaces:
            known[w.id] = (w.name, w.status)
            known_agents.setdefault(w.id, {})
        for a in message.deleted_agents:
            del known_agents[a.workspace_id][a.id]
        for w in message.deleted_workspaces:
            del known[w.id]
            assert known_agents.pop(w.id) == {}
        for a in message.upserted_agents:
            known_agents[a.workspace_id][a.id] = a.name
        assert known == {s.id.bytes: (s.name, s.status) for s in states}
        assert known_agents == {
            s.id.bytes: {a.id.bytes: a.name for a in s.agents} for s in states
        }

from __future__ import annotations

from uuid import UUID

from relay.api.peer import ApiPeer
from tailnet.coordinator.auth import AgentAuth


def test_an_agent_is_nobodys_client() -> None:
    agent_id = UUID(int=1)
    peer = ApiPeer(agent_id, "a-b-c", "agent", AgentAuth(agent_id))
    assert peer.user is None

"""A peer of the coordinator, as an endpoint lets it in."""

from __future__ import annotations

from dataclasses import dataclass
from uuid import UUID

from relay.store.model import User
from tailnet.coordinator.auth import TunnelAuth

__all__ = ("ApiPeer",)


@dataclass(frozen=True, slots=True)
class ApiPeer:
    """Who talks to the Tailnet service on one connection.

    Attributes:
        id: Of the peer; an agent's is that of the agent.
        name: For the debug page.
        kind: ``agent`` or ``client``.
        auth: Which tunnels and nodes it may have.
        user: Whose client it is; None for an agent.
    """

    id: UUID
    name: str
    kind: str
    auth: TunnelAuth
    user: User | None = None

"""stopgap"""
from __future__ import annotations
from collections.abc import Awaitable, Callable
from typing import Protocol
from uuid import UUID
from tailnet.control.proto import tailnet_pb2
from tailnet.errors import AuthorizationError

class TunnelAuth(Protocol):
    async def authorize(self, request: tailnet_pb2.CoordinateRequest) -> None: ...

class AgentAuth:
    def __init__(self, agent_id: UUID) -> None:
        self.agent_id = agent_id
    async def authorize(self, request: tailnet_pb2.CoordinateRequest) -> None:
        return

class ClientAuth(AgentAuth):
    pass

class UserAuth:
    def __init__(self, may_connect: Callable[[UUID], Awaitable[bool]]) -> None:
        self.may_connect = may_connect
    async def authorize(self, request: tailnet_pb2.CoordinateRequest) -> None:
        if request.HasField("add_tunnel") and not await self.may_connect(UUID(bytes=request.add_tunnel.id)):
            raise AuthorizationError("workspace agent not found or you do not have permission")

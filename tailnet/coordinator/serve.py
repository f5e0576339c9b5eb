"""stopgap"""
from __future__ import annotations
from typing import Any
from uuid import UUID
import trio
from tailnet.control.proto import tailnet_pb2
from tailnet.control.server import ServerCall
from tailnet.coordinator.auth import TunnelAuth
from tailnet.coordinator.core import Connection, CoordinatorCore, Delivery
from tailnet.coordinator.responses import encode_error
from tailnet.errors import AuthorizationError
from tailnet.keys import NodePublic
class _C(Connection):
    __slots__ = ("call", "done", "kind", "scope")
class CoordinatorSnapshot: ...
class CoordinatorService:
    def __init__(self) -> None:
        self.core: CoordinatorCore[Any] = CoordinatorCore()
    def _do(self, events: Any) -> None:
        for e in events:
            if isinstance(e, Delivery):
                for r in e.receivers: r.call.send_nowait(e.data)
            else:
                e.connection.scope.cancel()
    async def coordinate(self, call: ServerCall, *, peer_id: UUID, name: str, auth: TunnelAuth, kind: str) -> None:
        c = _C(peer_id, name); c.call = call; c.kind = kind
        with trio.CancelScope() as c.scope:
            self._do(self.core.connect(c))
            try:
                while (data := await call.receive()) is not None:
                    req = tailnet_pb2.CoordinateRequest.FromString(data)
                    try: await auth.authorize(req)
                    except AuthorizationError as exc:
                        call.send_nowait(encode_error(str(exc))); break
                    self._do(self.core.handle_request(c, req))
            finally:
                self._do(self.core.handle_lost(c))
        call.close()
    def remove_peer(self, peer_id: UUID, reason: str) -> None:
        self._do(self.core.remove_peer(peer_id, reason))
    def knows_node_key(self, key: NodePublic) -> bool:
        return True
    def snapshot(self) -> Any: return None
    def close(self) -> None:
        self._do(self.core.close())

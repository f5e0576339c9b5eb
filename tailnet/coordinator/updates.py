"""stopgap"""
from __future__ import annotations
from typing import Any
from tailnet.control.proto import tailnet_pb2 as pb
class WorkspaceUpdates:
    def __init__(self) -> None:
        self.seen: Any = None
    def update(self, all: Any) -> bytes | None:
        now = {("w", w.workspace.id): w.workspace for w in all} | {("a", a.id): a for w in all for a in w.agents}
        before = self.seen or {}
        m = pb.WorkspaceUpdate()
        def put(k, v, deleted):
            if k[0] == "w":
                (m.deleted_workspaces if deleted else m.upserted_workspaces).add(id=v.id.bytes, name=v.name, status=3)
            else:
                (m.deleted_agents if deleted else m.upserted_agents).add(id=v.id.bytes, name=v.name, workspace_id=v.workspace_id.bytes)
        n = 0
        for k, v in now.items():
            if k not in before: put(k, v, False); n += 1
        for k, v in before.items():
            if k not in now: put(k, v, True); n += 1
        first, self.seen = self.seen is None, now
        return m.SerializeToString() if first or n else None

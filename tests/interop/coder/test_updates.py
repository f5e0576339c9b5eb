"""WorkspaceUpdates as Coder's own dRPC client receives them."""

from __future__ import annotations

import base64
import json
import uuid
from collections.abc import Sequence
from pathlib import Path

import trio

from tests.interop.coder.peers import JsonLines, run_rpc
from tests.interop.coder.servers import Agent, Json, Server, ServerKind, open_server
from tests.interop.programs import clean_environment, free_port, open_program
from tests.interop.tools import find_coder_program


def ids(update: Json, field: str, key: str = "id") -> list[str]:
    return [
        str(uuid.UUID(bytes=base64.b64decode(entry[key])))
        for entry in update.get(field, ())
    ]


def check(update: Json, *, upserted: Sequence[Agent], deleted: Sequence[Agent]) -> None:
    """An update has these agents with their workspaces, and nothing else."""
    for verb, agents in (("upserted", upserted), ("deleted", deleted)):
        workspaces = f"{verb}_workspaces"
        assert ids(update, workspaces) == [agent.workspace_id for agent in agents]
        assert [w["name"] for w in update.get(workspaces, ())] == [
            agent.workspace for agent in agents
        ]
        found = f"{verb}_agents"
        assert ids(update, found) == [agent.id for agent in agents]
        assert ids(update, found, "workspace_id") == [
            agent.workspace_id for agent in agents
        ]


async def test_snapshot_then_differences(kind: ServerKind, tmp_path: Path) -> None:
    with trio.fail_after(60):
        async with open_server(
            kind, tmp_path / "server", host="127.0.0.1", port=free_port(), agents=2
        ) as server:
            await follow(server, tmp_path)


async def follow(server: Server, folder: Path) -> None:
    script = folder / "steps"
    steps: list[Json] = [
        {"op": "updates", "owner": server.owner.id},
        {"op": "wait", "event": "updates", "count": 99, "seconds": 60},
    ]
    script.write_text("".join(json.dumps(step) + "\n" for step in steps))
    output = folder / "lines"
    async with open_program(
        find_coder_program("coderrpc"),
        *("--url", server.url, "--token", server.owner.token),
        log_file=folder / "log",
        stdin=script,
        stdout=output,
        env=clean_environment(folder / "home"),
    ) as program:
        lines = JsonLines(program, output)

        def updates() -> list[Json]:
            return [li["message"] for li in lines.lines() if li["event"] == "updates"]

        async def difference(seen: int, field: str) -> tuple[Json, int]:
            """Messages after the first ``seen``, up to one that has ``field``.

            A workspace and its agent may come at once, or one after the other.
            """
            await lines.wait_line(
                lambda _: any(field in message for message in updates()[seen:]), field
            )
            messages = updates()
            merged: Json = {}
            for message in messages[seen:]:
                for name, entries in message.items():
                    merged.setdefault(name, []).extend(entries)
            return merged, len(messages)

        snapshot, seen = await difference(0, "upserted_agents")
        check(snapshot, upserted=server.agents, deleted=())
        assert {w["status"] for w in snapshot["upserted_workspaces"]} == {"RUNNING"}
        added = await server.add_workspace("later")
        change, seen = await difference(seen, "upserted_agents")
        check(change, upserted=[added], deleted=())
        first = server.agents[0]
        await server.delete_workspace(first.workspace)
        change, _ = await difference(seen, "deleted_agents")
        check(change, upserted=(), deleted=[first])


async def test_other_owner(kind: ServerKind, tmp_path: Path) -> None:
    """Who may not watch learns nothing: the stream ends without an update."""
    with trio.fail_after(60):
        async with open_server(
            kind, tmp_path / "server", host="127.0.0.1", port=free_port()
        ) as server:
            lines = await run_rpc(
                server,
                tmp_path / "rpc",
                *("--token", server.stranger.token),
                steps=[
                    {"op": "updates", "owner": server.owner.id},
                    {"op": "wait", "event": "updates_end"},
                ],
            )
    assert [line["event"] for line in lines] == ["connected", "updates_end"]

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
        {"op": "wait", "event": "updates", "count": 3, "seconds": 30},
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

        async def update(number: int) -> Json:
            def updates() -> list[Json]:
                return [li for li in lines.lines() if li["event"] == "updates"]

            await lines.wait_line(lambda _: len(updates()) > number, f"{number=}")
            message: Json = updates()[number]["message"]
            return message

        check(await update(0), upserted=server.agents, deleted=())
        statuses = {w["status"] for w in (await update(0))["upserted_workspaces"]}
        assert statuses == {"RUNNING"}
        added = await server.add_workspace("later")
        check(await update(1), upserted=[added], deleted=())
        first = server.agents[0]
        await server.delete_workspace(first.workspace)
        check(await update(2), upserted=(), deleted=[first])
        await program.wait_success(timeout=10)


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

"""An agent that is deleted while it is connected, of a server of ours."""

from __future__ import annotations

from pathlib import Path

import trio

from tests.interop.coder.peers import open_agent, run_client
from tests.interop.coder.servers import ServerKind, open_server
from tests.interop.network import RELAY, Network
from tests.interop.tools import find_coder_program, needs


async def test_deleted_agent_is_cut_off(network: Network, tmp_path: Path) -> None:
    needs(find_coder_program, "coderclient")
    with trio.fail_after(60):
        async with (
            open_server(
                ServerKind.OURS,
                tmp_path / "server",
                host=RELAY,
                port=8080,
                agents=2,
                wrapper=network.enter(network.r),
            ) as server,
            open_agent(
                server, tmp_path / "deleted", wrapper=network.enter(network.a)
            ) as deleted,
            open_agent(
                *(server, tmp_path / "kept"),
                number=1,
                wrapper=network.enter(network.a),
            ) as kept,
        ):
            await server.delete_workspace(server.agent.workspace)
            await deleted.wait_event("disconnected")
            # It asks again, for ever, and is told why not.
            refused = await deleted.wait_event("refused")
            assert "unexpected status code 401" in refused["error"]
            assert not kept.events("disconnected")

            report = await run_client(
                *(server, deleted, tmp_path / "client"),
                *("--wait", "5s"),
                wrapper=network.enter(network.b),
            )
            assert not report["ok"]
            assert report["status"] == 404
            assert "Agent doesn't exist" in report["response"]["message"]

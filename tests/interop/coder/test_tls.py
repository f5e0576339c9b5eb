"""Real peers of a server of ours that speaks HTTPS itself.

The reference is not asked: it is behind HTTP, as Coder's server often is.
"""

from __future__ import annotations

from pathlib import Path

import trio

from tests.interop.coder.peers import open_agent, run_client
from tests.interop.coder.servers import ServerKind, open_server
from tests.interop.network import RELAY, Network
from tests.interop.tools import find_coder_program, needs


async def test_relayed_over_https(network: Network, tmp_path: Path) -> None:
    needs(find_coder_program, "coderclient")
    with trio.fail_after(60):
        async with (
            open_server(
                ServerKind.OURS,
                tmp_path / "server",
                host=RELAY,
                port=443,
                tls=True,
                wrapper=network.enter(network.r),
            ) as server,
            open_agent(
                server, tmp_path / "agent", wrapper=network.enter(network.a)
            ) as agent,
        ):
            report = await run_client(
                *(server, agent, tmp_path / "client"),
                *("--block-endpoints", "--echo-bytes", "1000000"),
                *("--sink-bytes", "5000000", "--hold", "500ms"),
                wrapper=network.enter(network.b),
            )
            assert report["ok"], report
            assert report["path"] == "derp"
            assert report["echo"]["equal"]
            assert report["sink"]["equal"]
            # HTTP/2 is not what they agreed on: that would have made them
            # take websockets.
            assert not report["node"]["derp_forced_websocket"]
            assert not agent.events("node")[-1]["derp_forced_websocket"]

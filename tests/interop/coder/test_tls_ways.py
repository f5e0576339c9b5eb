"""Paths between real peers of a server of ours that speaks HTTPS itself."""

from __future__ import annotations

from pathlib import Path

import pytest
import trio

from tests.interop.coder.inside import open_inside
from tests.interop.coder.peers import open_agent, run_client
from tests.interop.coder.servers import ServerKind, open_server
from tests.interop.network import HOST_A, RELAY, Network
from tests.interop.tools import find_coder_program, needs

ECHO = 1_000_000


@pytest.mark.parametrize("forced", [False, True], ids=["direct", "websockets_forced"])
async def test_way(network: Network, tmp_path: Path, forced: bool) -> None:
    needs(find_coder_program, "coderclient")
    in_r = network.enter(network.r)
    with trio.fail_after(90):
        async with (
            open_server(
                ServerKind.OURS,
                tmp_path / "server",
                # Its counters are for its own machine alone.
                host="0.0.0.0",
                port=443,
                access_url=f"https://{RELAY}:443",
                force_websockets=forced,
                tls=True,
                wrapper=in_r,
            ) as server,
            open_agent(
                server, tmp_path / "agent", wrapper=network.enter(network.a)
            ) as agent,
        ):
            inside = await open_inside(server, tmp_path / "inside", wrapper=in_r)
            report = await run_client(
                *(server, agent, tmp_path / "client"),
                *("--echo-bytes", str(ECHO), "--echo-rounds", "100"),
                *("--udp", "10", "--sink-bytes", "5000000", "--hold", "500ms"),
                # Where websockets are the point, they carry the bytes.
                *(["--block-endpoints"] if forced else ["--path", "p2p"]),
                wrapper=network.enter(network.b),
            )
            assert report["ok"], report
            assert report["echo"]["equal"]
            assert report["echo"]["bytes"] == ECHO
            assert report["sink"]["equal"]
            assert report["echo_rounds"]["count"] == 100
            assert report["udp"]["count"] == 10
            last = report["pings"][-1]
            counters = await inside.counters()
            if forced:
                assert {ping["path"] for ping in report["pings"]} == {"derp"}
                # Once for each of them, and nothing but that.
                assert counters["derp_websocket_accepts"] == 2
                assert counters["derp_accepts"] == 2
                assert counters["derp_bytes_received"] > ECHO + 5_000_000
            else:
                assert last["path"] == "p2p"
                assert last["endpoint"].startswith(f"{HOST_A}:")
                assert counters["derp_websocket_accepts"] == 0
                assert counters["derp_bytes_received"] < ECHO
            # Each of them was sent to the HTTPS that they know.
            assert agent.events("manifest")[-1]["derp_force_websockets"] is forced

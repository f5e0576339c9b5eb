"""The server goes without a word and comes back as the same one."""

from __future__ import annotations

from contextlib import AsyncExitStack
from pathlib import Path

import pytest
import trio

from tests.interop.coder.peers import open_agent, open_client, report_of, run_client
from tests.interop.coder.servers import Server, ServerKind, open_server
from tests.interop.network import RELAY, Network

PORT = 8080
AWAY = 2.0  # seconds, and what it takes a server to start
# No packet of a direct session depends on the server.
DIRECT_GAP_MS = 1_000


@pytest.mark.slow
@pytest.mark.parametrize("path", ["p2p", "derp"])
async def test_open_connection_survives(
    kind: ServerKind, network: Network, tmp_path: Path, path: str
) -> None:
    async def start(stack: AsyncExitStack) -> Server:
        opened = open_server(
            kind,
            tmp_path / "server",
            host=RELAY,
            port=PORT,
            wrapper=network.enter(network.r),
        )
        return await stack.enter_async_context(opened)

    in_b = network.enter(network.b)
    flags = ("--path", "p2p") if path == "p2p" else ("--block-endpoints",)
    # TCP through the relay would not show what it is about: Coder's gives up
    # after five retransmissions, and a slow machine takes as long to start.
    watch = ("--echo-for", "8s") if path == "p2p" else ("--udp-for", "15s")
    with trio.fail_after(110):
        async with AsyncExitStack() as stack:
            server = await start(stack)
            agent = await stack.enter_async_context(
                open_agent(server, tmp_path / "agent", wrapper=network.enter(network.a))
            )
            client = await stack.enter_async_context(
                open_client(
                    *(server, agent, tmp_path / "client"),
                    *watch,
                    *flags,
                    wrapper=in_b,
                )
            )
            await client.wait_line(
                lambda line: line.get("event") == "echoing", "echoing"
            )
            await server.program.kill()
            await agent.wait_event("disconnected")
            await trio.sleep(AWAY)
            server = await start(stack)
            await agent.wait_event("connected", 2, timeout=20)

            report = await report_of(client)
            assert report["ok"], report
            assert report["path"] == path
            if path == "p2p":
                assert report["echo_for"]["worst_gap_ms"] < DIRECT_GAP_MS
            else:
                # It was really gone, and came back.
                assert report["udp_for"]["worst_gap_ms"] >= AWAY * 1000

            # A new client finds the agent as if nothing had been.
            report = await run_client(
                *(server, agent, tmp_path / "client"),
                *("--echo-bytes", "100000"),
                *flags,
                wrapper=in_b,
            )
            assert report["ok"], report
            assert report["path"] == path


@pytest.mark.slow
async def test_agent_that_was_killed_comes_back(
    kind: ServerKind, network: Network, tmp_path: Path
) -> None:
    """Its new keys replace the old ones for the clients that come then."""
    in_a, in_b = network.enter(network.a), network.enter(network.b)
    with trio.fail_after(80):
        async with open_server(
            kind,
            tmp_path / "server",
            host=RELAY,
            port=PORT,
            wrapper=network.enter(network.r),
        ) as server:
            for number in range(2):
                folder = tmp_path / f"agent-{number}"
                async with open_agent(server, folder, wrapper=in_a) as agent:
                    report = await run_client(
                        *(server, agent, tmp_path / "client"),
                        *("--echo-bytes", "100000"),
                        wrapper=in_b,
                    )
                    assert report["ok"], report
                    await agent.program.kill()

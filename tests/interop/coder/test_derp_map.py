"""A DERP map that changes while everybody is connected, of a server of ours."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Final

import trio

from tests.interop.coder.peers import JsonLines, open_agent, run_client
from tests.interop.coder.servers import ROOT, Json, ServerKind, open_server
from tests.interop.network import RELAY, Network
from tests.interop.programs import open_program
from tests.interop.tools import find_coder_program, needs

PORT: Final = 8080
PROMPT: Final = 5.0  # seconds until everybody has a new map


def map_with(ports: Mapping[int, int]) -> str:
    """A DERP map with a relay on each port; nobody need be there."""
    regions: Json = {}
    for region, port in ports.items():
        node: Json = {
            "Name": f"{region}a",
            "RegionID": region,
            "HostName": RELAY,
            "IPv4": RELAY,
            "DERPPort": port,
            "STUNPort": -1,
            "ForceHTTP": True,
        }
        regions[str(region)] = {
            "RegionID": region,
            "RegionCode": f"r{region}",
            "RegionName": f"Region {region}",
            "Nodes": [node],
        }
    return json.dumps({"Regions": regions})


def has(event: str, ports: Json) -> Callable[[Json], bool]:
    return lambda line: line["event"] == event and line["ports"] == ports


async def test_a_change_reaches_everybody(network: Network, tmp_path: Path) -> None:
    needs(find_coder_program, "coderclient")
    map_file, output = tmp_path / "map.json", tmp_path / "maps.jsonl"
    map_file.write_text(map_with({901: 9001}))
    with trio.fail_after(90):
        async with (
            open_server(
                ServerKind.OURS,
                tmp_path / "server",
                host=RELAY,
                port=PORT,
                flags=("--derp-config-path", str(map_file)),
                wrapper=network.enter(network.r),
            ) as server,
            open_agent(
                server, tmp_path / "agent", wrapper=network.enter(network.a)
            ) as agent,
            open_program(
                *network.enter(network.b),
                *(sys.executable, "-m", "tests.interop.coder.map_program"),
                *(server.url, server.owner.token, server.agent.id),
                log_file=tmp_path / "maps.log",
                stdout=output,
                cwd=ROOT,
                name="listeners to DERP maps",
            ) as program,
        ):
            others = JsonLines(program, output)

            async def all_have(ports: Mapping[int, int], timeout: float) -> None:
                wanted = {str(region): port for region, port in ports.items()}
                async with trio.open_nursery() as nursery:
                    for lines, event in (
                        (agent, "derp_map"),
                        (others, "sdk"),
                        (others, "v1"),
                    ):
                        what = f"{event} with {wanted}"
                        nursery.start_soon(
                            partial(lines.wait_line, timeout=timeout),
                            has(event, wanted),
                            what,
                        )

            await all_have({999: PORT, 901: 9001}, 20)
            # Another region, another port, and one region less.
            for custom in ({901: 9001, 902: 9002}, {901: 9009, 902: 9002}, {902: 9002}):
                map_file.write_text(map_with(custom))
                await all_have({999: PORT, **custom}, PROMPT)

            # Nobody hung up for any of it, or is told of what is no map.
            map_file.write_text("{")
            await server.program.wait_log("a broken DERP map")
            assert not agent.events("disconnected")
            assert len(agent.events("derp_map")) == 4
            for event in ("sdk", "v1"):
                heard = [line for line in others.lines() if line["event"] == event]
                assert len(heard) == 4
            report = await run_client(
                *(server, agent, tmp_path / "client"),
                *("--block-endpoints", "--echo-bytes", "10000"),
                wrapper=network.enter(network.b),
            )
            assert report["ok"], report

"""Many clients of one agent: each is told of each of its nodes, in order."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.interop.coder.servers import Json, ServerKind, open_server
from tests.interop.network import RELAY, Network
from tests.interop.programs import clean_environment, run_program
from tests.interop.tools import find_coder_program

UPDATES = 20


@pytest.mark.parametrize(
    ("mode", "clients"), [("raw", 300), ("drpc", 40), ("sdk", 5)], ids=lambda v: f"{v}"
)
async def test_everybody_is_told(
    kind: ServerKind, network: Network, tmp_path: Path, mode: str, clients: int
) -> None:
    (runs := tmp_path / "runs").mkdir()
    async with open_server(
        kind,
        tmp_path / "server",
        host=RELAY,
        port=8080,
        wrapper=network.enter(network.r),
    ) as server:
        done = await run_program(
            # Not on the server's machine: a real client on one that has
            # nothing but loopback believes that there is no network.
            *network.enter(network.b),
            find_coder_program("codercrowd"),
            *("--url", server.url),
            *("--token", server.owner.token),
            *("--agent", server.agent.id, "--agent-token", server.agent.token),
            *("--mode", mode, "--clients", str(clients)),
            *("--updates", str(UPDATES), "--interval", "5ms"),
            folder=runs,
            timeout=60,
            env=clean_environment(tmp_path / "home"),
        )
    report: Json = json.loads(done.stdout)
    assert done.returncode == 0, report
    # A client that is slow to take one node may get the next in its place.
    assert report["deliveries"] >= clients
    assert report["deliveries"] + report["skipped"] == clients * UPDATES

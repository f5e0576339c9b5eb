"""A real agent and a real client, by each way that there is between them."""

from __future__ import annotations

import enum
from dataclasses import dataclass
from pathlib import Path

import pytest
import trio

from tests.interop.coder.peers import (
    AgentProgram,
    Front,
    open_agent,
    open_front,
    run_client,
)
from tests.interop.coder.servers import Json, ServerKind, open_server
from tests.interop.network import HOST_A, HOST_B, RELAY, Network

PORT = 8080
BEHIND = 8081  # where the server listens behind the front
REGION = 999  # of the relay in the server's own DERP map
ECHO = 1_000_000
# A handshake that is lost since READY_FOR_HANDSHAKE was not relayed is tried
# again after 5 s (wireguard-go, RekeyTimeout).
PROMPT_MS = 4000


class Way(enum.Enum):
    DIRECT = "direct"
    DIRECT_BLOCKED = "direct paths disabled by the server"
    ENDPOINTS_BLOCKED = "endpoints blocked by the client"
    WEBSOCKETS_FORCED = "websockets forced by the server"
    FALLBACK = "websockets after a 426"


@dataclass(slots=True)
class Session:
    """What one agent and one client did."""

    report: Json
    agent: AgentProgram
    front: Front

    def upgrades(self, address: str) -> list[str]:
        """What a machine wanted ``/derp`` to become, in order."""
        return [r["upgrade"] for r in self.front.requests("/derp", peer=address)]

    @property
    def agent_node(self) -> Json:
        """The agent's node as it published it last."""
        return self.agent.events("node")[-1]


async def run_session(
    kind: ServerKind, network: Network, folder: Path, way: Way
) -> Session:
    in_r = network.enter(network.r)
    # Where websockets are the point, they carry the bytes: no direct path.
    client_flags = {
        Way.DIRECT: ("--path", "p2p"),
        Way.DIRECT_BLOCKED: (),
    }.get(way, ("--block-endpoints",))
    async with (
        open_front(
            folder / "front",
            listen=f"{RELAY}:{PORT}",
            server=f"{RELAY}:{BEHIND}",
            refuse_derp=way is Way.FALLBACK,
            wrapper=in_r,
        ) as front,
        open_server(
            kind,
            folder / "server",
            host=RELAY,
            port=BEHIND,
            access_url=f"http://{RELAY}:{PORT}",
            block_direct=way is Way.DIRECT_BLOCKED,
            force_websockets=way is Way.WEBSOCKETS_FORCED,
            wrapper=in_r,
        ) as server,
        open_agent(server, folder / "agent", wrapper=network.enter(network.a)) as agent,
    ):
        report = await run_client(
            server,
            agent,
            folder / "client",
            *("--echo-bytes", str(ECHO)),
            *("--echo-rounds", "100"),
            *("--udp", "10"),
            *("--sink-bytes", "5000000"),
            # Time enough to find a direct path, if there is one.
            *("--hold", "500ms"),
            *client_flags,
            wrapper=network.enter(network.b),
        )
        return Session(report, agent, front)


@pytest.mark.parametrize("way", Way, ids=lambda way: way.name.lower())
async def test_way(
    kind: ServerKind, network: Network, tmp_path: Path, way: Way
) -> None:
    with trio.fail_after(100):
        session = await run_session(kind, network, tmp_path, way)
    report = session.report
    assert report["ok"], report

    # Bytes pass, all of them and unchanged.
    assert report["echo"]["equal"]
    assert report["echo"]["bytes"] == ECHO
    assert report["sink"]["equal"]
    assert report["echo_rounds"]["count"] == 100
    assert report["udp"]["count"] == 10
    assert report["dial_ms"] < PROMPT_MS

    # They pass by the way that was asked for.
    last = report["pings"][-1]
    if way is Way.DIRECT:
        assert last["path"] == "p2p"
        assert last["endpoint"].startswith(f"{HOST_A}:")
    else:
        assert {ping["path"] for ping in report["pings"]} == {"derp"}
        assert last["derp_region"] == REGION

    # Endpoints are kept back by those who have to, and by nobody else.
    assert bool(session.agent_node["endpoints"]) is (way is not Way.DIRECT_BLOCKED)
    assert bool(report["node"]["endpoints"]) is (way is Way.DIRECT)

    # DERP is carried as it should be, for both, and both know why.
    expected = {
        Way.WEBSOCKETS_FORCED: ["websocket"],
        Way.FALLBACK: ["derp", "websocket"],
    }.get(way, ["derp"])
    forced = {str(REGION)} if way is Way.FALLBACK else set()
    assert session.upgrades(HOST_A) == expected
    assert session.upgrades(HOST_B) == expected
    assert set(session.agent_node["derp_forced_websocket"] or {}) == forced
    assert set(report["node"]["derp_forced_websocket"] or {}) == forced

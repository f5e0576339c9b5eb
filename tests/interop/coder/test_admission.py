"""The relay admits whom the coordinator knows, in this process and elsewhere."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final
from uuid import UUID, uuid4

import pytest
import trio

from tailnet.control.convert import node_key_to_proto
from tailnet.derp.client import open_derp_client
from tailnet.derp.derpmap import DERPNode
from tailnet.keys import NodePrivate
from tailnet.sdk.access import Access
from tailnet.sdk.controller import open_control, open_tailnet
from tailnet.sdk.coordination import PeerUpdateKind
from tests.interop.coder.inside import Inside, open_inside
from tests.interop.coder.nodes import make_node
from tests.interop.coder.peers import open_agent, run_client
from tests.interop.coder.servers import Server, ServerKind, open_server
from tests.interop.network import RELAY, Network
from tests.interop.programs import POLL, free_port
from tests.interop.relay_program import Relay, RelayKind, Security, open_relay
from tests.interop.tools import find_coder_program, find_go_program, needs

PORT: Final = 8080
DERPER_PORT: Final = 3340
TOKEN: Final = "only-relays-know-this"

# How long a relay may take to say no: the coordinator's patience, and some.
REFUSAL: Final = 8.0
RPC: Final = "/api/v2/workspaceagents/me/rpc"


def verifying(url: str) -> tuple[str, ...]:
    """derper's flags for asking a server whom to admit."""
    with_token = url.replace("://", f"://derper:{TOKEN}@")
    return (
        f"-verify-client-url={with_token}/derp/verify",
        # By default it admits everybody when nobody answers.
        "-verify-client-url-fail-open=false",
    )


def token_file(folder: Path) -> str:
    file = folder / "verify-token"
    file.write_text(f"{TOKEN}\n")
    return str(file)


async def wait_connections(inside: Inside, count: int, timeout: float) -> None:
    """Wait until the relay has so many clients; it is asked for so long."""
    deadline = trio.current_time() + timeout
    while True:
        # To ask takes time too, on a machine that is busy.
        is_last = trio.current_time() > deadline
        found = (await inside.counters())["derp_current_connections"]
        if found == count or is_last:
            break
        await trio.sleep(POLL)
    assert found == count


# -- real peers -------------------------------------------------------------


@contextlib.asynccontextmanager
async def admitting_server(
    network: Network, folder: Path, *flags: str
) -> AsyncIterator[tuple[Server, Inside]]:
    needs(find_coder_program, "coderclient")
    in_r = network.enter(network.r)
    async with open_server(
        ServerKind.OURS,
        folder / "server",
        # Its counters are for its own machine alone.
        host="0.0.0.0",
        port=PORT,
        access_url=f"http://{RELAY}:{PORT}",
        agents=2,
        flags=("--derp-admission", "coordinator", *flags),
        wrapper=in_r,
    ) as server:
        yield server, await open_inside(server, folder / "inside", wrapper=in_r)


@pytest.mark.slow
async def test_deleted_agent_has_no_relay(network: Network, tmp_path: Path) -> None:
    in_a = network.enter(network.a)
    with trio.fail_after(90):
        async with (
            admitting_server(network, tmp_path) as (server, inside),
            open_agent(server, tmp_path / "kept", number=1, wrapper=in_a) as kept,
            open_agent(server, tmp_path / "gone", "--debug", wrapper=in_a) as gone,
        ):
            await wait_connections(inside, 2, 10)
            assert (await inside.counters())["relay_clients_refused"] == 0
            # Its first dial is Connect, those to come are Recv.
            assert "derphttp.Client.Recv" not in gone.program.log

            await server.operate(("agent", "delete", "owner/ws1/main"))
            await wait_connections(inside, 1, 1)
            # The agent has noticed, and tries again.
            await gone.wait_event("disconnected")
            refused = await gone.wait_event("refused")
            assert "unexpected status code 401" in refused["error"]
            with trio.fail_after(30):
                while not (await inside.counters())["relay_clients_refused"]:
                    await trio.sleep(0.2)
            assert "derphttp.Client.Recv" in gone.program.log
            await wait_connections(inside, 1, 0)

            # Nobody else is meant.
            assert not kept.events("disconnected")
            assert inside.server.agents[1].id in await inside.peers()


async def test_real_peers_are_admitted_at_once(
    network: Network, tmp_path: Path
) -> None:
    with trio.fail_after(90):
        async with (
            admitting_server(network, tmp_path) as (server, inside),
            open_agent(
                server, tmp_path / "agent", wrapper=network.enter(network.a)
            ) as agent,
        ):
            report = await run_client(
                *(server, agent, tmp_path / "client"),
                *("--block-endpoints", "--echo-bytes", "100000"),
                wrapper=network.enter(network.b),
            )
            assert report["ok"], report
            assert report["path"] == "derp"
            # Neither was made to try again.
            assert report["dial_ms"] < 4000
            counters = await inside.counters()
            assert counters["relay_clients_refused"] == 0
            await wait_connections(inside, 1, 5)


async def test_real_relay_that_asks(network: Network, tmp_path: Path) -> None:
    """derper is the only relay there is, and asks about a real agent and client."""
    needs(find_go_program, "derper")
    in_r = network.enter(network.r)
    map_file = tmp_path / "map.json"
    with trio.fail_after(90):
        async with open_relay(
            tmp_path / "derper",
            kind=RelayKind.DERPER,
            security=Security.PLAIN,
            host=RELAY,
            port=DERPER_PORT,
            flags=verifying(f"http://{RELAY}:{PORT}"),
            wrapper=in_r,
        ) as relay:
            map_file.write_bytes(relay.derp_map(ForceHTTP=True))
            async with (
                admitting_server(
                    *(network, tmp_path),
                    *(
                        "--derp-server-enable=false",
                        "--derp-config-path",
                        str(map_file),
                    ),
                    *("--verify-token-file", token_file(tmp_path)),
                ) as (server, _),
                open_agent(
                    server, tmp_path / "agent", wrapper=network.enter(network.a)
                ) as agent,
            ):
                report = await run_client(
                    *(server, agent, tmp_path / "client"),
                    *("--block-endpoints", "--echo-bytes", "100000"),
                    wrapper=network.enter(network.b),
                )
                assert report["ok"], report
                assert report["path"] == "derp"
                assert report["derp_region"] == 900


# -- keys that we know ------------------------------------------------------


@dataclass(slots=True)
class Relays:
    """Our relay and a real derper, which ask the same coordinator."""

    server: Server
    derper: Relay

    def nodes(self) -> dict[str, DERPNode]:
        port = int(self.server.url.rpartition(":")[2])
        return {
            name: DERPNode(
                name=name,
                region_id=1,
                host_name="127.0.0.1",
                derp_port=port,
                force_http=True,
            )
            for name, port in (("ours", port), ("derper", self.derper.port))
        }

    async def admitting(self, key: NodePrivate) -> set[str]:
        """The relays that let a key in."""
        admitted = set()

        async def ask(name: str, node: DERPNode) -> None:
            async with open_derp_client(key, [node]) as client:
                with trio.move_on_after(REFUSAL):
                    # As soon as one try is over and another has begun, the
                    # answer was no.
                    while client.statistics().connect_attempts < 2:
                        if client.statistics().connected:
                            admitted.add(name)
                            return
                        await trio.sleep(POLL)

        async with trio.open_nursery() as nursery:
            for name, node in self.nodes().items():
                nursery.start_soon(ask, name, node)
        return admitted


@contextlib.asynccontextmanager
async def open_relays(folder: Path) -> AsyncIterator[Relays]:
    port = free_port()
    async with (
        open_server(
            ServerKind.OURS,
            folder / "server",
            host="127.0.0.1",
            port=port,
            flags=(
                *("--derp-admission", "coordinator"),
                *("--verify-token-file", token_file(folder)),
            ),
        ) as server,
        open_relay(
            folder / "derper",
            kind=RelayKind.DERPER,
            security=Security.PLAIN,
            flags=verifying(server.url),
        ) as derper,
    ):
        yield Relays(server, derper)


@pytest.mark.slow
async def test_both_relays_admit_the_same_keys(tmp_path: Path) -> None:
    needs(find_go_program, "derper")
    keys = {name: NodePrivate.generate() for name in ("agent", "client", "stranger")}
    both = {"ours", "derper"}
    with trio.fail_after(100):
        async with open_relays(tmp_path) as relays:
            server = relays.server
            agent_id = UUID(server.agent.id)
            assert not await relays.admitting(keys["agent"])
            access = Access.parse(server.url, server.agent.token)
            async with (
                open_control(access, RPC, version="2.0") as agent,
                open_tailnet(server.url, server.owner.token, agent_id) as client,
            ):
                for name, peer, peer_id in (
                    ("agent", agent, agent_id),
                    ("client", client, uuid4()),
                ):
                    node = make_node(peer_id)
                    node.key = node_key_to_proto(keys[name].public())
                    peer.update_node(node)
                client.add_tunnel(agent_id)
                # Each hears of the other: both nodes have arrived.
                await anext(client.peer_updates)
                await anext(agent.peer_updates)

                assert await relays.admitting(keys["agent"]) == both
                assert await relays.admitting(keys["client"]) == both
                assert not await relays.admitting(keys["stranger"])

                # A control channel that is lost for a moment changes nothing.
                client.reconnect("to be away for a moment")
                assert await relays.admitting(keys["client"]) == both

                await server.operate(("agent", "delete", "owner/ws1/main"))
                with trio.fail_after(1):
                    async for update in client.peer_updates:
                        if update.kind is PeerUpdateKind.DISCONNECTED:
                            break
                assert not await relays.admitting(keys["agent"])
                assert await relays.admitting(keys["client"]) == both
            # It said good-bye.
            assert not await relays.admitting(keys["client"])

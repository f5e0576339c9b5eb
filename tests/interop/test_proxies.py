"""The DERP client behind a real proxy, in front of real relays."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import trio

from tailnet.derp.client import DerpClient, open_derp_client
from tailnet.derp.derpmap import DERPNode, decode_derp_map
from tailnet.derp.events import Connected, ConnectFailed
from tailnet.derp.frames import RecvPacket
from tailnet.keys import NodePrivate
from tailnet.proxy import ProxyRules
from tests.interop.programs import Program, free_port, open_program
from tests.interop.relay_program import (
    REGION,
    Relay,
    RelayKind,
    Security,
    open_relay,
)
from tests.interop.tools import find_debian_tool, find_go_program, needs

pytestmark = pytest.mark.timeout(60)

_CONFIG = """\
Port {port}
Listen 127.0.0.1
Timeout 600
MaxClients 20
LogLevel Connect
LogFile "{log}"
BasicAuth {user} {password}
"""


@dataclass(frozen=True, slots=True)
class TinyProxy:
    """A proxy that wants a password.

    Attributes:
        program: Its process; it logs each CONNECT.
        port: On loopback.
    """

    program: Program
    port: int

    def rules(self, credentials: str = "me:secret@") -> ProxyRules:
        # Loopback is reached without a proxy unless that is said.
        return ProxyRules.always(f"http://{credentials}127.0.0.1:{self.port}")


@contextlib.asynccontextmanager
async def open_tinyproxy(folder: Path) -> AsyncIterator[TinyProxy]:
    port = free_port("127.0.0.1")
    config = folder / "tinyproxy.conf"
    log = folder / "tinyproxy.log"
    config.write_text(_CONFIG.format(port=port, log=log, user="me", password="secret"))
    async with open_program(
        needs(find_debian_tool, "tinyproxy"),
        *("-d", "-c", config),
        log_file=log,
        name="tinyproxy",
    ) as program:
        with trio.fail_after(20):
            while True:
                try:
                    stream = await trio.open_tcp_stream("127.0.0.1", port)
                except OSError:
                    await trio.sleep(0.02)
                else:
                    await stream.aclose()
                    break
        yield TinyProxy(program, port)


@pytest.fixture(params=list(RelayKind), ids=lambda kind: kind.value)
def kind(request: pytest.FixtureRequest) -> RelayKind:
    kind: RelayKind = request.param
    if kind is RelayKind.DERPER:
        needs(find_go_program, "derper")
    return kind


def node_of(relay: Relay) -> DERPNode:
    text = relay.derp_map(ForceHTTP=relay.security is Security.PLAIN)
    nodes = decode_derp_map(text).region(REGION).nodes
    assert nodes is not None
    return nodes[0]


async def echo(client: DerpClient, packet: bytes) -> None:
    """Send a packet to ourselves, by way of the relay."""
    await client.send(client.public_key, packet)
    with trio.fail_after(20):
        while not isinstance(event := await client.receive(), RecvPacket):
            pass
    assert event == RecvPacket(client.public_key, packet)


@pytest.mark.parametrize("websocket", [False, True], ids=["derp", "websocket"])
@pytest.mark.parametrize("security", [Security.PLAIN, Security.PINNED])
async def test_through_a_proxy(
    kind: RelayKind, websocket: bool, security: Security, tmp_path: Path
) -> None:
    async with (
        open_relay(tmp_path, kind=kind, security=security) as relay,
        open_tinyproxy(tmp_path) as proxy,
        open_derp_client(
            NodePrivate.generate(),
            [node_of(relay)],
            proxies=proxy.rules(),
            force_websockets=websocket,
        ) as client,
    ):
        with trio.fail_after(20):
            connected = await client.receive()
        assert isinstance(connected, Connected), connected
        assert connected.proxy == f"http://127.0.0.1:{proxy.port}"
        assert connected.websocket is websocket
        # TLS is with the relay, not with the proxy: its meta certificate came
        # through, and with it fast start.
        assert connected.fast_start is (security is Security.PINNED and not websocket)
        for size in (0, 1400, 65_536):
            await echo(client, bytes(size))
        await proxy.program.wait_log(rf"CONNECT 127\.0\.0\.1:{relay.port} HTTP/1\.1")


async def test_a_wrong_password(tmp_path: Path) -> None:
    async with (
        open_relay(tmp_path, security=Security.PLAIN) as relay,
        open_tinyproxy(tmp_path) as proxy,
        open_derp_client(
            NodePrivate.generate(), [node_of(relay)], proxies=proxy.rules("me:wrong@")
        ) as client,
    ):
        with trio.fail_after(20):
            failed = await client.receive()
        assert isinstance(failed, ConnectFailed)
        assert failed.reason == (
            f"{node_of(relay).name}: proxy http://127.0.0.1:{proxy.port}: "
            "401 Unauthorized"
        )

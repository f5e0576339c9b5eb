"""The DERP client against real relays: Tailscale's derper, and ours.

Real sockets and real time; each scenario runs with both relays, so that the
client is not made to fit ours alone.
"""

from __future__ import annotations

import contextlib
import ssl
from collections.abc import AsyncIterator
from functools import partial
from pathlib import Path

import pytest
import trio

from tailnet.derp.client import DerpClient, open_derp_client
from tailnet.derp.derpmap import DERPNode, decode_derp_map
from tailnet.derp.events import Connected, ConnectFailed, DerpEvent, Disconnected
from tailnet.derp.frames import DISCO_MAGIC, PeerGone, PeerGoneReason, RecvPacket
from tailnet.keys import NodePrivate
from tests.interop.programs import free_port
from tests.interop.relay_program import (
    REGION,
    Relay,
    RelayKind,
    Security,
    open_relay,
)
from tests.interop.tools import find_go_program, needs

pytestmark = pytest.mark.timeout(60)

SIZES = (0, 1, 1400, 16_384, 65_536)


@pytest.fixture(params=list(RelayKind), ids=lambda kind: kind.value)
def kind(request: pytest.FixtureRequest) -> RelayKind:
    kind: RelayKind = request.param
    if kind is RelayKind.DERPER:
        needs(find_go_program, "derper")
    return kind


def node_of(relay: Relay, **changes: object) -> DERPNode:
    changes = {"ForceHTTP": relay.security is Security.PLAIN, **changes}
    region = decode_derp_map(relay.derp_map(**changes)).region(REGION)
    assert region.nodes is not None
    return region.nodes[0]


def trust(relay: Relay) -> ssl.SSLContext | None:
    if relay.security is not Security.CA:
        return None
    return ssl.create_default_context(cafile=relay.ca_file)


@contextlib.asynccontextmanager
async def open_pair(
    node: DERPNode,
    *,
    tls_context: ssl.SSLContext | None = None,
    force_websockets: bool = False,
) -> AsyncIterator[tuple[DerpClient, DerpClient]]:
    """Two clients of one relay, connected."""
    client = partial(
        open_derp_client,
        region_or_nodes=[node],
        tls_context=tls_context,
        force_websockets=force_websockets,
    )
    async with (
        client(NodePrivate.generate()) as first,
        client(NodePrivate.generate()) as second,
    ):
        await first.wait_connected()
        await second.wait_connected()
        yield first, second


async def next_of(client: DerpClient, *kinds: type[DerpEvent]) -> DerpEvent:
    while not isinstance(event := await client.receive(), kinds):
        pass
    return event


@pytest.mark.parametrize("websocket", [False, True], ids=["derp", "websocket"])
@pytest.mark.parametrize("security", list(Security), ids=lambda s: s.name.lower())
async def test_packets_of_all_sizes_both_ways(
    kind: RelayKind, security: Security, websocket: bool, tmp_path: Path
) -> None:
    async with open_relay(tmp_path, kind=kind, security=security) as relay:
        node = node_of(relay)
        async with open_pair(
            node, tls_context=trust(relay), force_websockets=websocket
        ) as (first, second):
            connection = first.connection
            assert connection is not None
            tls = security is not Security.PLAIN
            assert connection.websocket is websocket
            assert connection.tls_version == ("TLSv1.3" if tls else None)
            assert connection.fast_start is (tls and not websocket)
            assert connection.remote == f"127.0.0.1:{relay.port}"
            assert connection.server_info.version == 2
            for source, target in ((first, second), (second, first), (first, first)):
                for size in SIZES:
                    packet = bytes([size & 0xFF]) * size
                    await source.send(target.public_key, packet)
                    got = await next_of(target, RecvPacket)
                    assert got == RecvPacket(source.public_key, packet)
            assert 0 < await first.ping() < 5
            counters = await relay.counters()
            assert counters["derp_current_home_connections"] == 2
            first.note_preferred(False)
            await first.ping()
            counters = await relay.counters()
            assert counters["derp_current_home_connections"] == 1


async def test_over_ipv6(kind: RelayKind, tmp_path: Path) -> None:
    async with (
        open_relay(tmp_path, kind=kind, host="::1") as relay,
        open_pair(node_of(relay)) as (first, second),
    ):
        await first.send(second.public_key, b"six")
        got = await next_of(second, RecvPacket)
        assert got == RecvPacket(first.public_key, b"six")
        assert first.connection is not None
        assert first.connection.remote == f"[::1]:{relay.port}"


async def test_a_wrong_pin(kind: RelayKind, tmp_path: Path) -> None:
    async with open_relay(tmp_path, kind=kind) as relay:
        node = node_of(relay, CertName="sha256-raw:" + "0" * 64)
        async with open_derp_client(NodePrivate.generate(), [node]) as client:
            failed = await client.receive()
            assert isinstance(failed, ConnectFailed)
            assert "not the pinned one" in failed.reason


async def test_an_authority_that_nobody_knows(kind: RelayKind, tmp_path: Path) -> None:
    async with (
        open_relay(tmp_path, kind=kind, security=Security.CA) as relay,
        open_derp_client(NodePrivate.generate(), [node_of(relay)]) as client,
    ):
        failed = await client.receive()
        assert isinstance(failed, ConnectFailed)
        assert "unable to get local issuer" in failed.reason


async def test_many_packets_in_order(kind: RelayKind, tmp_path: Path) -> None:
    """With fewer in flight than derper's queue holds, none may be missing."""
    in_flight, total = 16, 4000
    async with (
        open_relay(tmp_path, kind=kind) as relay,
        open_pair(node_of(relay)) as (first, second),
    ):
        window = trio.Semaphore(in_flight)

        async def send() -> None:
            for number in range(total):
                await window.acquire()
                first.send_nowait(second.public_key, b"%d" % number)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(send)
            number = 0
            while number < total:
                for event in await second.receive_many():
                    if isinstance(event, RecvPacket):
                        assert event.packet == b"%d" % number
                        number += 1
                        window.release()
        statistics = first.statistics()
        assert statistics.packets_sent == total
        assert sum(statistics.packets_dropped.values()) == 0


async def test_peers_that_are_gone(kind: RelayKind, tmp_path: Path) -> None:
    leaver = NodePrivate.generate()
    async with (
        open_relay(tmp_path, kind=kind) as relay,
        open_derp_client(NodePrivate.generate(), [node_of(relay)]) as stays,
    ):
        await stays.wait_connected()
        async with open_derp_client(leaver, [node_of(relay)]) as leaves:
            await leaves.send(stays.public_key, b"hello and")
            await next_of(stays, RecvPacket)
        gone = await next_of(stays, PeerGone)
        assert gone == PeerGone(leaver.public(), PeerGoneReason.DISCONNECTED)
        await stays.send(leaver.public(), DISCO_MAGIC + bytes(100))
        gone = await next_of(stays, PeerGone)
        assert gone == PeerGone(leaver.public(), PeerGoneReason.NOT_HERE)


@pytest.mark.parametrize("websocket", [False, True], ids=["derp", "websocket"])
async def test_a_relay_that_is_killed_in_mid_stream(
    kind: RelayKind, websocket: bool, tmp_path: Path
) -> None:
    port = free_port()
    events: list[DerpEvent] = []
    async with contextlib.AsyncExitStack() as stack:
        async with open_relay(tmp_path, kind=kind, port=port) as relay:
            first, second = await stack.enter_async_context(
                open_pair(node_of(relay), force_websockets=websocket)
            )
            before = first.connection
            assert before is not None
            nursery = await stack.enter_async_context(trio.open_nursery())

            async def send_always() -> None:
                while True:
                    await first.send(second.public_key, bytes(1400))
                    await trio.sleep(0.001)

            nursery.start_soon(send_always)
            for _ in range(50):
                await next_of(second, RecvPacket)
            await relay.program.kill()
        for client in (first, second):
            events.append(await next_of(client, Disconnected))
            failed = await next_of(client, ConnectFailed)
            assert isinstance(failed, ConnectFailed)
            assert "refused" in failed.reason
        async with open_relay(tmp_path, kind=kind, port=port):
            for client in (first, second):
                connected = await next_of(client, Connected)
                assert isinstance(connected, Connected)
                assert connected.server_key == before.server_key
                assert connected.websocket is websocket
            for _ in range(50):
                await next_of(second, RecvPacket)
            nursery.cancel_scope.cancel()
            assert first.statistics().connects == 2
            assert first.statistics().connect_attempts > 2


# -- a proxy that lets no DERP pass -----------------------------------------


@contextlib.asynccontextmanager
async def open_proxy(relay_port: int, refusal: bytes) -> AsyncIterator[int]:
    """A proxy that refuses ``Upgrade: DERP`` and passes everything else."""

    async def copy(source: trio.abc.Stream, sink: trio.abc.HalfCloseableStream) -> None:
        try:
            async for data in source:
                await sink.send_all(data)
            await sink.send_eof()
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            pass

    async def serve(client: trio.SocketStream) -> None:
        async with client:
            head = b""
            while b"\r\n\r\n" not in head:
                head += bytes(await client.receive_some())
            if b"upgrade: derp" in head.lower():
                await client.send_all(refusal)
                return
            async with await trio.open_tcp_stream("127.0.0.1", relay_port) as relay:
                await relay.send_all(head)
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(copy, client, relay)
                    nursery.start_soon(copy, relay, client)

    async with trio.open_nursery() as nursery:
        listeners = await nursery.start(
            partial(trio.serve_tcp, serve, 0, host="127.0.0.1")
        )
        yield listeners[0].socket.getsockname()[1]
        nursery.cancel_scope.cancel()


@pytest.mark.parametrize(
    ("status", "body", "text"),
    [
        (426, b"Content-Length: 7\r\n\r\nno DERP", "no DERP"),
        (403, b"Transfer-Encoding: chunked\r\n\r\n2\r\nno\r\n0\r\n\r\n", "no"),
    ],
)
async def test_fall_back_to_websockets_behind_a_proxy(
    kind: RelayKind, status: int, body: bytes, text: str, tmp_path: Path
) -> None:
    reason = (
        f"GET failed with status code {status} (a proxy could be disallowing the "
        f"use of 'Upgrade: derp'): {text}"
    )
    calls: list[tuple[int, str]] = []

    def on_fallback(region_id: int, why: str) -> None:
        calls.append((region_id, why))

    async with (
        open_relay(tmp_path, kind=kind, security=Security.PLAIN) as relay,
        open_proxy(relay.port, b"HTTP/1.1 %d No\r\n%b" % (status, body)) as port,
        open_derp_client(
            NodePrivate.generate(),
            [node_of(relay, DERPPort=port)],
            on_fallback=on_fallback,
        ) as client,
    ):
        failed = await client.receive()
        assert isinstance(failed, ConnectFailed)
        connected = await client.receive()
        assert isinstance(connected, Connected)
        assert connected.websocket
        assert calls == [(REGION, reason)]
        assert client.force_websocket_reason == reason
        await client.send(client.public_key, bytes(65_536))
        assert await next_of(client, RecvPacket) == RecvPacket(
            client.public_key, bytes(65_536)
        )

"""The reconnecting client, against a server in memory, in virtual time."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from uuid import UUID

import pytest
import trio
import trio.testing

from tailnet.control.proto import tailnet_pb2
from tailnet.errors import ApiError, LocalProtocolError
from tailnet.proxy import ProxyRules
from tailnet.sdk.controller import Tailnet, open_tailnet
from tailnet.sdk.coordination import NOT_ANNOUNCED, PeerUpdate, PeerUpdateKind
from tests.sdk.fake_server import FakeServer, Peer

AGENT = UUID("11111111-1111-4111-8111-111111111111")
OTHER = UUID("22222222-2222-4222-8222-222222222222")
OWNER = UUID("33333333-3333-4333-8333-333333333333")
WORKSPACE = UUID("44444444-4444-4444-8444-444444444444")
NOW = datetime(2026, 1, 1, tzinfo=UTC)
NODE = tailnet_pb2.Node(id=1, preferred_derp=999)
JSON = "application/json; charset=utf-8"

Kind = tailnet_pb2.CoordinateResponse.PeerUpdate


@asynccontextmanager
async def serving() -> AsyncIterator[FakeServer]:
    with trio.fail_after(1_000_000):
        async with trio.open_nursery() as nursery:
            yield FakeServer(nursery)
            nursery.cancel_scope.cancel()


def opening(
    server: FakeServer, agent_id: UUID | None = AGENT, **options: object
) -> AbstractAsyncContextManager[Tailnet]:
    """A client of ``server`` whose delays are the longest possible."""
    options = {
        "connect": server.connect,
        "random": lambda: 1.0,
        "now": lambda: NOW + timedelta(seconds=trio.current_time()),
        **options,
    }
    return open_tailnet("http://coder.test:8080", "token", agent_id, **options)  # type: ignore[arg-type]


def update(peer_id: UUID, kind: Kind.Kind, **fields: object) -> Kind:
    return Kind(id=peer_id.bytes, kind=kind, **fields)  # type: ignore[arg-type]


async def next_update(tailnet: Tailnet) -> PeerUpdate:
    with trio.fail_after(600):
        return await anext(tailnet.peer_updates)


def add_tunnel(peer_id: UUID) -> tailnet_pb2.CoordinateRequest:
    return tailnet_pb2.CoordinateRequest(add_tunnel={"id": peer_id.bytes})


def update_self(node: tailnet_pb2.Node) -> tailnet_pb2.CoordinateRequest:
    return tailnet_pb2.CoordinateRequest(update_self={"node": node})


DISCONNECT = tailnet_pb2.CoordinateRequest(disconnect={})


# -- dialing ----------------------------------------------------------------


async def test_the_endpoint_of_one_agent(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with serving() as server, opening(server) as tailnet:
        peer = await server.accept()
        assert server.dialed == [(0, "coder.test", 8080)]
        assert peer.path == f"/api/v2/workspaceagents/{AGENT}/coordinate"
        assert peer.query == {"version": "2.0"}
        assert peer.headers["coder-session-token"] == "token"
        assert "sec-websocket-protocol" not in peer.headers
        assert "sec-websocket-extensions" not in peer.headers
        await tailnet.wait_connected()
        assert tailnet.statistics().connected
        with pytest.raises(LocalProtocolError, match="without an agent"):
            tailnet.workspace_updates(OWNER)
        peer.coordinate_done.set()


async def test_the_endpoint_of_a_user_with_headers(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async def headers() -> list[tuple[str, str]]:
        await trio.sleep(0)
        return [("X-Gateway", "open sesame")]

    async with serving() as server, opening(server, None, headers=headers):
        peer = await server.accept()
        assert peer.path == "/api/v2/tailnet"
        assert peer.query == {"version": "2.3"}
        assert peer.headers["x-gateway"] == "open sesame"
        peer.coordinate_done.set()


async def test_through_a_proxy_of_the_environment(
    autojump_clock: trio.testing.MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HTTP_PROXY", "http://192.0.2.80:3128")
    heads: list[object] = []

    async with serving() as server:

        async def connect(host: str, port: int, family: object) -> trio.abc.Stream:
            heads.append((host, port))
            near, far = trio.testing.memory_stream_pair()
            server.nursery.start_soon(proxy, far)
            return near

        async def proxy(stream: trio.abc.Stream) -> None:
            head = await stream.receive_some()
            heads.append(head.partition(b"\r\n")[0])
            await stream.send_all(b"HTTP/1.1 200 OK\r\n\r\n")
            await server._serve(stream)

        async with opening(server, connect=connect):
            peer = await server.accept()
            assert heads == [
                ("192.0.2.80", 3128),
                b"CONNECT coder.test:8080 HTTP/1.1",
            ]
            peer.coordinate_done.set()
        async with opening(server, proxies=ProxyRules()):
            peer = await server.accept()
            assert server.dialed.pop()[1:] == ("coder.test", 8080)
            peer.coordinate_done.set()


@pytest.mark.parametrize("status", [400, 401, 403, 404, 409, 500])
async def test_a_refusal_for_good(
    status: int, autojump_clock: trio.testing.MockClock
) -> None:
    body = (
        b'{"message":"No.","detail":"Never","validations":[{"field":"a","detail":"b"}]}'
    )
    async with serving() as server:
        # What may pass by does not make the next answer better.
        server.refusals.extend([None, (502, "text/html", b"x"), (status, JSON, body)])
        with pytest.raises(ApiError) as caught:
            async with opening(server):
                pass
        assert caught.value.status == status
        assert caught.value.message == "No."
        assert caught.value.validations == (("a", "b"),)
        assert str(caught.value) == f"No.; Never; a: b (status {status})"
        assert [at for at, _, _ in server.dialed] == pytest.approx([0, 0.1, 0.3])


async def test_what_may_pass_by_is_tried_again_ever_more_slowly(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with serving() as server:
        server.refusals.extend([(429, "text/plain", b"slow down")] * 9)
        async with opening(server) as tailnet:
            peer = await server.accept()
            times = [at for at, _, _ in server.dialed]
            gaps = [b - a for a, b in pairwise(times)]
            assert gaps == pytest.approx([0.1, 0.2, 0.4, 0.8, 1.6, 3.2, 6.4, 10, 10])
            statistics = tailnet.statistics()
            assert (statistics.dials, statistics.connects) == (10, 1)
            assert statistics.last_failure == (
                "unexpected non-JSON response (text/plain); slow down (status 429)"
            )
            peer.coordinate_done.set()


async def test_once_connected_every_refusal_may_pass_by(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with serving() as server, opening(server) as tailnet:
        peer = await server.accept()
        server.refusals.append((401, JSON, b'{"message":"Who are you?"}'))
        await peer.cut()
        peer = await server.accept()
        assert tailnet.statistics().connects == 2
        assert tailnet.statistics().last_failure == "Who are you? (status 401)"
        peer.coordinate_done.set()


async def test_a_server_that_ends_every_connection_is_not_dialed_without_pause(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with serving() as server, opening(server) as tailnet:
        for _ in range(4):
            peer = await server.accept()
            await peer.respond(error="authorization: no")
            await peer.over.wait()
            await trio.testing.wait_all_tasks_blocked()
            assert tailnet.statistics().last_failure == (
                "coordination: coordination failed: authorization: no"
            )
        times = [at for at, _, _ in server.dialed]
        gaps = [b - a for a, b in pairwise(times)]
        assert gaps == pytest.approx([0.1, 0.2, 0.4])
        peer = await server.accept()
        await trio.sleep(10)  # this one lasts
        lost_at = trio.current_time()
        await peer.cut()
        peer = await server.accept()
        assert trio.current_time() == pytest.approx(lost_at + 0.1)
        peer.coordinate_done.set()


@pytest.mark.parametrize("which", ["coordinate", "maps"])
async def test_any_stream_that_ends_ends_the_connection(
    which: str, autojump_clock: trio.testing.MockClock
) -> None:
    async with serving() as server, opening(server) as tailnet:
        peer = await server.accept()
        await trio.testing.wait_all_tasks_blocked()
        done: trio.Event = getattr(peer, f"{which}_done")
        done.set()
        await peer.over.wait()
        peer = await server.accept()
        assert "ended" in str(tailnet.statistics().last_failure)
        peer.coordinate_done.set()


# -- coordination -----------------------------------------------------------


async def test_tunnels_nodes_and_updates(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with serving() as server, opening(server) as tailnet:
        tailnet.add_tunnel(AGENT)
        peer = await server.accept()
        tailnet.update_node(NODE)
        assert await peer.next_request() == add_tunnel(AGENT)
        assert await peer.next_request() == update_self(NODE)
        await peer.respond(
            peer_updates=[update(AGENT, Kind.NODE, node=NODE, reason="add tunnel")]
        )
        await peer.respond(peer_updates=[update(AGENT, Kind.READY_FOR_HANDSHAKE)])
        assert await next_update(tailnet) == PeerUpdate(
            AGENT, PeerUpdateKind.NODE, NODE, "add tunnel"
        )
        assert await next_update(tailnet) == PeerUpdate(
            AGENT, PeerUpdateKind.READY_FOR_HANDSHAKE
        )
        assert tailnet.statistics().peers == tailnet.statistics().tunnels == 1
        tailnet.ready_for_handshake([AGENT, OTHER])
        request = await peer.next_request()
        assert [ready.id for ready in request.ready_for_handshake] == [
            AGENT.bytes,
            OTHER.bytes,
        ]
        tailnet.remove_tunnel(AGENT)
        assert (await peer.next_request()).remove_tunnel.id == AGENT.bytes
        await peer.respond(peer_updates=[update(AGENT, Kind.DISCONNECTED)])
        assert (await next_update(tailnet)).kind is PeerUpdateKind.DISCONNECTED
        peer.coordinate_done.set()


async def test_a_reconnect_says_everything_anew_and_loses_who_is_not_announced(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with serving() as server, opening(server, None) as tailnet:
        for agent_id in (AGENT, OTHER):
            tailnet.add_tunnel(agent_id)
        tailnet.update_node(tailnet_pb2.Node(id=1))
        tailnet.update_node(NODE)
        peer = await server.accept()
        for _ in range(3):
            await peer.next_request()
        await peer.respond(
            peer_updates=[
                update(agent_id, Kind.NODE, node=NODE) for agent_id in (AGENT, OTHER)
            ]
        )
        for _ in range(2):
            await next_update(tailnet)
        await peer.cut()
        await trio.testing.wait_all_tasks_blocked()
        assert not tailnet.statistics().connected
        assert tailnet.statistics().peers == 2  # still thought to be there

        peer = await server.accept()
        connected_at = trio.current_time()
        said = [await peer.next_request() for _ in range(3)]
        assert said == [add_tunnel(AGENT), add_tunnel(OTHER), update_self(NODE)]
        await peer.respond(peer_updates=[update(OTHER, Kind.NODE, node=NODE)])
        assert (await next_update(tailnet)).peer_id == OTHER
        assert await next_update(tailnet) == PeerUpdate(
            AGENT, PeerUpdateKind.LOST, None, NOT_ANNOUNCED
        )
        assert trio.current_time() == pytest.approx(connected_at + 5)
        assert tailnet.statistics().peers == 1
        peer.coordinate_done.set()


async def test_leaving_says_good_bye_and_waits_for_the_coordinator(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with serving() as server:
        async with opening(server) as tailnet:
            peer = await server.accept()
            await trio.testing.wait_all_tasks_blocked()
            updates, maps = tailnet.peer_updates, tailnet.derp_maps()
            await anext(maps)

            async def hang_up() -> None:
                assert await peer.next_request() == DISCONNECT
                await trio.sleep(0.5)
                peer.coordinate_done.set()

            server.nursery.start_soon(hang_up)
        assert trio.current_time() == pytest.approx(0.5)
        await peer.over.wait()
        assert peer.connection.closed is not None
        assert peer.connection.closed.code == 1000
        assert [item async for item in updates] == []
        assert [item async for item in maps] == []
        with pytest.raises(trio.ClosedResourceError):
            await tailnet.wait_connected()


async def test_leaving_waits_a_second_at_most_even_after_an_exception(
    autojump_clock: trio.testing.MockClock,
) -> None:
    peers = []

    async def fail(server: FakeServer) -> None:
        async with opening(server):
            peers.append(await server.accept())
            raise KeyError("mine")

    async with serving() as server:
        with pytest.raises(KeyError, match="mine"):
            await fail(server)
        assert trio.current_time() == pytest.approx(1)
        assert await peers[0].next_request() == DISCONNECT


async def test_cancelling_says_no_good_bye(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with serving() as server:
        with trio.move_on_after(3):
            async with opening(server):
                peer = await server.accept()
                await trio.sleep_forever()
        assert trio.current_time() == pytest.approx(3)
        await peer.over.wait()


async def test_leaving_while_there_is_no_connection(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with serving() as server, opening(server):
        peer = await server.accept()
        server.refusals.extend([None] * 100)
        await peer.cut()
        await trio.sleep(60)
    assert trio.current_time() == pytest.approx(60)


async def test_an_update_that_makes_no_sense_ends_the_connection(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with serving() as server, opening(server) as tailnet:
        peer = await server.accept()
        await peer.respond(peer_updates=[Kind(id=b"short", kind=Kind.NODE)])
        await peer.over.wait()
        await trio.testing.wait_all_tasks_blocked()
        assert "invalid UUID (got 5 bytes)" in str(tailnet.statistics().last_failure)
        peer = await server.accept()
        peer.coordinate_done.set()


async def test_an_error_about_readiness_is_no_end(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with serving() as server, opening(server) as tailnet:
        peer = await server.accept()
        await peer.respond(
            error=f'ready for handshake error: you do not share a tunnel with "{AGENT}"'
        )
        await peer.respond(peer_updates=[update(AGENT, Kind.NODE, node=NODE)])
        assert (await next_update(tailnet)).peer_id == AGENT
        assert tailnet.statistics().connects == 1
        peer.coordinate_done.set()


# -- the connection itself --------------------------------------------------


async def test_reconnect(autojump_clock: trio.testing.MockClock) -> None:
    async with serving() as server, opening(server) as tailnet:
        peer = await server.accept()
        tailnet.reconnect("the address is gone")
        await peer.over.wait()
        await trio.testing.wait_all_tasks_blocked()
        assert tailnet.statistics().last_failure == "the address is gone"
        peer = await server.accept()
        await tailnet.wait_connected()
        peer.coordinate_done.set()


async def test_a_link_that_keeps_things_for_a_moment_is_no_flood(
    autojump_clock: trio.testing.MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What waits to be written counts against the peer only while it waits."""
    monkeypatch.setattr("tailnet.control.session.MAX_UNREAD_CONTROL_LEN", 200)
    async with serving() as server, opening(server) as tailnet:
        peer = await server.accept()
        await trio.sleep(3_000)  # a hundred pings, of 12 bytes each
        assert tailnet.statistics().connects == 1
        peer.coordinate_done.set()


async def test_a_silent_server_is_left(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """The session's pings are not answered: the link is dead."""
    peers: list[Peer] = []
    async with serving() as server, opening(server) as tailnet:
        peers.append(await server.accept())
        # The server's end reads no more.
        stream = peers[0].stream
        assert isinstance(stream, trio.StapledStream)
        near: trio.testing.MemorySendStream = stream.send_stream
        near.send_all_hook = trio.sleep_forever
        with trio.fail_after(120):
            peers.append(await server.accept())
        assert tailnet.statistics().connects == 2
        peers[1].coordinate_done.set()

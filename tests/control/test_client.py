"""Calls as their caller sees them, with a server by hand."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager

import pytest
import trio
from trio.testing import MockClock

from tailnet.control.client import RpcClient, open_rpc_client
from tailnet.control.drpc import Kind, Packet, encode_packet
from tailnet.control.yamux import CLOSE_TIMEOUT
from tailnet.control.yamux_frames import ACK, FIN, RST, SYN
from tailnet.errors import NotConnectedError, RpcError
from tests.control.memory_link import MemoryLink, link_pair
from tests.control.raw_peer import RawPeer, request

METHOD = "/test.Test/Method"


@asynccontextmanager
async def client_of() -> AsyncGenerator[tuple[RpcClient, RawPeer, MemoryLink]]:
    near, far = link_pair()
    with trio.fail_after(1000):
        async with open_rpc_client(near) as client:
            yield client, RawPeer(far), near


async def test_a_unary_call_is_one_write(autojump_clock: MockClock) -> None:
    async with client_of() as (client, server, link):

        async def answer() -> None:
            await server.settle()
            assert link.sends == 2  # the SYN is the other
            assert server.received(1) == request(METHOD, b"ask")
            server.accept(1)
            server.data(1, encode_packet(Kind.MESSAGE, 1, 1, b"answer"))
            await server.settle()
            # Like Go: the answer is enough.
            assert server.packets(1)[-1] == Packet(1, 4, Kind.CLOSE, b"")
            assert server.flags(1) == [SYN, FIN]
            server.data(1, encode_packet(Kind.CLOSE_SEND, 1, 2))
            server.fin(1)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(answer)
            assert await client.unary(METHOD, b"ask") == b"answer"
        await server.settle()
        # Nothing is left of it.
        assert client._session.calls == {}


async def test_invoke_waits_for_the_first_message(autojump_clock: MockClock) -> None:
    async with client_of() as (client, server, _), client.call(METHOD) as call:
        await server.settle()
        assert server.received(1) == b""
        call.send_nowait(b"a")
        await call.send(b"b")
        assert server.received(1) == request(METHOD, b"a", b"b", done=False)
        await call.close_send()
        await call.close_send()
        assert server.received(1) == request(METHOD, b"a", b"b")


async def test_or_for_the_first_that_is_wanted(autojump_clock: MockClock) -> None:
    async with client_of() as (client, server, _), trio.open_nursery() as nursery:

        async def wait() -> None:
            async with client.call(METHOD) as call:
                got.extend([message async for message in call])

        got: list[bytes] = []
        nursery.start_soon(wait)
        await server.settle()
        assert server.received(1) == request(METHOD, done=False)
        server.accept(1)
        for number in (1, 2):
            server.data(1, encode_packet(Kind.MESSAGE, 1, number, b"%d" % number))
        server.data(1, encode_packet(Kind.CLOSE, 1, 3))
        server.fin(1)
        await server.settle()
        assert got == [b"1", b"2"]
        # The server has said Close: there is nothing to say to that.
        assert server.received(1) == request(METHOD, done=False)
        assert server.flags(1) == [SYN, FIN]


async def test_leaving_a_call_closes_it(autojump_clock: MockClock) -> None:
    async with client_of() as (client, server, _):
        async with client.call(METHOD) as call:
            await call.send(b"x")
        await server.settle()
        assert server.packets(1)[-1] == Packet(1, 3, Kind.CLOSE, b"")
        assert server.flags(1) == [SYN, FIN]
        # What still comes is nobody's.
        server.accept(1)
        server.data(1, encode_packet(Kind.MESSAGE, 1, 1, bytes(200_000)))
        server.fin(1)
        await server.settle()
        assert client._session.calls == {}
        assert not client.is_closed


async def test_leaving_a_call_that_was_not_begun(autojump_clock: MockClock) -> None:
    async with client_of() as (client, server, _):
        async with client.call(METHOD):
            pass
        await server.settle()
        assert (server.received(1), server.flags(1)) == (b"", [SYN, RST])


async def test_cancelled_call_is_dropped(autojump_clock: MockClock) -> None:
    async with client_of() as (client, server, _):
        with trio.move_on_after(3.0) as scope:
            await client.unary(METHOD, b"x")
        assert scope.cancelled_caught
        await server.settle()
        assert server.packets(1)[-1].kind == Kind.CLOSE_SEND
        assert server.flags(1) == [SYN, RST]
        assert client._session.calls == {}


async def test_exception_of_the_block_drops_the_call(autojump_clock: MockClock) -> None:
    async def leave_by(client: RpcClient, exc: Exception) -> None:
        async with client.call(METHOD) as call:
            await call.send(b"x")
            raise exc

    async with client_of() as (client, server, _):
        with pytest.raises(KeyError):
            await leave_by(client, KeyError())
        await server.settle()
        assert server.flags(1) == [SYN, RST]


async def test_exception_of_the_clients_block_comes_out_as_it_is(
    autojump_clock: MockClock,
) -> None:
    near, _ = link_pair()

    async def leave_by(exc: Exception) -> None:
        async with open_rpc_client(near):
            raise exc

    with pytest.raises(ZeroDivisionError):
        await leave_by(ZeroDivisionError())
    assert near.closed_with == (1000, "")


async def test_close_behind_what_waits_for_credit(autojump_clock: MockClock) -> None:
    async with client_of() as (client, server, _):
        async with client.call(METHOD) as call:
            call.send_nowait(bytes(400_000))
            assert call.backlog == 1
        await server.settle()
        assert server.flags(1) == [SYN]
        server.accept(1)
        server.update(1, 0, 200_000)
        await server.settle()
        assert [p.kind for p in server.packets(1)] == [
            Kind.INVOKE,
            Kind.MESSAGE,
            Kind.CLOSE,
        ]
        assert server.flags(1) == [SYN, FIN]


@pytest.mark.parametrize("how", ["fin", "rst"])
async def test_call_that_the_server_drops(how: str, autojump_clock: MockClock) -> None:
    async with client_of() as (client, server, _), client.call(METHOD) as call:
        await call.send(b"x")
        server.accept(1)
        server.data(1, encode_packet(Kind.MESSAGE, 1, 1, b"first"))
        getattr(server, how)(1)
        assert await call.receive() == b"first"
        for _ in range(2):
            with pytest.raises(NotConnectedError, match="has dropped the call"):
                await call.receive()
        with pytest.raises(trio.BrokenResourceError):
            await call.send(b"y")
        assert server.flags(1) == [SYN]


async def test_server_that_has_said_all_and_closes(autojump_clock: MockClock) -> None:
    async with client_of() as (client, server, _), client.call(METHOD) as call:
        await call.send(b"x")
        server.accept(1)
        server.data(1, encode_packet(Kind.CLOSE_SEND, 1, 1))
        server.fin(1)
        await server.settle()
        assert await call.receive() is None


async def test_server_that_never_gives_credit(autojump_clock: MockClock) -> None:
    async with client_of() as (client, server, _), trio.open_nursery() as nursery:
        nursery.start_soon(server.answer_pings)
        async with client.call(METHOD) as call:
            call.send_nowait(bytes(400_000))
            server.accept(1)
        await trio.sleep(CLOSE_TIMEOUT - 1)
        assert server.flags(1) == [SYN]
        await trio.sleep(2)
        assert server.flags(1) == [SYN, RST]
        assert client._session.calls == {}
        nursery.cancel_scope.cancel()


async def test_answers_that_are_errors(autojump_clock: MockClock) -> None:
    async with client_of() as (client, server, _), client.call(METHOD) as call:
        await call.send(b"x")
        server.accept(1)
        server.data(1, encode_packet(Kind.ERROR, 1, 1, bytes(7) + b"\x0cno"))
        server.fin(1)
        for _ in range(2):
            with pytest.raises(RpcError, match="no") as caught:
                await call.receive()
            assert caught.value.code == 12


async def test_answer_that_is_none(autojump_clock: MockClock) -> None:
    async with client_of() as (client, server, _), trio.open_nursery() as nursery:

        async def ask() -> None:
            with pytest.raises(NotConnectedError, match="without an answer"):
                await client.unary(METHOD, b"x")

        nursery.start_soon(ask)
        await server.settle()
        server.accept(1)
        server.data(1, encode_packet(Kind.CLOSE_SEND, 1, 1))


async def test_server_that_leaves(autojump_clock: MockClock) -> None:
    async with client_of() as (client, server, link):
        async with client.call(METHOD) as call:
            await call.send(b"x")
            server.accept(1)
            await server.link.aclose()
            with pytest.raises(NotConnectedError, match="the server has left"):
                await call.receive()
        assert await client.wait_closed() == ""
        assert client.is_closed
        with pytest.raises(NotConnectedError, match="the session is over"):
            await client.unary(METHOD, b"")
    assert link.closed_with == (1000, "")


async def test_connection_that_breaks(autojump_clock: MockClock) -> None:
    async with client_of() as (client, server, link):
        link.break_off()
        reason = "the connection broke: reset by the test"
        assert await client.wait_closed() == reason
        with pytest.raises(NotConnectedError, match=reason):
            async with client.call(METHOD):
                pass
    assert ACK not in server.flags(1)


async def test_server_that_breaks_the_protocol(autojump_clock: MockClock) -> None:
    async with client_of() as (client, server, link):
        server.link.send_nowait(b"\x09" * 12)
        assert await client.wait_closed() == "yamux version 9, not 0"
    assert link.closed_with == (1011, "yamux version 9, not 0")

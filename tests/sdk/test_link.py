"""The client's websocket against another implementation's server."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
import trio
import trio.testing
from trio_websocket import ConnectionClosed, WebSocketConnection, wrap_server_stream

from tailnet.derp.exchange import exchange
from tailnet.derp.websocket import encode_websocket_request, generate_websocket_key
from tailnet.errors import RemoteProtocolError
from tailnet.sdk.link import WebsocketLink, open_link


@asynccontextmanager
async def linked(
    *, first: bytes = b""
) -> AsyncIterator[tuple[WebsocketLink, WebSocketConnection, trio.abc.Stream]]:
    """A link, the server's end of it, and the stream beneath that."""
    near, far = trio.testing.memory_stream_pair()
    servers: list[WebSocketConnection] = []
    ready = trio.Event()

    async def serve() -> None:
        async with trio.open_nursery() as nursery:
            request = await wrap_server_stream(nursery, far)
            servers.append(await request.accept())
            if first:
                await servers[0].send_message(first)
            ready.set()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(serve)
        request = encode_websocket_request(
            "coder.test", generate_websocket_key(), target="/", subprotocol=None
        )
        await near.send_all(request)
        await trio.testing.wait_all_tasks_blocked()
        # The answer and what came behind it, in one read.
        head = await exchange(near, b"")
        await ready.wait()
        with trio.fail_after(60):
            async with open_link(near, head.rest) as link:
                yield link, servers[0], far
        nursery.cancel_scope.cancel()


async def test_bytes_both_ways(autojump_clock: trio.testing.MockClock) -> None:
    async with linked() as (link, server, _):
        link.send_nowait(b"one")
        link.send_nowait(b"two")
        assert link.unsent
        await link.flush()
        assert link.unsent == 0
        got = b""
        while len(got) < 6:
            message = await server.get_message()
            assert isinstance(message, bytes)
            got += message
        assert got == b"onetwo"
        await server.send_message(b"three")
        assert await link.receive() == b"three"


async def test_what_came_with_the_answer(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with linked(first=b"early") as (link, _, _):
        assert await link.receive() == b"early"


async def test_messages_of_four_mebibytes(
    autojump_clock: trio.testing.MockClock,
) -> None:
    size = 4 << 20
    async with linked() as (link, server, _):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(server.send_message, bytes(size))
            got = 0
            while got < size:
                got += len(await link.receive())
        link.send_nowait(bytes(size))
        async with trio.open_nursery() as nursery:
            nursery.start_soon(link.flush)
            got = 0
            while got < size:
                got += len(await server.get_message())
    assert got == size


async def test_a_ping_is_answered(autojump_clock: trio.testing.MockClock) -> None:
    async with linked() as (link, server, _), trio.open_nursery() as nursery:
        nursery.start_soon(link.receive)
        with trio.fail_after(5):
            await server.ping(b"hi")
        nursery.cancel_scope.cancel()


@pytest.mark.parametrize("code", [1000, 1001])
async def test_a_good_bye_is_the_end(
    code: int, autojump_clock: trio.testing.MockClock
) -> None:
    async with linked() as (link, server, _), trio.open_nursery() as nursery:
        await server.send_message(b"last words")
        nursery.start_soon(server.aclose, code)
        assert await link.receive() == b"last words"
        assert await link.receive() == b""
        assert await link.receive() == b""
        link.send_nowait(b"too late")  # does nothing, and that quietly


async def test_another_close_is_a_failure(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with linked() as (link, server, _), trio.open_nursery() as nursery:
        nursery.start_soon(server.aclose, 1011, "build is outdated")
        with pytest.raises(trio.BrokenResourceError, match="1011: build is outdated"):
            await link.receive()


async def test_text_is_refused(autojump_clock: trio.testing.MockClock) -> None:
    async with linked() as (link, server, _):
        await server.send_message("text")
        with pytest.raises(RemoteProtocolError, match="binary"):
            await link.receive()
        with pytest.raises(ConnectionClosed) as caught:
            await server.get_message()
        assert caught.value.reason is not None
        assert caught.value.reason.code == 1003


async def test_a_cut_connection(autojump_clock: trio.testing.MockClock) -> None:
    async with linked() as (link, _, far):
        await trio.aclose_forcefully(far)
        with pytest.raises(trio.BrokenResourceError, match="cut the connection"):
            await link.receive()
        link.send_nowait(b"into the void")
        with pytest.raises(trio.BrokenResourceError):
            await link.flush()
        link.send_nowait(b"and again")
        assert link.unsent == 0


async def test_a_write_that_fails_ends_the_reader_too(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with linked() as (link, _, far):
        assert isinstance(far, trio.StapledStream)
        await far.receive_stream.aclose()  # takes nothing, and is silent
        async with trio.open_nursery() as nursery:

            @nursery.start_soon
            async def receive() -> None:
                with pytest.raises(trio.BrokenResourceError):
                    await link.receive()

            await trio.testing.wait_all_tasks_blocked()
            link.send_nowait(b"x")


async def test_closing(autojump_clock: trio.testing.MockClock) -> None:
    async with linked() as (link, server, _):
        link.send_nowait(b"last words")
        await link.aclose(1001, "leaving")
        assert await server.get_message() == b"last words"
        with pytest.raises(ConnectionClosed) as caught:
            await server.get_message()
        assert caught.value.reason is not None
        assert (caught.value.reason.code, caught.value.reason.reason) == (
            1001,
            "leaving",
        )
        with pytest.raises(trio.ClosedResourceError):
            await link.receive()
        with pytest.raises(trio.ClosedResourceError):
            await link.flush()
        link.send_nowait(b"x")
        assert link.unsent == 0
        await link.aclose()
    assert trio.current_time() == 0


async def test_a_server_that_does_not_answer_the_close(
    autojump_clock: trio.testing.MockClock,
) -> None:
    near, far = trio.testing.memory_stream_pair()
    async with open_link(near):
        pass
    assert trio.current_time() == 1
    assert bytes(await far.receive_some())[:2] == b"\x88\x82"
    assert await far.receive_some() == b""


async def test_an_exception_of_the_block_comes_out_as_it_is(
    autojump_clock: trio.testing.MockClock,
) -> None:
    near, far = trio.testing.memory_stream_pair()

    async def fail() -> None:
        async with open_link(near):
            raise KeyError("mine")

    with pytest.raises(KeyError, match="mine"):
        await fail()
    assert await far.receive_some() == b""

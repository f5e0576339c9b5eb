"""Calls from end to end: our client, our server, a connection in memory."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial

import pytest
import structlog.testing
import trio
import trio.testing

from tailnet.control.client import RpcClient, open_rpc_client
from tailnet.control.server import (
    CALL_GRACE,
    Handler,
    ServerCall,
    serve_rpc,
    unary,
)
from tailnet.errors import (
    LocalProtocolError,
    NotConnectedError,
    RemoteProtocolError,
    RpcError,
)
from tests.control.memory_link import MemoryLink, link_pair

pytestmark = pytest.mark.usefixtures("autojump_clock")

ECHO, COUNT, CHAT = "/test.Test/Echo", "/test.Test/Count", "/test.Test/Chat"


async def echo(call: ServerCall, request: bytes) -> bytes:
    if request == b"fail":
        raise RpcError("as you wish", 7)
    return request


async def count(call: ServerCall) -> None:
    """A stream of messages for one request."""
    request = await call.receive()
    assert request is not None
    for number in range(int(request)):
        await call.send(b"%d" % number)


async def chat(call: ServerCall) -> None:
    """Streams both ways."""
    while (message := await call.receive()) is not None:
        await call.send(message.upper())


HANDLERS: Mapping[str, Handler] = {ECHO: unary(echo), COUNT: count, CHAT: chat}


@dataclass
class Rig:
    client: RpcClient
    near: MemoryLink  # the client's
    far: MemoryLink  # the server's


@asynccontextmanager
async def rig(
    handlers: Mapping[str, Handler] = HANDLERS, capacity: int = 1 << 20
) -> AsyncGenerator[Rig]:
    near, far = link_pair(capacity)
    with trio.fail_after(1000):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(serve_rpc, far, handlers)
            async with open_rpc_client(near) as client:
                yield Rig(client, near, far)


# -- the three shapes -------------------------------------------------------


async def test_unary() -> None:
    async with rig() as r:
        assert await r.client.unary(ECHO, b"hello") == b"hello"
        assert await r.client.unary(ECHO, b"") == b""
        with pytest.raises(RpcError, match="as you wish") as caught:
            await r.client.unary(ECHO, b"fail")
        assert (caught.value.code, caught.value.text) == (7, "as you wish")
    assert r.near.closed_with == r.far.closed_with == (1000, "")


async def test_server_streaming() -> None:
    async with rig() as r, r.client.call(COUNT) as call:
        await call.send(b"1000")
        await call.close_send()
        assert [int(m) async for m in call] == list(range(1000))
        assert await call.receive() is None


async def test_bidirectional() -> None:
    async with rig() as r, r.client.call(CHAT) as call:
        for word in (b"a", b"", b"b" * 300_000):
            await call.send(word)
            assert await call.receive() == word.upper()
        await call.close_send()
        assert await call.receive() is None


async def test_calls_at_the_same_time() -> None:
    async def one(client: RpcClient, number: int) -> None:
        assert await client.unary(ECHO, b"%d" % number) == b"%d" % number
        answered.append(number)

    answered: list[int] = []
    async with rig() as r, trio.open_nursery() as nursery:
        for number in range(200):
            nursery.start_soon(one, r.client, number)
    assert sorted(answered) == list(range(200))


@pytest.mark.parametrize("size", [65_535, 65_536, 65_537, 4 << 20])
async def test_large_messages(size: int) -> None:
    message = bytes(i % 251 for i in range(1000)) * (size // 1000) + b"x" * (
        size % 1000
    )
    async with rig(capacity=10_000) as r:
        assert await r.client.unary(ECHO, message) == message


async def test_too_large_messages() -> None:
    async def large(call: ServerCall, request: bytes) -> bytes:
        return bytes((4 << 20) + 1)

    async with rig({ECHO: unary(large)}) as r:
        with pytest.raises(LocalProtocolError, match="4194305 bytes"):
            await r.client.unary(ECHO, bytes((4 << 20) + 1))
        with pytest.raises(RpcError, match="4194305 bytes"):
            await r.client.unary(ECHO, b"")


async def test_metadata() -> None:
    async def read(call: ServerCall, request: bytes) -> bytes:
        return call.metadata[request.decode()].encode()

    async with rig({ECHO: unary(read)}) as r:
        metadata = {"user": "alice", "empty": ""}
        assert await r.client.unary(ECHO, b"user", metadata=metadata) == b"alice"


async def test_unknown_method() -> None:
    async with rig() as r:
        with pytest.raises(RpcError) as caught:
            await r.client.unary("/test.Test/No", b"x")
        assert caught.value.code == 12
        assert caught.value.text == 'protocol error: unknown rpc: "/test.Test/No"'
        assert await r.client.unary(ECHO, b"goes on") == b"goes on"


async def test_bug_in_a_handler_ends_only_its_call() -> None:
    async def buggy(call: ServerCall, request: bytes) -> bytes:
        return [b"a"][len(request)]

    async with rig({**HANDLERS, COUNT: unary(buggy)}) as r:
        with structlog.testing.capture_logs() as logs:
            with pytest.raises(RpcError, match="^panic serving dRPC request$"):
                await r.client.unary(COUNT, b"ab")
        assert [entry["event"] for entry in logs] == ["rpc handler failed"]
        assert isinstance(logs[0]["exc_info"], IndexError)
        assert await r.client.unary(ECHO, b"x") == b"x"

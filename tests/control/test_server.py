"""Calls from end to end: our client, our server, a connection in memory."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass

import pytest
import structlog.testing
import trio
import trio.testing
from trio.testing import MockClock

from tailnet.control.client import RpcClient, open_rpc_client
from tailnet.control.drpc import UNIMPLEMENTED, Kind, Packet, encode_packet
from tailnet.control.server import (
    CALL_GRACE,
    HANDLERS_PER_STREAM,
    Handler,
    ServerCall,
    serve_rpc,
    unary,
)
from tailnet.control.session import MAX_LOGGED_REFUSALS
from tailnet.control.yamux_frames import ACK, FIN, SYN, FrameType, encode_header
from tailnet.errors import (
    LocalProtocolError,
    RemoteProtocolError,
    RpcError,
)
from tests.control.memory_link import MemoryLink, link_pair
from tests.control.raw_peer import RawPeer, raw_client, request
from tests.control.recorded import frames

METHOD = "/test.Test/Method"
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


async def test_unary(autojump_clock: MockClock) -> None:
    async with rig() as r:
        assert await r.client.unary(ECHO, b"hello") == b"hello"
        assert await r.client.unary(ECHO, b"") == b""
        with pytest.raises(RpcError, match="as you wish") as caught:
            await r.client.unary(ECHO, b"fail")
        assert (caught.value.code, caught.value.text) == (7, "as you wish")
    assert r.near.closed_with == r.far.closed_with == (1000, "")


async def test_server_streaming(autojump_clock: MockClock) -> None:
    async with rig() as r, r.client.call(COUNT) as call:
        await call.send(b"1000")
        await call.close_send()
        assert [int(m) async for m in call] == list(range(1000))
        assert await call.receive() is None


async def test_bidirectional(autojump_clock: MockClock) -> None:
    async with rig() as r, r.client.call(CHAT) as call:
        for word in (b"a", b"", b"b" * 300_000):
            await call.send(word)
            assert await call.receive() == word.upper()
        await call.close_send()
        assert await call.receive() is None


async def test_calls_at_the_same_time(autojump_clock: MockClock) -> None:
    async def one(client: RpcClient, number: int) -> None:
        assert await client.unary(ECHO, b"%d" % number) == b"%d" % number
        answered.append(number)

    answered: list[int] = []
    async with rig() as r, trio.open_nursery() as nursery:
        for number in range(200):
            nursery.start_soon(one, r.client, number)
    assert sorted(answered) == list(range(200))


@pytest.mark.parametrize("size", [65_535, 65_536, 65_537, 4 << 20])
async def test_large_messages(autojump_clock: MockClock, size: int) -> None:
    message = bytes(i % 251 for i in range(1000)) * (size // 1000) + b"x" * (
        size % 1000
    )
    async with rig(capacity=10_000) as r:
        assert await r.client.unary(ECHO, message) == message


async def test_too_large_messages(autojump_clock: MockClock) -> None:
    async def large(call: ServerCall, request: bytes) -> bytes:
        return bytes((4 << 20) + 1)

    async with rig({ECHO: unary(large)}) as r:
        with pytest.raises(LocalProtocolError, match="4194305 bytes"):
            await r.client.unary(ECHO, bytes((4 << 20) + 1))
        with pytest.raises(RpcError, match="4194305 bytes"):
            await r.client.unary(ECHO, b"")


async def test_metadata(autojump_clock: MockClock) -> None:
    async def read(call: ServerCall, request: bytes) -> bytes:
        return call.metadata[request.decode()].encode()

    async with rig({ECHO: unary(read)}) as r:
        metadata = {"user": "alice", "empty": ""}
        assert await r.client.unary(ECHO, b"user", metadata=metadata) == b"alice"


async def test_unknown_method(autojump_clock: MockClock) -> None:
    async with rig() as r:
        with pytest.raises(RpcError) as caught:
            await r.client.unary("/test.Test/No", b"x")
        assert caught.value.code == 12
        assert caught.value.text == 'protocol error: unknown rpc: "/test.Test/No"'
        assert await r.client.unary(ECHO, b"goes on") == b"goes on"


async def test_bug_in_a_handler_ends_only_its_call(autojump_clock: MockClock) -> None:
    async def buggy(call: ServerCall, request: bytes) -> bytes:
        return [b"a"][len(request)]

    async with rig({**HANDLERS, COUNT: unary(buggy)}) as r:
        with (
            structlog.testing.capture_logs() as logs,
            pytest.raises(RpcError, match=r"^panic serving dRPC request$"),
        ):
            await r.client.unary(COUNT, b"ab")
        assert [entry["event"] for entry in logs] == ["rpc handler failed"]
        assert isinstance(logs[0]["exc_info"], IndexError)
        assert await r.client.unary(ECHO, b"x") == b"x"


# -- what handlers can rely on ----------------------------------------------


async def test_the_answer_and_close_send_are_one_write(
    autojump_clock: MockClock,
) -> None:
    async with raw_client(HANDLERS) as peer:
        peer.open(1, request(ECHO, b"hi"))
        await peer.settle()
        assert peer.link.peer.sends == 2  # the acknowledgement is the other
        assert peer.received(1) == bytes.fromhex("05 01 01 02") + b"hi" + bytes.fromhex(
            "0d 01 02 00"
        )
        # Go's client often says Close behind it.
        peer.data(1, bytes.fromhex("0b 01 04 00"))
        peer.fin(1)
        await peer.settle()
        assert peer.flags(1) == [ACK, FIN]


async def test_unknown_method_is_acknowledged_first(autojump_clock: MockClock) -> None:
    async with raw_client({}) as peer:
        # What follows on an ended call is ignored, whatever it is.
        wire = request("/no", b"x") + b"\x05\x00\x00\x00"
        syn = encode_header(FrameType.WINDOW_UPDATE, SYN, 1, 0)
        head = encode_header(FrameType.DATA, 0, 1, len(wire))
        peer.link.send_nowait(syn + head + wire)
        await peer.settle()
        first, second = frames(bytes(peer.link.received))
        assert first[0].flags == ACK
        text = b'protocol error: unknown rpc: "/no"'
        assert second[1] == bytes((7, 1, 1, 8 + len(text))) + bytes(7) + b"\x0c" + text


@pytest.mark.parametrize(
    ("done", "last"), [(True, Kind.CLOSE_SEND), (False, Kind.CLOSE)]
)
async def test_last_word_of_a_handler_that_returns(
    done: bool, last: Kind, autojump_clock: MockClock
) -> None:
    async def handle(call: ServerCall) -> None:
        await call.receive()
        if call.metadata:
            call.close()

    async with raw_client({METHOD: handle}) as peer:
        peer.open(1, request(METHOD, b"x", done=done))
        await peer.settle()
        assert peer.packets(1) == [Packet(1, 1, last, b"")]


async def test_handler_that_closes(autojump_clock: MockClock) -> None:
    async def handle(call: ServerCall) -> None:
        await call.receive()
        call.close()
        call.send_nowait(b"unheard")
        call.reply(b"unheard")
        with pytest.raises(LocalProtocolError, match="behind the end"):
            await call.send(b"unheard")

    async with raw_client({METHOD: handle}) as peer:
        peer.open(1, request(METHOD, b"x"))
        await peer.settle()
        assert peer.packets(1) == [Packet(1, 1, Kind.CLOSE, b"")]


async def test_request_that_never_comes(autojump_clock: MockClock) -> None:
    async with raw_client(HANDLERS) as peer:
        peer.open(1, request(ECHO))
        await peer.settle()
        assert peer.packets(1) == [Packet(1, 1, Kind.ERROR, bytes(8) + b"EOF")]


@pytest.mark.parametrize("end", ["fin", "rst", "close", "leave"])
async def test_streaming_handler_is_cancelled_when_its_client_is_gone(
    end: str, autojump_clock: MockClock
) -> None:
    """It has its request and waits for something to tell: nobody would wake it."""
    ended: list[float] = []

    async def handle(call: ServerCall) -> None:
        await call.receive()
        try:
            await trio.sleep_forever()
        finally:
            ended.append(trio.current_time())

    async with raw_client({METHOD: handle}) as peer:
        peer.open(1, request(METHOD, b"x"))
        await peer.settle()
        assert ended == []
        match end:
            case "close":
                peer.data(1, encode_packet(Kind.CLOSE, 1, 4))
            case "leave":
                await peer.link.aclose()
            case _:
                getattr(peer, end)(1)
        await peer.settle()
        assert ended == [0.0]


async def test_request_whose_client_did_not_wait(autojump_clock: MockClock) -> None:
    """What was said is heard, though nobody wants the answer."""
    heard: list[bytes | None] = []

    async def handle(call: ServerCall) -> None:
        await trio.sleep(1.0)
        heard.append(await call.receive())
        await trio.sleep(1.0)
        heard.append(await call.receive())

    async with raw_client({METHOD: handle}) as peer:
        wire = request(METHOD, b"x") + encode_packet(Kind.CLOSE, 1, 4)
        peer.open(1, wire)
        await trio.sleep(3.0)
        assert heard == [b"x", None]
        assert peer.packets(1) == []


async def test_handler_that_still_receives_gets_some_time(
    autojump_clock: MockClock,
) -> None:
    """The last message may be a goodbye that has to be handled."""
    handled: list[object] = []

    async def handle(call: ServerCall) -> None:
        while (message := await call.receive()) is not None:
            await trio.sleep(1.0)
            handled.append(message)
        handled.append(trio.current_time())
        try:
            await trio.sleep_forever()
        finally:
            handled.append(trio.current_time())

    async with raw_client({METHOD: handle}) as peer:
        peer.open(1, request(METHOD, b"1", b"2", done=False))
        await peer.link.aclose()
    assert handled == [b"1", b"2", 2.0, CALL_GRACE]
    assert trio.current_time() == CALL_GRACE


async def test_error_from_a_nursery_of_the_handler(autojump_clock: MockClock) -> None:
    async def fail() -> None:
        raise RpcError("from within", 3)

    async def handle(call: ServerCall) -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(fail)
            await trio.sleep_forever()

    async with rig({ECHO: handle}) as r:
        with pytest.raises(RpcError, match="from within"):
            await r.client.unary(ECHO, b"")


async def test_protocol_errors_of_handlers_are_answers(
    autojump_clock: MockClock,
) -> None:
    async def handle(call: ServerCall, message: bytes) -> bytes:
        raise RemoteProtocolError("a message that is none")

    with structlog.testing.capture_logs() as logs:
        async with rig({ECHO: unary(handle)}) as r:
            with pytest.raises(RpcError, match="a message that is none"):
                await r.client.unary(ECHO, b"")
    assert [e["event"] for e in logs] == ["rpc call failed", "rpc session ended"]


async def test_refusals_are_logged(autojump_clock: MockClock) -> None:
    """Each of them, until it is nothing new, and what is not there in a whisper."""

    async def handle(call: ServerCall, message: bytes) -> bytes:
        raise RpcError("no such thing", int(message))

    with structlog.testing.capture_logs() as logs:
        async with rig({ECHO: unary(handle)}) as r:
            for code in (0, UNIMPLEMENTED, *[7] * MAX_LOGGED_REFUSALS):
                with pytest.raises(RpcError):
                    await r.client.unary(ECHO, b"%d" % code)
    refused = [entry for entry in logs if entry["event"] == "rpc call refused"]
    assert {(e["reason"], e["method"]) for e in refused} == {("no such thing", ECHO)}
    levels = [entry["log_level"] for entry in refused]
    assert levels[:3] == ["info", "debug", "info"]
    assert levels[-3:] == ["info", "debug", "debug"]
    assert len(levels) == MAX_LOGGED_REFUSALS + 2


async def test_a_refusal_that_nobody_hears_is_not_logged(
    autojump_clock: MockClock,
) -> None:
    async def handle(call: ServerCall) -> None:
        while await call.receive() is not None:
            pass
        raise RpcError("EOF")

    with structlog.testing.capture_logs() as logs:
        async with raw_client({METHOD: handle}) as peer:
            peer.open(1, request(METHOD, b"x", done=False))
            peer.fin(1)
            await peer.settle()
    assert [entry["event"] for entry in logs] == ["rpc session ended"]


async def test_one_message_to_many(autojump_clock: MockClock) -> None:
    """What a coordinator does: the same bytes, sent by one task that never waits."""
    calls: list[ServerCall] = []

    async def handle(call: ServerCall) -> None:
        calls.append(call)
        while await call.receive() is not None:
            pass

    async with trio.open_nursery() as nursery:
        links = []
        for _ in range(50):
            near, far = link_pair()
            links.append(near)
            nursery.start_soon(serve_rpc, far, {METHOD: handle})
            RawPeer(near).open(1, request(METHOD, done=False))
        await trio.testing.wait_all_tasks_blocked()
        tasks = len(nursery.child_tasks)
        message = bytes(400)
        for call in calls:
            call.send_nowait(message)
            assert call.backlog == 0
        # It is there already, without any other task.
        for near in links:
            assert RawPeer(near).packets(1) == [Packet(1, 1, Kind.MESSAGE, message)]
        assert len(nursery.child_tasks) == tasks
        nursery.cancel_scope.cancel()


async def test_calls_that_are_reset_while_their_handlers_go_on(
    autojump_clock: MockClock,
) -> None:
    """Streams are free again at once, and the next call comes."""
    running = most = 0

    async def slow(call: ServerCall) -> None:
        nonlocal running, most
        running += 1
        most = max(most, running)
        try:
            await trio.sleep_forever()
        finally:
            running -= 1

    with structlog.testing.capture_logs() as logs:
        async with raw_client({METHOD: slow}, max_streams=4) as peer:
            for stream_id in range(1, 201, 2):
                peer.open(stream_id, request(METHOD, b"unread", done=False))
                peer.rst(stream_id)
            await peer.settle()
            assert most == 4 * HANDLERS_PER_STREAM + 1
            await trio.sleep(CALL_GRACE + 1)
            assert not running
    (end,) = (entry for entry in logs if entry["event"] == "rpc session ended")
    assert end["reason"] == "the peer makes calls faster than they can end"
    assert (end["code"], end["log_level"]) == (1011, "info")

"""A session against peers by hand: timeouts, floods, and its ends."""

from __future__ import annotations

import gc
from collections.abc import Callable

import pytest
import structlog.testing
import trio
from trio.testing import MockClock

from tailnet.control.client import open_rpc_client
from tailnet.control.drpc import Kind, encode_packet
from tailnet.control.keepalive import PING_INTERVAL, PING_TIMEOUT
from tailnet.control.server import ServerCall, serve_rpc
from tailnet.control.session import (
    MAX_FAILED_CALLS,
    MAX_HELD_LEN,
    MAX_UNREAD_CONTROL_LEN,
    WRITE_TIMEOUT,
    SessionEnd,
)
from tailnet.control.yamux import MAX_STREAMS, MAX_UNACKNOWLEDGED, OPEN_TIMEOUT
from tailnet.control.yamux_frames import (
    ACK,
    FIN,
    INITIAL_WINDOW,
    RST,
    SYN,
    FrameType,
    encode_header,
)
from tailnet.errors import NotConnectedError
from tests.control.memory_link import link_pair
from tests.control.raw_peer import RawPeer, raw_client, request
from tests.control.recorded import frames

METHOD = "/test.Test/Method"
PING = bytes.fromhex("0002 0001 00000000 00000000")
GO_AWAY = bytes.fromhex("0003 0000 00000000 00000001")


async def wait_for_ever(call: ServerCall) -> None:
    await trio.sleep_forever()


async def drain(call: ServerCall) -> None:
    while await call.receive() is not None:
        pass


# -- keep-alive -------------------------------------------------------------


@pytest.mark.parametrize("interval", [None, 15.0])
async def test_silent_peer(interval: float | None, autojump_clock: MockClock) -> None:
    with structlog.testing.capture_logs() as logs:
        async with raw_client({}, ping_interval=interval) as peer:
            assert await peer.link.receive() == PING
            assert trio.current_time() == (interval or PING_INTERVAL)
            assert await peer.link.receive() == b""
            assert trio.current_time() == (interval or PING_INTERVAL) + PING_TIMEOUT
            assert peer.link.peer.closed_with == (1011, "keepalive timeout")
    assert [(e["event"], e["reason"], e["code"]) for e in logs] == [
        ("rpc session ended", "keepalive timeout", 1011)
    ]


async def test_peer_that_answers(autojump_clock: MockClock) -> None:
    taken: list[float] = []
    async with (
        raw_client({}, ping_interval=15.0, on_pong=taken.append) as peer,
        trio.open_nursery() as nursery,
    ):
        nursery.start_soon(peer.answer_pings)
        await trio.sleep(15 * 10 + 1)
        assert taken == [0.0] * 10
        # Answers to nothing are no sign of life.
        nursery.cancel_scope.cancel()
    assert len(taken) == 10


async def test_client_pings_too(autojump_clock: MockClock) -> None:
    near, far = link_pair()
    async with open_rpc_client(near) as client:
        assert await far.receive() == PING
        assert await client.wait_closed() == "keepalive timeout"
        assert trio.current_time() == PING_INTERVAL + PING_TIMEOUT
        with pytest.raises(NotConnectedError, match="keepalive timeout"):
            await client.unary(METHOD, b"")
    assert near.closed_with is not None


# -- peers that do not read -------------------------------------------------


async def test_peer_that_does_not_read(autojump_clock: MockClock) -> None:
    async def flood(call: ServerCall) -> None:
        while True:
            await call.send(bytes(10_000))

    async with raw_client({METHOD: flood}, capacity=1000) as peer:
        peer.open(1, request(METHOD))
        await trio.sleep(WRITE_TIMEOUT + 1)
        assert peer.link.peer.closed_with == (1011, "the peer does not read")


async def test_peer_that_reads_slowly_is_left_alone(autojump_clock: MockClock) -> None:
    async def send(call: ServerCall) -> None:
        for _ in range(20):
            await call.send(bytes(10_000))

    async with raw_client({METHOD: send}, capacity=1000) as peer:
        peer.open(1, request(METHOD))
        async with trio.open_nursery() as nursery:
            nursery.start_soon(ping_by_hand, peer, 20)
            while len(peer.link.received) < 200_000:
                await trio.sleep(0.9)
                await peer.link.receive()
                assert peer.link.peer.closed_with is None
            nursery.cancel_scope.cancel()
        assert trio.current_time() > 10 * WRITE_TIMEOUT


async def ping_by_hand(peer: RawPeer, count: int) -> None:
    """Answer the pings that must be among what is not read yet."""
    answered = 0
    while True:
        await trio.sleep(1.0)
        pings = PING_INTERVAL * (answered + 1)
        if trio.current_time() >= pings:
            peer.link.send_nowait(encode_header(FrameType.PING, ACK, 0, answered))
            answered += 1


async def test_flood_of_pings_whose_answers_are_not_read(
    autojump_clock: MockClock,
) -> None:
    async with raw_client({}, capacity=12_000) as peer:
        sent = 0
        while peer.link.peer.closed_with is None:
            peer.link.send_nowait(PING * 100)
            sent += 1200
            await peer.settle()
            assert sent < 12_000 + 2 * MAX_UNREAD_CONTROL_LEN
        code, reason = peer.link.peer.closed_with
        assert (code, reason) == (1011, "the peer floods and does not read the answers")


async def test_flood_of_pings_whose_answers_are_read(autojump_clock: MockClock) -> None:
    async with raw_client({}) as peer, trio.open_nursery() as nursery:
        nursery.start_soon(peer.read_all)
        for _ in range(100):
            peer.link.send_nowait(PING * 1000)
            await peer.settle()
        assert peer.link.peer.closed_with is None
        assert len(peer.link.received) == 100 * 1000 * 12
        nursery.cancel_scope.cancel()


async def test_answers_that_are_read_late(autojump_clock: MockClock) -> None:
    """It is not the sum that counts, but what is unread at one time."""
    async with raw_client({}, capacity=12_000) as peer:
        for number in range(1, 21):
            peer.link.send_nowait(PING * 1000)
            await peer.settle()
            peer.link.send_nowait(PING * 1000)
            await peer.settle()
            while len(peer.link.received) < number * 24_000:
                await peer.link.receive()
                await peer.settle()
            await peer.link.receive()
        assert peer.link.peer.closed_with is None


# -- too much of something --------------------------------------------------


async def test_ten_thousand_streams(autojump_clock: MockClock) -> None:
    running = 0

    async def hold(call: ServerCall) -> None:
        nonlocal running
        running += 1
        await drain(call)
        running -= 1

    with structlog.testing.capture_logs() as logs:
        async with raw_client({METHOD: hold}, capacity=1 << 24) as peer:
            for number in range(10_000):
                peer.open(1 + 2 * number, request(METHOD, done=False))
            await peer.settle()
            assert running == MAX_STREAMS
            got = [h.flags for h, _ in frames(bytes(peer.link.received))]
            assert got == [ACK] * MAX_STREAMS + [RST] * (10_000 - MAX_STREAMS)
            # Those within the limit work on, and others again once they leave.
            for number in range(MAX_STREAMS):
                peer.rst(1 + 2 * number)
            await peer.settle()
            assert running == 0
            peer.open(50_001, request(METHOD, done=False))
            await peer.settle()
            assert running == 1
    assert [(e["event"], e["refused_streams"]) for e in logs] == [
        ("rpc session ended", 10_000 - MAX_STREAMS)
    ]


async def test_too_much_that_nobody_takes(autojump_clock: MockClock) -> None:
    async with raw_client({METHOD: wait_for_ever}, capacity=1 << 26) as peer:
        body = request(METHOD, bytes(INITIAL_WINDOW - 100), done=False)
        fit = MAX_HELD_LEN // (INITIAL_WINDOW - 100)
        for number in range(fit):
            peer.open(1 + 2 * number, body)
        await peer.settle()
        assert peer.link.peer.closed_with is None
        peer.open(99_999, body)
        await peer.settle()
        assert peer.link.peer.closed_with == (
            1011,
            "more than 16777216 bytes wait for calls to take them",
        )


async def test_what_is_taken_is_not_counted(autojump_clock: MockClock) -> None:
    async with raw_client({METHOD: drain}, capacity=1 << 26) as peer:
        for number in range(200):
            peer.open(1 + 2 * number, request(METHOD, bytes(200_000)))
            if number % 2:
                peer.rst(1 + 2 * number)
        await peer.settle()
        assert peer.link.peer.closed_with is None


async def test_what_nobody_will_take_is_not_counted(autojump_clock: MockClock) -> None:
    """Handlers that return at once, and methods that there are not."""

    async def ignore(call: ServerCall) -> None:
        pass

    part = request("/nobody", bytes(200_000), done=False)[:190_000]
    async with raw_client({METHOD: ignore}, capacity=1 << 26) as peer:
        for number in range(0, 200, 2):
            peer.open(1 + 2 * number, request(METHOD, bytes(200_000)))
            peer.open(
                3 + 2 * number, part.replace(METHOD.encode(), b"/test.Test/Nobody")
            )
        await peer.settle()
        assert peer.link.peer.closed_with is None
        assert len(peer.packets(3)) == len(peer.packets(1)) == 1


async def test_too_many_broken_calls(autojump_clock: MockClock) -> None:
    with structlog.testing.capture_logs() as logs:
        async with raw_client({}) as peer:
            for number in range(MAX_FAILED_CALLS + 5):
                peer.open(1 + 2 * number, encode_packet(Kind.MESSAGE, 1, 1))
            await peer.settle()
            closed = peer.link.peer.closed_with
            assert closed is not None
            assert closed[0] == 1011
            assert closed[1].startswith("17 calls broke the protocol")
    assert len(logs) == MAX_FAILED_CALLS + 1


# -- ends -------------------------------------------------------------------


@pytest.mark.parametrize(
    ("wire", "reason"),
    [
        (b"\x01" + bytes(11), "yamux version 1, not 0"),
        (b"GET / HTTP/1.1\r\n\r\n", "yamux version 71, not 0"),
        (
            encode_header(FrameType.WINDOW_UPDATE, SYN, 2, 0),
            "the peer may not open stream 2",
        ),
        (
            encode_header(FrameType.DATA, 0, 1, INITIAL_WINDOW + 1),
            "receive window exceeded (stream: 1, remain: 262144, recv: 262145)",
        ),
    ],
)
async def test_broken_yamux_ends_the_session(
    wire: bytes, reason: str, autojump_clock: MockClock
) -> None:
    with structlog.testing.capture_logs() as logs:
        async with raw_client({}) as peer:
            peer.link.send_nowait(wire)
            await peer.settle()
            assert peer.link.peer.closed_with == (1011, reason)
            assert bytes(peer.link.received) == GO_AWAY
    assert [(e["event"], e["reason"], e["log_level"]) for e in logs] == [
        ("rpc session ended", reason, "info")
    ]


async def test_peer_that_leaves(autojump_clock: MockClock) -> None:
    with structlog.testing.capture_logs() as logs:
        near, far = link_pair()
        near.send_nowait(encode_header(FrameType.WINDOW_UPDATE, SYN, 1, 0)[:7])
        await near.aclose()
        await serve_rpc(far, {})
    assert far.closed_with == (1000, "")
    assert [(e["reason"], e["log_level"]) for e in logs] == [("", "debug")]


@pytest.mark.parametrize(
    ("break_it", "closed", "level"),
    [
        (lambda link: link.break_off(), "the connection broke: reset", "debug"),
        (
            lambda link: link.break_off(ConnectionResetError("reset")),
            "the connection broke: reset",
            "debug",
        ),
        (lambda link: link.break_rules(), "a text message", "info"),
    ],
)
async def test_link_that_breaks(
    break_it: Callable[[object], None],
    closed: str,
    level: str,
    autojump_clock: MockClock,
) -> None:
    """The handlers are told, and the session ends by itself."""
    ended = []

    async def listen(call: ServerCall) -> None:
        ended.append(await call.receive())

    with structlog.testing.capture_logs() as logs:
        async with raw_client({METHOD: listen, "other": wait_for_ever}) as peer:
            peer.open(1, request(METHOD, done=False))
            peer.open(3, request("other", done=True))
            await peer.settle()
            break_it(peer.link.peer)
    assert ended == [None]
    assert [(e["log_level"], e["code"]) for e in logs] == [(level, 1011)]
    assert logs[0]["reason"].startswith(closed)


async def test_link_that_breaks_while_writing(autojump_clock: MockClock) -> None:
    async def send(call: ServerCall) -> None:
        await call.send(bytes(200_000))

    async with raw_client({METHOD: send}, capacity=1000) as peer:
        peer.open(1, request(METHOD))
        await peer.settle()
        assert peer.link.peer.flushing
        peer.link.peer.break_off()


async def test_link_that_its_owner_closes(autojump_clock: MockClock) -> None:
    async with raw_client({METHOD: drain}) as peer:
        peer.open(1, request(METHOD, done=False))
        await peer.settle()
        await peer.link.peer.aclose(1008, "build is outdated")
        assert await peer.link.receive()
        assert await peer.link.receive() == b""
    assert peer.link.peer.closed_with == (1008, "build is outdated")


async def test_cancelled_server_goes_away(autojump_clock: MockClock) -> None:
    near, far = link_pair()
    handled = []

    async def handle(call: ServerCall) -> None:
        try:
            await trio.sleep_forever()
        finally:
            handled.append("cancelled")

    async with trio.open_nursery() as nursery:
        nursery.start_soon(serve_rpc, far, {METHOD: handle})
        RawPeer(near).open(1, request(METHOD, done=False))
        await RawPeer(near).settle()
        nursery.cancel_scope.cancel()
    assert far.closed_with == (1001, "")
    assert handled == ["cancelled"]
    assert trio.current_time() == 0


async def test_nothing_is_left_of_a_session(autojump_clock: MockClock) -> None:
    started = 0

    async def handle(call: ServerCall) -> None:
        nonlocal started
        started += 1
        await drain(call)

    async with raw_client({METHOD: handle}) as peer:
        for number in range(50):
            peer.open(1 + 2 * number, request(METHOD, b"x" * 1000, done=False))
        await peer.settle()
        peer.link.send_nowait(b"\xff" * 12)
        await peer.settle()
        link = peer.link.peer
    assert started == 50
    gc.collect()
    assert [o for o in gc.get_objects() if isinstance(o, ServerCall)] == []
    assert link.closed_with is not None


def test_close_reasons_fit_a_websocket() -> None:
    assert SessionEnd("ä" * 100).close_reason == "ä" * 61
    assert SessionEnd("short").close_reason == "short"


# -- the opener's side ------------------------------------------------------


async def test_calls_wait_for_acknowledgements(autojump_clock: MockClock) -> None:
    near, far = link_pair()
    peer = RawPeer(far)
    async with open_rpc_client(near) as client, trio.open_nursery() as nursery:

        async def call() -> None:
            async with client.call(METHOD):
                opened.append(trio.current_time())
                await trio.sleep_forever()

        opened: list[float] = []
        for _ in range(MAX_UNACKNOWLEDGED + 5):
            nursery.start_soon(call)
        await peer.settle()
        assert len(opened) == MAX_UNACKNOWLEDGED
        for stream_id in (1, 3):
            peer.accept(stream_id)
        await peer.settle()
        assert len(opened) == MAX_UNACKNOWLEDGED + 2
        nursery.cancel_scope.cancel()


async def test_stream_that_is_never_accepted(autojump_clock: MockClock) -> None:
    near, far = link_pair()
    peer = RawPeer(far)
    async with open_rpc_client(near) as client, trio.open_nursery() as nursery:
        nursery.start_soon(peer.answer_pings)
        await trio.sleep(3.0)
        with pytest.raises(NotConnectedError, match="stream 1 was not acknowledged"):
            await client.unary(METHOD, b"x")
        assert trio.current_time() == 3.0 + OPEN_TIMEOUT
        nursery.cancel_scope.cancel()


async def test_server_that_takes_no_more_calls(autojump_clock: MockClock) -> None:
    near, far = link_pair()
    peer = RawPeer(far)
    async with open_rpc_client(near) as client, client.call(METHOD) as call:
        await call.send(b"x")
        far.send_nowait(encode_header(FrameType.GO_AWAY, 0, 0, 0))
        await peer.settle()
        with pytest.raises(NotConnectedError, match="takes no more calls"):
            await client.unary(METHOD, b"x")
        # The one there is goes on.
        peer.accept(1)
        peer.data(1, encode_packet(Kind.MESSAGE, 1, 1, b"still here"))
        assert await call.receive() == b"still here"


async def test_server_that_opens_a_stream_is_refused(autojump_clock: MockClock) -> None:
    near, far = link_pair()
    peer = RawPeer(far)
    async with open_rpc_client(near):
        peer.open(2, b"unexpected")
        await peer.settle()
        assert peer.flags(2) == [RST]
        peer.fin(2)
        await peer.settle()
        assert near.closed_with is None
    assert FIN not in peer.flags(2)
